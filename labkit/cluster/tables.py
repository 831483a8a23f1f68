"""The state of nodes, streams, consumers and connections as pandas DataFrames: one thing a row, one
fact a column."""

import asyncio
import datetime

import psutil

from labkit.cluster import containers, raft
from labkit.errors import LabError


async def nodes(cluster, isolated=()):
    """Columns: node, state, port, version, meta ("leader" or "follower"), connections, memory_mib,
    uptime_s. What a node that is silent does not tell is left out.

    state: "up"; "isolated" (it answers, and is cut off from the others); "paused"; "dead"; "no
    answer" where more cannot be known. isolated: names of the nodes that are cut off, since no node
    can tell that of itself.
    """
    import pandas as pd

    told = await asyncio.gather(*map(raft.ask_patiently, cluster.nodes))
    rows = []
    for node, facts in zip(cluster.nodes, told):
        if not facts:
            rows.append(
                {
                    "node": node.name,
                    "state": await asyncio.to_thread(_why_silent, cluster, node),
                    "port": node.port,
                }
            )
            continue
        leader = facts["jetstream"].get("meta", {}).get("leader")
        up = _when(facts["now"]) - _when(facts["start"])
        rows.append(
            {
                "node": node.name,
                "state": "isolated" if node.name in isolated else "up",
                "port": node.port,
                "version": facts["version"],
                "meta": "leader" if leader == node.name else "follower",
                "connections": facts["connections"],
                "memory_mib": round(facts["mem"] / 2**20, 1),
                "uptime_s": round(up.total_seconds(), 1),
            }
        )
    columns = ["node", "state", "port", "version", "meta", "connections", "memory_mib", "uptime_s"]
    return pd.DataFrame(rows, columns=columns).set_index("node")


def _why_silent(cluster, node):
    """The state of a node that does not answer: its process tells it, of a container, docker."""
    if node.store:
        process = node.process()
        try:
            return (
                "dead"
                if not process
                else "paused"
                if process.status() == psutil.STATUS_STOPPED
                else "no answer"
            )
        except psutil.NoSuchProcess:
            return "dead"
    if cluster.backend == "compose":
        try:
            word = containers.docker(
                "inspect", "-f", "{{.State.Status}}", f"labkit-{node.name}"
            ).strip()
        except LabError:  # there is no such container any more
            return "dead"
        return {"paused": "paused", "exited": "dead", "dead": "dead"}.get(word, "no answer")
    return "no answer"


async def replicas(cluster, account):
    """Columns: stream, node, role ("leader" or "follower"), state ("current", "behind" or
    "offline", as the leader sees it; "unknown" while nobody leads), lag (entries of the log that it
    has not confirmed), messages (in this node's own store). One row a replica of a stream of this
    account, read from the nodes themselves, so it works while JetStream does not; a stream all of
    whose nodes are silent is not in it."""
    import pandas as pd

    views = await raft.seen(cluster, account, raft.ask_patiently)
    rows = []
    for stream in sorted({name for view in views.values() for name in view["streams"]}):
        leader = raft.leading(views, stream)
        holders = {
            name: raft.group(view, stream)
            for name, view in views.items()
            if stream in view["streams"]
        }
        peers = {peer["name"]: peer for peer in holders.get(leader, {}).get("replicas") or []}
        members = {
            *holders,
            *(peer["name"] for known in holders.values() for peer in known.get("replicas") or []),
        }
        for node in sorted(members):
            own = views.get(node, {"streams": {}})["streams"].get(stream)
            rows.append(
                {
                    "stream": stream,
                    "node": node,
                    "role": "leader" if node == leader else "follower",
                    "state": _standing(node, leader, peers),
                    "lag": peers.get(node, {}).get("lag", 0) if leader else None,
                    "messages": own and own["state"]["messages"],
                }
            )
    frame = pd.DataFrame(rows, columns=["stream", "node", "role", "state", "lag", "messages"])
    return frame.astype({"lag": "Int64", "messages": "Int64"}).set_index(["stream", "node"])


def _standing(node, leader, peers):
    if not leader:
        return "unknown"
    peer = peers.get(node, {"current": node == leader})
    return "offline" if not raft.heard(peer) else "current" if peer["current"] else "behind"


async def streams(js):
    """Columns: stream, subjects, retention, storage, replicas, messages, bytes, first_seq,
    last_seq, consumers, leader."""
    import pandas as pd

    columns = [
        "stream",
        "subjects",
        "retention",
        "storage",
        "replicas",
        "messages",
        "bytes",
        "first_seq",
        "last_seq",
        "consumers",
        "leader",
    ]
    return pd.DataFrame(
        [_stream(info) for info in await js.streams_info()], columns=columns
    ).set_index("stream")


def _stream(info):
    config, state = info.config, info.state
    return {
        "stream": config.name,
        "subjects": ", ".join(config.subjects or []),
        "retention": _word(config.retention),
        "storage": _word(config.storage),
        "replicas": config.num_replicas,
        "messages": state.messages,
        "bytes": state.bytes,
        "first_seq": state.first_seq,
        "last_seq": state.last_seq,
        "consumers": state.consumer_count,
        "leader": info.cluster.leader if info.cluster else None,
    }


async def consumers(js, stream):
    """Columns: consumer, filter, delivered (stream sequence), ack_floor (stream sequence), pending
    (not yet delivered), ack_pending (delivered, not acked), redelivered (now, a gauge), waiting
    (open pull requests), leader.
    """
    import pandas as pd

    rows = [
        {
            "consumer": info.name,
            "filter": info.config.filter_subject or ", ".join(info.config.filter_subjects or []),
            "delivered": info.delivered.stream_seq,
            "ack_floor": info.ack_floor.stream_seq,
            "pending": info.num_pending,
            "ack_pending": info.num_ack_pending,
            "redelivered": info.num_redelivered,
            "waiting": info.num_waiting,
            "leader": info.cluster.leader if info.cluster else None,
        }
        for info in await js.consumers_info(stream)
    ]
    columns = [
        "consumer",
        "filter",
        "delivered",
        "ack_floor",
        "pending",
        "ack_pending",
        "redelivered",
        "waiting",
        "leader",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("consumer")


async def connections(cluster, account):
    """Columns: node, name, subscriptions, in_msgs (from the client), out_msgs (to it),
    pending_bytes. One row a connection of this account, as the nodes' /connz tell it."""
    import pandas as pd

    rows = await connection_rows(cluster, account)
    return pd.DataFrame(
        rows, columns=["node", "name", "subscriptions", "in_msgs", "out_msgs", "pending_bytes"]
    )


async def connection_rows(cluster, account):
    """The rows of connections() as a list of dicts, without pandas, whose import takes seconds."""
    query = f"connz?acc={account.upper()}&limit=100000"  # without it, 1024
    told = await asyncio.gather(*(raft.ask_patiently(node, query) for node in cluster.nodes))
    return [
        {
            "node": node.name,
            "name": c.get("name", ""),
            "subscriptions": c["subscriptions"],
            "in_msgs": c["in_msgs"],
            "out_msgs": c["out_msgs"],
            "pending_bytes": c["pending_bytes"],
        }
        for node, facts in zip(cluster.nodes, told)
        for c in (facts or {}).get("connections") or []
    ]


def _word(value):
    return getattr(value, "value", value)


def _when(text):
    return datetime.datetime.fromisoformat(text[:19] + "+00:00")

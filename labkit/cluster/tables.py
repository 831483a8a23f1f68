"""The state of nodes, streams, consumers and connections as pandas DataFrames: one row each."""

import asyncio
import datetime

import psutil

from labkit.cluster import containers, raft
from labkit.cluster.connection import OUR_NAME
from labkit.errors import LabError

CONNECTION_NUMBERS = ["subscriptions", "in_msgs", "out_msgs", "pending_bytes"]


async def nodes(cluster, isolated=()):
    """Returns one row a node. Columns: node, state, port, version, meta ("leader" or "follower"),
    connections, memory_mib, uptime_s. A node that does not answer has only its state and port.

    state: "up"; "isolated" (it answers, but is cut off from the others); "paused"; "dead"; "no
    answer" if no more can be known. isolated: names of the nodes that are cut off, because a node
    cannot tell that of itself.
    """
    import pandas as pd

    answers = await asyncio.gather(*(raft.ask_patiently(node) for node in cluster.nodes))
    rows = []
    for node, answer in zip(cluster.nodes, answers):
        row = {"node": node.name, "port": node.port}
        if answer:
            row["state"] = "isolated" if node.name in isolated else "up"
            row |= _facts(node, answer)
        else:
            row["state"] = await asyncio.to_thread(_why_silent, cluster, node)
        rows.append(row)
    columns = ["node", "state", "port", "version", "meta", "connections", "memory_mib", "uptime_s"]
    return pd.DataFrame(rows, columns=columns).set_index("node")


def _facts(node, answer):
    meta_leader = answer["jetstream"].get("meta", {}).get("leader")
    uptime = _time(answer["now"]) - _time(answer["start"])
    return {
        "version": answer["version"],
        "meta": "leader" if meta_leader == node.name else "follower",
        "connections": answer["connections"],
        "memory_mib": round(answer["mem"] / 2**20, 1),
        "uptime_s": round(uptime.total_seconds(), 1),
    }


def _why_silent(cluster, node):
    """Returns the state of a node that does not answer: its process tells it, or docker."""
    if node.store:
        return _state_of_process(node)
    if cluster.backend == "compose":
        return _state_of_container(node)
    return "no answer"


def _state_of_process(node):
    try:
        process = node.process()
        if not process:
            return "dead"
        return "paused" if process.status() == psutil.STATUS_STOPPED else "no answer"
    except psutil.NoSuchProcess:
        return "dead"


def _state_of_container(node):
    try:
        status = containers.status(node.name)
    except LabError:  # there is no such container any more
        return "dead"
    return {"paused": "paused", "exited": "dead", "dead": "dead"}.get(status, "no answer")


async def replicas(cluster, account):
    """Returns one row a replica of a stream of this account. Columns: stream, node, role ("leader"
    or "follower"), state ("current", "behind" or "offline", as the leader sees it; "unknown" while
    nobody leads), lag (entries of the log that it has not confirmed), messages (in this node's own
    store).

    The nodes themselves tell it, so it works also while JetStream does not. A stream of which no
    node answers is left out."""
    import pandas as pd

    views = await raft.seen(cluster, account, raft.ask_patiently)
    streams = sorted({name for view in views.values() for name in view["streams"]})
    rows = [row for stream in streams for row in _replicas_of(stream, views)]
    frame = pd.DataFrame(rows, columns=["stream", "node", "role", "state", "lag", "messages"])
    return frame.astype({"lag": "Int64", "messages": "Int64"}).set_index(["stream", "node"])


def _replicas_of(stream, views):
    leader = raft.leading(views, stream)
    groups = {
        node: raft.group(view, stream) for node, view in views.items() if stream in view["streams"]
    }
    members = set(groups)
    for group in groups.values():
        members.update(peer["name"] for peer in group.get("replicas") or [])
    peers = {peer["name"]: peer for peer in groups.get(leader, {}).get("replicas") or []}
    rows = []
    for node in sorted(members):
        row = {
            "stream": stream,
            "node": node,
            "role": "leader" if node == leader else "follower",
            "state": _state_of_replica(node, leader, peers),
        }
        if leader:
            row["lag"] = peers.get(node, {}).get("lag", 0)
        if node in groups:
            row["messages"] = views[node]["streams"][stream]["state"]["messages"]
        rows.append(row)
    return rows


def _state_of_replica(node, leader, peers):
    """peers: {name: what the leader says of this replica}."""
    if not leader:
        return "unknown"
    if node == leader:
        return "current"
    peer = peers.get(node)
    if not peer or not raft.heard(peer):
        return "offline"
    return "current" if peer["current"] else "behind"


async def streams(js):
    """Returns one row a stream. Columns: stream, subjects, retention, storage, replicas, messages,
    bytes, first_seq, last_seq, consumers, leader."""
    import pandas as pd

    columns = [
        *("stream", "subjects", "retention", "storage", "replicas", "messages", "bytes"),
        *("first_seq", "last_seq", "consumers", "leader"),
    ]
    rows = [_stream(info) for info in await js.streams_info()]
    return pd.DataFrame(rows, columns=columns).set_index("stream")


def _stream(info):
    config = info.config
    state = info.state
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
    """Returns one row a consumer. Columns: consumer, filter, delivered (stream sequence), ack_floor
    (stream sequence), pending (not yet delivered), ack_pending (delivered, not acked), redelivered
    (now, a gauge), waiting (open pull requests), leader.
    """
    import pandas as pd

    columns = [
        *("consumer", "filter", "delivered", "ack_floor", "pending", "ack_pending"),
        *("redelivered", "waiting", "leader"),
    ]
    rows = [_consumer(info) for info in await js.consumers_info(stream)]
    return pd.DataFrame(rows, columns=columns).set_index("consumer")


def _consumer(info):
    config = info.config
    return {
        "consumer": info.name,
        "filter": config.filter_subject or ", ".join(config.filter_subjects or []),
        "delivered": info.delivered.stream_seq,
        "ack_floor": info.ack_floor.stream_seq,
        "pending": info.num_pending,
        "ack_pending": info.num_ack_pending,
        "redelivered": info.num_redelivered,
        "waiting": info.num_waiting,
        "leader": info.cluster.leader if info.cluster else None,
    }


async def connections(cluster, account):
    """Returns one row a connection of this account, as the nodes' /connz tell it, but for labkit's
    own. Columns: node, name, subscriptions, in_msgs (from the client), out_msgs (to it),
    pending_bytes."""
    import pandas as pd

    rows = [row for row in await connection_rows(cluster, account) if row["name"] != OUR_NAME]
    return pd.DataFrame(rows, columns=["node", "name", *CONNECTION_NUMBERS])


async def connection_rows(cluster, account):
    """Returns the rows of connections(), and labkit's own connections, as a list of dicts: without
    pandas, whose import takes seconds."""
    query = f"connz?acc={account.upper()}&limit=100000"  # the default limit is 1024
    answers = await asyncio.gather(*(raft.ask_patiently(node, query) for node in cluster.nodes))
    return [
        _connection(node, connection)
        for node, answer in zip(cluster.nodes, answers)
        for connection in (answer or {}).get("connections") or []
    ]


def off_the_wire(cluster, account, since):
    """What a record of connections has to know of the rest: all connections of this account that
    have been open at any time `since` (seconds since the epoch), as a set of (server id, client
    id), and the subjects that its streams take (list). None if a node does not answer.

    Waits for the answers, so call it in a thread. labkit's own connections are left out: they
    subscribe to nothing but answers."""
    connections, subjects = set(), []
    query = f"connz?acc={account.upper()}&state=all&limit=100000"
    for node in cluster.nodes:
        known, state = node.ask_now(query), node.ask_now(raft.STATE)
        if not known or not state:
            return None
        for one in known.get("connections") or []:
            if one.get("name") != OUR_NAME and _was_open(one, since):
                connections.add((known["server_id"], one["cid"]))
        subjects += raft.subjects(state, account)
    return connections, subjects


def _was_open(connection, since):
    stop = connection.get("stop")
    return not stop or _time(stop).timestamp() >= since


def _connection(node, connection):
    row = {"node": node.name, "name": connection.get("name", "")}
    return row | {key: connection[key] for key in CONNECTION_NUMBERS}


def _word(value):
    """Returns the text of an enum of nats-py, or the value itself."""
    return getattr(value, "value", value)


def _time(text):
    """Returns the time that the server wrote (RFC 3339, in nanoseconds) to the microsecond."""
    return datetime.datetime.fromisoformat(text)

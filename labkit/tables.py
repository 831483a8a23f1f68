"""The state of nodes, streams, consumers and connections as pandas DataFrames: one thing a row, one fact a column."""
import asyncio
import datetime


async def nodes(cluster):
    """Columns: node, state ("up" or "no answer"), version, meta ("leader" or "follower"), connections, memory_mib,
    uptime_s. What an attached cluster does not tell (its monitoring port is not known) is left out."""
    import pandas as pd
    told = await asyncio.gather(*(node.varz() for node in cluster.nodes))
    rows = []
    for node, facts in zip(cluster.nodes, told):
        if not facts:
            rows.append({"node": node.name, "state": "no answer", "port": node.port})
            continue
        leader = facts["jetstream"].get("meta", {}).get("leader")
        up = _when(facts["now"]) - _when(facts["start"])
        rows.append({"node": node.name, "state": "up", "port": node.port, "version": facts["version"],
                     "meta": "leader" if leader == node.name else "follower", "connections": facts["connections"],
                     "memory_mib": round(facts["mem"] / 2**20, 1), "uptime_s": round(up.total_seconds(), 1)})
    columns = ["node", "state", "port", "version", "meta", "connections", "memory_mib", "uptime_s"]
    return pd.DataFrame(rows, columns=columns).set_index("node")


async def streams(js):
    """Columns: stream, subjects, retention, storage, replicas, messages, bytes, first_seq, last_seq, consumers,
    leader."""
    import pandas as pd
    columns = ["stream", "subjects", "retention", "storage", "replicas", "messages", "bytes", "first_seq", "last_seq",
               "consumers", "leader"]
    return pd.DataFrame([_stream(info) for info in await js.streams_info()], columns=columns).set_index("stream")


def _stream(info):
    config, state = info.config, info.state
    return {"stream": config.name, "subjects": ", ".join(config.subjects or []), "retention": _word(config.retention),
            "storage": _word(config.storage), "replicas": config.num_replicas, "messages": state.messages,
            "bytes": state.bytes, "first_seq": state.first_seq, "last_seq": state.last_seq,
            "consumers": state.consumer_count, "leader": info.cluster.leader if info.cluster else None}


async def consumers(js, stream):
    """Columns: consumer, filter, delivered (stream sequence), ack_floor (stream sequence), pending (not yet
    delivered), ack_pending (delivered, not acked), redelivered (now, a gauge), waiting (open pull requests), leader."""
    import pandas as pd
    rows = [{"consumer": info.name, "filter": info.config.filter_subject or ", ".join(info.config.filter_subjects or []),
             "delivered": info.delivered.stream_seq, "ack_floor": info.ack_floor.stream_seq,
             "pending": info.num_pending, "ack_pending": info.num_ack_pending, "redelivered": info.num_redelivered,
             "waiting": info.num_waiting, "leader": info.cluster.leader if info.cluster else None}
            for info in await js.consumers_info(stream)]
    columns = ["consumer", "filter", "delivered", "ack_floor", "pending", "ack_pending", "redelivered", "waiting",
               "leader"]
    return pd.DataFrame(rows, columns=columns).set_index("consumer")


async def connections(cluster, account):
    """Columns: node, name, subscriptions, in_msgs (from the client), out_msgs (to it), pending_bytes. One row a
    connection of this account, as the nodes' /connz tell it."""
    import pandas as pd
    query = f"connz?acc={account.upper()}"
    told = await asyncio.gather(*(node.varz(query) for node in cluster.nodes))
    rows = [{"node": node.name, "name": c.get("name", ""), "subscriptions": c["subscriptions"], "in_msgs": c["in_msgs"],
             "out_msgs": c["out_msgs"], "pending_bytes": c["pending_bytes"]}
            for node, facts in zip(cluster.nodes, told) for c in (facts or {}).get("connections") or []]
    return pd.DataFrame(rows, columns=["node", "name", "subscriptions", "in_msgs", "out_msgs", "pending_bytes"])


def _word(value):
    return getattr(value, "value", value)


def _when(text):
    return datetime.datetime.fromisoformat(text[:19] + "+00:00")

"""Who leads, who follows, who is behind: read from the nodes' monitoring ports, which answer also when JetStream does not.
And waits for it, by condition."""
import asyncio
import time

from labkit.errors import LabError

ASK = "jsz?accounts=true&streams=true&consumers=true"
LINKS = 4  # connections of one node to another: a pool of three, and one for the system account


async def seen(cluster, account):
    """What each node that answers knows: {node: {"meta": …, "streams": {name: …}, "consumers": {(stream, name): …}}}, where …
    is the node's view of that raft group: dict with leader and replicas."""
    told = await asyncio.gather(*(node.varz(ASK) for node in cluster.nodes))
    found = {}
    for node, facts in zip(cluster.nodes, told):
        if not facts:
            continue
        own = [entry for entry in facts.get("account_details") or [] if entry["name"] == account.upper()]
        streams = {stream["name"]: stream for entry in own for stream in entry.get("stream_detail") or []}
        found[node.name] = {
            "meta": facts.get("meta_cluster") or {},
            "streams": streams,
            "consumers": {(name, consumer["name"]): consumer for name, stream in streams.items()
                          for consumer in stream.get("consumer_detail") or []}}
    return found


async def linked(cluster):
    """True if every node answers and has all its connections to the others. While some are missing (just after a start,
    for a second now and then), a request to JetStream can get lost on its way to another node: nobody answers it."""
    told = await asyncio.gather(*(node.varz() for node in cluster.nodes))
    return all(facts and facts["routes"] >= LINKS * (len(told) - 1) for facts in told)


def group(view, stream=None, consumer=None):
    """One node's view of the raft group of the stream, of the consumer, or, without either, of the meta group (dict)."""
    if not stream:
        return view["meta"]
    entry = view["consumers"].get((stream, consumer), {}) if consumer else view["streams"].get(stream, {})
    return entry.get("cluster") or {}


async def leader(cluster, account, stream=None, consumer=None):
    """Name of the node that says of itself that it leads, and (as it sees it) with a majority; None if nobody does."""
    for name, view in (await seen(cluster, account)).items():
        known = group(view, stream, consumer)
        if known.get("leader") == name and _majority(known):
            return name
    return None


def _majority(known):
    """An isolated leader goes on saying that it leads for some seconds; it has not heard of the others for long."""
    others = known.get("replicas") or []
    fresh = [r for r in others if not r.get("offline") and r.get("active", 0) < 3e9]
    return 2 * (len(fresh) + 1) > len(others) + 1


async def wait_for_leader(lab, stream=None, consumer=None, other_than=None, timeout=15):
    """Waits until the stream, the consumer or the meta group has a leader, and another one than `other_than` (a node's
    name). Returns its name. timeout: seconds; raises LabError that shows what was seen last."""
    async def look():
        name = await leader(lab.cluster, lab.topic, stream, consumer)
        return name if name != other_than else None
    return await _wait(lab, look, f"a leader of {_name(stream, consumer)}" + (f" other than {other_than}" if other_than else ""),
                       timeout)


async def wait_for_current(lab, stream=None, timeout=15):
    """Waits until all replicas of the stream (or of the meta group) are current, as its leader sees it. Returns the
    leader's name. timeout: seconds; raises LabError that shows what was seen last."""
    async def look():
        for name, view in (await seen(lab.cluster, lab.topic)).items():
            known = group(view, stream)
            if known.get("leader") == name and all(r["current"] and not r.get("offline") and not r.get("lag")
                                                   for r in known.get("replicas") or []):
                return name
        return None
    return await _wait(lab, look, f"current replicas of {_name(stream)}", timeout)


async def wait_for_whole(lab, timeout=30):
    """Waits until all nodes answer, agree on one meta leader, and that one sees the others; then the same for each stream
    of the lesson. timeout: seconds; raises LabError that shows what was seen last."""
    async def look():
        views = await seen(lab.cluster, lab.topic)
        if not await linked(lab.cluster) or len(views) < len(lab.cluster.nodes) or len({view["meta"].get("leader") for view in views.values()}) > 1:
            return None
        groups = [None, *{name for view in views.values() for name in view["streams"]}]
        return all([await leader(lab.cluster, lab.topic, stream) and _current(views, stream) for stream in groups])
    await _wait(lab, look, "a whole cluster", timeout)


def _current(views, stream):
    return any(group(view, stream).get("leader") == name and
               all(r["current"] and not r.get("offline") for r in group(view, stream).get("replicas") or [])
               for name, view in views.items())


async def _wait(lab, look, what, timeout):
    end = time.monotonic() + timeout
    while not (found := await look()):
        if time.monotonic() > end:
            last = {name: {"meta": view["meta"].get("leader"), **{s: group(view, s).get("leader") for s in view["streams"]}}
                    for name, view in (await seen(lab.cluster, lab.topic)).items()}
            raise LabError(f"Waited {timeout} s, in vain, for {what}. Last seen, node by node, who leads: {last or 'no answer'}.")
        await asyncio.sleep(0.02)
    return found


def _name(stream, consumer=None):
    return f"consumer {consumer} of {stream}" if consumer else f"stream {stream}" if stream else "the meta group"

"""Who leads, who follows, who is behind: read from the nodes' monitoring ports, which answer also
when JetStream does not. And waits for it, by condition."""

import asyncio
import time

import psutil

from labkit.cluster.nodes import Node
from labkit.errors import LabError

ASK = "jsz?accounts=true&streams=true&consumers=true"
# nanoseconds: a follower that its leader has not heard for so long does not count (heartbeats come
# each second)
SILENT = 3e9


async def ask_patiently(node, path="varz"):
    """What the node tells (see Node.ask): for who looks once, and takes silence for an answer. On
    a busy machine a node may need more than half a second; one whose process runs, and does not
    stand still, is asked again.
    """
    return await node.ask(path) or (await node.ask(path, timeout=5) if _runs(node) else None)


def _runs(node):
    try:
        return (process := node.process()) is not None and process.status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


async def seen(cluster, account, ask=Node.ask):
    """What each node that answers knows: {node: {"meta": …, "streams": {name: …}, "consumers":
    {(stream, name): …}}}, where … is the node's view of that raft group: dict with leader and
    replicas. ask: Node.ask, or ask_patiently.
    """
    told = await asyncio.gather(*(ask(node, ASK) for node in cluster.nodes))
    found = {}
    for node, facts in zip(cluster.nodes, told):
        if not facts:
            continue
        own = [
            entry
            for entry in facts.get("account_details") or []
            if entry["name"] == account.upper()
        ]
        streams = {
            stream["name"]: stream for entry in own for stream in entry.get("stream_detail") or []
        }
        found[node.name] = {
            "meta": facts.get("meta_cluster") or {},
            "streams": streams,
            "consumers": {
                (name, consumer["name"]): consumer
                for name, stream in streams.items()
                for consumer in stream.get("consumer_detail") or []
            },
        }
    return found


def agreed(told):
    """True if every node has all its routes and names the same meta leader, and that leader sees
    two replicas, current and online.

    told: what the nodes say of themselves on /varz, one dict a node. Only the leader's own view
    counts: followers know little of each other."""
    metas = {facts["server_name"]: facts["jetstream"].get("meta", {}) for facts in told}
    leaders = {meta.get("leader") for meta in metas.values()}
    if not linked(told) or len(leaders) != 1 or not leaders & set(metas):
        return False
    replicas = metas[leaders.pop()].get("replicas") or []
    return len([r for r in replicas if r["current"] and not r.get("offline")]) == 2


def linked(told):
    """True if every node has all its routes to each other: a pool of them, and one for the system
    account alone.

    A leader can be elected over two of three links. What the third would carry, such as the answer
    to the first request that creates a stream, is lost without a word until that link stands:
    seconds, when two nodes dialled each other at once and dropped both calls as duplicates (2.15.1:
    about one boot in three is `agreed` before it is linked).
    """
    return all(
        facts["routes"] >= (len(told) - 1) * (facts["cluster"].get("pool_size", 1) + 1)
        for facts in told
    )


def group(view, stream=None, consumer=None):
    """One node's view of the raft group of the stream, of the consumer, or, without either, of the
    meta group (dict)."""
    if not stream:
        return view["meta"]
    entry = (
        view["consumers"].get((stream, consumer), {})
        if consumer
        else view["streams"].get(stream, {})
    )
    return entry.get("cluster") or {}


async def leader(cluster, account, stream=None, consumer=None):
    """Name of the node that says of itself that it leads, and (as it sees it) with a majority; None
    if nobody does."""
    return leading(await seen(cluster, account), stream, consumer)


def leading(views, stream=None, consumer=None):
    """The same, from what seen() returned."""
    for name, view in views.items():
        known = group(view, stream, consumer)
        if known.get("leader") == name and _majority(known):
            return name
    return None


def _majority(known):
    """An isolated leader goes on saying that it leads for some seconds; it has not heard of the
    others for long."""
    others = known.get("replicas") or []
    return 2 * (len(list(filter(heard, others))) + 1) > len(others) + 1


def heard(peer):
    """True if the leader that tells of this replica has heard of it lately. One that it has never
    heard of since its election has active 0 and is not current, and may be dead for hours without
    being "offline"."""
    return (
        not peer.get("offline")
        and peer.get("active", 0) < SILENT
        and (peer["current"] or peer.get("active", 0) > 0)
    )


async def wait_for_leader(lab, stream=None, consumer=None, other_than=None, timeout=30):
    """Waits until the stream, the consumer or the meta group has a leader, and another one than
    `other_than` (a node's name). Returns its name. timeout: seconds; raises LabError that shows
    what was seen last."""

    async def look():
        name = await leader(lab.cluster, lab.topic, stream, consumer)
        return name if name != other_than else None

    return await _wait(
        lab,
        look,
        f"a leader of {_name(stream, consumer)}"
        + (f" other than {other_than}" if other_than else ""),
        timeout,
    )


async def wait_for_current(lab, stream=None, timeout=30):
    """Waits until all replicas of the stream (or of the meta group) are current, as its leader sees
    it. Returns the leader's name. timeout: seconds; raises LabError that shows what was seen
    last."""

    async def look():
        for name, view in (await seen(lab.cluster, lab.topic)).items():
            known = group(view, stream)
            if known.get("leader") == name and all(
                r["current"] and not r.get("offline") and not r.get("lag")
                for r in known.get("replicas") or []
            ):
                return name
        return None

    return await _wait(lab, look, f"current replicas of {_name(stream)}", timeout)


async def wait_for_whole(lab, timeout=60):
    """Waits until all nodes answer, are linked, agree on one meta leader, and that one sees the
    others; then the same for each stream of the lesson. timeout: seconds; raises LabError that
    shows what was seen last."""

    async def look():
        told = await asyncio.gather(*(node.ask() for node in lab.cluster.nodes))
        if not all(told) or not linked(told):
            return None
        views = await seen(lab.cluster, lab.topic)
        if (
            len(views) < len(lab.cluster.nodes)
            or len({view["meta"].get("leader") for view in views.values()}) > 1
        ):
            return None
        groups = [None, *{name for view in views.values() for name in view["streams"]}]
        return all(
            [
                await leader(lab.cluster, lab.topic, stream) and _current(views, stream)
                for stream in groups
            ]
        )

    await _wait(lab, look, "a whole cluster", timeout)


def _current(views, stream):
    return any(
        group(view, stream).get("leader") == name
        and all(
            r["current"] and not r.get("offline") for r in group(view, stream).get("replicas") or []
        )
        for name, view in views.items()
    )


async def _wait(lab, look, what, timeout):
    end = time.monotonic() + timeout
    while not (found := await look()):
        if time.monotonic() > end:
            last = {
                name: {
                    stream or "meta": _standing(name, group(view, stream))
                    for stream in (None, *view["streams"])
                }
                for name, view in (await seen(lab.cluster, lab.topic, ask_patiently)).items()
            }
            raise LabError(
                f"Timed out after {timeout:.3g} s waiting for {what}. Last seen, node by node, "
                f"who leads: {last or 'no answer'} (after a leader, what it says of its replicas)."
            )
        await asyncio.sleep(0.02)
    return found


def _standing(node, known):
    """The leader's name; where it is this node's own group, also which replicas are not whole ("n1;
    n3 offline")."""
    late = [
        f"{peer['name']} " + (f"{peer.get('lag', 0):,} behind" if heard(peer) else "offline")
        for peer in known.get("replicas") or []
        if not heard(peer) or not peer["current"] or peer.get("lag")
    ]
    return (
        "; ".join([known["leader"], *late]) if known.get("leader") == node else known.get("leader")
    )


def _name(stream, consumer=None):
    return (
        f"consumer {consumer} of {stream}"
        if consumer
        else f"stream {stream}"
        if stream
        else "the meta group"
    )

"""Who leads, who follows, who is behind. It is read from the nodes' monitoring ports, which answer
also while JetStream does not."""

import asyncio

import psutil

from labkit.cluster.nodes import Node
from labkit.waiting import until

STATE = "jsz?accounts=true&streams=true&consumers=true&config=true"
# Nanoseconds. A leader hears from each follower once a second; one that was silent for so long does
# not count.
SILENT = 3e9


# --- asking the nodes


async def ask_patiently(node, path="varz"):
    """Returns what the node tells (see Node.ask), or None. For a caller that asks only once and
    takes silence for an answer: on a busy machine half a second may be too short, so a node whose
    process runs gets five more."""
    answer = await node.ask(path)
    if not answer and _runs(node):
        answer = await node.ask(path, timeout=5)
    return answer


def _runs(node):
    try:
        process = node.process()
        return process is not None and process.status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


async def seen(cluster, account, ask=Node.ask):
    """Returns the view of each node that answers: {node: {"meta": group, "streams": {name: stream},
    "consumers": {(stream, name): consumer}}}. Pick a raft group out of a view with group().

    account: whose streams. ask: Node.ask or ask_patiently."""
    answers = await asyncio.gather(*(ask(node, STATE) for node in cluster.nodes))
    return {
        node.name: _view(answer, account) for node, answer in zip(cluster.nodes, answers) if answer
    }


def _view(answer, account):
    streams = {
        stream["name"]: stream
        for details in answer.get("account_details") or []
        if details["name"] == account.upper()
        for stream in details.get("stream_detail") or []
    }
    return {
        "meta": answer.get("meta_cluster") or {},
        "streams": streams,
        "consumers": {
            (name, consumer["name"]): consumer
            for name, stream in streams.items()
            for consumer in stream.get("consumer_detail") or []
        },
    }


def subjects(answer, account):
    """The subjects that the streams of this account take (list), as a node tells on STATE."""
    streams = _view(answer, account)["streams"].values()
    return [subject for stream in streams for subject in stream["config"].get("subjects") or []]


def agreed(answers):
    """True if the nodes are linked and name the same meta leader, and that one sees two replicas,
    current and online. Only its own view counts: followers know little of each other.

    answers: what each node tells of itself on /varz (list of dicts)."""
    metas = {answer["server_name"]: answer["jetstream"].get("meta", {}) for answer in answers}
    leaders = {meta.get("leader") for meta in metas.values()}
    if not linked(answers) or len(leaders) != 1 or not leaders & set(metas):
        return False
    replicas = metas[leaders.pop()].get("replicas") or []
    return len([peer for peer in replicas if _is_current(peer)]) == 2


def linked(answers):
    """True if the nodes have all routes to each other: a pool of them for each pair, and one more
    for the system account.

    answers: as for agreed(). Two of three links are enough to elect a leader. What the third would
    carry, such as the answer to the first request that creates a stream, is lost until that link
    stands. That takes seconds if two nodes dialled each other at the same time and dropped both
    calls as duplicates (nats-server 2.15.1: in about one boot of three, the leader comes first).
    """
    others = len(answers) - 1
    return all(
        answer["routes"] >= others * (answer["cluster"].get("pool_size", 1) + 1)
        for answer in answers
    )


# --- reading what they told


def group(view, stream=None, consumer=None):
    """Returns one node's view of a raft group: that of the consumer, of the stream or, without
    either, of the meta group (dict with leader and replicas; {} if the node does not know it)."""
    if not stream:
        return view["meta"]
    if consumer:
        entry = view["consumers"].get((stream, consumer), {})
    else:
        entry = view["streams"].get(stream, {})
    return entry.get("cluster") or {}


def leading(views, stream=None, consumer=None):
    """Returns the name of the node that says that it leads the group, and has a majority as far as
    it knows; None if there is none. views: from seen()."""
    for name, view in views.items():
        known = group(view, stream, consumer)
        if known.get("leader") == name and _has_majority(known):
            return name
    return None


async def leader(cluster, account, stream=None, consumer=None):
    """Asks the nodes, and returns the leader's name or None, see leading()."""
    return leading(await seen(cluster, account), stream, consumer)


def _has_majority(known):
    """A leader that was cut off says for some seconds that it leads. But it has not heard from the
    others lately."""
    others = known.get("replicas") or []
    voices = 1 + len([peer for peer in others if heard(peer)])
    return 2 * voices > len(others) + 1


def heard(peer):
    """True if the leader that tells of this replica has heard from it lately.

    If the leader has not heard from a replica since it was elected, that replica shows active 0 and
    current false. It may be dead for hours without being "offline"."""
    if peer.get("offline") or peer.get("active", 0) >= SILENT:
        return False
    return peer["current"] or peer.get("active", 0) > 0


def _leader_of_current(views, stream, caught_up=False):
    """Returns the name of the group's leader if all its replicas are current as it sees them and,
    with caught_up, have confirmed all of the log. Else None."""
    for name, view in views.items():
        known = group(view, stream)
        replicas = known.get("replicas") or []
        if known.get("leader") == name and all(_is_current(peer, caught_up) for peer in replicas):
            return name
    return None


def _is_current(peer, caught_up=False):
    if peer.get("offline") or (caught_up and peer.get("lag")):
        return False
    return peer["current"]


# --- waiting


async def wait_for_leader(lab, stream=None, consumer=None, other_than=None, timeout=30):
    """Waits until the stream, the consumer or the meta group has a leader other than the node
    `other_than`. Returns its name. timeout: seconds; raises LabError that shows what was seen last.
    """

    async def other_leader():
        name = await leader(lab.cluster, lab.topic, stream, consumer)
        return name if name != other_than else None

    wanted = f"a leader of {name_of(stream, consumer)}"
    if other_than:
        wanted += f" other than {other_than}"
    return await wait(lab, other_leader, wanted, timeout)


async def wait_for_current(lab, stream=None, timeout=30):
    """Waits until all replicas of the stream (or of the meta group) are current and not behind, as
    its leader sees them, and until each replica of the stream holds what the leader held when it
    was asked before. Returns the leader's name. timeout: seconds; raises LabError that shows what
    was seen last.

    The leader's word is not enough. While it makes a stream of one replica one of three, it names
    no replicas for some 100 ms, and then calls one current, lag 0, that is still empty."""
    before = None  # the last sequence of the leader: a busy stream has moved on since

    async def leader_of_current():
        nonlocal before
        views = await seen(lab.cluster, lab.topic)
        name = _leader_of_current(views, stream, caught_up=True)
        if not stream or not name:
            return name
        leads = views[name]["streams"][stream]
        last = leads["state"]["last_seq"]
        enough, before = min(before or last, last), last
        holding = [
            node
            for node, view in views.items()
            if stream in view["streams"] and view["streams"][stream]["state"]["last_seq"] >= enough
        ]
        replicas = [peer["name"] for peer in leads["cluster"].get("replicas") or []]
        is_whole = len(replicas) + 1 == leads["config"]["num_replicas"]
        return name if is_whole and {name, *replicas} <= set(holding) else None

    wanted = f"current replicas of {name_of(stream)}"
    return await wait(lab, leader_of_current, wanted, timeout)


async def wait_for_whole(lab, timeout=60):
    """Waits until all nodes answer, are linked and agree on one meta leader; and until that group
    and each stream of the lesson have a leader that sees the others. timeout: seconds; raises
    LabError that shows what was seen last."""

    async def whole():
        answers = await asyncio.gather(*(node.ask() for node in lab.cluster.nodes))
        if not all(answers) or not linked(answers):
            return False
        views = await seen(lab.cluster, lab.topic)
        meta_leaders = {view["meta"].get("leader") for view in views.values()}
        if len(views) < len(lab.cluster.nodes) or len(meta_leaders) > 1:
            return False
        streams = {name for view in views.values() for name in view["streams"]}
        return all(
            leading(views, stream) and _leader_of_current(views, stream)
            for stream in [None, *streams]
        )

    await wait(lab, whole, "a whole cluster", timeout)


async def wait(lab, condition, wanted, timeout):
    """Waits until condition() is true (see waiting.until) and returns what it returned.

    wanted: what is waited for, in words. timeout: seconds; raises LabError that shows which nodes
    lead what, and which replicas are not current."""

    async def describe():
        views = await seen(lab.cluster, lab.topic, ask_patiently)
        leaders = {
            name: {
                stream or "meta": _leader_as_seen_by(name, group(view, stream))
                for stream in (None, *view["streams"])
            }
            for name, view in views.items()
        }
        return (
            f"{wanted}. Last seen, node by node, who leads: {leaders or 'no answer'} (after a"
            " leader, what it says of its replicas)."
        )

    return await until(condition, timeout, describe, every=0.02)


def _leader_as_seen_by(node, known):
    """Returns the leader's name as this node sees it. If the node leads itself, it also says which
    replicas are not whole: "n1; n3 offline"."""
    if known.get("leader") != node:
        return known.get("leader")
    late = []
    for peer in known.get("replicas") or []:
        if not heard(peer):
            late.append(f"{peer['name']} offline")
        elif not peer["current"] or peer.get("lag"):
            late.append(f"{peer['name']} {peer.get('lag', 0):,} behind")
    return "; ".join([node, *late])


def name_of(stream, consumer=None):
    """Returns words for a raft group."""
    if consumer:
        return f"consumer {consumer} of {stream}"
    return f"stream {stream}" if stream else "the meta group"

"""Exercises of lesson 32: a stream that outlives its nodes, what a power failure can take, a
replica ahead of its leader."""

import asyncio
import copy

from nats.errors import Error
from nats.js import api
from nats.js.errors import APIError

from labkit.cluster import private, raft
from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, wants_function

AT_RISK = {"2m": 12000, "always": 0, "10s": 1000}  # of 100 messages a second, by sync_interval


@exercise(
    variable="orders",
    limit=90,
    hints=[
        "Section 1 has the four kinds of stream. Which one took the message while n1 was dead, and"
        " which ones were whole in the end?",
        "The majority of two is two: with two replicas, no node may die.",
        "api.StreamConfig(name=…, subjects=[…], num_replicas=…, storage=api.StorageType.FILE)",
    ],
)
async def keeps_orders(lab, answer):
    """Configure EX_ORDERS: takes orders with any one node dead, keeps them when all processes die,
    no needless copies."""
    want(isinstance(answer, api.StreamConfig), f"orders is {answer!r}", "an api.StreamConfig")
    want(answer.name == "EX_ORDERS", f"The stream is named {answer.name!r}", "'EX_ORDERS'")
    await delete(lab.js, "EX_ORDERS")
    try:
        config = await _created(lab.js, answer)
        saw = f"It has the subjects {config.subjects}"
        want(config.subjects == ["ex.orders.*"], saw, "['ex.orders.*']")
        await _takes_orders_without_a_node(lab, config.num_replicas)
        saw = (
            "It goes on without one node, but keeps its messages in memory: when all three"
            " processes are killed, all are lost (section 1)"
        )
        want(config.storage == api.StorageType.FILE, saw, "file storage")
    finally:
        await lab.faults.heal()
        await delete(lab.js, "EX_ORDERS")


@keeps_orders.solved_by
def keeps_orders():
    return api.StreamConfig(
        name="EX_ORDERS",
        subjects=["ex.orders.*"],
        num_replicas=3,
        storage=api.StorageType.FILE,
    )


async def _created(js, config):
    """The stream's configuration as the server has it (api.StreamConfig)."""
    try:
        return (await js.add_stream(copy.copy(config))).config
    except APIError as error:
        raise NotYet(
            f"The server refused it ({error.err_code}, {error.description}); wanted: a stream on"
            " three nodes or fewer."
        ) from None


async def _takes_orders_without_a_node(lab, replicas):
    """Kills a node that holds the stream. Raises NotYet unless an order is acked after that."""
    victim = await _holder(lab)
    other = next(node.name for node in lab.cluster.nodes if node.name != victim)
    client = await lab.connect(node=other)
    try:
        await lab.settled("EX_ORDERS")
        js = client.jetstream()
        await js.publish("ex.orders.new", b"before", timeout=5)
        await lab.faults.kill(victim)
        error = await _last_error(js, timeout=8 if replicas == 3 else 2)
    finally:
        await client.close()
    copies = "1 replica" if replicas == 1 else f"{replicas} replicas"
    saw = f"It has {copies}: with {victim} dead, a publish got no ack ({error})"
    want(error is None, saw, "an ack with any one node dead")


async def _holder(lab):
    """Name of a node that holds the stream. Not its leader where there is a choice: that would cost
    an election."""
    leader = await lab.wait_for_leader("EX_ORDERS")
    replicas = (await lab.js.stream_info("EX_ORDERS")).cluster.replicas
    return replicas[0].name if replicas else leader


async def _last_error(js, timeout):
    """Publishes until an order is acked; returns None then. Else the name of the last error."""
    errors = []

    async def is_acked():
        try:
            await js.publish("ex.orders.new", b"while a node is dead", timeout=1)
            return True
        except Error as error:
            errors.append(type(error).__name__)
            await asyncio.sleep(0.1)
            return False

    return None if await comes_true(is_acked, timeout) else errors[-1]


@exercise(
    limit=90,
    hints=[
        "Look at (await lab.node('n1').ask('jsz'))['config'].",
        "The server gives times in nanoseconds: 2 minutes are 120000000000.",
        "With sync_interval: always the interval still says 2 minutes. Another entry tells the"
        " truth, and it is there only in that case.",
    ],
)
async def at_risk(lab, answer):
    """Say from /jsz how many acked messages a power failure of all machines can take at most."""
    wants_function(answer, "jsz, per_second", coroutine=False)
    for sync, wanted in AT_RISK.items():
        got = answer(await _jsz(lab, sync), 100)
        case = f"For 100 messages a second and sync_interval: {sync}, it"
        is_number = isinstance(got, (int, float)) and not isinstance(got, bool)
        want(is_number, f"{case} returned {got!r}", "a number")
        why = ". The server gives times in nanoseconds" if got > 1e9 else ""
        want(abs(got - wanted) <= 1, f"{case} said {got:g}", f"{wanted}{why}")


@at_risk.solved_by
def at_risk(jsz, per_second):
    config = jsz["config"]
    if config.get("sync_always"):
        return 0
    return per_second * config["sync_interval"] / 1e9


async def _jsz(lab, sync):
    """What a node with this sync_interval tells on /jsz (dict)."""
    cluster = await private.start(sync=sync)
    try:
        # While the node starts, its answer may lack the configuration.
        return await lab.until(lambda: cluster.nodes[0].ask("jsz", timeout=3))
    finally:
        await asyncio.to_thread(cluster.end)


@exercise(
    hints=[
        "First find the leader: the node whose own view names itself as the leader.",
        "Then compare each node's last_seq with that of the leader. Behind is normal, ahead is"
        " not.",
        "A node that is just starting may not know the stream yet: skip it.",
    ],
)
async def ahead(lab, answer):
    """Name the nodes that hold a higher sequence of the stream than its leader."""
    wants_function(answer, "views, stream", coroutine=False)
    views = await _views_of_a_healthy_stream(lab)
    leader = raft.leading(views, "EX_VIEWS")
    one, two = sorted(set(views) - {leader})
    cases = {
        "of a stream whose three nodes hold 200": (200, 200, 200),
        f"where {one} is behind the leader (190 of 200)": (200, 190, 200),
        f"where the leader {leader} and {one} hold 121, and {two} 199": (121, 121, 199),
        f"where the leader {leader} and {one} hold 221 and have passed {two}, 199": (221, 221, 199),
        f"where {one} is starting and does not know the stream": (200, None, 200),
        f"where the leader {leader} holds 40, {one} 90 and {two} 41": (40, 90, 41),
    }
    for words, seqs in cases.items():
        last = dict(zip((leader, one, two), seqs))
        wanted = sorted(node for node, seq in last.items() if seq and seq > last[leader])
        got = answer(_changed(views, last), "EX_VIEWS")
        is_right = isinstance(got, (list, tuple, set)) and sorted(got) == wanted
        want(is_right, f"For views {words}, it returned {got!r}", wanted)


@ahead.solved_by
def ahead(views, stream):
    known = {}
    for node, view in views.items():
        if stream in view["streams"]:
            known[node] = view["streams"][stream]
    leader = next(node for node, seen in known.items() if seen["cluster"].get("leader") == node)
    last = known[leader]["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] > last)


def _changed(views, last):
    """These views with other last sequences. last: {node: last_seq}, None if the node does not know
    the stream."""
    changed = copy.deepcopy(views)
    for node, seq in last.items():
        streams = changed[node]["streams"]
        if seq is None:
            del streams["EX_VIEWS"]
        else:
            streams["EX_VIEWS"]["state"]["last_seq"] = seq
    return changed


async def _views_of_a_healthy_stream(lab):
    """The views of a live stream with three replicas that all know their leader (dict)."""
    await delete(lab.js, "EX_VIEWS")
    await lab.js.add_stream(name="EX_VIEWS", subjects=["ex.views.*"], num_replicas=3)

    async def known_to_all():
        views = await raft.seen(lab.cluster, lab.topic)
        knowing = [node for node, view in views.items() if "EX_VIEWS" in view["streams"]]
        is_known = len(knowing) == 3 and raft.leading(views, "EX_VIEWS")
        return views if is_known else None

    try:
        await lab.wait_for_leader("EX_VIEWS")
        return await lab.until(known_to_all)
    finally:
        await delete(lab.js, "EX_VIEWS")

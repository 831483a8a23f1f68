"""Exercises of lesson 32: a stream that outlives its nodes, what a power failure can take, a
replica ahead of its leader."""

import asyncio
import contextlib
import copy
import json
import numbers
import re
import secrets

from nats.errors import Error
from nats.js import api
from nats.js.errors import APIError

from labkit.cluster import private, raft
from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, wants_function

SECONDS = {"2m": 120, "always": 0, "10s": 10}  # that can be lost, by sync_interval
ORDERS = 30  # that a stream takes before one of its nodes dies
ROOM = {"max_msgs": 10_000, "max_msgs_per_subject": 10_000, "max_bytes": 100_000_000}  # at least
RATES = 100, 2500  # messages a second


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
    throws none away, no needless copies."""
    want(isinstance(answer, api.StreamConfig), f"orders is {answer!r}", "an api.StreamConfig")
    want(answer.name == "EX_ORDERS", f"The stream is named {answer.name!r}", "'EX_ORDERS'")
    await delete(lab.js, "EX_ORDERS")
    try:
        config = await _created(lab.js, answer)
        saw = f"It has the subjects {config.subjects}"
        want(config.subjects == ["ex.orders.*"], saw, "['ex.orders.*']")
        saw = "It has no_ack=True: nobody hears whether an order is stored"
        want(not config.no_ack, saw, "an ack for each")
        await _takes_orders_without_a_node(lab, config.num_replicas)
        _throws_nothing_away(config)
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
            f"The server refused it ({error.err_code}, {error.description}); wanted: a stream that"
            " it takes. It has three nodes."
        ) from None


async def _takes_orders_without_a_node(lab, replicas):
    """Kills a node that holds the stream. Raises NotYet unless an order is acked after that."""
    victim = await _holder(lab)
    other = next(node.name for node in lab.cluster.nodes if node.name != victim)
    client = await lab.connect(node=other)
    try:
        await lab.settled("EX_ORDERS")
        js = client.jetstream()
        await _take_orders(js)
        await lab.faults.kill(victim)
        error = await _last_error(js, timeout=8 if replicas == 3 else 2)
        copies = "1 replica" if replicas == 1 else f"{replicas} replicas"
        saw = f"It has {copies}: with {victim} dead, a publish got no ack ({error})"
        want(error is None, saw, "an ack with any one node dead")
        asking = client.jetstream(timeout=1)
        held = (await lab.until(lambda: _info(asking), timeout=10)).state.messages
    finally:
        await client.close()
    saw = f"It acked {ORDERS} orders and one more with {victim} dead, and holds {held} messages"
    want(held > ORDERS, saw, "all that it acked")


async def _take_orders(js):
    """Publishes orders of three customers, small ones and one of 10 kB. Raises NotYet unless each
    is acked."""
    for number in range(ORDERS):
        body = bytes(10_000 if number == 0 else 10)
        try:
            await js.publish(f"ex.orders.{number % 3}", body, timeout=5)
        except (Error, TimeoutError) as error:
            words = f"{type(error).__name__}: {error}".removesuffix(": ")
            saw = f"All nodes were alive, and order {number + 1}, {len(body)} bytes, got: {words}"
            want(False, saw, "an ack")


async def _info(js):
    with contextlib.suppress(Error, TimeoutError):
        return await js.stream_info("EX_ORDERS")


def _throws_nothing_away(config):
    """Raises NotYet if the stream's configuration drops what it has acked. A limit with
    discard=new drops nothing: there the new order is refused, so there has to be room."""
    wanted = "all that it acked, as long as nobody deletes it"
    saw = f"It has max_age={config.max_age:g}: an acked order is thrown away after that time"
    want(not config.max_age, saw, wanted)
    retention = api.RetentionPolicy(config.retention or "limits").value
    saw = f"Its retention is {retention!r}: an acked order goes when its consumers have acked it"
    want(retention == "limits", saw, wanted)
    for name in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
        limit = getattr(config, name) or 0
        saw = f"It has {name}={limit} with discard=old: beyond that, acked orders are thrown away"
        want(limit <= 0 or _refuses_new(config, name), saw, wanted)
        saw = f"It has {name}={limit} with discard=new: beyond that, it refuses each order"
        want(limit <= 0 or limit >= ROOM[name], saw, "room for 10,000 orders of 10 kB")


def _refuses_new(config, name):
    per_subject = name != "max_msgs_per_subject" or config.discard_new_per_subject
    return api.DiscardPolicy(config.discard or "old") is api.DiscardPolicy.NEW and per_subject


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
    views = [(sync, seconds, await _jsz(lab, sync)) for sync, seconds in SECONDS.items()]
    other = copy.deepcopy(views[0][2])  # of an interval that nobody can have written down
    some = 20 + secrets.randbelow(80)
    other["config"]["sync_interval"] = some * 10**9
    for sync, seconds, jsz in [*views, (f"{some}s", some, other)]:
        for rate in RATES:
            got, wanted = answer(copy.deepcopy(jsz), rate), rate * seconds
            case = f"For {rate} messages a second and sync_interval: {sync}, it"
            is_number = isinstance(got, numbers.Number) and not isinstance(got, (bool, complex))
            want(is_number, f"{case} returned {got!r}", "a number")
            got = float(got)
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
    cases = {
        "of a stream whose three nodes hold 200": (200, 200, 200),
        "where {one} is behind the leader {leader} (190 of 200)": (200, 190, 200),
        "where the leader {leader} and {one} hold 121, and {two} 199": (121, 121, 199),
        "where the leader {leader} and {one} hold 221 and have passed {two}, 199": (221, 221, 199),
        "where {leader} leads, and {one} is starting and does not know the stream": (
            200,
            None,
            200,
        ),
        "where the leader {leader} holds 40, {one} 90 and {two} 41": (40, 90, 41),
    }
    for leader in sorted(views):
        one, two = sorted(set(views) - {leader})
        led = _led_by(views, leader)
        for words, seqs in cases.items():
            last = dict(zip((leader, one, two), seqs))
            wanted = sorted(node for node, seq in last.items() if seq and seq > last[leader])
            got = answer(_changed(led, last), "EX_VIEWS")
            is_right = isinstance(got, (list, tuple, set)) and sorted(got) == wanted
            case = words.format(leader=leader, one=one, two=two)
            want(is_right, f"For views {case}, it returned {got!r}", wanted)


@ahead.solved_by
def ahead(views, stream):
    known = {}
    for node, view in views.items():
        if stream in view["streams"]:
            known[node] = view["streams"][stream]
    leader = next(node for node, seen in known.items() if seen["cluster"].get("leader") == node)
    last = known[leader]["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] > last)


def _led_by(views, leader):
    """These views with the stream's leader and this node in each other's place. The meta leader
    stays."""
    old = raft.leading(views, "EX_VIEWS")
    swapped = {leader: old, old: leader}

    def new_name(match):
        return f'"{swapped.get(match[1], match[1])}"'

    streams = {node: json.dumps(view["streams"]["EX_VIEWS"]) for node, view in views.items()}
    led = copy.deepcopy(views)
    for node, told in streams.items():
        told = json.loads(re.sub(r'"(n\d)"', new_name, told))
        led[swapped.get(node, node)]["streams"]["EX_VIEWS"] = told
    return led


def _changed(views, last):
    """These views with other last sequences, and with another stream, whose nodes all hold one
    message. last: {node: last_seq}, None if the node does not know the stream."""
    changed = copy.deepcopy(views)
    for node, seq in last.items():
        another = copy.deepcopy(views[node]["streams"]["EX_VIEWS"])
        another["state"]["last_seq"] = 1
        streams = changed[node]["streams"] = {"ANOTHER": another, **changed[node]["streams"]}
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

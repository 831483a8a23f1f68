"""Exercises of lesson 10: a stream that outlives its nodes, what a power failure can take, a
replica ahead of its leader."""

import asyncio
import copy

from nats.errors import Error as NatsError
from nats.js import api
from nats.js.errors import APIError

from labkit.cluster import private, raft
from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

KEEPS = """
from nats.js import api
answer = api.StreamConfig(name="EX_ORDERS", subjects=["ex.orders.*"], num_replicas=3, storage=api.StorageType.FILE)"""

RISK = """
def answer(jsz, per_second):
    config = jsz["config"]
    if config.get("sync_always"):
        return 0
    return per_second * config["sync_interval"] / 1e9"""

AHEAD = """
def answer(views, stream):
    known = {node: view["streams"][stream] for node, view in views.items() if stream in view["streams"]}
    leader = next(node for node, seen in known.items() if seen["cluster"].get("leader") == node)
    last = known[leader]["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] > last)"""


@exercise(
    hints=[
        (
            "Section 1 has the four kinds of stream. Which one took the message while n1 was dead,"
            " and which ones were whole in the end?"
        ),
        "The majority of two is two: with two replicas, no node may die.",
        "api.StreamConfig(name=…, subjects=[…], num_replicas=…, storage=api.StorageType.FILE)",
    ],
    solution=KEEPS.replace("answer", "orders") + "\nanswer = orders",
    wrong={
        "one replica": (KEEPS.replace("num_replicas=3", "num_replicas=1"), "1 replica: with"),
        "two replicas": (KEEPS.replace("num_replicas=3", "num_replicas=2"), "2 replicas: with"),
        "in memory": (KEEPS.replace("FILE", "MEMORY"), "keeps its messages in memory"),
        "more than there are nodes": (
            KEEPS.replace("num_replicas=3", "num_replicas=5"),
            "The server refused",
        ),
        "no subjects": (
            KEEPS.replace('subjects=["ex.orders.*"], ', ""),
            "has the subjects ['EX_ORDERS']",
        ),
    },
    limit=90,
)
async def keeps_orders(lab, answer):
    """Configure EX_ORDERS: takes orders with any one node dead, keeps them when all processes die,
    no needless copies."""
    if not isinstance(answer, api.StreamConfig):
        raise NotYet(f"orders is {answer!r}; wanted: an api.StreamConfig.")
    if answer.name != "EX_ORDERS":
        raise NotYet(f"The stream is named {answer.name!r}; wanted: 'EX_ORDERS'.")
    await delete(lab.js, "EX_ORDERS")
    try:
        info = await lab.js.add_stream(copy.copy(answer))
    except APIError as error:
        raise NotYet(
            f"The server refused: {error.err_code}, {error.description}. Wanted: a stream on three"
            " nodes or fewer."
        ) from None
    try:
        if info.config.subjects != ["ex.orders.*"]:
            raise NotYet(f"It has the subjects {info.config.subjects}; wanted: ['ex.orders.*'].")
        await _survives_a_node(lab, info.config.num_replicas)
        if info.config.storage == api.StorageType.MEMORY:
            raise NotYet(
                "It goes on without one node, but keeps its messages in memory: when all three"
                " processes are killed, all are lost (section 1). Wanted: file storage."
            )
    finally:
        await lab.faults.heal()
        await delete(lab.js, "EX_ORDERS")


async def _survives_a_node(lab, replicas):
    """Kills a node that holds the stream, and not its leader where there is a choice (that would
    cost an election)."""
    leader = await lab.wait_for_leader("EX_ORDERS")
    holders = [r.name for r in (await lab.js.stream_info("EX_ORDERS")).cluster.replicas or []]
    victim = holders[0] if holders else leader
    client = await lab.connect(
        node=next(node.name for node in lab.cluster.nodes if node.name != victim)
    )
    js, end = client.jetstream(), asyncio.get_running_loop().time() + (8 if replicas == 3 else 2)
    try:
        await lab.settled("EX_ORDERS")
        await js.publish("ex.orders.new", b"before", timeout=5)
        await lab.faults.kill(victim)
        while True:
            try:
                await js.publish("ex.orders.new", b"while a node is dead", timeout=1)
                break
            except NatsError as error:
                if asyncio.get_running_loop().time() > end:
                    raise NotYet(
                        f"It has {replicas} replica{'s' if replicas > 1 else ''}: with {victim}"
                        f" dead, a publish got no ack ({type(error).__name__}). Wanted: an ack with"
                        " any one node dead."
                    ) from None
                await asyncio.sleep(0.1)
    finally:
        await client.close()


@exercise(
    hints=[
        "Look at (await lab.node('n1').ask('jsz'))['config'].",
        "The server tells times in nanoseconds: 2 minutes are 120000000000.",
        (
            "With sync_interval: always the interval still says 2 minutes. Another entry says the"
            " truth, and is there only then."
        ),
    ],
    solution=RISK.replace("answer", "at_risk") + "\nanswer = at_risk",
    wrong={
        "nanoseconds": (RISK.replace(" / 1e9", ""), "nanoseconds"),
        "does not know always": (
            RISK.replace('config.get("sync_always")', "False"),
            "sync_interval: always, it said 12000; wanted: 0",
        ),
        "always the default": (
            RISK.replace('config["sync_interval"] / 1e9', "120"),
            "sync_interval: 10s, it said 12000; wanted: 1000",
        ),
        "asks for a key that may be missing": (
            RISK.replace('config.get("sync_always")', 'config["sync_always"]'),
            "KeyError",
        ),
    },
    limit=90,
)
async def at_risk(lab, answer):
    """Say from /jsz how many acked messages a power failure of all machines can take at most."""
    if not callable(answer):
        raise NotYet(f"{answer!r} is no function; wanted: def at_risk(jsz, per_second).")
    for sync, wanted in (("2m", 12000), ("always", 0), ("10s", 1000)):
        cluster = await private.start(sync=sync)
        try:
            told = await lab.until(
                lambda: cluster.nodes[0].ask("jsz", timeout=3), timeout=15
            )  # /varz lacks it if asked while the node starts
        finally:
            await asyncio.to_thread(cluster.end)
        got = answer(told, 100)
        if not isinstance(got, (int, float)) or isinstance(got, bool):
            raise NotYet(
                f"For 100 messages a second and sync_interval: {sync}, it returned {got!r}; wanted:"
                " a number."
            )
        if abs(got - wanted) > 1:
            why = " The server tells times in nanoseconds." if got > 1e9 else ""
            raise NotYet(
                f"For 100 messages a second and sync_interval: {sync}, it said {got:g}; wanted:"
                f" {wanted}.{why}"
            )


@exercise(
    hints=[
        "First find the leader: the node whose own view names itself as the leader.",
        (
            "Then compare each node's last_seq with that of the leader. Behind is normal, ahead is"
            " not."
        ),
        "A node that is just starting may not know the stream yet: skip it.",
    ],
    solution=AHEAD.replace("answer", "ahead") + "\nanswer = ahead",
    wrong={
        "behind as well": (AHEAD.replace("> last", "!= last"), "is behind the leader"),
        "nobody": ("\ndef answer(views, stream):\n    return sorted(set())", "wanted: ['"),
        "the highest": (
            AHEAD.replace('last = known[leader]["state"]["last_seq"]', "last = 150"),
            "wanted: []",
        ),
        "misses a node that starts": (
            AHEAD.replace(' if stream in view["streams"]', ""),
            "KeyError",
        ),
    },
)
async def ahead(lab, answer):
    """Name the nodes that hold a higher sequence of the stream than its leader."""
    if not callable(answer):
        raise NotYet(f"{answer!r} is no function; wanted: def ahead(views, stream).")
    views, name = await _healthy(lab), "EX_VIEWS"
    leader = next(
        node
        for node, view in views.items()
        if view["streams"][name]["cluster"].get("leader") == node
    )
    one, two = sorted(set(views) - {leader})

    def told(words, at_leader, at_one, at_two):
        changed, last = copy.deepcopy(views), {leader: at_leader, one: at_one, two: at_two}
        for node, seq in last.items():
            changed[node]["streams"][name]["state"]["last_seq"] = seq
            if not seq:
                del changed[node]["streams"][name]
        return words, changed, sorted(node for node, seq in last.items() if seq > at_leader)

    cases = [
        told("of a stream whose three nodes hold 200", 200, 200, 200),
        told(f"where {one} is behind the leader (190 of 200)", 200, 190, 200),
        told(f"where the leader {leader} and {one} hold 121, and {two} 199", 121, 121, 199),
        told(
            f"where the leader {leader} and {one} hold 221 and have passed {two}, 199",
            221,
            221,
            199,
        ),
        told(f"where {one} is starting and does not know the stream", 200, 0, 200),
        told(f"where the leader {leader} holds 40, {one} 90 and {two} 41", 40, 90, 41),
    ]
    for words, changed, wanted in cases:
        got = answer(changed, name)
        if not isinstance(got, (list, tuple, set)) or sorted(got) != wanted:
            raise NotYet(f"For views {words}, it returned {got!r}; wanted: {wanted}.")


async def _healthy(lab):
    """The views of a live stream with three replicas that all know their leader."""
    await delete(lab.js, "EX_VIEWS")
    await lab.js.add_stream(name="EX_VIEWS", subjects=["ex.views.*"], num_replicas=3)
    try:
        await lab.wait_for_leader("EX_VIEWS")

        async def known():
            views = await raft.seen(lab.cluster, lab.topic)
            there = [("EX_VIEWS" in view["streams"]) for view in views.values()] == [True] * 3
            return views if there and raft.leading(views, "EX_VIEWS") else None

        return await lab.until(known, timeout=15)
    finally:
        await delete(lab.js, "EX_VIEWS")

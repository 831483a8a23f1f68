"""Answers to the exercises of durability."""

from nats.js import api

from answers import answers_to

right, wrong = answers_to("durability")


def orders(replicas=3, storage=api.StorageType.FILE, subjects=("ex.orders.*",)):
    return api.StreamConfig(
        name="EX_ORDERS", subjects=list(subjects), num_replicas=replicas, storage=storage
    )


@wrong("keeps_orders", "1 replica: with")
def one_replica():
    return orders(replicas=1)


@wrong("keeps_orders", "2 replicas: with")
def two_replicas():
    return orders(replicas=2)


@wrong("keeps_orders", "keeps its messages in memory")
def in_memory():
    return orders(storage=api.StorageType.MEMORY)


@wrong("keeps_orders", "The server refused")
def more_replicas_than_nodes():
    return orders(replicas=5)


@wrong("keeps_orders", "has the subjects ['EX_ORDERS']")
def no_subjects():
    return api.StreamConfig(name="EX_ORDERS", num_replicas=3, storage=api.StorageType.FILE)


@right("keeps_orders")
def leaves_the_storage_to_the_server():
    return api.StreamConfig(name="EX_ORDERS", subjects=["ex.orders.*"], num_replicas=3)


@wrong("at_risk", "nanoseconds")
def in_nanoseconds(jsz, per_second):
    config = jsz["config"]
    return 0 if config.get("sync_always") else per_second * config["sync_interval"]


@wrong("at_risk", "sync_interval: always, it said 12000; wanted: 0")
def does_not_know_always(jsz, per_second):
    return per_second * jsz["config"]["sync_interval"] / 1e9


@wrong("at_risk", "sync_interval: 10s, it said 12000; wanted: 1000")
def takes_the_default(jsz, per_second):
    return 0 if jsz["config"].get("sync_always") else per_second * 120


@wrong("at_risk", "KeyError")
def asks_for_a_key_that_may_be_missing(jsz, per_second):
    config = jsz["config"]
    return 0 if config["sync_always"] else per_second * config["sync_interval"] / 1e9


@right("at_risk")
def whole_seconds(jsz, per_second):
    config = jsz["config"]
    seconds = config["sync_interval"] // 1_000_000_000
    if "sync_always" in config:
        seconds = 0
    return per_second * seconds


def states_of(views, stream):
    """{node: its view} of the nodes that know the stream, and the leader's name."""
    known = {
        node: view["streams"][stream] for node, view in views.items() if stream in view["streams"]
    }
    leaders = [node for node, seen in known.items() if seen["cluster"].get("leader") == node]
    return known, leaders[0]


@wrong("ahead", "is behind the leader")
def behind_as_well(views, stream):
    known, leader = states_of(views, stream)
    last = known[leader]["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] != last)


@wrong("ahead", "wanted: ['")
def nobody(views, stream):
    return []


@wrong("ahead", "wanted: []")
def those_that_hold_the_highest(views, stream):
    known, _ = states_of(views, stream)
    last = max(seen["state"]["last_seq"] for seen in known.values())
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] == last)


@wrong("ahead", "KeyError")
def forgets_a_node_that_starts(views, stream):
    last = {node: view["streams"][stream]["state"]["last_seq"] for node, view in views.items()}
    _, leader = states_of(views, stream)
    return sorted(node for node in views if last[node] > last[leader])


@right("ahead")
def a_set_in_a_loop(views, stream):
    known, leader = states_of(views, stream)
    found = set()
    for node in known:
        if known[node]["state"]["last_seq"] > known[leader]["state"]["last_seq"]:
            found.add(node)
    return found

"""Answers to the exercises of durability."""

import math
from fractions import Fraction

from nats.js import api

from answers import answers_to
from labkit.cluster import raft

right, wrong = answers_to("durability")


def orders(replicas=3, storage=api.StorageType.FILE, **more):
    return api.StreamConfig(
        name="EX_ORDERS", subjects=["ex.orders.*"], num_replicas=replicas, storage=storage, **more
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


@wrong("keeps_orders", "acked 30 orders and one more")
def only_the_last_one():
    return orders(max_msgs=1)


@wrong("keeps_orders", "acked 30 orders and one more")
def only_the_last_one_of_each_customer():
    return orders(max_msgs_per_subject=1)


@wrong("keeps_orders", "max_age=3: an acked order is thrown away after that time")
def for_three_seconds():
    return orders(max_age=3)


@wrong("keeps_orders", "max_msgs=100000 with discard=old: beyond that, acked orders are thrown")
def a_hundred_thousand():
    return orders(max_msgs=100_000)


@wrong("keeps_orders", "acked 30 orders and one more")
def until_nobody_is_interested():
    return orders(retention=api.RetentionPolicy.INTEREST)


@wrong("keeps_orders", "retention is 'workqueue'")
def until_a_worker_acks():
    return orders(retention=api.RetentionPolicy.WORK_QUEUE)


@wrong("keeps_orders", "order 1, 10000 bytes, got")
def small_orders_alone():
    return orders(max_msg_size=1000)


@wrong("keeps_orders", "nobody hears whether an order is stored")
def without_acks():
    return orders(no_ack=True)


@wrong("keeps_orders", "it refuses each order; wanted: room for 10,000 orders")
def full_after_a_hundred():
    return orders(max_msgs=100, discard=api.DiscardPolicy.NEW)


@right("keeps_orders")
def leaves_the_storage_to_the_server():
    return api.StreamConfig(name="EX_ORDERS", subjects=["ex.orders.*"], num_replicas=3)


@right("keeps_orders")
def refuses_what_does_not_fit():
    config = api.StreamConfig(name="EX_ORDERS", num_replicas=3, max_bytes=1_000_000_000)
    config.subjects = ["ex.orders.*"]
    config.discard = api.DiscardPolicy.NEW
    config.duplicate_window = 3600
    return config


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


@wrong("at_risk", "For 2500 messages a second and sync_interval: 2m, it said 12000; wanted: 300000")
def for_a_hundred_a_second(jsz, per_second):
    config = jsz["config"]
    return 0 if config.get("sync_always") else 100 * config["sync_interval"] / 1e9


@wrong("at_risk", "returned None; wanted: a number")
def says_nothing_where_nothing_is_lost(jsz, per_second):
    config = jsz["config"]
    if not config.get("sync_always"):
        return per_second * config["sync_interval"] / 1e9


@wrong("at_risk", "KeyError")
def asks_for_a_key_that_may_be_missing(jsz, per_second):
    config = jsz["config"]
    return 0 if config["sync_always"] else per_second * config["sync_interval"] / 1e9


@wrong("at_risk", "it said 1000; wanted: ")
def for_the_two_intervals_that_were_tried(jsz, per_second):
    config = jsz["config"]
    seconds = 120 if config["sync_interval"] == 120_000_000_000 else 10
    return 0 if config.get("sync_always") else per_second * seconds


@right("at_risk")
def whole_seconds(jsz, per_second):
    config = jsz["config"]
    seconds = config["sync_interval"] // 1_000_000_000
    if "sync_always" in config:
        seconds = 0
    return per_second * seconds


@right("at_risk")
def exact_and_rounded_up(jsz, per_second):
    match jsz["config"]:
        case {"sync_always": True}:
            return Fraction(0)
        case {"sync_interval": nanoseconds}:
            return Fraction(math.ceil(per_second * nanoseconds), 10**9)


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


@wrong("ahead", "wanted: ['")
def ahead_of_all_others(views, stream):
    known, leader = states_of(views, stream)
    last = {node: seen["state"]["last_seq"] for node, seen in known.items()}
    highest = max(last, key=last.get)
    return [highest] if list(last.values()).count(last[highest]) == 1 else []


@wrong("ahead", "For views where")
def ahead_of_n1(views, stream):
    known, _ = states_of(views, stream)
    first = known.get("n1", {"state": {"last_seq": 200}})["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] > first)


@wrong("ahead", "For views where")
def of_the_first_stream_there(views, stream):
    known, leader = states_of(views, next(iter(views["n1"]["streams"])))
    last = known[leader]["state"]["last_seq"]
    return sorted(node for node, seen in known.items() if seen["state"]["last_seq"] > last)


@right("ahead")
def with_what_the_lab_has(views, stream):
    last = {
        node: view["streams"].get(stream, {"state": {"last_seq": 0}})["state"]["last_seq"]
        for node, view in views.items()
    }
    leader = raft.leading(views, stream)
    return [node for node in sorted(last) if last[node] > last[leader]]


@right("ahead")
def a_set_in_a_loop(views, stream):
    known, leader = states_of(views, stream)
    found = set()
    for node in known:
        if known[node]["state"]["last_seq"] > known[leader]["state"]["last_seq"]:
            found.add(node)
    return found

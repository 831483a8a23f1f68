"""The record of events, and the samplers that fill it with what no message tells."""

import asyncio

import pytest

from labkit import Recorder
from labkit.wire import regularly, sampling, watching


def test_a_recorder_keeps_order_and_time_and_answers_questions():
    log = Recorder()
    assert log("published", lane="publisher", msg=1)["event"] == "published"
    log("lost", lane="publisher", msg=1)
    log("published", lane="publisher", msg=2)
    log("delivered", lane="subscriber", msg=2)
    frame = log.frame()
    assert list(frame.columns) == ["at", "event", "lane", "msg"]
    assert list(frame["event"]) == ["published", "lost", "published", "delivered"]
    assert frame["at"].is_monotonic_increasing
    assert frame["at"].between(0, 60).all()
    assert log.count("published") == 2 == log.count(msg=1)
    assert [entry["event"] for entry in log.all(msg=2)] == ["published", "delivered"]
    assert log.last("published", lane="publisher")["msg"] == 2
    assert log.last("acked") is None
    assert repr(log) == "<Recorder: 4 events>"
    assert list(Recorder().frame().columns) == ["at", "event"]


async def test_a_look_is_taken_before_the_block_while_it_runs_and_at_its_end():
    looks = []

    async def look():
        looks.append("look")
        if len(looks) == 2:
            raise TimeoutError  # nobody answered: this look is left out

    async with regularly(look, every=0.001):
        looks.append("begin")
        while len(looks) < 5:
            await asyncio.sleep(0.001)
        looks.append("end")
    assert looks[:2] == ["look", "begin"]
    assert looks[-1] == "look"
    assert looks.count("look") >= 4


async def test_a_look_that_fails_is_raised_at_the_end_of_the_block():
    looks = []

    async def look():
        looks.append("look")
        if len(looks) == 2:
            raise KeyError("no such number")

    with pytest.raises(KeyError, match="no such number"):
        async with regularly(look, every=0.001):
            await asyncio.sleep(0.05)
    assert len(looks) == 2, "and it looks no more"


async def test_sampling_sees_every_depth_that_lasts_and_the_last_one(calm):
    log = Recorder()
    await calm.js.add_stream(name="ORDERS", subjects=["orders"])
    await calm.settled("ORDERS")
    async with sampling(calm.js, log, "ORDERS", every=0.01):
        await calm.until(lambda: log.count("depth", messages=0))
        for _ in range(3):
            await calm.js.publish("orders", b"")
        await calm.until(lambda: log.count("depth", messages=3))
        await calm.js.purge_stream("ORDERS")
    seen = [e["messages"] for e in log.all("depth", stream="ORDERS")]
    assert (seen[0], max(seen), seen[-1]) == (0, 3, 0)
    assert [e["messages"] for e in log.all("removed", stream="ORDERS")] == [3]


async def test_a_full_stream_that_loses_its_oldest_messages_is_seen_to_do_so(calm):
    log = Recorder()
    await calm.js.add_stream(name="FULL", subjects=["full"], max_msgs=2)
    await calm.settled("FULL")
    for _ in range(2):
        await calm.js.publish("full", b"")
    async with sampling(calm.js, log, "FULL", every=0.01):
        for _ in range(3):
            await calm.js.publish("full", b"")
    assert {e["messages"] for e in log.all("depth")} == {2}
    assert sum(e["messages"] for e in log.all("removed")) == 3


async def test_watching_sees_every_number_that_lasts_and_the_last_one(calm):
    log = Recorder()
    await calm.js.add_stream(name="ORDERS", subjects=["orders"])
    await calm.js.add_consumer("ORDERS", durable_name="workers", ack_policy="explicit")
    await calm.settled("ORDERS")
    async with watching(calm.js, "ORDERS", "workers", log, every=0.01):
        for _ in range(3):
            await calm.js.publish("orders", b"")
        await calm.until(lambda: log.count("lag", pending=3))
        sub = await calm.js.pull_subscribe_bind("workers", "ORDERS")
        first, _ = [(await sub.fetch(1, timeout=5))[0] for _ in range(2)]
        await calm.until(lambda: log.count("lag", pending=1, ack_pending=2))
        await sub.fetch(1, timeout=5)
        await first.nak()
        await sub.fetch(1, timeout=5)
        await calm.until(lambda: log.count("lag", redelivered=1))
    first, *_, last = log.all("lag")
    assert first["pending"] == 0
    assert (last["pending"], last["ack_pending"], last["redelivered"]) == (0, 3, 1)

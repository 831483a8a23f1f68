"""lab.settled(), the wait for a stream that was just created: what it asks, and what it says when
nobody answers. That it waits long enough is tested in test_just_created.py."""

import asyncio

import pytest
from nats.js.errors import NoStreamResponseError, NotFoundError
from nats.js.manager import JetStreamManager

from labkit import LabError
from labkit.cluster import raft, readiness


async def test_a_probe_stores_nothing_takes_nothing_and_passes_a_full_stream(calm):
    await calm.js.add_stream(
        name="FULL", subjects=["full.*.>"], retention="workqueue", max_msgs=1, discard="new"
    )
    await calm.js.add_consumer("FULL", durable_name="worker", ack_policy="explicit")
    await calm.settled("FULL")
    await calm.js.publish("full.a.b", b"")
    await calm.settled("FULL")
    info = await calm.js.consumer_info("FULL", "worker")
    assert (await calm.js.stream_info("FULL")).state.last_seq == 1
    assert (info.num_pending, info.num_ack_pending, info.num_waiting) == (1, 0, 0)


async def test_settling_waits_until_the_stream_is_found_by_its_subject(calm, monkeypatch):
    find = JetStreamManager.find_stream_name_by_subject
    asked = []

    async def found_the_third_time(js, subject):
        asked.append(subject)
        if len(asked) < 3:
            raise NotFoundError
        return await find(js, subject)

    monkeypatch.setattr(JetStreamManager, "find_stream_name_by_subject", found_the_third_time)
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await calm.settled("ORDERS")
    assert asked == ["orders.x"] * 3


async def test_a_stream_that_does_not_exist_is_not_waited_for(calm):
    with pytest.raises(NotFoundError, match="stream not found"):
        await calm.settled("NO_SUCH")


async def test_replicas_are_current_when_each_holds_the_messages(calm):
    """The leader alone says so too early: while a stream gets its replicas, it names none."""
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await calm.settled("ORDERS")
    for _ in range(2000):
        await calm.js.publish_async("orders.new", bytes(10_000))
    await calm.js.publish_async_completed()
    info = await calm.js.stream_info("ORDERS")
    await calm.js.update_stream(info.config, num_replicas=3)
    assert await calm.wait_for_current("ORDERS") == info.cluster.leader
    views = await raft.seen(calm.cluster, calm.topic)
    held = [view["streams"]["ORDERS"]["state"]["messages"] for view in views.values()]
    assert held == [2000] * 3


async def test_the_replicas_of_a_stream_that_grows_are_current_as_well(calm):
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await calm.settled("ORDERS")

    stop = asyncio.Event()

    async def publish():
        while not stop.is_set():
            await calm.js.publish("orders.new")

    publishing = [asyncio.create_task(publish()) for _ in range(20)]
    try:
        await calm.wait_for_current("ORDERS")
    finally:
        stop.set()
        await asyncio.gather(*publishing)


async def test_an_error_says_which_leader_did_not_answer():
    async def silent():
        raise NoStreamResponseError

    with pytest.raises(LabError, match="the leader of stream ORDERS.*NoStreamResponseError"):
        await readiness.until_answered(silent, 0.05, "stream ORDERS")

"""Pictures of JetStream, the sampler behind one of them, and the wait for a stream that was just
created."""

import asyncio

import pytest
from nats.js.errors import NoStreamResponseError, NotFoundError, ServiceUnavailableError
from nats.js.manager import JetStreamManager

from labkit import Lab, LabError, Recorder
from labkit.cluster import readiness
from labkit.pictures import gantt, streams
from labkit.wire import samplers


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab._leave()


async def test_the_sampler_sees_every_depth_that_lasts_and_the_last_one(lab):
    log = Recorder()
    await lab.js.add_stream(name="ORDERS", subjects=["orders"])
    await lab.settled("ORDERS")
    async with samplers.sampling(lab.js, log, "ORDERS", every=0.01):
        await lab.until(lambda: log.count("depth", messages=0))
        for _ in range(3):
            await lab.js.publish("orders", b"")
        await lab.until(lambda: log.count("depth", messages=3))
        await lab.js.purge_stream("ORDERS")
    seen = [e["messages"] for e in log.all("depth", stream="ORDERS")]
    assert seen[0] == 0 and max(seen) == 3 and seen[-1] == 0


def deliveries():
    log = Recorder()
    for at, event, msg, worker in [
        (0, "delivered", 1, "A"),
        (0.4, "acked", 1, "A"),
        (0.4, "delivered", 2, "A"),
        (0.7, "in progress", 2, "A"),
        (1.4, "expired", 2, "A"),
        (1.4, "delivered", 2, "B"),
        (1.6, "nak", 2, "B"),
        (1.7, "delivered", 2, "B"),
        (1.9, "term", 2, "B"),
        (1.8, "delivered", 3, "A"),
    ]:
        log(event, msg=msg, worker=worker)["at"] = at
    return log


def depths():
    log = Recorder()
    for event, fields in [
        ("depth", {"messages": 3}),
        ("acked", {"text": "mail"}),
        ("removed", {"messages": 3}),
        ("depth", {"messages": 0}),
    ]:
        log(event, stream="A", **fields)["at"] = len(log.events)
    return log


@pytest.mark.parametrize(
    "draw",
    [
        lambda: streams.depths(depths(), ["A"], "t", "a"),
        lambda: gantt.deliveries(
            deliveries(), "t", "a", notes=[(1.4, 2, "ran out")], marks=[(1.4, "ack wait over")]
        ),
        lambda: gantt.deliveries(Recorder(), "t", "a"),
        lambda: streams.stream_log({3: "a", 4: "b"}, {"all": (4, 3), "idle": (0, 0)}, "t", "a"),
        lambda: streams.stream_log({}, {}, "t", "a"),
        lambda: streams.depths(Recorder(), ["A", "B"], "t", "a"),
        lambda: streams.attempts(Recorder(), 1, "t", "a"),
    ],
)
def test_pictures_are_drawn_also_from_nothing(draw):
    assert draw().png == draw().png


async def test_a_probe_stores_nothing_takes_nothing_and_passes_a_full_stream(lab):
    await lab.js.add_stream(
        name="FULL", subjects=["full.*.>"], retention="workqueue", max_msgs=1, discard="new"
    )
    await lab.js.add_consumer("FULL", durable_name="worker", ack_policy="explicit")
    await lab.settled("FULL")
    await lab.js.publish("full.a.b", b"")
    await lab.settled("FULL")
    info = await lab.js.consumer_info("FULL", "worker")
    assert (await lab.js.stream_info("FULL")).state.last_seq == 1
    assert (info.num_pending, info.num_ack_pending, info.num_waiting) == (1, 0, 0)


async def test_after_settling_no_node_answers_503(lab):
    clients = [await lab.connect(node=node.name) for node in lab.cluster.nodes]
    refused = []

    async def create_and_use(number):
        name = f"S{number}"
        await lab.js.add_stream(
            name=name, subjects=[f"s.{number}"], num_replicas=1 + 2 * (number % 2)
        )
        await lab.js.add_consumer(name, durable_name="worker", ack_policy="explicit")
        await lab.settled(name)
        for client in clients:
            try:
                await client.jetstream().publish(f"s.{number}", b"")
                sub = await client.jetstream().pull_subscribe_bind("worker", name)
                for message in await sub.fetch(1, timeout=5):
                    await message.ack_sync(timeout=5)
            except (NoStreamResponseError, ServiceUnavailableError) as error:
                refused.append((name, error))

    for start in range(0, 36, 6):  # six at a time, as in a classroom
        await asyncio.gather(*(create_and_use(number) for number in range(start, start + 6)))
    assert not refused


async def test_settling_waits_until_the_stream_is_found_by_its_subject(lab, monkeypatch):
    found, asked = JetStreamManager.find_stream_name_by_subject, []

    async def found_the_third_time(js, subject):
        asked.append(subject)
        if len(asked) < 3:
            raise NotFoundError
        return await found(js, subject)

    monkeypatch.setattr(JetStreamManager, "find_stream_name_by_subject", found_the_third_time)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.settled("ORDERS")
    assert asked == ["orders.x"] * 3


async def test_a_stream_that_is_not_there_is_not_waited_for(lab):
    with pytest.raises(Exception, match="stream not found"):
        await lab.settled("NO_SUCH")


async def test_a_leader_that_stays_silent_is_said(lab, monkeypatch):
    await lab.js.add_stream(name="ORDERS", subjects=["orders"])
    await lab.settled("ORDERS")

    async def silent():
        raise NoStreamResponseError

    with pytest.raises(
        LabError, match="The leader of stream ORDERS did not answer in time: NoStreamResponseError"
    ):
        await readiness.until_answered(silent, 0, "stream ORDERS")

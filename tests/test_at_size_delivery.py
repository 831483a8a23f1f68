"""What lesson 13 tells of deliveries, where its cells show the short case: many messages, three
replicas, a restart, and what a worker meets when a leader dies."""

import asyncio
import contextlib
import time

import pytest
from nats.errors import Error as NatsError

import lessons
from labkit import Recorder
from labkit.exercises.engine import run_source

pytestmark = pytest.mark.soak
CELLS = lessons.sources("delivery")
both = pytest.mark.parametrize("replicas", [1, 3])


async def queue(lab, messages, replicas, **config):
    """A stream of numbered messages with the consumer `worker`; returns its subscription."""
    await lab.js.add_stream(name="SIZE", subjects=["size.*"], num_replicas=replicas)
    await lab.js.add_consumer("SIZE", durable_name="worker", ack_policy="explicit", **config)
    await lab.settled("SIZE")
    for number in range(messages):
        await lab.nc.publish("size.new", b"%d" % number)
    await lab.until(lambda: stored(lab, messages), timeout=60)
    return await lab.js.pull_subscribe_bind("worker", "SIZE")


async def stored(lab, messages):
    return (await lab.js.stream_info("SIZE")).state.messages == messages


async def fetch(sub, batch=1, timeout=1.0):
    with contextlib.suppress(asyncio.TimeoutError):
        return await sub.fetch(batch, timeout=timeout)
    return []


async def numbers(sub):
    info = await sub.consumer_info()
    return info.num_redelivered, info.num_ack_pending, info.num_pending


@both
async def test_given_up_messages_are_counted_until_they_are_gone_or_a_purge(lab, replicas):
    sub = await queue(lab, 2_000, replicas, max_deliver=2, max_ack_pending=-1)
    while msgs := await fetch(sub, 500):
        for msg in msgs:
            await msg.nak()
    assert await numbers(sub) == (2_000, 0, 0)
    await asyncio.gather(*(lab.faults.kill(node) for node in ("n1", "n2", "n3")))
    await lab.faults.heal()
    await lab.settled("SIZE")
    assert await numbers(sub) == (2_000, 0, 0)
    for number in range(1, 11):
        await lab.js.delete_msg("SIZE", number)
    await shows(lab, sub, 1_990)
    config = (await lab.js.stream_info("SIZE")).config
    await lab.js.update_stream(config.evolve(max_msgs=500))
    await shows(lab, sub, 500)
    await lab.js.purge_stream("SIZE", subject="size.other")  # there is none
    await shows(lab, sub, 0)
    assert await stored(lab, 500)
    if replicas == 3:
        await another_leads(lab, sub)
        await shows(lab, sub, 500)


async def another_leads(lab, sub):
    leads = (await sub.consumer_info()).cluster.leader
    other = next(node for node in ("n1", "n2", "n3") if node != leads)
    await lab.faults.step_down("SIZE", "worker", to=other)


@both
async def test_only_a_purge_of_what_the_consumer_reads_makes_it_forget(lab, replicas):
    sub = await queue(lab, 100, replicas, max_deliver=2, filter_subject="size.new")
    while msgs := await fetch(sub, 50):
        for msg in msgs:
            await msg.nak()
    await lab.js.purge_stream("SIZE", subject="size.other")  # there is none
    await shows(lab, sub, 100)
    await lab.js.publish("size.new", b"in flight")
    [held] = await fetch(sub, timeout=5)
    await lab.js.purge_stream("SIZE", subject="size.new", seq=1)  # removes nothing
    assert await numbers(sub) == (100, 1, 0)
    await held.ack_sync()
    await lab.js.purge_stream("SIZE", subject="size.new", seq=1)
    await shows(lab, sub, 0)
    assert await stored(lab, 101)


@both
async def test_the_ack_floor_jumps_over_what_was_given_up(lab, replicas):
    sub = await queue(lab, 3, replicas, max_deliver=2)
    for _ in range(2):
        for msg in await fetch(sub, 3, timeout=5):
            if msg.data == b"1":
                await msg.nak()
            else:
                await msg.ack_sync()
    assert await fetch(sub) == [] and await numbers(sub) == (1, 0, 0)
    assert await floor(sub) == 1
    await lab.js.publish("size.new", b"later")
    [msg] = await fetch(sub, timeout=5)
    await msg.ack_sync()
    assert await floor(sub) == 4


async def floor(sub):
    return (await sub.consumer_info()).ack_floor.stream_seq


async def shows(lab, sub, redelivered):
    async def so():
        with contextlib.suppress(TimeoutError):  # nobody leads, nobody answers
            return await asyncio.wait_for(numbers(sub), 1) == (redelivered, 0, 0)

    await lab.until(so)


@both
@pytest.mark.parametrize("most", [1, 2])
async def test_after_silence_it_is_given_up_when_somebody_asks(lab, most, replicas):
    sub = await queue(lab, 1, replicas, max_deliver=most, ack_wait=0.3)
    told = await lab.nc.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SIZE.>")
    for _ in range(most):
        assert len(await fetch(sub, timeout=5)) == 1  # and no answer
    await asyncio.sleep(2)
    again = most - 1
    assert told.pending_msgs == (most == 1)
    assert await numbers(sub) == (again, again, 0)
    assert await fetch(sub) == []
    await lab.until(lambda: told.pending_msgs == 1)
    assert await numbers(sub) == (again, 0, 0)


@both
async def test_a_delay_and_backoff_add_up(lab, replicas):
    sub = await queue(lab, 1, replicas, backoff=[0.2, 1, 2])
    at = []
    for _ in range(5):
        [msg] = await fetch(sub, timeout=5)
        at.append(time.monotonic())
        await msg.nak(delay=0.5)
    gaps = [later - earlier for earlier, later in zip(at, at[1:], strict=False)]
    assert all(gap >= wanted - 0.01 for gap, wanted in zip(gaps, [0.5, 1.3, 2.3, 2.3], strict=True))


@both
async def test_a_worker_that_is_alone_runs_hardly_anything_twice(lab, replicas):
    sub = await queue(lab, 300, replicas, ack_wait=0.5)
    runs = 0
    while msgs := await fetch(sub, 100):  # a batch takes twice as long as ack wait
        for msg in msgs:
            await asyncio.sleep(0.01)
            await msg.ack()
            runs += 1
    assert 300 <= runs < 330 and await numbers(sub) == (0, 0, 0)  # 301 or 302, mostly


async def test_a_fetch_meets_503_while_the_consumer_has_no_leader(lab):
    sub = await queue(lab, 1, 3)
    await lab.faults.step_down("SIZE", "worker", to="n3")
    await lab.faults.kill("n3")
    said = []

    async def unavailable():
        for call in (sub.fetch(1, timeout=0.3), asyncio.wait_for(sub.consumer_info(), 1)):
            try:
                said.append(type(await call).__name__)
            except (TimeoutError, NatsError) as error:
                said.append(type(error).__name__)
        return "ServiceUnavailableError" in said[::2]

    await lab.until(unavailable)
    assert "NotFoundError" not in said


@pytest.mark.parametrize("dead", ["n1", "n3"])  # the node of the client, or another one
async def test_the_loop_that_survives_goes_on_when_its_consumers_leader_dies(lab, dead):
    async def process(msg):
        await asyncio.sleep(0.02)

    source = "\n".join(
        [
            "import asyncio, contextlib",
            "from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError",
            CELLS["tools"],
            CELLS["guide-loop"],
            CELLS["survivor"],
        ]
    )
    scope = await run_source(source, lab=lab, nc=lab.nc, js=lab.js)
    sub = await queue(lab, 100, 3, ack_wait=2)
    await lab.faults.step_down("SIZE", "worker", to=dead)
    log, stop = Recorder(), asyncio.Event()
    running = asyncio.create_task(scope["survive"](sub, process, log, stop))
    await lab.until(lambda: running.done() or log.count("acked") > 10, timeout=30)
    await lab.faults.kill(dead)
    await lab.until(
        lambda: running.done() or len({e["msg"] for e in log.all("acked")}) == 100, timeout=60
    )
    stop.set()
    await running
    assert len({event["msg"] for event in log.all("acked")}) == 100

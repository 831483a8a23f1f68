"""What lesson 20 says and shows with small numbers, or does not show: large batches of large
messages, good-byes that use up deliveries, partitions, a drain that takes its time."""

import asyncio
import contextlib
import dataclasses
import inspect
import json
import time

import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError, ServiceUnavailableError

from conftest import barrier
from labkit import LabError
from labkit.processes import workers
from test_survivors import start

pytestmark = pytest.mark.soak


async def make(lab, stream, messages=0, body=b"x", **config):
    await lab.js.add_stream(name=stream, subjects=[f"{stream.lower()}.>"])
    await lab.js.add_consumer(stream, durable_name="workers", ack_policy="explicit", **config)
    await lab.settled(stream)
    for _ in range(messages):
        await lab.js.publish(f"{stream.lower()}.new", body)


async def fetched(sub, batch, timeout=3):
    with contextlib.suppress(asyncio.TimeoutError):
        return await sub.fetch(batch, timeout=timeout)
    return []


async def test_a_batch_that_is_too_heavy_costs_the_connection_and_an_ack_wait(calm):
    await make(calm, "HEAVY", 300, bytes(900_000), ack_wait=5)
    cuts, seen = [], []

    async def cut():
        cuts.append(time.monotonic())

    async def note(error):
        seen.append(error)

    client = await calm.connect(name="heavy", disconnected_cb=cut, error_cb=note)
    sub = await client.jetstream().pull_subscribe_bind("workers", "HEAVY")
    asking = asyncio.create_task(fetched(sub, 300))
    await calm.until(lambda: client.stats["in_msgs"] > 0)
    time.sleep(1)  # a handler that blocks, or a machine that is busy: nobody reads
    first = await asking
    assert cuts and 0 < len(first) < 150
    for msg in first:
        await msg.ack()
    done = {msg.metadata.sequence.stream for msg in first}
    again = 0
    begin = time.monotonic()
    while len(done) < 300 and time.monotonic() - begin < 20:
        for msg in await fetched(sub, 20, timeout=1):  # 18 MB
            again += msg.metadata.num_delivered > 1
            done.add(msg.metadata.sequence.stream)
            await msg.ack()
    # What had been sent and never arrived is delivered again: some at once, some after ack wait.
    assert len(done) == 300 and len(cuts) == 1 and again > 0


async def test_a_limit_below_one_message_brings_only_a_409_every_time(calm):
    await make(calm, "PHOTOS", 3, bytes(500_000))
    inbox = calm.nc.new_inbox()
    answers = await calm.nc.subscribe(inbox)
    ask = json.dumps({"batch": 3, "max_bytes": 400_000, "expires": 10**9}).encode()
    for _ in range(3):
        await calm.nc.publish("$JS.API.CONSUMER.MSG.NEXT.PHOTOS.workers", ask, reply=inbox)
        msg = await answers.next_msg(timeout=5)
        assert msg.headers["Status"] == "409" and not msg.data
    info = await calm.js.consumer_info("PHOTOS", "workers")
    assert info.num_pending == 3 and info.num_ack_pending == 0


async def test_two_good_byes_give_up_a_message_that_nobody_has_begun(calm):
    await make(calm, "BYE", 200, max_deliver=2)
    sub = await calm.js.pull_subscribe_bind("workers", "BYE")
    for times in (1, 2):
        msgs = []
        while len(msgs) < 200:  # a fetch may find that not all naks have been worked off
            msgs += await sub.fetch(200 - len(msgs), timeout=10)
        assert {msg.metadata.num_delivered for msg in msgs} == {times}
        for msg in msgs:
            await msg.nak()
        await calm.nc.flush()
    assert await fetched(sub, 200, timeout=1) == []
    assert (await calm.js.consumer_info("BYE", "workers")).num_pending == 0
    assert (await calm.js.stream_info("BYE")).state.messages == 200


async def test_another_exception_of_the_work_ends_a_worker_of_the_lesson(calm):
    worker = await start(calm, "packer", ack_wait=1)
    path = workers.folder(calm.topic) / "packer.py"
    text = path.read_text(encoding="utf-8")
    workers.write(calm.topic, path.name, text.replace("asyncio.sleep(job)", "fail()") + FAIL)
    worker.kill()
    await worker.ended()
    await calm.js.publish("orders.new", b"1")
    worker = await calm.worker("packer.py", "B", stream="ORDERS", batch=6, job=0)
    with pytest.raises(LabError, match="no paper"):
        await worker.ended()


FAIL = """

async def fail():
    raise ValueError("no paper")
"""


async def test_a_loop_that_swallows_the_503_of_a_deleted_consumer_asks_for_ever(calm):
    await make(calm, "GONE")
    sub = await calm.js.pull_subscribe_bind("workers", "GONE")
    await calm.js.delete_consumer("GONE", "workers")
    for _ in range(100):
        with pytest.raises(ServiceUnavailableError):
            await sub.fetch(5, timeout=1)
    with pytest.raises(NotFoundError):
        await sub.consumer_info()


@pytest.mark.parametrize("unsubscribes", [False, True])
async def test_a_drain_waits_for_the_status_messages_of_expired_fetches(calm, unsubscribes):
    await make(calm, "IDLE")
    late = []

    async def note(error):
        late.append(error)

    client = await calm.connect(name="idle", drain_timeout=2, error_cb=note)
    sub = await client.jetstream().pull_subscribe_bind("workers", "IDLE")
    for _ in range(30):  # as an idle worker, until a status message came too late for its fetch
        await fetched(sub, 6, timeout=0.1)
        if sub._sub._pending_queue._unfinished_tasks:
            break
    if unsubscribes:
        await sub.unsubscribe()
    begin = time.monotonic()
    with contextlib.suppress(asyncio.TimeoutError):
        await client.drain()
    took = time.monotonic() - begin
    assert took < 1 if unsubscribes else took > 1.9 and late


async def test_a_drain_gives_nothing_back(calm):
    await make(calm, "HELD", 6, ack_wait=30)
    client = await calm.connect(name="leaves")
    sub = await client.jetstream().pull_subscribe_bind("workers", "HELD")
    assert len(await fetched(sub, 6)) == 6
    await sub.unsubscribe()
    await client.drain()
    info = await calm.js.consumer_info("HELD", "workers")
    assert info.num_ack_pending == 6 and info.num_redelivered == 0
    sub = await calm.js.pull_subscribe_bind("workers", "HELD")
    assert await fetched(sub, 6, timeout=2) == []


async def test_a_paused_consumer_has_a_backlog_and_workers_that_wait(calm):
    await make(calm, "PAUSED", 20)
    await calm.js.pause_consumer("PAUSED", "workers", "2099-01-01T00:00:00Z")

    async def is_paused():  # a cluster answers a pause before the consumer knows of it
        return (await calm.js.consumer_info("PAUSED", "workers")).paused

    await calm.until(is_paused)
    subs = [await calm.js.pull_subscribe_bind("workers", "PAUSED") for _ in range(3)]
    waiting = [asyncio.create_task(fetched(sub, 5, timeout=10)) for sub in subs]

    async def all_wait():
        info = await calm.js.consumer_info("PAUSED", "workers")
        return info if info.num_waiting == 3 else None

    info = await calm.until(all_wait)
    assert not any(task.done() for task in waiting), "nobody got anything"
    for sub in subs:
        await sub.unsubscribe()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert info.num_pending == 20 and info.num_ack_pending == 0


async def test_partitions(calm):
    """A partition without a worker keeps its messages, one consumer may filter several, and another
    number of partitions sends keys elsewhere."""

    async def places(number):
        transform = api.SubjectTransform(
            src="shop.*", dest=f"shop.{{{{partition({number},1)}}}}.{{{{wildcard(1)}}}}"
        )
        name = f"SHOP{number}"
        await calm.js.add_stream(name=name, subjects=["shop.*"], subject_transform=transform)
        await calm.settled(name)
        for key in range(300):
            await calm.js.publish(f"shop.c{key}")
        found = (await calm.js.stream_info(name, subjects_filter=">")).state.subjects
        if number == 3:
            for consumer, parts in {"p0": [0], "p12": [1, 2]}.items():
                filters = [f"shop.{part}.*" for part in parts]
                config = api.ConsumerConfig(durable_name=consumer, filter_subjects=filters)
                await calm.js.add_consumer(name, config.evolve(ack_policy="explicit"))
            await calm.settled(name)
            sub = await calm.js.pull_subscribe_bind("p12", name)
            while msgs := await fetched(sub, 100, timeout=0.5):
                for msg in msgs:
                    await msg.ack_sync()
            left = [(await calm.js.consumer_info(name, one)).num_pending for one in ("p0", "p12")]
            in_p0 = sum(subject.startswith("shop.0.") for subject in found)
            assert left == [in_p0, 0] and 60 < in_p0 < 140
        await calm.js.delete_stream(name)
        return {subject.split(".")[2]: subject.split(".")[1] for subject in found}

    three, four = await places(3), await places(4)
    assert len(three) == len(four) == 300
    assert sum(three[key] != four[key] for key in three) > 100


async def test_a_member_of_a_group_is_drawn_without_asking_who_is_busy(calm):
    counts = {}

    async def member(name, pause):
        client = await calm.connect(name=name)

        async def on_job(msg):
            counts[name] = counts.get(name, 0) + 1
            await asyncio.sleep(pause)

        await client.subscribe("jobs", queue="crew", cb=on_job)
        await barrier(client)

    await member("slow", 0.005)
    await member("quick", 0)
    await member("quick too", 0)
    for _ in range(3000):
        await calm.nc.publish("jobs", b"")
    await calm.nc.flush()
    await calm.until(lambda: sum(counts.values()) == 3000, timeout=20)
    assert all(850 < count < 1150 for count in counts.values())  # 1000, ± six deviations


def test_what_nats_py_has_no_setting_for():
    """The server's own stand-by schemes, and a limit of bytes for a fetch."""
    fields = {field.name for field in dataclasses.fields(api.ConsumerConfig)}
    assert "filter_subjects" in fields and not {"priority_groups", "priority_policy"} & fields
    fetch = inspect.signature(JetStreamContext.PullSubscription.fetch)
    assert "batch" in fetch.parameters and "max_bytes" not in fetch.parameters


async def test_the_messages_go_out_in_the_order_of_the_stream_whoever_asks(calm):
    await make(calm, "ORDER", 500)
    subs = []
    for name in "ABC":
        client = await calm.connect(name=name)
        subs.append(await client.jetstream().pull_subscribe_bind("workers", "ORDER"))
    seen = []
    while len(seen) < 500:
        for sub in subs:
            for msg in await fetched(sub, 7):
                seen.append(msg.metadata.sequence.stream)
                await msg.ack()
    assert seen == list(range(1, 501))

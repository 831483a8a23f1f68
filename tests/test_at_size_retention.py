"""What lesson 12 says of interest streams and work queues, at size, after a restart and with three
replicas."""

import asyncio

import pytest

from labkit.cluster import raft
from labkit.cluster.standalone import start_server
from labkit.waiting import until

pytestmark = pytest.mark.soak


async def messages(js, name):
    return (await js.stream_info(name)).state.messages


async def fill(client, js, subject, thousands):
    for _ in range(thousands):
        for _ in range(999):
            await client.publish(subject)
        await js.publish(subject)


async def left_by_audit(client, js, thousands, settled=None, **config):
    """How many messages stay when audit, with so many thousand unread ones, is deleted, and mail
    has acked its only one."""
    await js.add_stream(name="BIG", subjects=["big.*"], retention="interest", **config)
    for name in ("mail", "audit"):
        await js.add_consumer(
            "BIG", durable_name=name, filter_subject=f"big.{name}", ack_policy="explicit"
        )
    if settled:
        await settled("BIG")
    await js.publish("big.mail")
    await fill(client, js, "big.audit", thousands)
    await js.delete_consumer("BIG", "audit")
    mail = await js.pull_subscribe_bind("mail", "BIG")
    [msg] = await mail.fetch(1, timeout=5)
    await msg.ack_sync()

    async def has_gone():
        return (await js.stream_info("BIG")).state.first_seq > 1

    await until(has_gone, 10)
    return await messages(js, "BIG")


async def test_with_one_replica_a_large_backlog_outlives_a_restart(calm):
    server = await start_server(calm, 'jetstream { store_dir: "." }')
    client = await calm.connect(servers=[server.url])
    js = client.jetstream(timeout=10)
    assert await left_by_audit(client, js, 101) == 101_000
    await client.close()
    server.stop()
    await server.start()
    client = await calm.connect(servers=[server.url])
    js = client.jetstream(timeout=10)
    assert await messages(js, "BIG") == 101_000
    assert (await js.consumer_info("BIG", "mail")).num_pending == 0
    await js.purge_stream("BIG", subject="big.audit")
    assert await messages(js, "BIG") == 0
    await client.close()


async def test_in_a_cluster_a_restart_removes_what_one_replica_kept(lab):
    js = lab.nc.jetstream(timeout=10)
    assert await left_by_audit(lab.nc, js, 101, lab.settled) == 101_000
    node = (await js.stream_info("BIG")).cluster.leader
    await lab.faults.stop(node)
    await lab.faults.start(node)
    await raft.wait_for_whole(lab, 30)
    await lab.settled("BIG")
    assert await messages(js, "BIG") == 0
    assert (await js.consumer_info("BIG", "mail")).num_pending == 0


async def test_with_three_replicas_it_goes_by_itself_some_seconds_later(calm):
    js = calm.nc.jetstream(timeout=10)
    assert await left_by_audit(calm.nc, js, 101, calm.settled, num_replicas=3) == 101_000

    async def none_left():
        return not await messages(js, "BIG")

    await until(none_left, 30, every=0.2)


async def test_a_backlog_that_others_have_passed_goes_at_once_at_any_size(calm):
    """The consumer that stays has acked all: here it reads the same messages, and all of them."""
    js = calm.nc.jetstream(timeout=10)
    await js.add_stream(name="ALL", subjects=["all"], retention="interest")
    for name in ("fast", "slow"):
        await js.add_consumer("ALL", durable_name=name, ack_policy="all", max_ack_pending=-1)
    await calm.settled("ALL")
    await fill(calm.nc, js, "all", 101)
    fast = await js.pull_subscribe_bind("fast", "ALL")
    read = 0
    while read < 101_000:
        batch = await fast.fetch(1000, timeout=5)
        read += len(batch)
    await batch[-1].ack_sync()
    assert await messages(js, "ALL") == 101_000
    await js.delete_consumer("ALL", "slow")

    async def none_left():
        return not await messages(js, "ALL")

    await until(none_left, 10)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_without_a_consumer_none_of_a_thousand_is_kept(calm, replicas):
    await calm.js.add_stream(
        name="NOBODY", subjects=["nobody"], retention="interest", num_replicas=replicas
    )
    await calm.settled("NOBODY")
    await fill(calm.nc, calm.js, "nobody", 1)
    state = (await calm.js.stream_info("NOBODY")).state
    assert (state.messages, state.last_seq) == (0, 1000)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_message_that_two_want_counts_twice_and_a_term_removes_a_job(calm, replicas):
    js = calm.js
    await js.add_stream(name="TWO", subjects=["two"], retention="interest", num_replicas=replicas)
    for name in ("mail", "audit"):
        await js.add_consumer("TWO", durable_name=name, ack_policy="explicit")
    await js.add_stream(name="JOBS", subjects=["job"], retention="workqueue", num_replicas=replicas)
    worker = await js.pull_subscribe("job", "worker", stream="JOBS")
    for name in ("TWO", "JOBS"):
        await calm.settled(name)
    await js.publish("two")
    await js.publish("job")

    async def wanted():
        return sum([info.num_pending for info in await js.consumers_info("TWO")])

    async def two_are_wanted():
        return await wanted() == 2

    await until(two_are_wanted, 5)
    assert await messages(js, "TWO") == 1
    [job] = await worker.fetch(1, timeout=5)
    assert await messages(js, "JOBS") == 1
    await job.term()

    async def none_left():
        return not await messages(js, "JOBS")

    await until(none_left, 5)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_beside_a_thousand_rollups_a_reader_always_finds_a_message(calm, replicas):
    js = calm.js
    await js.add_stream(name="SUM", subjects=["sum"], allow_rollup_hdrs=True, num_replicas=replicas)
    await calm.settled("SUM")
    await js.publish("sum", b"0")
    over = asyncio.Event()
    found = []

    async def read():
        while not over.is_set():
            found.append(int((await js.get_last_msg("SUM", "sum")).data))

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(1, 1001):
        await js.publish("sum", b"%d" % number, headers={"Nats-Rollup": "sub"})
    over.set()
    await asyncio.gather(*readers)
    assert await messages(js, "SUM") == 1 and len(set(found)) > 100


async def test_the_sum_finds_what_was_given_up_with_three_replicas_and_a_new_leader(lab):
    js = lab.js
    await js.add_stream(name="TASKS", subjects=["tasks"], retention="workqueue", num_replicas=3)
    await js.add_consumer(
        "TASKS", durable_name="worker", ack_policy="explicit", ack_wait=0.3, max_deliver=2
    )
    await lab.settled("TASKS")
    for number in range(300):
        await js.publish("tasks", b"%d" % number)
    worker = await js.pull_subscribe_bind("worker", "TASKS")
    given_up = {b"100", b"200"}

    async def is_over():
        try:
            for msg in await worker.fetch(50, timeout=0.5):
                if msg.data not in given_up:
                    await msg.ack_sync()
        except TimeoutError:
            pass
        info = await js.consumer_info("TASKS", "worker")
        return not info.num_pending + info.num_ack_pending and info.num_redelivered == 2

    await until(is_over, 20)

    async def two_are_left():
        return await messages(js, "TASKS") == 2

    await until(two_are_left, 5)
    await lab.faults.step_down(stream="TASKS", consumer="worker")
    await lab.faults.step_down(stream="TASKS")
    await lab.settled("TASKS")
    info = await js.consumer_info("TASKS", "worker")
    assert (info.num_pending, info.num_ack_pending, info.num_redelivered) == (0, 0, 2)
    await js.delete_consumer("TASKS", "worker")
    again = await js.pull_subscribe("tasks", "worker", stream="TASKS")
    await lab.settled("TASKS")
    assert {msg.data for msg in await again.fetch(2, timeout=5)} == given_up

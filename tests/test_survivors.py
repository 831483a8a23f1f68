"""The workers that the lesson "work queues" and an exercise on production settings hand to a
reader: nodes die under them, their consumer is deleted, their own work times out."""

import asyncio
import sys

import pytest
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js.errors import ServerError

import lessons
from labkit import LabError
from labkit.exercises import production_settings
from labkit.exercises.engine import run_source
from labkit.processes import workers

BOOK = lessons.sources("work_queues")
OPTIONS = {
    "packer": {"stream": "ORDERS", "batch": 6, "job": 0.03},
    "steps": {"consumer": "workers"},
    "goodbye": {},
}
WORK = {
    "packer": "asyncio.sleep(job)",
    "steps": 'asyncio.sleep(0.15 if "pack" in step else 0.03)',
    "goodbye": "asyncio.sleep(0.03)",
}
# The solution takes other arguments than `work` of a worker does. This makes a worker of it.
AROUND_GOODBYE = """

import asyncio
from nats.js.errors import NotFoundError
leave = work

async def work(nc, js, point):
    sub = await js.pull_subscribe_bind("workers", "ORDERS")
    async def process(msg):
        await asyncio.sleep(0.03)
    try:
        await leave(nc, sub, asyncio.Event(), process)
    except NotFoundError:
        assert nc.is_closed
        raise
"""
GOODBYE = production_settings.goodbye.solution_text() + AROUND_GOODBYE
LATE = """

async def late(calls=[]):
    calls.append("one more")
    if len(calls) == 2:
        raise asyncio.TimeoutError
"""
every = pytest.mark.parametrize("name", OPTIONS)


async def start(lab, name, late=False, messages=0, replicas=3, **config):
    """The stream with so many messages, its consumer, and the worker as it stands in the notebook.
    late: its second piece of work times out."""
    for module in ("packer", "steps"):
        magic, _, body = BOOK[module].partition("\n")
        assert magic == f"%%worker {module}.py"
        workers.write(lab.topic, f"{module}.py", body)
    workers.write(lab.topic, "goodbye.py", GOODBYE)
    if late:
        path = workers.folder(lab.topic) / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        assert text.count(WORK[name]) == 1
        workers.write(lab.topic, path.name, text.replace(WORK[name], "late()") + LATE)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=replicas)
    await lab.js.add_consumer("ORDERS", durable_name="workers", ack_policy="explicit", **config)
    await lab.settled("ORDERS")
    await publish(lab, range(messages))
    return await lab.worker(f"{name}.py", name, **OPTIONS[name])


async def publish(lab, numbers):
    for number in numbers:
        await lab.js.publish("orders.new", b"%d" % number)


async def acked(lab, worker, number, timeout=60):
    """Waits until so many messages have been acked, and tells why if the worker ends instead."""

    async def so():
        if not worker.alive:
            pytest.fail(f"ended with {await worker.ended()}")  # or with the error that ended it
        try:
            return (await lab.js.consumer_info("ORDERS", "workers")).ack_floor.stream_seq >= number
        except (TimeoutError, NatsError):  # nobody leads now
            return False

    await lab.until(so, timeout)


# A worker is connected to n1. So its own node dies, or another one; or so many that nobody can lead
# until one is back.
@pytest.mark.parametrize(
    "dead", [["n1"], ["n3"], pytest.param(["n3", "n2"], marks=pytest.mark.soak)], ids="+".join
)
@every
async def test_it_lives_through_the_death_of_its_consumers_leader(lab, name, dead):
    worker = await start(lab, name, ack_wait=2)
    await lab.faults.step_down("ORDERS", "workers", to=dead[0])
    await publish(lab, range(100))
    await acked(lab, worker, 10)
    for node in dead:
        await lab.faults.kill(node)
    if len(dead) > 1:
        # The nodes that are left need a while to see that there is no quorum.
        async def refused():
            try:
                await lab.js.consumer_info("ORDERS", "workers")
            except (TimeoutError, NatsError) as error:
                return getattr(error, "err_code", None) == 10008

        await lab.until(refused, timeout=60)
        await lab.faults.heal()
    await acked(lab, worker, 100)
    await lab.wait_for_leader("ORDERS")
    await lab.settled("ORDERS")
    await publish(lab, range(100, 110))
    await acked(lab, worker, 110)


@pytest.mark.skipif(
    sys.platform == "win32", reason="SIGTERM is a kill: nobody is told that the node is gone"
)
@every
async def test_it_waits_while_the_only_node_of_its_stream_is_stopped(lab, name):
    worker = await start(lab, name, replicas=1)
    await lab.faults.stop(await lab.wait_for_leader("ORDERS", "workers"))

    async def offline():  # a 500
        try:
            await lab.js.consumer_info("ORDERS", "workers")
        except ServerError as error:
            return error.err_code == 10119
        except (TimeoutError, NatsError):
            return False

    await lab.until(offline, timeout=60)
    await lab.faults.heal()
    await lab.settled("ORDERS")
    await publish(lab, range(3))
    await acked(lab, worker, 3)


@pytest.mark.parametrize("gone", ["consumer", "stream"])
@every
async def test_it_ends_by_itself_and_says_why_when_its_consumer_is_gone(calm, name, gone):
    worker = await start(calm, name)

    async def asks():
        return (await calm.js.consumer_info("ORDERS", "workers")).num_waiting == 1

    await calm.until(asks)
    if gone == "consumer":
        await calm.js.delete_consumer("ORDERS", "workers")
    else:
        await calm.js.delete_stream("ORDERS")
    with pytest.raises(LabError) as told:
        await worker.ended()
    text = str(told.value)
    assert "NotFoundError" in text.splitlines()[-1] and f"'{gone} not found'" in text


@every
async def test_a_timeout_of_its_work_costs_one_message_a_second_delivery_and_the_others_nothing(
    calm, name
):
    worker = await start(calm, name, late=True, messages=6, ack_wait=600)
    await acked(calm, worker, 6, timeout=30)
    info = await calm.js.consumer_info("ORDERS", "workers")
    assert info.delivered.consumer_seq == 7


async def test_a_connection_that_is_closed_for_good_ends_them(calm):
    await start(calm, "packer")
    take = (await run_source(BOOK["packer"].partition("\n")[2]))["take"]
    leave = production_settings.goodbye.answer
    for ask in (
        lambda client, sub: take(sub, 5),
        lambda client, sub: leave(client, sub, asyncio.Event(), None),
    ):
        client = await calm.connect()
        sub = await client.jetstream().pull_subscribe_bind("workers", "ORDERS")
        asking = asyncio.create_task(ask(client, sub))
        await calm.until(lambda: client.stats["out_msgs"])
        await client.close()
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(asking, 10)

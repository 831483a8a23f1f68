"""Answers to the exercises of core_nats."""

import asyncio

from answers import answers_to

right, wrong = answers_to("core_nats")

wrong("pattern", "also got 'sensors.berlin.temp'")("sensors.>")
wrong("pattern", "missed 'sensors.berlin.1.temp'")("sensors.*.temp")
wrong("pattern", "also got 'sensors.berlin.1.humidity'")("sensors.*.*.*")
wrong("pattern", "refused 'sensors.>.temp'")("sensors.>.temp")


@wrong("ready", "no SUB had left")
async def returns_at_once(nc, handler):
    await nc.subscribe("orders.*", cb=handler)


@wrong("ready", "heard SUB after the last PING")
async def flushes_alone(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await nc.flush()


@wrong("ready", "after the last PING")
async def waits_for_time(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await asyncio.sleep(0.05)


@wrong("ready", "to 'orders'; wanted: to 'orders.*'")
async def another_subject(nc, handler):
    await nc.subscribe("orders", cb=handler)
    await asyncio.sleep(0)
    await nc.flush()


@right("ready")
async def asks_until_the_server_answers_twice(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    for _ in range(2):
        await nc.flush()
        await asyncio.sleep(0.01)


@wrong("worker", "At most 1 message was in your hands at once")
async def one_at_a_time(nc, handle, stop):
    await nc.subscribe("jobs.*", queue="workers", cb=handle)
    await stop.wait()
    await nc.drain()


@wrong("worker", "at once; wanted: at most 4")
async def no_limit(nc, handle, stop):
    tasks = set()

    async def callback(msg):
        tasks.add(asyncio.create_task(handle(msg)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)


async def at_most_four(nc, handle, stop, group="workers"):
    """Subscribes, waits for stop, and returns the tasks that are left."""
    slots, tasks = asyncio.Semaphore(4), set()

    async def callback(msg):
        await slots.acquire()
        task = asyncio.create_task(handle(msg))
        tasks.add(task)
        task.add_done_callback(lambda task: slots.release())

    await nc.subscribe("jobs.*", queue=group, cb=callback)
    await stop.wait()
    return tasks


@wrong("worker", "never began")
async def closes(nc, handle, stop):
    tasks = await at_most_four(nc, handle, stop)
    await nc.close()
    await asyncio.gather(*tasks)


@wrong("worker", "were begun and not finished")
async def leaves_tasks_behind(nc, handle, stop):
    await at_most_four(nc, handle, stop)
    await nc.drain()


@wrong("worker", "without a queue name")
async def no_queue_group(nc, handle, stop):
    tasks = await at_most_four(nc, handle, stop, group="")
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "had not returned 5 s after")
async def ignores_stop(nc, handle, stop):
    await nc.subscribe("jobs.*", queue="workers", cb=handle)
    await asyncio.sleep(60)

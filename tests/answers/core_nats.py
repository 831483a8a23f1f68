"""Answers to the exercises of core_nats."""

import asyncio
import contextlib
import logging

import nats
from nats.errors import NoRespondersError

from answers import answers_to

right, wrong = answers_to("core_nats")

wrong("pattern", "also got 'sensors.berlin.temp'")("sensors.>")
wrong("pattern", "missed 'sensors.berlin.1.temp'")("sensors.*.temp")
wrong("pattern", "also got 'sensors.berlin.1.humidity'")("sensors.*.*.*")
wrong("pattern", "refused 'sensors.>.temp'")("sensors.>.temp")
wrong("pattern", "also got 'actors.berlin.1.temp'")("*.*.*.temp")
wrong("pattern", "missed 'sensors.paris.22.temp'")("sensors.berlin.1.temp")
wrong("pattern", "is a list; wanted: a pattern as text")(["sensors.*.*.temp"])


@right("pattern")
def joins_the_tokens():
    return ".".join(["sensors", "*", "*", "temp"])


@right("pattern")
def replaces_what_varies():
    return "sensors.CITY.NUMBER.temp".replace("CITY", "*").replace("NUMBER", "*")


@wrong("ready", "no SUB had left")
async def returns_at_once(nc, handler):
    await nc.subscribe("orders.*", cb=handler)


@wrong("ready", "Your PING left before SUB")
async def flushes_alone(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await nc.flush()


@wrong("ready", "Your PING left before SUB")
async def measures_the_round_trip(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await nc.rtt()


@wrong("ready", "nothing after SUB that the server answers")
async def waits_for_time(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await asyncio.sleep(0.05)


@wrong("ready", "to 'orders'; wanted: to 'orders.*'")
async def another_subject(nc, handler):
    await nc.subscribe("orders", cb=handler)
    await asyncio.sleep(0)
    await nc.flush()


@wrong("ready", "the handler got 6 messages")
async def subscribes_twice(nc, handler):
    for _ in range(2):
        await nc.subscribe("orders.*", cb=handler)
        await asyncio.sleep(0)
        await nc.flush()


@wrong("ready", "the handler got 4 messages (orders.marker")
async def lets_the_handler_see_the_marker(nc, handler):
    heard = asyncio.Event()

    async def also_marks(msg):
        heard.set()
        await handler(msg)

    await nc.subscribe("orders.*", cb=also_marks)
    await nc.publish("orders.marker")
    await heard.wait()


@right("ready")
async def asks_until_the_server_answers_twice(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    for _ in range(2):
        await nc.flush()
        await asyncio.sleep(0.01)


@right("ready")
async def asks_where_nobody_answers(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    try:
        await nc.request("nobody.is.here", timeout=2)
    except NoRespondersError:
        pass


@right("ready")
async def sends_a_marker_to_itself(nc, handler):
    marker = nc.new_inbox()
    await nc.subscribe("orders.*", cb=handler)
    mine = await nc.subscribe(marker)
    await nc.publish(marker)
    await mine.next_msg(timeout=2)
    await mine.unsubscribe()


@right("ready")
async def gets_a_marker_from_another_client(nc, handler):
    heard = asyncio.Event()

    async def without_the_marker(msg):
        if msg.data == b"marker":
            heard.set()
        else:
            await handler(msg)

    await nc.subscribe("orders.*", cb=without_the_marker)
    options = {key: nc.options[key] for key in ("user", "password")}
    async with await nats.connect(nc.connected_url.geturl(), **options) as other:
        while not heard.is_set():
            await other.publish("orders.marker", b"marker")
            await asyncio.sleep(0.02)
        await other.flush()
    await nc.flush()


@wrong("worker", "At most 1 message was in your hands at once")
async def one_at_a_time(nc, handle, stop):
    await nc.subscribe("jobs.*", queue="workers", cb=handle)
    await stop.wait()
    await nc.drain()


async def printing(handle, msg):
    """Handles a message and prints the error if there is one."""
    try:
        await handle(msg)
    except Exception as error:
        print(msg.subject, repr(error))


@wrong("worker", "at once; wanted: at most 4")
async def no_limit(nc, handle, stop):
    tasks = set()

    async def callback(msg):
        tasks.add(asyncio.create_task(printing(handle, msg)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "16 messages were neither begun nor in the subscription's queue")
async def a_task_for_each_message(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def one(msg):
        async with slots:
            await printing(handle, msg)

    async def callback(msg):
        tasks.add(asyncio.create_task(one(msg)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)


async def at_most_four(nc, handle, stop, group="workers"):
    """Subscribes, waits for stop, and returns the subscription and the tasks that are left."""
    slots, tasks = asyncio.Semaphore(4), set()

    async def callback(msg):
        await slots.acquire()
        task = asyncio.create_task(printing(handle, msg))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda task: slots.release())

    sub = await nc.subscribe("jobs.*", queue=group, cb=callback)
    await stop.wait()
    return sub, tasks


@wrong("worker", "never began")
async def closes(nc, handle, stop):
    _, tasks = await at_most_four(nc, handle, stop)
    await nc.close()
    await asyncio.gather(*tasks)


@wrong("worker", "never began")
async def sets_a_limit_and_keeps_its_callback(nc, handle, stop):
    sub, tasks = await at_most_four(nc, handle, stop)
    await sub.unsubscribe(limit=sub.delivered)
    while tasks:
        await asyncio.wait(tasks)


@wrong("worker", "never began")
async def unsubscribes_alone(nc, handle, stop):
    sub, tasks = await at_most_four(nc, handle, stop)
    await sub.unsubscribe()
    await asyncio.gather(*tasks)


@wrong("worker", "were begun and not finished")
async def leaves_tasks_behind(nc, handle, stop):
    await at_most_four(nc, handle, stop)
    await nc.drain()


@wrong("worker", "without a queue name")
async def no_queue_group(nc, handle, stop):
    _, tasks = await at_most_four(nc, handle, stop, group="")
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "was still subscribed")
async def ignores_stop(nc, handle, stop):
    await at_most_four(nc, handle, stop)
    await asyncio.sleep(60)


@wrong("worker", "was still subscribed")
async def never_unsubscribes_and_polls(nc, handle, stop):
    sub, tasks = await at_most_four(nc, handle, stop)
    while sub.pending_msgs or tasks:
        await asyncio.sleep(0.01)


@wrong("worker", "had not returned")
async def drains_and_stays(nc, handle, stop):
    await at_most_four(nc, handle, stop)
    await nc.drain()
    await asyncio.Event().wait()


@wrong("worker", "handle raised 4 errors, and then")
async def leaks_its_slot_after_an_error(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def one(msg):
        await handle(msg)
        slots.release()

    async def callback(msg):
        await slots.acquire()
        tasks.add(asyncio.create_task(one(msg)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks, return_exceptions=True)


@wrong("worker", "nobody asked for the text of 5")
async def forgets_the_errors(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def one(msg):
        try:
            await handle(msg)
        finally:
            slots.release()

    async def callback(msg):
        await slots.acquire()
        task = asyncio.create_task(one(msg))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks, return_exceptions=True)


@wrong("worker", "nobody asked for the text of 5")
async def swallows_the_errors(nc, handle, stop):
    async def silently(msg):
        with contextlib.suppress(Exception):
            await handle(msg)

    _, tasks = await at_most_four(nc, silently, stop)
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "messages were in your hands at once; wanted: at most 4")
async def hurries_at_the_end(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def callback(msg):
        if not stop.is_set():
            await slots.acquire()
        task = asyncio.create_task(printing(handle, msg))
        tasks.add(task)
        task.add_done_callback(lambda task: slots.release())

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "raised TypeError")
async def calls_handle_as_it_should_not(nc, handle, stop):
    async def callback(msg):
        await handle(msg.subject, msg.data)

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()


@wrong("worker", "subscribed to nothing")
async def opens_a_connection_of_its_own(nc, handle, stop):
    options = {key: nc.options[key] for key in ("user", "password")}
    async with await nats.connect(nc.connected_url.geturl(), **options) as mine:
        await four_subscriptions(mine, handle, stop)


@wrong("worker", "Your worker returned before stop was set")
async def leaves_it_to_a_task(nc, handle, stop):
    asyncio.create_task(four_subscriptions(nc, handle, stop))


@wrong("worker", "An error of handle ended your worker")
async def raises_the_first_error_at_the_end(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def one(msg):
        try:
            await handle(msg)
        finally:
            slots.release()

    async def callback(msg):
        await slots.acquire()
        tasks.add(asyncio.create_task(one(msg)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)


@wrong("worker", "were begun and not finished")
async def gives_up_after_a_moment(nc, handle, stop):
    async def impatient(msg):
        await asyncio.wait_for(handle(msg), 0.02)

    _, tasks = await at_most_four(nc, impatient, stop)
    await nc.drain()
    await asyncio.gather(*tasks)


@right("worker")
async def four_subscriptions(nc, handle, stop):
    for _ in range(4):
        await nc.subscribe("jobs.*", queue="workers", cb=handle)
    await stop.wait()
    await nc.drain()


@right("worker")
async def four_loops_over_one_subscription(nc, handle, stop):
    sub = await nc.subscribe("jobs.*", queue="workers")

    async def loop():
        async for msg in sub.messages:
            await printing(handle, msg)

    loops = [asyncio.create_task(loop()) for _ in range(4)]
    await stop.wait()
    await sub.drain()
    await asyncio.gather(*loops)


@right("worker")
async def sets_a_limit_that_is_reached(nc, handle, stop):
    sub = await nc.subscribe("jobs.*", queue="workers")

    async def loop():
        while not stop.is_set() or sub.pending_msgs:
            try:
                await printing(handle, await sub.next_msg(timeout=0.1))
            except nats.errors.TimeoutError:
                pass

    loops = [asyncio.create_task(loop()) for _ in range(4)]
    await stop.wait()
    await sub.unsubscribe(limit=sub.delivered)
    await asyncio.gather(*loops)


class Crew:
    """Four workers and a short queue between them and the subscription."""

    def __init__(self, handle):
        self.handle = handle
        self.jobs = asyncio.Queue(maxsize=1)
        self.members = [asyncio.create_task(self.work()) for _ in range(4)]

    async def work(self):
        while True:
            msg = await self.jobs.get()
            await printing(self.handle, msg)
            self.jobs.task_done()


@right("worker")
async def a_crew_behind_a_short_queue(nc, handle, stop):
    crew = Crew(handle)
    sub = await nc.subscribe("jobs.*", queue="workers", cb=crew.jobs.put)
    await stop.wait()
    await sub.drain()
    await crew.jobs.join()
    for member in crew.members:
        member.cancel()


@right("worker")
async def logs_the_errors_of_a_task_group(nc, handle, stop):
    slots = asyncio.Semaphore(3)

    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            logging.exception("job failed")
        slots.release()

    sub = await nc.subscribe("jobs.*", queue="workers")
    async with asyncio.TaskGroup() as group:

        async def take():
            async for msg in sub.messages:
                await slots.acquire()
                group.create_task(one(msg))

        group.create_task(take())
        await stop.wait()
        await sub.drain()


@right("worker")
async def reads_the_errors_at_the_end(nc, handle, stop):
    free, tasks = asyncio.Queue(4), []
    for number in range(4):
        free.put_nowait(number)

    async def one(msg, slot):
        try:
            return await handle(msg)
        finally:
            free.put_nowait(slot)

    async def callback(msg):
        slot = await free.get()
        tasks.append(asyncio.create_task(one(msg, slot)))

    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if result:
            print(f"{result!r}")


@right("worker")
async def looks_at_each_task_when_it_is_done(nc, handle, stop):
    slots = asyncio.Semaphore(4)

    def done(task):
        slots.release()
        if task.exception():
            print("failed:", task.exception())

    async def callback(msg):
        await slots.acquire()
        asyncio.create_task(handle(msg)).add_done_callback(done)

    sub = await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await sub.drain()
    for _ in range(4):
        await slots.acquire()  # all four are free when the last task has ended

"""Exercises of lesson 01: a pattern, a subscription that is in force, a worker that stops well."""

import asyncio
import contextlib
import inspect

from labkit.exercises import NotYet, exercise

WANTED = ["sensors.berlin.1.temp", "sensors.paris.22.temp", "sensors.oslo.attic.temp"]
UNWANTED = [
    "sensors.berlin.temp",
    "sensors.berlin.1.humidity",
    "sensors.berlin.1.temp.raw",
    "sensors.temp",
    "actors.berlin.1.temp",
]

READY = """
import asyncio

async def answer(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await asyncio.sleep(0)
    await nc.flush()"""

SERIAL = """
import asyncio

async def answer(nc, handle, stop):
    await nc.subscribe("jobs.*", queue="workers", cb=handle)
    await stop.wait()
    await nc.drain()"""

WORKER = """
import asyncio

async def answer(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()
    async def callback(msg):
        await slots.acquire()
        task = asyncio.create_task(handle(msg))
        tasks.add(task)
        task.add_done_callback(lambda task: slots.release())
    await nc.subscribe("jobs.*", queue="workers", cb=callback)
    await stop.wait()
    await nc.drain()
    await asyncio.gather(*tasks)"""


@exercise(
    hints=[
        "Count the tokens: the subjects that you want have four.",
        (
            "A `>` may only end a pattern and takes any number of tokens. Which wildcard stands for"
            " one token?"
        ),
        "First and last token are fixed; the two between them are free.",
    ],
    solution='answer = "sensors.*.*.temp"',
    wrong={
        "everything below": ("answer = 'sensors.>'", "also got 'sensors.berlin.temp'"),
        "one star for two tokens": ("answer = 'sensors.*.temp'", "missed 'sensors.berlin.1.temp'"),
        "last token left free": (
            "answer = 'sensors.*.*.*'",
            "also got 'sensors.berlin.1.humidity'",
        ),
        "text after >": ("answer = 'sensors.>.temp'", "refused 'sensors.>.temp'"),
    },
)
async def pattern(lab, answer):
    """Give one pattern that gets the temperature of every sensor in every city, and nothing
    else."""
    if not isinstance(answer, str):
        raise NotYet(
            f"{answer!r} is a {type(answer).__name__}; wanted: a pattern as text, such as"
            " 'orders.*'."
        )
    client = await lab.connect(name="exercise")
    try:
        try:
            sub = await client.subscribe(answer)
        except Exception as error:
            raise NotYet(
                f"nats-py refused {answer!r} as a pattern ({type(error).__name__}); wanted: tokens"
                " with dots between them, each * alone in its place, and > only at the end."
            ) from None
        for subject in WANTED + UNWANTED:
            await client.publish(subject)
        await asyncio.sleep(0)
        await client.flush()
        got = [(await sub.next_msg()).subject for _ in range(sub.pending_msgs)]
    finally:
        await client.close()
    for subject in WANTED:
        if subject not in got:
            raise NotYet(
                f"{answer!r} missed {subject!r}: it got {len(set(got) & set(WANTED))} of the"
                f" {len(WANTED)} subjects wanted."
            )
    for subject in UNWANTED:
        if subject in got:
            raise NotYet(
                f"{answer!r} also got {subject!r}; wanted: {', '.join(WANTED)} and nothing else."
            )


@exercise(
    hints=[
        "flush() waits for the answer to a PING. Which leaves first, the SUB or the PING?",
        (
            "Give the event loop one turn between subscribe() and flush(), so that the buffer is"
            " written."
        ),
    ],
    solution="""
        import asyncio

        async def ready(nc, handler):
            await nc.subscribe("orders.*", cb=handler)
            await asyncio.sleep(0)
            await nc.flush()
        answer = ready""",
    wrong={
        "no wait": (
            READY.replace("    await asyncio.sleep(0)\n    await nc.flush()", ""),
            "no SUB had left",
        ),
        "flush alone": (
            READY.replace("    await asyncio.sleep(0)\n", ""),
            "heard SUB after the last PING",
        ),
        "waits for time": (
            READY.replace("sleep(0)\n    await nc.flush()", "sleep(0.05)"),
            "after the last PING",
        ),
        "another subject": (
            READY.replace("orders.*", "orders"),
            "to 'orders'; wanted: to 'orders.*'",
        ),
    },
)
async def ready(lab, answer):
    """Subscribe the handler to `orders.*` and return only when the server has the subscription."""
    _wants_function(answer, "nc, handler")
    got = []

    async def handler(msg):
        got.append(msg.subject)

    async with _tap(lab) as (url, sent, received):
        client = await lab.connect(name="exercise", servers=[url], allow_reconnect=False)
        try:
            await answer(client, handler)
            words, pongs = (
                [line.split() for line in sent.split(b"\r\n")],
                received.count(b"PONG\r\n"),
            )
            subs = [place for place, line in enumerate(words) if line[:1] == [b"SUB"]]
            pings = [place for place, line in enumerate(words) if line[:1] == [b"PING"]]
            if not subs:
                raise NotYet(
                    "When your function returned, no SUB had left your client: the subscription was"
                    " still in its buffer, or never asked for. Wanted: on the wire and answered"
                    " for."
                )
            subject = words[subs[-1]][1].decode()
            if subject != "orders.*":
                raise NotYet(f"Your function subscribed to {subject!r}; wanted: to 'orders.*'.")
            if not any(place > subs[-1] for place in pings[:pongs]):
                raise NotYet(
                    "The server heard SUB after the last PING that it has answered, so nothing"
                    " proves yet that it has read it. Wanted: first SUB, then a PING, then its"
                    " PONG."
                )
            for name in ("created", "paid", "sent"):
                await lab.nc.publish(f"orders.{name}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_until(lambda: len(got) >= 3), 3)
            if len(got) != 3:
                raise NotYet(
                    f"The handler got {len(got)} of 3 messages; wanted: each of them, once."
                )
        finally:
            await client.close()


@exercise(
    hints=[
        (
            "asyncio.Semaphore(4): take a slot in the callback, create a task for handle(msg), then"
            " release it."
        ),
        "Keep the tasks in a set, and take each out when it is done (add_done_callback).",
        (
            "`await stop.wait()`, then drain(), which waits for callbacks only, then await the"
            " tasks left in the set."
        ),
    ],
    solution="""
        import asyncio

        async def worker(nc, handle, stop):
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
            await asyncio.gather(*tasks)
        answer = worker""",
    wrong={
        "one at a time": (SERIAL, "At most 1 message was in your hands at once"),
        "no limit": (
            WORKER.replace("Semaphore(4)", "Semaphore(400)"),
            "at once; wanted: at most 4",
        ),
        "close": (WORKER.replace("drain()", "close()"), "never began"),
        "tasks left behind": (
            WORKER.replace("    await asyncio.gather(*tasks)", ""),
            "were begun and not finished",
        ),
        "no queue group": (WORKER.replace('queue="workers", ', ""), "without a queue name"),
        "stop ignored": (
            SERIAL.replace("stop.wait()", "asyncio.sleep(60)"),
            "had not returned 5 s after",
        ),
    },
)
async def worker(lab, answer):
    """Handle messages on `jobs.*` in the queue group `workers`, at most 4 at once, until `stop`;
    lose none."""
    _wants_function(answer, "nc, handle, stop")
    begun, ended, active, peak, stop = [], [], set(), 0, asyncio.Event()

    async def handle(msg):
        nonlocal peak
        if msg.subject != "jobs.check":  # sent again and again until the worker listens
            warm.set()
            return
        begun.append(msg.data)
        active.add(msg.data)
        peak = max(peak, len(active))
        await asyncio.sleep(
            0.05 if len(begun) < 20 else 0.5
        )  # the last one is long: who does not wait for it, is seen
        active.discard(msg.data)
        ended.append(msg.data)

    warm, running = asyncio.Event(), None
    async with _tap(lab) as (url, sent, _):
        client = await lab.connect(name="exercise", servers=[url], allow_reconnect=False)
        try:
            running = asyncio.create_task(answer(client, handle, stop))
            for _ in range(100):
                await lab.nc.publish("jobs.hello")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(warm.wait(), 0.02)
                if warm.is_set() or running.done():
                    break
            if running.done():
                await running  # raises what your code raised
                raise NotYet(
                    "Your worker returned before stop was set; wanted: it works until then."
                )
            if not warm.is_set():
                raise NotYet(
                    "handle was called for 0 messages in 2 s; wanted: a subscription to 'jobs.*'"
                    " that calls it for each."
                )
            if not any(
                line.split()[:3] == [b"SUB", b"jobs.*", b"workers"] for line in sent.split(b"\r\n")
            ):
                raise NotYet(
                    "Your worker subscribed to 'jobs.*' without a queue name, or with another one,"
                    " or to another subject; wanted: 'jobs.*' in the group 'workers'."
                )
            for number in range(20):
                await lab.nc.publish("jobs.check", b"%d" % number)
            for each in (lab.nc, client):  # now all 20 are in the worker's client
                await asyncio.sleep(0)
                await each.flush()
            await _until(lambda: begun)
            stop.set()
            done, _ = await asyncio.wait([running], timeout=5)
            counts, left = (len(begun), len(ended)), len(active)
            if not done:
                raise NotYet(
                    "Your worker had not returned 5 s after stop was set; wanted: it waits for"
                    " stop, drains, returns."
                )
            await running
        finally:
            if running and not running.done():
                running.cancel()
            if not client.is_closed:
                await client.close()
    if peak > 4:
        raise NotYet(f"{peak} messages were in your hands at once; wanted: at most 4.")
    if peak < 2:
        raise NotYet(
            f"At most {peak} message was in your hands at once; wanted: up to 4 (and never more)."
        )
    if counts[0] < 20:
        raise NotYet(
            f"{20 - counts[0]} of 20 messages were in your client's queue and handle never began on"
            " them; wanted: 20 handled."
        )
    if counts[1] < 20:
        raise NotYet(
            f"When your worker returned, {left} of 20 messages were begun and not finished; wanted:"
            " all 20 finished."
        )


def _wants_function(answer, arguments):
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(
            f"{answer!r} is a {type(answer).__name__}; wanted: an async function that takes"
            f" ({arguments})."
        )


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _tap(lab):
    """(address to connect to, bytes sent by the client, bytes received by it): a wire that is
    listened to, between a client and the node that lab.nc is connected to."""
    node, sent, received = lab.nc.connected_url, bytearray(), bytearray()

    async def pump(reader, writer, heard):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                heard += data
                writer.write(data)
        writer.close()

    async def link(reader, writer):
        there, back = await asyncio.open_connection(node.hostname, node.port)
        await asyncio.gather(pump(reader, back, sent), pump(there, writer, received))

    async with await asyncio.start_server(link, "127.0.0.1") as server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", sent, received

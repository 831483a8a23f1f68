"""Exercises of lesson 01: a pattern, a subscription that is in force, a worker that stops well."""

import asyncio
import contextlib

from nats.errors import BadSubjectError

from labkit.errors import LabError
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import wants_function
from labkit.waiting import until

WANTED = ["sensors.berlin.1.temp", "sensors.paris.22.temp", "sensors.oslo.attic.temp"]
UNWANTED = [
    "sensors.berlin.temp",
    "sensors.berlin.1.humidity",
    "sensors.berlin.1.temp.raw",
    "sensors.temp",
    "actors.berlin.1.temp",
]


@exercise(
    hints=[
        "Count the tokens: the subjects that you want have four.",
        "A `>` may only end a pattern and takes any number of tokens. "
        "Which wildcard stands for one token?",
        "First and last token are fixed; the two between them are free.",
    ],
    variable="answer_pattern",
)
async def pattern(lab, answer):
    """Give one pattern that gets the temperature of every sensor in every city, and nothing
    else."""
    saw = f"{answer!r} is a {type(answer).__name__}"
    want(isinstance(answer, str), saw, "a pattern as text, such as 'orders.*'")
    got = await _subjects_that_match(lab, answer)
    for subject in WANTED:
        found = len(set(got) & set(WANTED))
        saw = f"{answer!r} missed {subject!r}: it got {found} of the {len(WANTED)} subjects"
        want(subject in got, saw, ", ".join(WANTED))
    for subject in UNWANTED:
        saw = f"{answer!r} also got {subject!r}"
        want(subject not in got, saw, f"{', '.join(WANTED)} and nothing else")


pattern.solved_by("sensors.*.*.temp")


async def _subjects_that_match(lab, pattern):
    """Those of all subjects that a subscription to this pattern gets (list)."""
    client = await lab.connect(name="exercise")
    try:
        sub = await client.subscribe(pattern)
        for subject in WANTED + UNWANTED:
            await client.publish(subject)
        await asyncio.sleep(0)  # flush() alone would overtake what was just published
        await client.flush()
        return [(await sub.next_msg()).subject for _ in range(sub.pending_msgs)]
    except BadSubjectError as error:
        raise NotYet(
            f"nats-py refused {pattern!r} as a pattern ({type(error).__name__}); wanted: tokens"
            " with dots between them, each * alone in its place, and > only at the end."
        ) from None
    finally:
        await client.close()


@exercise(
    hints=[
        "flush() waits for the answer to a PING. Which leaves first, the SUB or the PING?",
        "Give the event loop one turn between subscribe() and flush(), "
        "so that the buffer is written.",
    ]
)
async def ready(lab, answer):
    """Subscribe the handler to `orders.*` and return only when the server has the subscription."""
    wants_function(answer, "nc, handler")
    got = []

    async def handler(msg):
        got.append(msg.subject)

    async with _tapped_client(lab) as (client, sent, received):
        await answer(client, handler)
        _in_force(sent, received)
        for name in ("created", "paid", "sent"):
            await lab.nc.publish(f"orders.{name}")
        with contextlib.suppress(LabError):
            await until(lambda: len(got) >= 3, timeout=3)
        want(len(got) == 3, f"The handler got {len(got)} of 3 messages", "each of them, once")


@ready.solved_by
async def ready(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await asyncio.sleep(0)
    await nc.flush()


def _in_force(sent, received):
    """Raises NotYet unless a PONG proves that the server has read the SUB of `orders.*`."""
    lines = [line.split() for line in sent.split(b"\r\n")]
    subs = [place for place, line in enumerate(lines) if line[:1] == [b"SUB"]]
    pings = [place for place, line in enumerate(lines) if line[:1] == [b"PING"]]
    answered = pings[: received.count(b"PONG\r\n")]
    saw = "When your function returned, no SUB had left your client: the subscription was still in"
    want(subs, f"{saw} its buffer, or never asked for", "on the wire, and a PONG after it")
    subject = lines[subs[-1]][1].decode()
    want(subject == "orders.*", f"Your function subscribed to {subject!r}", "to 'orders.*'")
    saw = "The server heard SUB after the last PING that it has answered, so nothing proves yet"
    proven = any(place > subs[-1] for place in answered)
    want(proven, f"{saw} that it has read it", "first SUB, then a PING, then its PONG")


@exercise(
    hints=[
        "asyncio.Semaphore(4): take a slot in the callback, create a task for handle(msg), "
        "then release it.",
        "Keep the tasks in a set, and take each out when it is done (add_done_callback).",
        "`await stop.wait()`, then drain(), which waits for callbacks only, then await the tasks "
        "left in the set.",
    ]
)
async def worker(lab, answer):
    """Handle messages on `jobs.*` in the queue group `workers`, at most 4 at once, until `stop`;
    lose none."""
    wants_function(answer, "nc, handle, stop")
    jobs, stop = _Jobs(), asyncio.Event()
    async with _tapped_client(lab) as (client, sent, _):
        running = asyncio.create_task(answer(client, jobs.handle, stop))
        try:
            await _until_it_listens(lab, running, jobs)
            _in_the_queue_group(sent)
            for number in range(20):
                await lab.nc.publish("jobs.check", b"%d" % number)
            for each in (lab.nc, client):  # now all 20 are in the worker's client
                await asyncio.sleep(0)
                await each.flush()
            await until(lambda: jobs.begun, timeout=5)
            stop.set()
            done, _ = await asyncio.wait([running], timeout=5)
            begun, ended = len(jobs.begun), len(jobs.ended)
            saw = "Your worker had not returned 5 s after stop was set"
            want(done, saw, "it waits for stop, drains, returns")
            await running
        finally:
            running.cancel()
    want(jobs.peak <= 4, f"{jobs.peak} messages were in your hands at once", "at most 4")
    saw = f"At most {jobs.peak} message was in your hands at once"
    want(jobs.peak >= 2, saw, "up to 4, and never more")
    saw = f"{20 - begun} of 20 messages were in your client's queue and handle never began on them"
    want(begun == 20, saw, "20 handled")
    saw = f"When your worker returned, {begun - ended} of 20 messages were begun and not finished"
    want(ended == 20, saw, "all 20 finished")


@worker.solved_by
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


class _Jobs:
    """`handle`, and what became of the jobs that it was given."""

    def __init__(self):
        self.heard = asyncio.Event()
        self.begun, self.ended, self.active, self.peak = [], [], set(), 0

    async def handle(self, msg):
        self.heard.set()
        if msg.subject != "jobs.check":  # sent again and again until the worker listens
            return
        self.begun.append(msg.data)
        self.active.add(msg.data)
        self.peak = max(self.peak, len(self.active))
        # The last one is long: a worker that does not wait for it returns too early.
        await asyncio.sleep(0.05 if len(self.begun) < 20 else 0.5)
        self.active.discard(msg.data)
        self.ended.append(msg.data)


async def _until_it_listens(lab, running, jobs):
    """Raises NotYet if the worker ends first, or never calls handle."""

    async def heard():
        await lab.nc.publish("jobs.hello")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(jobs.heard.wait(), 0.02)
        return jobs.heard.is_set() or running.done()

    with contextlib.suppress(LabError):
        await until(heard, timeout=2)
    if running.done():
        await running  # raises what your code raised
    want(not running.done(), "Your worker returned before stop was set", "it works until then")
    saw = "handle was called for 0 messages in 2 s"
    want(jobs.heard.is_set(), saw, "a subscription to 'jobs.*' that calls it for each")


def _in_the_queue_group(sent):
    subs = [line.split()[:3] for line in sent.split(b"\r\n")]
    saw = "Your worker subscribed to 'jobs.*' without a queue name, or with another one, or to"
    found = [b"SUB", b"jobs.*", b"workers"] in subs
    want(found, f"{saw} another subject", "'jobs.*' in the group 'workers'")


@contextlib.asynccontextmanager
async def _tapped_client(lab):
    """(client, bytes that it sent, bytes that it received): between it and the node of lab.nc lies
    a wire that is listened to."""
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
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await lab.connect(name="exercise", servers=[url], allow_reconnect=False)
        try:
            yield client, sent, received
        finally:
            if not client.is_closed:
                await client.close()

"""Exercises of lesson 01: a pattern, a subscription that is in force, a worker that stops well."""

import asyncio
import contextlib
import itertools

from nats.errors import BadSubjectError

from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, wants_function
from labkit.waiting import end_tasks

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

    async with _tapped_client(lab) as (client, tap):
        await answer(client, handler)
        _in_force(tap.passed)
        wanted = ["orders.created", "orders.paid", "orders.sent"]
        for subject in wanted:
            await lab.nc.publish(subject)
        await comes_true(lambda: len(got) >= 3, timeout=3)
        saw = f"Three orders were published, and the handler got {len(got)} messages"
        want(got == wanted, f"{saw} ({', '.join(got) or 'none'})", "each order once, nothing else")


@ready.solved_by
async def ready(nc, handler):
    await nc.subscribe("orders.*", cb=handler)
    await asyncio.sleep(0)
    await nc.flush()


def _in_force(passed):
    """Raises NotYet unless the server has answered something that the client sent after the SUB of
    `orders.*`. passed: see _Tap."""
    sent = [words for out, words in passed if out]
    subs = [words[1] for words in sent if words[0] == "SUB" and not words[1].startswith("_INBOX")]
    saw = "When your function returned, no SUB had left your client: the subscription was still in"
    want(subs, f"{saw} its buffer, or never asked for", "on the wire, and an answer after it")
    want("orders.*" in subs, f"Your function subscribed to {subs[-1]!r}", "to 'orders.*'")
    place = max(n for n, (_, words) in enumerate(passed) if words[:2] == ["SUB", "orders.*"])
    sid = passed[place][1][-1]
    if any(not out and words[0] in ("MSG", "HMSG") and words[2] == sid for out, words in passed):
        return  # it has delivered to it
    asked, answered = _questions(passed, place), _answers(passed, place)
    early = "PING" in [words[0] for out, words in passed[:place] if out][2:]  # CONNECT, PING first
    saw = (
        "Your client sent nothing after SUB that the server answers, so nothing proves that it has"
    )
    if early:
        saw = "Your PING left before SUB, so its PONG proves nothing; nothing proves that it has"
    order = "first SUB, then something that the server answers, then the answer"
    want(asked, f"{saw} read SUB", order)
    saw = "Your function returned before the server had answered what your client sent after SUB"
    want(asked & answered, saw, order)


def _questions(passed, place):
    """What the client sent behind this place that the server answers, by what the answer will be
    called (set): the number of a PING; subject and reply of a message."""
    pings = [n for n, (out, words) in enumerate(passed) if out and words[0] == "PING"]
    asked = {f"PONG {number}" for number, n in enumerate(pings, 1) if n > place}
    for out, words in passed[place:]:
        if out and words[0] in ("PUB", "HPUB"):
            numbers = 1 if words[0] == "PUB" else 2
            asked |= set(words[1:-numbers])
    return asked


def _answers(passed, place):
    """What came to the client behind this place, called as in _questions (set)."""
    pongs = [n for n, (out, words) in enumerate(passed) if not out and words[0] == "PONG"]
    came = {f"PONG {number}" for number, n in enumerate(pongs, 1) if n > place}
    messages = [words for out, words in passed[place:] if not out and words[0] in ("MSG", "HMSG")]
    return came | {words[1] for words in messages}


@exercise(
    hints=[
        "asyncio.Semaphore(4): take a slot in the callback, create a task for handle(msg), "
        "then release it, whatever handle did (finally).",
        "Keep the tasks in a set, and take each out when it is done (add_done_callback).",
        "`await stop.wait()`, then drain(), which waits for callbacks only, then await the tasks "
        "left in the set.",
    ]
)
async def worker(lab, answer):
    """Handle messages on `jobs.*` in the queue group `workers`, at most 4 at once, until `stop`;
    finish all that it has, also where `handle` raises."""
    wants_function(answer, "nc, handle, stop")
    jobs, stop = _Jobs(), asyncio.Event()
    async with _tapped_client(lab) as (client, tap):
        running = asyncio.create_task(answer(client, jobs.handle, stop))
        try:
            await _until_it_listens(lab, running, jobs)
            sids = _in_the_queue_group(tap)
            await _four_in_hand_and_the_rest_waits(lab, client, jobs)
            stop.set()
            await _all_but_the_last(running, jobs)
            await _takes_no_more(client, tap, sids)
            jobs.last.set()
            done, _ = await asyncio.wait([running], timeout=3)
            saw = "Your worker had not returned 3 s after its last message was finished"
            want(done, saw, "it waits for stop, stops subscribing, finishes, returns")
            await running
            cut = JOBS - len(jobs.ended)
            want(not cut, f"{cut} of {JOBS} messages were begun and not finished", "all finished")
            want(jobs.peak <= 4, f"{jobs.peak} messages were in your hands at once", "at most 4")
            unread = sum(not error.is_read for error in jobs.errors)
            saw = f"handle raised {len(jobs.errors)} errors, and nobody asked for the text of"
            want(not unread, f"{saw} {unread}", "each one printed")
        finally:
            jobs.give_up()
            await end_tasks(running)
            lab.forgive(JobFailed)


@worker.solved_by
async def worker(nc, handle, stop):
    slots, tasks = asyncio.Semaphore(4), set()

    async def one(msg):
        try:
            await handle(msg)
        except Exception as error:
            print(f"{msg.subject}: {error!r}")
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


JOBS = 20
FAILING = (5, 8, 11, 14, 17)  # more than there are slots


class JobFailed(Exception):
    """What handle raises for some of the jobs. It knows whether somebody has read it."""

    is_read = False

    def __str__(self):
        self.is_read = True
        return super().__str__()

    def __repr__(self):
        self.is_read = True
        return super().__repr__()


class _Jobs:
    """`handle`, and what became of the jobs that it was given. It holds them until `go` is set, and
    the last one until `last` is."""

    def __init__(self):
        self.heard, self.go, self.last = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.begun, self.ended, self.errors = [], [], []
        self.active, self.peak = 0, 0
        self.over = False

    async def handle(self, msg):
        self.heard.set()
        if self.over or msg.subject != "jobs.check":  # jobs.hello: sent until the worker listens
            return
        job = int(msg.data)
        self.begun.append(job)
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            await self.go.wait()
            if len(self.begun) == JOBS:
                await self.last.wait()
            await asyncio.sleep(0.01)
            self.ended.append(job)
        finally:
            self.active -= 1
        if job in FAILING and not self.over:
            self.errors.append(JobFailed(f"job {job} cannot be done"))
            raise self.errors[-1]

    def give_up(self):
        """From now on handle does nothing, and nothing waits in it."""
        self.over = True
        self.go.set()
        self.last.set()


async def _until_it_listens(lab, running, jobs):
    """Raises NotYet if the worker ends first, or never calls handle."""

    async def heard():
        await lab.nc.publish("jobs.hello")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(jobs.heard.wait(), 0.02)
        return jobs.heard.is_set() or running.done()

    await comes_true(heard, timeout=2)
    if running.done():
        await running  # raises what your code raised
    want(not running.done(), "Your worker returned before stop was set", "it works until then")
    saw = "handle was called for 0 messages in 2 s"
    want(jobs.heard.is_set(), saw, "a subscription to 'jobs.*' that calls it for each")


def _in_the_queue_group(tap):
    """The ids of the worker's subscriptions (set). Raises NotYet unless they are the right ones."""
    subs = [words for out, words in tap.passed if out and words[0] == "SUB"]
    right = [words for words in subs if words[1:3] == ["jobs.*", "workers"]]
    seen = [
        f"to {words[1]!r} {f'in the group {words[2]!r}' if words[3:] else 'without a queue name'}"
        for words in subs
        if not words[1].startswith("_INBOX")
    ]
    saw = f"With nc your worker subscribed {' and '.join(seen) or 'to nothing'}"
    want(right, saw, "to 'jobs.*' in the group 'workers'")
    return {words[-1] for words in right}


async def _four_in_hand_and_the_rest_waits(lab, client, jobs):
    """Sends the jobs. Raises NotYet unless some, at most 4, are in hand, and nearly all others in
    the queue of the subscription."""
    for number in range(JOBS):
        await lab.nc.publish("jobs.check", b"%d" % number)
    for each in (lab.nc, client):  # now all of them are in the worker's client
        await asyncio.sleep(0)
        await each.flush()
    await comes_true(lambda: jobs.active >= 4, timeout=0.5)
    await asyncio.sleep(0.05)  # time to take more than 4
    want(jobs.peak <= 4, f"{jobs.peak} messages were in your hands at once", "at most 4")
    saw = f"At most {jobs.peak} message was in your hands at once"
    want(jobs.peak >= 2, saw, "up to 4, and never more")
    waiting = sum(sub.pending_msgs for sub in client._subs.values())
    taken = JOBS - waiting - len(jobs.begun)
    saw = f"{taken} messages were neither begun nor in the subscription's queue, but in tasks or a"
    few = taken <= 6  # on the way from the queue to handle
    want(few, f"{saw} queue of yours, which no limit of NATS sees", "the rest waits where it is")


async def _all_but_the_last(running, jobs):
    """Lets handle go on. Raises NotYet unless all jobs but the last are handled, each once."""
    jobs.go.set()
    await comes_true(lambda: len(jobs.ended) >= JOBS - 1 or running.done(), timeout=3)
    if running.done() and not running.cancelled() and (error := running.exception()):
        saw = f"An error of handle ended your worker ({type(error).__name__}: {error})"
        want(not isinstance(error, JobFailed), saw, "it prints the error and goes on")
        raise error
    begun, ended = len(set(jobs.begun)), len(set(jobs.ended))
    saw = f"handle was called {len(jobs.begun)} times for {begun} messages"
    want(len(jobs.begun) == begun, saw, "once for each")
    failed = len(set(FAILING) & set(jobs.ended))
    if failed and not running.done():
        saw = f"handle raised {failed} errors, and then {JOBS - begun} of {JOBS} messages stayed in"
        want(begun == JOBS, f"{saw} the queue for 3 s", "a slot is free again after an error too")
    saw = f"{JOBS - begun} of {JOBS} messages were in your client's queue and handle never began on"
    want(begun == JOBS, f"{saw} them", f"{JOBS} handled")
    saw = f"When your worker returned, {begun - ended} of {JOBS} messages were begun and not"
    want(not running.done(), f"{saw} finished", f"all {JOBS} finished")


async def _takes_no_more(client, tap, sids):
    """Raises NotYet unless these subscriptions have ended, while the last job is still in hand."""

    def unsubscribed():
        came = [words[2] for out, words in tap.passed if not out and words[0] in ("MSG", "HMSG")]
        ends = [words[1:] for out, words in tap.passed if out and words[0] == "UNSUB"]
        # With a number, the server ends it once it has sent so many: at once if it has.
        return {sid for sid, *limit in ends if not limit or int(limit[0]) <= came.count(sid)}

    gone = await comes_true(lambda: client.is_closed or sids <= unsubscribed(), timeout=1)
    saw = "1 s after stop was set your client was still subscribed, so the server goes on giving it"
    want(gone, f"{saw} messages that another worker could have", "it takes no more")


class _Tap:
    """What passes between a client and its node: its operations, in their order."""

    def __init__(self):
        self.passed = []  # (True if the client sent it, its words)
        self._rest = {True: b"", False: b""}

    def note(self, out, data):
        """Takes bytes that pass. out: from the client to the node."""
        rest = self._rest[out] + data
        while (end := rest.find(b"\r\n")) >= 0:
            words = rest[:end].decode(errors="replace").split()
            payload = int(words[-1]) + 2 if words[0] in ("PUB", "HPUB", "MSG", "HMSG") else 0
            if len(rest) < end + 2 + payload:
                break
            self.passed.append((out, words))
            rest = rest[end + 2 + payload :]
        self._rest[out] = rest


@contextlib.asynccontextmanager
async def _tapped_client(lab):
    """(client, _Tap): between the client and the node of lab.nc lies a wire that is listened to.
    At the end it raises what a callback of the client raised, unless that is a JobFailed."""
    node, tap, errors = lab.nc.connected_url, _Tap(), []
    taps = itertools.chain([tap], iter(_Tap, None))  # others for connections that the answer makes

    async def pump(reader, writer, tap, out):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                tap.note(out, data)
                writer.write(data)
        writer.close()

    async def link(reader, writer):
        mine = next(taps)
        there, back = await asyncio.open_connection(node.hostname, node.port)
        await asyncio.gather(pump(reader, back, mine, True), pump(there, writer, mine, False))

    async def keep(error):
        if isinstance(error, JobFailed):
            error.is_read = True  # nats-py's own error_cb logs it
        else:
            errors.append(error)

    async with await asyncio.start_server(link, "127.0.0.1") as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = {"servers": [url], "allow_reconnect": False, "error_cb": keep}
        client = await lab.connect(name="exercise", **options)
        try:
            yield client, tap
        except NotYet:
            if not errors:
                raise
        finally:
            if not client.is_closed:
                await client.close()
        if errors:
            raise errors[0]

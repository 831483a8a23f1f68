"""Exercises of lesson 10: the newest of each subject, a fetch loop that lives on, one more subject
for a stream."""

import asyncio
import contextlib
import dataclasses
import itertools

import nats.errors
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError, ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function
from labkit.waiting import until

READINGS = [
    ("oslo", "3"),
    ("rome", "18"),
    ("oslo", "4"),
    ("cairo", "30"),
    ("rome", "19"),
    ("oslo", "5"),
]
NEWEST = {"ex.sensors.oslo": "5", "ex.sensors.rome": "19", "ex.sensors.cairo": "30"}
JOBS = 5
SHOP = {  # settings of a stream that has to keep them
    "max_age": 3600,
    "max_msgs": 1000,
    "description": "shop",
    "duplicate_window": 60,
    "max_msgs_per_subject": 50,
}


@contextlib.asynccontextmanager
async def _stream(lab, name, **config):
    """A stream made anew for one check, and deleted after it."""
    try:
        await fresh_stream(lab, name, **config)
        yield
    finally:
        await delete(lab.js, name)


@exercise(
    hints=[
        "A consumer without a durable name will do. Where should it start?",
        "Section 2: one of the six deliver policies starts with one message for each subject.",
        'pull_subscribe("ex.sensors.*", stream=stream, config=ConsumerConfig(deliver_policy=…)), '
        "then one fetch.",
    ]
)
async def latest(lab, answer):
    """Return a list of (subject, text), one for each sensor, with its newest reading."""
    wants_function(answer, "js, stream")
    async with _stream(lab, "EX_SENSORS", subjects=["ex.sensors.*"]):
        for sensor, value in READINGS:
            await lab.js.publish(f"ex.sensors.{sensor}", value.encode())
        got, consumers = await _called(lab, answer)
    saw = "Your fetch found nothing within its timeout: the consumer starts behind the 6 readings"
    saw = f"{saw} that are stored, or filters another subject"
    want(got != [], saw, "the newest of each sensor")
    want(_are_pairs(got), f"Your function returned {got!r}", "a list of (subject, text) pairs")
    saw = f"Your function returned {len(got)} pair{'s' * (len(got) != 1)}"
    want(len(got) == len(NEWEST), saw, f"{len(NEWEST)}, one for each sensor")
    for subject, text in NEWEST.items():
        found = dict(got).get(subject)
        want(found == text, f"For {subject!r} you returned {found!r}", f"{text!r}, as text")
    read = max((info.delivered.consumer_seq for info in consumers), default=0)
    saw = f"Your consumer read {read} messages"
    want(read <= len(NEWEST), saw, f"{len(NEWEST)}, and the server picks them")


@latest.solved_by
async def latest(js, stream):
    sub = await js.pull_subscribe(
        "ex.sensors.*", stream=stream, config=ConsumerConfig(deliver_policy="last_per_subject")
    )
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=1)]


def _are_pairs(got):
    if not isinstance(got, (list, tuple)):
        return False
    return all(isinstance(pair, tuple) and len(pair) == 2 for pair in got)


async def _called(lab, answer):
    """(what the answer returned, [] if its fetch found nothing; the consumers that it made).

    Just after its creation a consumer may answer 503, or give none of the messages that it has
    (see cluster/readiness.py). That is no mistake of the answer: it is called again, up to 20
    times."""
    calls = itertools.count(1)

    async def called():
        last = next(calls) > 20
        before = {info.name for info in await lab.js.consumers_info("EX_SENSORS")}
        try:
            got = await answer(lab.js, "EX_SENSORS")
        except TimeoutError:
            got = []
        except ServiceUnavailableError:
            if last:
                raise
            return None
        made = await _made_since(lab, before)
        too_early = any(info.num_pending and not info.delivered.consumer_seq for info in made)
        if got == [] and too_early and not last:
            return None
        return got, made

    return await until(called, timeout=60, every=0.05)  # the check's own limit ends it sooner


async def _made_since(lab, before):
    """The consumers whose names are not in `before` (list). For a moment the list may lack some of
    those that the stream counts."""
    made = []

    async def all_listed():
        listed = await lab.js.consumers_info("EX_SENSORS")
        made[:] = [info for info in listed if info.name not in before]
        count = (await lab.js.stream_info("EX_SENSORS")).state.consumer_count
        return len(before) + len(made) >= count

    with contextlib.suppress(LabError):
        await until(all_listed, timeout=1)
    return made


@exercise(
    hints=[
        "`while not stop.is_set():` around a fetch that may find nothing.",
        "Which class do both TimeoutErrors belong to? Section 4 catches that one.",
        "An empty list needs no case of its own: a for loop over it does nothing. "
        "Ack after handle has returned.",
    ]
)
async def consume(lab, answer):
    """Fetch, handle, ack, until `stop` is set; live through empty fetches of all three kinds."""
    wants_function(answer, "sub, handle, stop")
    jobs = _Jobs()
    async with _stream(lab, "EX_JOBS", subjects=["ex.jobs"]):
        sub = await lab.js.pull_subscribe("ex.jobs", "ex-worker")
        await lab.settled("EX_JOBS")
        for number in range(JOBS):
            await lab.js.publish("ex.jobs", b"%d" % number)
        sub = _Restless(sub)
        running = asyncio.create_task(answer(sub, jobs.handle, jobs.stop))
        try:
            await asyncio.wait([running], timeout=5)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        unacked = await _unacked(sub)
    _ended_by_itself(running, sub.fetches, len(jobs.handled))
    saw = f"{len(jobs.early)} of {JOBS} messages were acked before handle had them: a crash in"
    want(not jobs.early, f"{saw} between would lose them", "handle, then ack")
    saw = f"{unacked} of {JOBS} messages have no ack: the server will hand them out again"
    want(unacked == 0, saw, "0")


@consume.solved_by
async def consume(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=1)
        except TimeoutError:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()


class _Jobs:
    """`handle` and `stop`, and what became of the jobs. The last job sets `stop`."""

    def __init__(self):
        self.stop = asyncio.Event()
        self.handled, self.early = [], []

    async def handle(self, msg):
        if msg.is_acked:
            self.early.append(msg)
        self.handled.append(msg)
        if len(self.handled) == JOBS:
            self.stop.set()


class _Restless:
    """A pull subscription whose first fetches are empty in all three ways, as in section 4."""

    def __init__(self, sub):
        self.sub, self.fetches = sub, 0

    def __getattr__(self, name):
        return getattr(self.sub, name)

    async def fetch(self, batch=1, timeout=5, heartbeat=None):
        self.fetches += 1
        await asyncio.sleep(0.01)
        if self.fetches == 1:
            return []
        if self.fetches == 2:
            raise nats.errors.TimeoutError
        if self.fetches == 3:
            raise TimeoutError
        return await self.sub.fetch(batch, timeout=min(timeout or 0.3, 0.3))


def _ended_by_itself(running, fetches, handled):
    """Raises NotYet unless this task ended without a TimeoutError, and after all jobs. Any other
    error of the answer is raised unchanged. fetches, handled: how many there were."""
    error = None if running.cancelled() else running.exception()
    is_nats = isinstance(error, nats.errors.TimeoutError)
    kind = "nats.errors.TimeoutError" if is_nats else "bare TimeoutError"
    saw = f"Your loop ended on a {kind} in fetch number {fetches}"
    want(not isinstance(error, TimeoutError), saw, "it goes on")
    if error:
        raise error
    how = "had not got further" if running.cancelled() else "returned"
    saw = f"Your function {how} after fetch number {fetches}, with {handled} of {JOBS} messages"
    want(handled >= JOBS, f"{saw} handled and stop not set", f"all {JOBS}")
    saw = "Your function had not returned some seconds after stop was set"
    want(not running.cancelled(), saw, "it returns")


async def _unacked(sub):
    """How many messages have no ack, once acks that are on their way have had a second."""

    async def left():
        return (await sub.consumer_info()).num_ack_pending

    async def none_left():
        return await left() == 0

    with contextlib.suppress(LabError, TimeoutError):
        await until(none_left, timeout=1)
    return await left()


@exercise(
    hints=[
        "update_stream replaces the whole config. Where do you get the whole config from?",
        "`info = await js.stream_info(stream)`: info.config is complete, and info.config.subjects "
        "is a list.",
        "Append to that list if the subject is not in it, then "
        "`await js.update_stream(info.config)`.",
    ]
)
async def widen(lab, answer):
    """Let the stream take one more subject, and change nothing else."""
    wants_function(answer, "js, stream, subject")
    async with _stream(lab, "EX_SHOP", subjects=["ex.orders"], **SHOP):
        before = (await lab.js.stream_info("EX_SHOP")).config
        for which in ("first", "second"):
            await _call_widens(lab, answer, which, before)


@widen.solved_by
async def widen(js, stream, subject):
    info = await js.stream_info(stream)
    if subject not in info.config.subjects:
        info.config.subjects.append(subject)
        await js.update_stream(info.config)


async def _call_widens(lab, answer, which, before):
    """Raises NotYet unless this call ("first", "second") leaves the stream with one more subject
    than its config had before."""
    subjects = ["ex.orders", "ex.refunds"]
    try:
        await answer(lab.js, "EX_SHOP", "ex.refunds")
    except APIError as error:
        raise NotYet(
            f"The {which} call was refused (err_code {error.err_code}, {error.description});"
            f" wanted: the stream takes {subjects}."
        ) from None
    after = (await lab.js.stream_info("EX_SHOP")).config
    saw = f"After the {which} call the stream takes {after.subjects}"
    want(sorted(after.subjects) == subjects, saw, subjects)
    changes = _changes(before, after)
    want(not changes, f"After the {which} call, {', '.join(changes)}", "unchanged")


def _changes(before, after):
    """What differs in two configs, but for subjects and metadata: 'max_age was 3600.0 and is 0.0'
    and so on (list)."""
    changes = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new and field.name not in ("subjects", "metadata"):
            changes.append(f"{field.name} was {old} and is {new}")
    return changes

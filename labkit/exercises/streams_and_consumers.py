"""Exercises of lesson 10: the newest of each subject, a fetch loop that lives on, one more subject
for a stream."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import random

import nats.errors
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function
from labkit.waiting import end_tasks, until

CITIES = ["accra", "berlin", "cairo", "delhi", "lima", "oslo", "paris", "quito", "rome", "tokyo"]
JOBS = 5
FAILS = 2  # the job that fails when it is handled for the first time
ACK_WAIT = 1  # seconds


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
        'pull_subscribe("ex.sensors.*", stream=stream, config=ConsumerConfig(deliver_policy=…)). '
        "How many messages it has for you: (await sub.consumer_info()).num_pending.",
    ]
)
async def latest(lab, answer):
    """Return a list of (subject, text), one for each sensor, with its newest reading."""
    wants_function(answer, "js, stream")
    async with (
        _stream(lab, "EX_SENSORS", subjects=["ex.sensors.*"]),
        await lab.connect(name="exercise") as client,
    ):
        newest, sensors = {}, [f"{city}-{random.randint(10, 99)}" for city in CITIES]
        for calls, readings in (("first", 60), ("second", 12)):
            for _ in range(readings):
                newest |= await _reading(lab.js, sensors)
            before = await _seen(lab.js)
            got, messages = await _called(client, answer)
            _is_newest(got, newest, f"Your {calls} call")
            saw = f"To answer the {calls} call, your client received {messages} messages"
            few = 4 * len(newest)
            want(messages <= few, saw, f"{few} at the most: the server picks the newest")
            _is_left_alone(before, await _seen(lab.js), calls)
        left = [info.name for info in await lab.js.consumers_info("EX_SENSORS") if _stays(info)]
        saw = f"Your calls have left durable consumers behind ({', '.join(left)})"
        want(not left, f"{saw}, and the server keeps them for ever", "none")


@latest.solved_by
async def latest(js, stream):
    config = ConsumerConfig(deliver_policy="last_per_subject", ack_policy="none")
    sub = await js.pull_subscribe("ex.sensors.*", stream=stream, config=config)
    waiting = (await sub.consumer_info()).num_pending
    newest = []
    while len(newest) < waiting:
        newest += await sub.fetch(100, timeout=1)
    await sub.unsubscribe()
    return [(msg.subject, msg.data.decode()) for msg in newest]


async def _reading(js, sensors):
    """Publishes a reading of one of the sensors (names); {its subject: its text}."""
    subject, text = f"ex.sensors.{random.choice(sensors)}", str(random.randint(100, 999))
    await js.publish(subject, text.encode())
    return {subject: text}


def _stays(info):
    """True for a consumer that the server keeps though nobody uses it."""
    return bool(info.config.durable_name) and not info.config.inactive_threshold


async def _seen(js):
    """(config of the stream, what is stored in it as text)."""
    info = await js.stream_info("EX_SENSORS")
    state = info.state
    return info.config, f"{state.messages} messages, {state.first_seq} to {state.last_seq}"


def _is_left_alone(before, after, calls):
    """Raises NotYet unless these are the same, see _seen(). calls: which call, as text."""
    saw = f"Before your {calls} call the stream had {before[1]}, after it {after[1]}"
    want(before[1] == after[1], saw, "reading leaves the stream as it is")
    changes = _changes(before[0], after[0])
    saw = f"After the {calls} call, {', '.join(changes)}"
    want(not changes, saw, "reading leaves the stream as it is")


def _is_newest(got, newest, call):
    """Raises NotYet unless these are the pairs of newest ({subject: text}). call: as text."""
    why = "starts behind the readings that are stored, or filters another subject"
    if call == "Your second call":
        why = "stands where the first call left it"
    saw = f"{call} found nothing. That happens with a consumer that {why}"
    want(got != [], saw, "the newest of each sensor")
    want(_are_pairs(got), f"{call} returned {got!r}", "a list of (subject, text) pairs")
    saw = f"{call} returned {len(got)} pair{'s' * (len(got) != 1)}"
    want(len(got) == len(newest), saw, f"{len(newest)}, one for each sensor")
    for subject, text in newest.items():
        found = dict(got).get(subject)
        want(found == text, f"For {subject!r}, {call.lower()} returned {found!r}", f"{text!r}")


def _are_pairs(got):
    if not isinstance(got, (list, tuple)):
        return False
    return all(isinstance(pair, tuple) and len(pair) == 2 for pair in got)


async def _called(client, answer):
    """(what the answer returned, [] if its fetch found nothing; how many messages its client
    received for it).

    Just after its creation a consumer may answer 503, or give none of the messages that it has
    (see cluster/readiness.py). That is no mistake of the answer: it is called again, up to 20
    times."""
    calls = itertools.count(1)
    js = client.jetstream()

    async def called():
        last = next(calls) > 20
        before = {info.name for info in await js.consumers_info("EX_SENSORS")}
        received = client.stats["in_msgs"]
        try:
            got = await answer(js, "EX_SENSORS")
        except TimeoutError:
            got = []
        except ServiceUnavailableError:
            if last:
                raise
            return None
        received = client.stats["in_msgs"] - received
        made = await _made_since(js, before) if got == [] else []
        too_early = any(info.num_pending and not info.delivered.consumer_seq for info in made)
        if too_early and not last:
            return None
        return got, received

    return await until(called, timeout=60, every=0.05)  # the check's own limit ends it sooner


async def _made_since(js, before):
    """The consumers whose names are not in `before` (list). For a moment the list may lack some of
    those that the stream counts."""
    made = []

    async def all_listed():
        listed = await js.consumers_info("EX_SENSORS")
        made[:] = [info for info in listed if info.name not in before]
        count = (await js.stream_info("EX_SENSORS")).state.consumer_count
        return len(before) + len(made) >= count

    with contextlib.suppress(LabError):
        await until(all_listed, timeout=1)
    return made


@exercise(
    hints=[
        "`while not stop.is_set():` around a fetch that may find nothing.",
        "Which class do both TimeoutErrors belong to? Section 4 catches that one, and no other.",
        "An empty list needs no case of its own: a for loop over it does nothing. "
        "Ack after handle has returned; if it raises, the ack must not be sent.",
    ]
)
async def consume(lab, answer):
    """Fetch, handle, ack, until `stop` is set; live through empty fetches of all three kinds."""
    wants_function(answer, "sub, handle, stop")
    jobs = _Jobs()
    async with _stream(lab, "EX_JOBS", subjects=["ex.jobs"]):
        config = ConsumerConfig(ack_wait=ACK_WAIT)
        sub = await lab.js.pull_subscribe("ex.jobs", "ex-worker", config=config)
        await lab.settled("EX_JOBS")
        for number in range(JOBS):
            await lab.js.publish("ex.jobs", b"%d" % number)
        sub = _Restless(sub, jobs)
        running, ended = await _run(answer, sub, jobs)
        at_work = _list(jobs.at_work) if ended and not running.exception() else ""
        unacked = await _unacked(sub)
        stored = (await lab.js.stream_info("EX_JOBS")).state.last_seq
    saw = f"{len(jobs.early)} of {JOBS} messages were acked before handle had them: a crash in"
    want(not jobs.early, f"{saw} between would lose them", "handle, then ack")
    saw = (
        f"handle raised an error for job {FAILS}, and its message is acked or given up all the same"
    )
    lost = jobs.missing == {FAILS} and unacked == 0
    want(not lost, saw, "no ack for it, so that the server hands it out again")
    saw = f"{JOBS} messages were published for you, and the stream has had {stored}"
    want(stored == JOBS, saw, "no copies: without an ack, the same message comes again")
    twice = _list(number for (number, _), times in jobs.done.items() if times > 1)
    saw = f"handle had succeeded and was given the same delivery again, for job {twice}"
    want(not twice, saw, "once for each delivery")
    saw = f"Your function returned while handle was at work on job {at_work}"
    want(
        not at_work, saw, "it returns when its work is done: a process that ends now breaks it off"
    )
    _ended_by_itself(running if ended else None, sub.fetches, jobs)
    saw = f"{unacked} of {JOBS} messages have no ack: the server will hand them out again"
    want(unacked == 0, saw, "0")
    await _lets_other_errors_out(answer)


@consume.solved_by
async def consume(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()


async def _run(answer, sub, jobs):
    """Runs the answer until it ends by itself, for some seconds at most: (task, whether it did). If
    it ends with the error of `handle`, it is started again, as whatever looks after a process would
    do."""
    end = asyncio.get_running_loop().time() + 4.5
    while True:
        running = asyncio.create_task(answer(sub, jobs.handle, jobs.stop))
        try:
            left = max(0.1, end - asyncio.get_running_loop().time())
            ended, _ = await asyncio.wait([running], timeout=left)
        finally:
            await _cancel(running, jobs.stop)
        if not ended or not _comes_from_handle(running.exception()):
            return running, bool(ended)


async def _cancel(running, stop):
    """Ends the task; one that swallows its cancellation is asked to stop."""
    await end_tasks(running)
    if not running.done():
        stop.set()
        await asyncio.wait([running], timeout=0.5)


def _comes_from_handle(error):
    """True for the error of `handle`, also in an ExceptionGroup, or as the cause of another."""
    while error and not isinstance(error, _JobFailed):
        inner = getattr(error, "exceptions", [None])
        error = error.__cause__ or error.__context__ or inner[0]
    return error is not None


async def _lets_other_errors_out(answer):
    """Raises NotYet unless the answer ends when each fetch says that the connection is closed."""
    stop = asyncio.Event()
    running = asyncio.create_task(answer(_Closed(), None, stop))
    try:
        ended, _ = await asyncio.wait([running], timeout=1.5)
    finally:
        await _cancel(running, stop)
    saw = "The connection was closed, so each fetch raised ConnectionClosedError, and your loop"
    want(ended, f"{saw} went on for 1.5 s", "the error comes out")
    came_out = isinstance(running.exception(), nats.errors.ConnectionClosedError)
    want(came_out, f"{saw} ended without it", "the error comes out")


def _list(numbers):
    """As text, "" for none."""
    return ", ".join(map(str, sorted(numbers)))


class _JobFailed(Exception):
    """What `handle` raises, once."""


class _Closed:
    """A pull subscription whose connection is closed."""

    async def fetch(self, batch=1, timeout=5, heartbeat=None):
        await asyncio.sleep(0.01)  # an answer that tries again at once must not hang the notebook
        raise nats.errors.ConnectionClosedError


class _Jobs:
    """`handle` and `stop`, and what became of the jobs. The last job sets `stop` and takes a
    moment longer."""

    def __init__(self):
        self.stop = asyncio.Event()
        self.times = collections.Counter()  # number of a job -> how often handle was given it
        self.done = collections.Counter()  # (number, which delivery) -> how often handle succeeded
        self.missing = set(range(JOBS))  # numbers of jobs that were not handled yet
        self.at_work = set()
        self.fetching = 0  # fetches under way
        self.early = []

    async def handle(self, msg):
        number = int(msg.data)
        self.times[number] += 1
        if msg.is_acked:
            self.early.append(msg)
        if number == FAILS and self.times[number] == 1:
            raise _JobFailed(f"job {number} failed, once")
        self.done[number, msg.metadata.num_delivered] += 1
        self.missing.discard(number)
        if self.missing or self.stop.is_set():
            return
        self.stop.set()
        self.at_work.add(number)
        await asyncio.sleep(0.3)
        while self.fetching:  # a loop that does not wait for its work goes on until that ends
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        self.at_work.discard(number)


class _Restless:
    """A pull subscription whose first fetches are empty in all three ways, as in section 4."""

    def __init__(self, sub, jobs):
        self.sub, self.jobs, self.fetches = sub, jobs, 0

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
        self.jobs.fetching += 1
        try:
            return await self.sub.fetch(batch, timeout=min(timeout or 0.3, 0.3))
        finally:
            self.jobs.fetching -= 1


def _ended_by_itself(ended, fetches, jobs):
    """Raises NotYet unless the task `ended` (None: it had to be cancelled) returned without a
    TimeoutError, and after all jobs. Any other error of the answer is raised unchanged. fetches:
    how many there were."""
    error = ended.exception() if ended else None
    is_nats = isinstance(error, nats.errors.TimeoutError)
    kind = "nats.errors.TimeoutError" if is_nats else "bare TimeoutError"
    saw = f"Your loop ended on a {kind} in fetch number {fetches}"
    want(not isinstance(error, TimeoutError), saw, "it goes on")
    if error:
        raise error
    how = "returned" if ended else "had not got further"
    handled = JOBS - len(jobs.missing)
    saw = f"Your function {how} after fetch number {fetches}, with {handled} of {JOBS} messages"
    want(not jobs.missing, f"{saw} handled and stop not set", f"all {JOBS}")
    saw = "Your function had not returned some seconds after stop was set"
    want(ended, saw, "it returns")


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
    with contextlib.suppress(NotFoundError):  # an earlier answer may have made a stream for it
        await delete(lab.js, await lab.js.find_stream_name_by_subject("ex.refunds"))
    async with _stream(lab, "EX_SHOP", **_shop()):
        await _fill(lab)
        before = await _state(lab.js)
        for which in ("first", "second"):
            await _call_widens(lab, answer, which, before)


@widen.solved_by
async def widen(js, stream, subject):
    info = await js.stream_info(stream)
    if subject not in info.config.subjects:
        info.config.subjects.append(subject)
        await js.update_stream(info.config)


def _shop():
    """Settings that the stream has to keep, different ones each time."""
    return {
        "subjects": ["ex.orders", "ex.returns"],
        "max_age": random.randint(3600, 7200),
        "max_msgs": random.randint(1000, 2000),
        "description": "shop",
        "duplicate_window": 60,
        "max_msgs_per_subject": random.randint(50, 90),
        "allow_direct": True,
        "metadata": {"owner": "sales"},
    }


async def _fill(lab):
    """Six messages, and a consumer that has acked three of them."""
    sub = await lab.js.pull_subscribe("ex.orders", "billing", stream="EX_SHOP")
    await lab.settled("EX_SHOP")
    for number in range(6):
        await lab.js.publish("ex.orders", b"%d" % number)
    acked = 0
    while acked < 3:
        for msg in await sub.fetch(3 - acked, timeout=5):
            await msg.ack_sync()
            acked += 1
    await sub.unsubscribe()


async def _state(js):
    """(config, what is stored, where the stream's consumer stands, when the stream was created; the
    second and third as text)."""
    info = await js.stream_info("EX_SHOP")
    stored = f"{info.state.messages} messages, {info.state.first_seq} to {info.state.last_seq}"
    try:
        floor = (await js.consumer_info("EX_SHOP", "billing")).ack_floor.stream_seq
    except NotFoundError:
        return info.config, stored, "no consumer", info.created
    return info.config, stored, f"consumer billing with ack floor {floor}", info.created


async def _call_widens(lab, answer, which, before):
    """Raises NotYet unless this call ("first", "second") leaves the stream with one more subject
    than it had before (see _state)."""
    subjects = ["ex.orders", "ex.refunds", "ex.returns"]
    try:
        await answer(lab.js, "EX_SHOP", "ex.refunds")
    except APIError as error:
        raise NotYet(
            f"The {which} call was refused (err_code {error.err_code}, {error.description});"
            f" wanted: the stream takes {subjects}."
        ) from None
    try:
        config, *rest = await _state(lab.js)
    except NotFoundError:
        raise NotYet(f"After the {which} call there is no stream; wanted: the same one.") from None
    *rest, created = rest
    for old, new in zip(before[1:-1], rest, strict=True):
        saw = f"Before your {which} call the stream had {old}, after it {new}"
        want(new == old, saw, "what is stored and who has read it stays")
    saw = f"After the {which} call the stream takes {config.subjects}"
    want(sorted(config.subjects) == subjects, saw, subjects)
    changes = _changes(before[0], config)
    want(not changes, f"After the {which} call, {', '.join(changes)}", "unchanged")
    saw = f"The {which} call created another stream of this name"
    want(created == before[-1], saw, "the same one, and its messages with their times")


def _changes(before, after):
    """What differs in two configs, but for subjects: 'max_age was 3600.0 and is 0.0' and so on
    (list)."""
    changes = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name == "metadata":
            old, new = _by_users(old), _by_users(new)
        if old != new and field.name != "subjects":
            changes.append(f"{field.name} was {old} and is {new}")
    return changes


def _by_users(metadata):
    """Without what the server itself adds."""
    return {key: value for key, value in (metadata or {}).items() if not key.startswith("_nats")}

"""Exercises of lesson 03: the newest of each subject, a fetch loop that lives on, one more subject
for a stream."""

import asyncio
import contextlib
import dataclasses
import inspect

import nats.errors
import nats.js.errors

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import NotYet, exercise

READINGS = [
    ("oslo", "3"),
    ("rome", "18"),
    ("oslo", "4"),
    ("cairo", "30"),
    ("rome", "19"),
    ("oslo", "5"),
]
NEWEST = {"ex.sensors.oslo": "5", "ex.sensors.rome": "19", "ex.sensors.cairo": "30"}

LATEST = """
from nats.js.api import ConsumerConfig

async def answer(js, stream):
    sub = await js.pull_subscribe("ex.sensors.*", stream=stream, config=ConsumerConfig(deliver_policy="last_per_subject"))
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=0.5)]"""

CONSUME = """
import asyncio

async def answer(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except asyncio.TimeoutError:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()"""

ADD = """
async def answer(js, stream, subject):
    info = await js.stream_info(stream)
    if subject not in info.config.subjects:
        info.config.subjects.append(subject)
        await js.update_stream(info.config)"""


@exercise(
    hints=[
        "A consumer without a durable name will do. Where should it start?",
        "Section 2: one of the six deliver policies starts with one message for each subject.",
        (
            'pull_subscribe("ex.sensors.*", stream=stream,'
            " config=ConsumerConfig(deliver_policy=…)), then one fetch."
        ),
    ],
    solution="""
        from nats.js.api import ConsumerConfig

        async def latest(js, stream):
            sub = await js.pull_subscribe("ex.sensors.*", stream=stream,
                                          config=ConsumerConfig(deliver_policy="last_per_subject"))
            return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=1)]
        answer = latest""",
    wrong={
        "the whole log": (LATEST.replace("last_per_subject", "all"), "6 pairs; wanted: 3"),
        "the last message": (LATEST.replace("last_per_subject", "last"), "1 pair; wanted: 3"),
        "only what comes": (
            LATEST.replace("last_per_subject", "new"),
            "found nothing within its timeout",
        ),
        "filtered afterwards": (
            LATEST.replace("last_per_subject", "all")
            .replace("return [(", "return list({msg.subject: (")
            .replace("timeout=0.5)]", "timeout=0.5)}.values())"),
            "read 6 messages; wanted: 3",
        ),
    },
)
async def latest(lab, answer):
    """Return a list of (subject, text), one for each sensor, with its newest reading."""
    _wants_function(answer, "js, stream")
    async with _stream(lab, "EX_SENSORS", ["ex.sensors.*"]):
        for sensor, value in READINGS:
            await lab.js.publish(f"ex.sensors.{sensor}", value.encode())
        for patience in range(20, -1, -1):
            before = {info.name for info in await lab.js.consumers_info("EX_SENSORS")}
            try:
                got = await answer(lab.js, "EX_SENSORS")
                break
            except TimeoutError:
                got = []
                made = await _made(lab, "EX_SENSORS", before)
                if not patience or not any(
                    info.num_pending and not info.delivered.consumer_seq for info in made
                ):
                    break  # else a new consumer has messages and gave none: that moment, too
            except (
                nats.js.errors.ServiceUnavailableError
            ):  # the moment after a creation, no fault of the answer
                if not patience:
                    raise
                await asyncio.sleep(0.05)
        made = await _made(lab, "EX_SENSORS", before)
    if got == []:
        raise NotYet(
            "Your fetch found nothing within its timeout: the consumer starts behind the 6 readings"
            " that are stored, or filters another subject. Wanted: the newest of each sensor."
        )
    if not isinstance(got, (list, tuple)) or not all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in got
    ):
        raise NotYet(f"Your function returned {got!r}; wanted: a list of (subject, text) pairs.")
    if len(got) != len(NEWEST):
        raise NotYet(
            f"Your function returned {len(got)} pair{'s' * (len(got) != 1)}; wanted: {len(NEWEST)},"
            " one for each sensor."
        )
    if dict(got) != NEWEST:
        wrong = next(name for name in NEWEST if dict(got).get(name) != NEWEST[name])
        raise NotYet(
            f"For {wrong!r} you returned {dict(got).get(wrong)!r}; wanted: {NEWEST[wrong]!r}, as"
            " text."
        )
    read = max((info.delivered.consumer_seq for info in made), default=len(NEWEST))
    if read > len(NEWEST):
        raise NotYet(
            f"Your consumer read {read} messages; wanted: {len(NEWEST)}, and the server picks them."
        )


async def _made(lab, stream, before):
    """The consumers that are not in `before` (names). The list may lack for a moment what the
    stream itself counts."""
    for _ in range(20):
        made = [info for info in await lab.js.consumers_info(stream) if info.name not in before]
        if len(made) + len(before) >= (await lab.js.stream_info(stream)).state.consumer_count:
            break
        await asyncio.sleep(0.05)
    return made


async def _unanswered(lab, sub):
    """How many messages have no ack, when acks that are on their way have had their time."""

    async def left():
        return (await sub.consumer_info()).num_ack_pending

    async def none_left():
        return not await left()

    with contextlib.suppress(LabError, TimeoutError):
        await lab.until(none_left, timeout=1)
    return await left()


class _Restless:
    """A pull subscription whose first fetches are empty in all three ways, as in section 4."""

    def __init__(self, sub):
        self.sub, self.calls = sub, 0

    def __getattr__(self, name):
        return getattr(self.sub, name)

    async def fetch(self, batch=1, timeout=5, heartbeat=None):
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.calls == 1:
            return []
        if self.calls == 2:
            raise nats.errors.TimeoutError
        if self.calls == 3:
            raise TimeoutError
        return await self.sub.fetch(batch, timeout=min(timeout or 0.3, 0.3))


@exercise(
    hints=[
        "`while not stop.is_set():` around a fetch that may find nothing.",
        "Which class do both TimeoutErrors belong to? Section 4 catches that one.",
        (
            "An empty list needs no case of its own: a for loop over it does nothing. Ack after"
            " handle has returned."
        ),
    ],
    solution="""
        import asyncio

        async def consume(sub, handle, stop):
            while not stop.is_set():
                try:
                    msgs = await sub.fetch(10, timeout=1)
                except asyncio.TimeoutError:
                    continue
                for msg in msgs:
                    await handle(msg)
                    await msg.ack()
        answer = consume""",
    wrong={
        "catches one of two": (
            CONSUME.replace("import asyncio", "import nats.errors").replace(
                "asyncio.TimeoutError", "nats.errors.TimeoutError"
            ),
            "ended on a bare TimeoutError in fetch number 3",
        ),
        "catches none": (
            CONSUME.replace("asyncio.TimeoutError", "ZeroDivisionError"),
            "ended on a nats.errors.TimeoutError in fetch number 2",
        ),
        "ends when empty": (
            CONSUME.replace(
                "        for msg", "        if not msgs:\n            return\n        for msg"
            ),
            "returned after fetch number 1",
        ),
        "no ack": (
            CONSUME.replace("            await msg.ack()", ""),
            "5 of 5 messages have no ack",
        ),
        "ack first": (
            CONSUME.replace(
                "await handle(msg)\n            await msg.ack()",
                "await msg.ack(); await handle(msg)",
            ),
            "acked before handle had them",
        ),
    },
)
async def consume(lab, answer):
    """Fetch, handle, ack, until `stop` is set; live through empty fetches of all three kinds."""
    _wants_function(answer, "sub, handle, stop")
    stop, handled, early = asyncio.Event(), [], []

    async def handle(msg):
        if msg.is_acked:
            early.append(msg)
        handled.append(msg)
        if len(handled) == 5:
            stop.set()

    async with _stream(lab, "EX_JOBS", ["ex.jobs"]):
        sub = await lab.js.pull_subscribe("ex.jobs", "ex-worker")
        await lab.settled("EX_JOBS")
        for n in range(5):
            await lab.js.publish("ex.jobs", b"%d" % n)
        restless = _Restless(sub)
        running = asyncio.create_task(answer(restless, handle, stop))
        try:
            await asyncio.wait([running], timeout=5)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        open_ = await _unanswered(lab, sub)
    failed = None if running.cancelled() else running.exception()
    if isinstance(failed, TimeoutError):
        kind = (
            "nats.errors.TimeoutError"
            if isinstance(failed, nats.errors.TimeoutError)
            else "bare TimeoutError"
        )
        raise NotYet(
            f"Your loop ended on a {kind} in fetch number {restless.calls}; wanted: it goes on."
        )
    if failed:
        raise failed
    if len(handled) < 5:
        how = "had not got further" if running.cancelled() else "returned"
        raise NotYet(
            f"Your function {how} after fetch number {restless.calls}, with {len(handled)} of 5"
            " messages handled and stop not set; wanted: all 5."
        )
    if running.cancelled():
        raise NotYet(
            "Your function had not returned some seconds after stop was set; wanted: it returns."
        )
    if early:
        raise NotYet(
            f"{len(early)} of 5 messages were acked before handle had them: a crash in between"
            " would lose them. Wanted: handle, then ack."
        )
    if open_:
        raise NotYet(
            f"{open_} of 5 messages have no ack: the server will hand them out again. Wanted: 0."
        )


@exercise(
    hints=[
        "update_stream replaces the whole config. Where do you get the whole config from?",
        (
            "`info = await js.stream_info(stream)`: info.config is complete, and"
            " info.config.subjects is a list."
        ),
        (
            "Append to that list if the subject is not in it, then `await"
            " js.update_stream(info.config)`."
        ),
    ],
    solution="""
        async def widen(js, stream, subject):
            info = await js.stream_info(stream)
            if subject not in info.config.subjects:
                info.config.subjects.append(subject)
                await js.update_stream(info.config)
        answer = widen""",
    wrong={
        "only the new subject": (
            (
                "\nasync def answer(js, stream, subject):\n    await js.update_stream(name=stream,"
                " subjects=[subject])"
            ),
            "takes ['ex.refunds']; wanted: ['ex.orders', 'ex.refunds']",
        ),
        "only the subjects": (
            ADD.replace(
                "update_stream(info.config)",
                "update_stream(name=stream, subjects=info.config.subjects)",
            ),
            "max_age was 3600.0 and is 0.0",
        ),
        "a list of fields": (
            ADD.replace(
                "info.config)",
                "name=stream, subjects=info.config.subjects, max_age=info."
                "config.max_age, max_msgs=info.config.max_msgs)",
            ),
            "max_msgs_per_subject was 50 and is -1",
        ),
        "add_stream": (ADD.replace("update_stream(", "add_stream("), "err_code 10058"),
        "not looked whether it is there": (
            ADD.replace("if subject not in info.config.subjects", "if True"),
            "The second call",
        ),
    },
)
async def widen(lab, answer):
    """Let the stream take one more subject, and change nothing else."""
    _wants_function(answer, "js, stream, subject")
    wanted = ["ex.orders", "ex.refunds"]
    more = {"description": "shop", "duplicate_window": 60, "max_msgs_per_subject": 50}
    async with _stream(lab, "EX_SHOP", ["ex.orders"], max_age=3600, max_msgs=1000, **more):
        before = (await lab.js.stream_info("EX_SHOP")).config
        for time in ("first", "second"):
            try:
                await answer(lab.js, "EX_SHOP", "ex.refunds")
            except nats.js.errors.APIError as error:
                raise NotYet(
                    f"The {time} call was refused: err_code {error.err_code}, {error.description}."
                    f" Wanted: the stream takes {wanted}."
                ) from None
            after = (await lab.js.stream_info("EX_SHOP")).config
            if sorted(after.subjects) != wanted:
                raise NotYet(
                    f"After the {time} call the stream takes {after.subjects}; wanted: {wanted}."
                )
            changed = [
                f"{field.name} was {getattr(before, field.name)} and is"
                f" {getattr(after, field.name)}"
                for field in dataclasses.fields(before)
                if field.name not in ("subjects", "metadata")
                and getattr(before, field.name) != getattr(after, field.name)
            ]
            if changed:
                raise NotYet(f"After the {time} call, {', '.join(changed)}; wanted: unchanged.")


@contextlib.asynccontextmanager
async def _stream(lab, name, subjects, **config):
    """A stream for one check: fresh at the start, gone at the end."""
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, subjects=subjects, **config)
    try:
        await lab.settled(name)
        yield
    finally:
        await delete(lab.js, name)


def _wants_function(answer, arguments):
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(
            f"{answer!r} is a {type(answer).__name__}; wanted: an async function that takes"
            f" ({arguments})."
        )

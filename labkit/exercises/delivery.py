"""Exercises of lesson 13: the right answer for each exception, a heartbeat, ack wait and batch."""

import asyncio
import json
import random
import re
import time

from nats.js.errors import NotFoundError, ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, fetch, queue, tasks_since, wants_function
from labkit.waiting import end_tasks

WORK = 0.3  # seconds of work on each message of a batch
ROOM = 0.3  # seconds that ack wait leaves to the work on a batch, and to the time a dead worker has
OLD = 10  # deliveries of a message that has failed often
BACK = 2  # seconds after which a dead worker's messages must be with another one
GO_DURATION = r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)"
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


class _Answers:
    """What the server hears about the messages of a stream, in whatever way it is said."""

    WORDS = {"+ACK": "ack", "": "ack", "+NXT": "ack", "-NAK": "nak", "+TERM": "term"}

    def __init__(self, lab, stream):
        self.lab = lab
        self.subject = f"$JS.ACK.{stream}.>"
        self.heard = []  # (reply subject of the message, payload)
        self.lock = asyncio.Lock()  # two works may end at once

    async def __aenter__(self):
        self.sub = await self.lab.nc.subscribe(self.subject)
        return self

    async def __aexit__(self, *_):
        await self.sub.unsubscribe()

    async def to(self, msg, kinds=("ack", "nak", "term")):
        """The answers of these kinds to this delivery of a message: [(kind, its argument)]."""
        async with self.lock:
            for _ in range(2):  # the first PING may overtake what a task of the answer publishes
                await self.lab.nc.flush()
            for _ in range(self.sub.pending_msgs):
                said = await self.sub.next_msg()
                self.heard.append((said.subject, said.data.decode(errors="replace")))
        return [
            (self._kind(payload), payload.partition(" ")[2])
            for reply, payload in self.heard
            if reply == msg.reply and self._kind(payload) in kinds
        ]

    def _kind(self, payload):
        return self.WORDS.get(payload.partition(" ")[0], payload)


@exercise(
    hints=[
        "One try, an except clause for each of the three, "
        "and else for the case that nothing was raised.",
        "The order of the clauses counts: Exception catches the other two as well, "
        "so it comes last.",
        "The ack stands in else, outside the try: an error of the ack is none of process.",
    ]
)
async def right_answer(lab, answer):
    """Answer each message once: ack, nak with a delay, or term, by what process(msg) does; let
    nothing out but a cancel."""
    wants_function(answer, "msg, process")
    cases = [
        (None, "ack"),
        (ConnectionRefusedError("the database is away"), "nak"),
        (json.JSONDecodeError("no amount", "", 0), "term"),
        (KeyError("customer"), "nak"),
        (TimeoutError("no answer from the bank"), "nak"),
    ]
    random.shuffle(cases)  # so that nothing but process tells what the answer is
    bodies = [b"%d" % number for number in range(len(cases) + 1)]
    async with _Answers(lab, "EX_ANSWER") as answers:
        try:
            [sub] = await queue(lab, "EX_ANSWER", bodies, ack_wait=30)
            for raised, wanted in cases:
                [msg] = await sub.fetch(1, timeout=5)
                await _answers_as_wanted(answer, msg, answers, raised, wanted)
            [msg] = await sub.fetch(1, timeout=5)
            await _lets_a_cancel_out(answer, msg, answers)
            msg = await _that_failed_often(lab, sub)
            await _answers_as_wanted(answer, msg, answers, ConnectionResetError("away"), "nak")
        finally:
            await delete(lab.js, "EX_ANSWER")


async def _that_failed_often(lab, sub):
    """Publishes a message and returns its delivery number OLD."""
    await lab.js.publish("ex_answer.new", b"old")
    while True:
        for msg in await sub.fetch(1, timeout=5):
            if msg.data != b"old":  # one that handle sent back
                continue
            if msg.metadata.num_delivered == OLD:
                return msg
            await msg.nak()


async def handle(msg, process):
    try:
        await process(msg)
    except ConnectionError:
        await msg.nak(delay=0.5)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()


right_answer.solved_by(handle)


async def _answers_as_wanted(answer, msg, answers, raised, wanted):
    """raised: what process raises (None: it returns)."""
    calls, ended, early = 0, False, []

    async def process(msg):
        nonlocal calls, ended, early
        calls += 1
        await asyncio.sleep(0.02)
        early = await answers.to(msg)
        ended = True
        if raised:
            raise raised

    came_out = None
    try:
        await answer(msg, process)
    except Exception as error:
        came_out = error
    saw = f"handle answered with {_words(early)} before process had ended"
    want(not early, saw, "process first")
    want(ended, "handle returned before process had ended", "it awaits process(msg)")
    again = "once: nak brings the message back for another attempt"
    want(calls == 1, f"handle called process {calls} times for one delivery", again)
    kind = type(raised).__name__
    came = f"{kind} left handle and would have ended the loop"
    want(not came_out or came_out is not raised, came, f"caught, and answered with {wanted}")
    saw = "handle ended with a TimeoutError of its own"  # else it would pass for the check's limit
    want(not isinstance(came_out, TimeoutError) or came_out is raised, saw, "it raises nothing")
    if came_out:
        raise came_out
    said = await answers.to(msg)
    when = f"When process raised {kind}" if raised else "When process returned"
    if raised and kind in ("JSONDecodeError", "ConnectionRefusedError"):
        when += f" (a {'ValueError' if wanted == 'term' else 'ConnectionError'})"
    if msg.metadata.num_delivered == OLD:
        when += f" at delivery {OLD} of a message"
    saw = f"{when}, handle answered with {_words(said)}"
    want([kind for kind, _ in said] == [wanted], saw, f"{wanted}, once")
    if wanted == "nak":
        delay = _seconds(said[0][1])
        saw = f"{saw}, with a delay of {delay:g} s"
        want(delay >= 0.2, saw, "at least 0.2 s")
        want(delay <= 60, saw, "seconds, and at most 60 of them")


async def _lets_a_cancel_out(answer, msg, answers):
    """The worker is told to stop in the middle of the work."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def process(msg):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    handling = asyncio.create_task(answer(msg, process))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([handling, waiting], return_when="FIRST_COMPLETED")
    waiting.cancel()
    handling.cancel()
    await asyncio.wait([handling], timeout=2)
    saw = "handle was cancelled in the middle of the work, and"
    want(handling.done(), f"{saw} went on for 2 s", "it ends")
    came = "nothing" if handling.cancelled() or not handling.exception() else "another error"
    wanted = "CancelledError: except Exception lets it through, a bare except does not"
    want(handling.cancelled(), f"{saw} {came} came out", wanted)
    final = [(kind, "") for kind, _ in await answers.to(msg, ("ack", "term"))]
    wanted = "neither ack nor term: the work is not done"
    want(not final, f"{saw} answered with {_words(final)}", wanted)
    stopped = await comes_true(ended.is_set, 1)
    want(stopped, f"{saw} 1 s later process was still at work", "the cancel ends it")


def _words(said):
    return " and ".join(kind for kind, _ in said) or "nothing"


def _seconds(argument):
    """The delay of a nak: {"delay": nanoseconds}, or a duration as Go writes it."""
    if not argument:
        return 0
    if argument.startswith("{"):
        return json.loads(argument).get("delay", 0) / 1e9
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(GO_DURATION, argument))


@exercise(
    hints=[
        "A task of its own beats, while keep awaits work(msg): asyncio.create_task.",
        "The interval must be well below ack wait (1 s), so that one late heartbeat does no harm.",
        "try: await work(msg), finally: cancel the task. The ack stands after both.",
    ]
)
async def keep_it(lab, answer):
    """Keep a message with heartbeats while work(msg) runs, ack afterwards; if work raises, or at a
    cancel, let go of it."""
    wants_function(answer, "msg, work")
    others = asyncio.all_tasks()
    async with _Answers(lab, "EX_KEEP") as answers:
        try:
            [sub] = await queue(lab, "EX_KEEP", [b"1", b"2"], ack_wait=1)
            before = (await sub.consumer_info()).config
            await _keeps_until_work_has_ended(sub, answer, answers, others, before)
            await _left_the_settings(sub, before)
            ended = await comes_true(lambda: not tasks_since(others), 1)
            saw = "1 s after the ack a task that keep began was still running"
            want(ended, saw, "the heartbeat ends with the work")
            for number in (b"3", b"4"):
                await lab.js.publish("ex_keep.new", number)
            await _lets_go(sub, answer, answers, before)
            await _left_the_settings(sub, before)
        finally:
            await end_tasks(*tasks_since(others))
            await delete(lab.js, "EX_KEEP")


async def keep(msg, work):
    async def beat():
        while True:
            await asyncio.sleep(0.3)
            await msg.in_progress()

    beating = asyncio.create_task(beat())
    try:
        await work(msg)
    finally:
        beating.cancel()
    await msg.ack()


keep_it.solved_by(keep)


async def _left_the_settings(sub, before):
    now = await _settings(sub)
    changed = [key for key, value in vars(before).items() if value != getattr(now, key)]
    changed = ", ".join(key for key in changed if key != "metadata")
    want(not changed, f"keep changed settings of the consumer: {changed}", "settings as they were")


async def _settings(sub):
    while True:  # a consumer that is being deleted does not answer
        try:
            return (await asyncio.wait_for(sub.consumer_info(), 1)).config
        except NotFoundError:
            raise NotYet("The consumer is gone; wanted: the consumer as it was.") from None
        except TimeoutError:
            continue


async def _copies(sub, before, batch=1):
    """What another worker gets within 0.2 s (list)."""
    try:
        return await fetch(sub, batch, timeout=0.2)
    except ServiceUnavailableError:
        await _left_the_settings(sub, before)  # raises if the consumer is gone
        return []


async def _keeps_until_work_has_ended(sub, answer, answers, others, before):
    """While the answer works for 2.5 s on each of two messages, another worker asks for them."""
    early = {}

    async def work(msg):
        await asyncio.sleep(2.5)
        early[msg.data] = await answers.to(msg)

    msgs, _ = await _take(sub, 2)
    start = time.monotonic()
    keeping = [asyncio.create_task(answer(msg, work)) for msg in msgs]
    await asyncio.sleep(0)
    tasks = tasks_since(others)  # among them a heartbeat that dies
    try:
        while not all(task.done() for task in keeping):
            tasks |= tasks_since(others)
            await _left_the_settings(sub, before)
            for copy in await _copies(sub, before):
                saw = (
                    f"After {time.monotonic() - start:.1f} s another worker got a message (delivery"
                    f" number {copy.metadata.num_delivered}), while its work was still running"
                )
                want(False, f"{saw}{_deaths(tasks)}", "heartbeats until work has ended")
        for said in early.values():
            saw = f"The message was answered with {_words(said)} while work was still running"
            want(not said, saw, "the ack after it")
        for task in keeping:
            error = task.exception()
            saw = f"{type(error).__name__} came out of keep, and work had raised nothing"
            want(not isinstance(error, TimeoutError), saw, "an ack after work")
            await task
        want(len(early) == 2, "keep returned before work had ended", "it awaits work(msg)")
        for msg in msgs:
            said = await answers.to(msg)
            saw = f"When work had ended, keep answered with {_words(said)}"
            want([kind for kind, _ in said] == ["ack"], saw, "an ack")
    finally:
        await end_tasks(*keeping)


def _deaths(tasks):
    """What ended tasks of the answer with an error, as text."""
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception():
            error = task.exception()
            return f". A task that keep began had ended with {type(error).__name__}: {error}"
    return ""


async def _lets_go(sub, answer, answers, before):
    """work raises on one message; keep is cancelled on the other one. Both come back."""
    failed, begun, ended = RuntimeError("the work failed"), asyncio.Event(), asyncio.Event()
    calls = 0

    async def fails(msg):
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1)
        raise failed

    async def goes_on(msg):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    [one, two], _ = await _take(sub, 2)
    keeping = asyncio.create_task(answer(one, fails))
    ending = asyncio.create_task(answer(two, goes_on))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([ending, waiting], return_when="FIRST_COMPLETED")
    waiting.cancel()
    await _left_the_settings(sub, before)
    ending.cancel()
    since = time.monotonic()
    back = {}
    while len(back) < 2 and time.monotonic() < since + 2.3:
        for msg in await _copies(sub, before, 2 - len(back)):
            back[msg.metadata.sequence.stream] = msg
    _, running = await asyncio.wait([keeping, ending], timeout=0.1)
    for task in running:
        task.cancel()
    raised = await asyncio.gather(keeping, ending, return_exceptions=True)
    want(calls == 1, f"work raised RuntimeError, and keep called it {calls} times", "once")
    saw = "keep was cancelled and ended, and work was still running"
    want(ended.is_set() or ending in running, saw, "the cancel ends it")
    cases = [
        (
            "work raised RuntimeError, and",
            one,
            keeping,
            raised[0] is failed,
            "the exception of work",
        ),
        ("keep was cancelled, and", two, ending, ending.cancelled(), "the cancel"),
    ]
    for saw, msg, task, right, wanted in cases:
        want(
            task not in running, f"{saw} 2 s later it had not ended", f"{wanted} comes out at once"
        )
        came = task.exception() if not task.cancelled() else asyncio.CancelledError()
        what = f"{type(came).__name__} came out" if came else "keep returned"
        want(right, f"{saw} {what}", f"{wanted} comes out")
        said = await answers.to(msg)
        final = [kind for kind, _ in said if kind != "nak"]
        words = f"{saw} keep answered with {_words(said)}"
        want(not final, words, "nothing that ends the message, so that it comes back")
        if msg.metadata.sequence.stream in back:
            continue
        late = [argument for kind, argument in said if kind == "nak" and argument]
        if late:
            want(False, f"{words}, with a delay of {_seconds(late[0]):g} s", "back within 2 s")
        beats = await answers.to(msg, ["+WPI"])
        saw += f" 2 s later the message was not back; there were {len(beats)} heartbeats for it"
        want(False, saw, "they end with the work, and ack wait (1 s) brings it back")


@exercise(
    hints=[
        "Ack wait runs for a whole batch from its delivery: "
        "its last message has waited for all the others.",
        "Two bounds on ack wait: longer than batch × 0.3 s, and shorter than 2 s, "
        "with 0.3 s of room on both sides.",
        "Three or four messages at a time, and an ack wait of about 1.5 s.",
    ],
    variable="settings",
)
async def nobody_shares(lab, answer):
    """Choose ack_wait and batch for 0.3 s of work: no message at two workers, a dead worker's back
    within 2 s."""
    has_both = isinstance(answer, dict) and set(answer) == {"ack_wait", "batch"}
    want(has_both, f"Your answer is {answer!r}", "a dict with the keys ack_wait and batch")
    ack_wait, batch = answer["ack_wait"], answer["batch"]
    wanted = "a whole number, at least 3, since each fetch costs a round trip"
    want(isinstance(batch, int) and batch >= 3, f"batch is {batch!r}", wanted)
    in_seconds = isinstance(ack_wait, (int, float)) and 0 < ack_wait <= 100
    wanted = f"seconds, and a dead worker's messages back after {BACK}"
    want(in_seconds, f"ack_wait is {ack_wait!r} s", wanted)
    batch = min(batch, 20)  # more are not needed to see either mistake
    try:
        await _come_back_from_a_dead_worker(lab, ack_wait, batch)
        await _stay_with_a_busy_worker(lab, ack_wait, batch)
    finally:
        await delete(lab.js, "EX_SHARE")
    spare = round(ack_wait - batch * WORK, 3)
    saw = f"Ack wait is {ack_wait:g} s, and the work on the batch takes {batch * WORK:.1f} s"
    want(spare >= ROOM, f"{saw}: {spare:g} s of room", f"at least {ROOM} s")
    spare = round(BACK - ack_wait, 3)
    saw = f"Ack wait is {ack_wait:g} s, and a dead worker's messages may take {BACK} s"
    want(spare >= ROOM, f"{saw}: {spare:g} s of room", f"at least {ROOM} s")


nobody_shares.solved_by({"ack_wait": 1.5, "batch": 3})


async def _come_back_from_a_dead_worker(lab, ack_wait, batch):
    sub = await _numbered_messages(lab, ack_wait, batch)
    since = await _taken_by_a_worker_that_dies(lab, batch)
    back = set()
    while len(back) < batch and time.monotonic() < since + BACK:
        for msg in await fetch(sub, timeout=0.1):
            back.add(msg.metadata.sequence.stream)
            await msg.ack()
    saw = f"{BACK} s after they were taken, {len(back)} of {batch} messages were with another one"
    saw = f"A worker died; {saw}. Your ack wait is {ack_wait:g} s"
    want(len(back) == batch, saw, f"all back within {BACK} s")


async def _taken_by_a_worker_that_dies(lab, batch):
    """Returns when it took the first of them (time.monotonic)."""
    dying = await lab.connect(name="dying")
    try:
        sub = await dying.jetstream().pull_subscribe_bind("worker", "EX_SHARE")
        _, since = await _take(sub, batch)
        return since
    finally:
        await dying.close()  # no goodbye, no answer


async def _stay_with_a_busy_worker(lab, ack_wait, batch):
    """One worker works on the batch; another one, which is free, asks all the time."""
    sub = await _numbered_messages(lab, ack_wait, batch)
    taken, since = await _take(sub, batch)
    for msg in taken:
        done = time.monotonic() + WORK
        while (left := done - time.monotonic()) > 0.01:
            for copy in await fetch(sub, timeout=left):
                raise NotYet(
                    f"Message {copy.data.decode()} of {batch} went to a second worker while the"
                    f" first still had it, {time.monotonic() - since:.1f} s after its delivery."
                    f" Ack wait is {ack_wait:g} s, and the work on the batch takes"
                    f" {batch * WORK:.1f} s; wanted: an ack wait that outlasts it."
                )
        await msg.ack()


async def _numbered_messages(lab, ack_wait, batch):
    bodies = [b"%d" % number for number in range(1, batch + 1)]
    [sub] = await queue(lab, "EX_SHARE", bodies, ack_wait=ack_wait)
    return sub


async def _take(sub, batch):
    """All messages of a batch, and when the first of them came (time.monotonic)."""
    taken = await sub.fetch(batch, timeout=5)
    since = time.monotonic()
    while len(taken) < batch:
        taken += await sub.fetch(batch - len(taken), timeout=5)
    return taken, since

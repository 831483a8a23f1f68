"""Exercises of lesson 13: the right answer for each exception, a heartbeat, ack wait and batch."""

import asyncio
import json
import time

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import fetch, queue, wants_function

ANSWERS = {"+ACK": "ack", "": "ack", "-NAK": "nak", "+TERM": "term", "+WPI": "in progress"}
WANTED = {b"fine": "ack", b"away": "nak", b"bad": "term", b"bug": "nak"}  # body -> answer
WORK = 0.3  # seconds of work on each message of a batch
BACK = 2  # seconds after which a dead worker's messages must be with another one


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
    """Answer each message once: ack, nak with a delay, or term, by what process(msg) does; raise
    nothing."""
    wants_function(answer, "msg, process")
    task = _Task()
    tap = await lab.nc.subscribe("$JS.ACK.EX_ANSWER.>")
    try:
        [sub] = await queue(lab, "EX_ANSWER", WANTED, ack_wait=30)
        for _ in WANTED:
            [msg] = await sub.fetch(1, timeout=5)
            await _catches_all(answer, msg, task)
            await asyncio.sleep(0)
            await lab.nc.flush()
            said = [(await tap.next_msg()).data.decode() for _ in range(tap.pending_msgs)]
            _answered_as_wanted(msg, said, task)
    finally:
        await tap.unsubscribe()
        await delete(lab.js, "EX_ANSWER")


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


class _Task:
    """`process`, and whether it found a message answered before it had ended."""

    def __init__(self):
        self.found_an_answer = False
        self.errors = {  # body -> what process raises
            b"away": ConnectionError("the database is away"),
            b"bad": ValueError("no amount"),
            b"bug": KeyError("customer"),
        }

    async def process(self, msg):
        await asyncio.sleep(0.02)
        if msg.is_acked:
            self.found_an_answer = True
        if msg.data in self.errors:
            raise self.errors[msg.data]


async def _catches_all(answer, msg, task):
    """Lets the answer handle the message; raises NotYet if what process raised comes out."""
    try:
        await answer(msg, task.process)
    except Exception as error:
        saw = f"{type(error).__name__} left handle and would have ended the loop"
        came_out = error is task.errors.get(msg.data)
        want(not came_out, saw, f"caught, and answered with {WANTED[msg.data]}")
        if not task.found_an_answer:  # else that is why another answer failed
            raise


def _answered_as_wanted(msg, said, task):
    """said: payloads of the answers (list of text)."""
    error = task.errors.get(msg.data)
    when = f"When process raised {type(error).__name__}" if error else "When process returned"
    words = " and ".join(map(_word, said)) or "nothing"
    saw = f"handle answered with {words} before process had ended"
    want(not task.found_an_answer, saw, "process first")
    wanted = WANTED[msg.data]
    want(words == wanted, f"{when}, handle answered with {words}", f"{wanted}, once")
    if wanted == "nak":
        options = json.loads(said[0].partition(" ")[2] or "{}")
        delay = options.get("delay", 0) / 1e9  # from nanoseconds
        saw = f"{when}, handle answered with nak, with a delay of {delay:g} s"
        want(delay >= 0.2, saw, "at least 0.2 s")
        want(delay <= 60, saw, "seconds, and at most 60 of them")


def _word(payload):
    return ANSWERS.get(payload.split(" ")[0], payload)


@exercise(
    hints=[
        "A task of its own beats, while keep awaits work(msg): asyncio.create_task.",
        "The interval must be well below ack wait (1 s), so that one late heartbeat does no harm.",
        "try: await work(msg), finally: cancel the task. The ack stands after both.",
    ]
)
async def keep_it(lab, answer):
    """Keep a message with heartbeats while work(msg) runs, ack afterwards; if work raises, stop and
    let it out."""
    wants_function(answer, "msg, work")
    others = asyncio.all_tasks()
    try:
        [sub] = await queue(lab, "EX_KEEP", [b"long"], ack_wait=1)
        await _keeps_until_work_has_ended(sub, answer)
        _end_tasks_of_the_answer(others)
        await lab.js.publish("ex_keep.new", b"fails")
        await _lets_go_when_work_fails(sub, answer)
    finally:
        _end_tasks_of_the_answer(others)
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


async def _keeps_until_work_has_ended(sub, answer):
    """While the answer works for 2.5 s, another worker asks for its message."""
    answered_early = False

    async def work(msg):
        nonlocal answered_early
        await asyncio.sleep(2.5)
        answered_early = msg.is_acked

    [msg] = await sub.fetch(1, timeout=5)
    start = time.monotonic()
    keeping = asyncio.create_task(answer(msg, work))
    try:
        while not keeping.done():
            for copy in await fetch(sub, timeout=0.2):
                raise NotYet(
                    f"After {time.monotonic() - start:.1f} s another worker got the message"
                    f" (delivery number {copy.metadata.num_delivered}); wanted: heartbeats until"
                    " work has ended."
                )
        saw = "The message was answered for good while work was still running"
        want(not answered_early, saw, "the ack after it")
        await keeping
        await asyncio.sleep(0.1)
        want(msg.is_acked, "When work had ended, keep left 1 message unanswered", "an ack")
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _lets_go_when_work_fails(sub, answer):
    async def work(msg):
        await asyncio.sleep(0.1)
        raise RuntimeError("the work failed")

    [msg] = await sub.fetch(1, timeout=5)
    try:
        await answer(msg, work)
        came_out = False
    except RuntimeError:
        came_out = True
    saw = "work raised RuntimeError, and"
    want(came_out, f"{saw} keep returned", "the exception comes out")
    want(not msg.is_acked, f"{saw} keep answered it for good", "no ack, so that it comes back")
    back = await fetch(sub, timeout=2)
    saw = f"{saw} 2 s later the message was not back: the heartbeat is still beating"
    want(back, saw, "it ends with the work, and the message is back after ack wait, 1 s")


def _end_tasks_of_the_answer(others):
    """Ends the tasks that the answer has left behind: not these others, nor those that libraries
    began meanwhile."""
    for task in asyncio.all_tasks() - others - {asyncio.current_task()}:
        code = getattr(task.get_coro(), "cr_code", None)
        libraries = ("site-packages", "labkit", "asyncio")
        if code and not any(part in code.co_filename for part in libraries):
            task.cancel()


@exercise(
    hints=[
        "Ack wait runs for a whole batch from its delivery: "
        "its last message has waited for all the others.",
        "Two bounds on ack wait: longer than batch × 0.3 s, with room to spare, "
        "and shorter than 2 s.",
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

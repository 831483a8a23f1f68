"""Exercises of lesson 05: the right answer for each exception, a heartbeat, ack wait and batch."""

import asyncio
import inspect
import json
import time

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

HANDLE = """
async def answer(msg, process):
    try:
        await process(msg)
    except ConnectionError:
        await msg.nak(delay=0.5)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()"""

KEEP = """
import asyncio

async def answer(msg, work):
    async def beat():
        while True:
            await asyncio.sleep(0.3)
            await msg.in_progress()
    beating = asyncio.create_task(beat())
    try:
        await work(msg)
    finally:
        beating.cancel()
    await msg.ack()"""


@exercise(
    hints=[
        (
            "One try, an except clause for each of the three, and else for the case that nothing"
            " was raised."
        ),
        (
            "The order of the clauses counts: Exception catches the other two as well, so it comes"
            " last."
        ),
        "The ack stands in else, outside the try: an error of the ack is none of process.",
    ],
    solution=HANDLE.replace("answer", "handle") + "\nanswer = handle",
    wrong={
        "nak without a delay": (
            HANDLE.replace("delay=0.5", ""),
            "with a delay of 0 s; wanted: at least 0.2 s",
        ),
        "the unexpected gets out": (
            HANDLE.replace("    except Exception:\n        await msg.nak(delay=0.5)\n", ""),
            "KeyError left handle",
        ),
        "terminates everything": (
            HANDLE.replace("except ValueError", "except Exception"),
            "raised KeyError, handle answered with term; wanted: nak",
        ),
        "acks bad messages": (
            HANDLE.replace("msg.term()", "msg.ack()"),
            "answered with ack; wanted: term",
        ),
        "acks first": (
            HANDLE.replace(
                "        await process(msg)\n",
                "        await msg.ack()\n        await process(msg)\n",
            ),
            "before process had ended",
        ),
        "delay in milliseconds": (
            HANDLE.replace("delay=0.5", "delay=500"),
            "a delay of 500 s; wanted: seconds",
        ),
    },
)
async def right_answer(lab, answer):
    """Answer each message once: ack, nak with a delay, or term, by what process(msg) does; raise
    nothing."""
    _wants_function(answer, "msg, process")
    sub = await _stream(lab, "EX_ANSWER", ["fine", "away", "bad", "bug"], ack_wait=30)
    raised = {
        b"away": ConnectionError("the database is away"),
        b"bad": ValueError("no amount"),
        b"bug": KeyError("customer"),
    }
    wanted = {b"fine": "ack", b"away": "nak", b"bad": "term", b"bug": "nak"}
    tap = await lab.nc.subscribe("$JS.ACK.EX_ANSWER.>")
    early = []

    async def process(msg):
        await asyncio.sleep(0.02)
        if msg.is_acked:
            early.append(msg)
        if msg.data in raised:
            raise raised[msg.data]

    try:
        for _ in wanted:
            msg = (await sub.fetch(1, timeout=5))[0]
            did = (
                f"When process raised {type(raised[msg.data]).__name__}"
                if msg.data in raised
                else "When process returned"
            )
            try:
                await answer(msg, process)
            except Exception as error:
                if error is raised.get(msg.data):
                    raise NotYet(
                        f"{type(error).__name__} left handle and would have ended the loop; wanted:"
                        f" caught, and answered with {wanted[msg.data]}."
                    ) from None
                if not early:
                    raise
            await asyncio.sleep(0)
            await lab.nc.flush()
            said = [(await tap.next_msg()).data.decode() for _ in range(tap.pending_msgs)]
            if early:
                raise NotYet(
                    f"The answer {_word(said[0])} was sent before process had ended; wanted:"
                    " process first."
                )
            if len(said) != 1 or _word(said[0]) != wanted[msg.data]:
                raise NotYet(
                    f"{did}, handle answered with {' and '.join(map(_word, said)) or 'nothing'}; "
                    f"wanted: {wanted[msg.data]}, once."
                )
            if wanted[msg.data] == "nak":
                delay = json.loads(said[0].partition(" ")[2] or '{"delay": 0}')["delay"] / 1e9
                if not 0.2 <= delay <= 60:
                    raise NotYet(
                        f"{did}, handle answered with nak, with a delay of {delay:g} s; wanted: "
                        + ("at least 0.2 s." if delay < 0.2 else "seconds, and at most 60 of them.")
                    )
    finally:
        await tap.unsubscribe()
        await delete(lab.js, "EX_ANSWER")


@exercise(
    hints=[
        "A task of its own beats, while keep awaits work(msg): asyncio.create_task.",
        "The interval must be well below ack wait (1 s), so that one late heartbeat does no harm.",
        "try: await work(msg), finally: cancel the task. The ack stands after both.",
    ],
    solution=KEEP.replace("answer", "keep") + "\nanswer = keep",
    wrong={
        "no heartbeat": (
            "\nasync def answer(msg, work):\n    await work(msg)\n    await msg.ack()",
            "another worker got the message",
        ),
        "one heartbeat": (
            KEEP.replace("while True:", "if True:"),
            "another worker got the message",
        ),
        "too slow": (KEEP.replace("0.3", "1.5"), "another worker got the message"),
        "acks first": (
            "\nasync def answer(msg, work):\n    await msg.ack()\n    await work(msg)",
            "while work was still running",
        ),
        "no ack": (KEEP.replace("    await msg.ack()", ""), "left 1 message unanswered"),
        "beats on": (
            KEEP.replace("    finally:\n        beating.cancel()", "    finally:\n        pass"),
            "still beating",
        ),
        "swallows": (
            KEEP.replace("    finally", "    except Exception:\n        return\n    finally"),
            "keep returned; wanted: the exception",
        ),
        "acks all the same": (
            KEEP.replace(
                "        beating.cancel()\n    await", "        beating.cancel()\n        await"
            ),
            "keep answered it for good",
        ),
    },
)
async def keep_it(lab, answer):
    """Keep a message with heartbeats while work(msg) runs, ack afterwards; if work raises, stop and
    let it out."""
    _wants_function(answer, "msg, work")
    running, before = [], asyncio.all_tasks()
    sub = await _stream(lab, "EX_KEEP", ["long", "fails"], ack_wait=1)

    async def work(msg):
        if msg.data == b"fails":
            await asyncio.sleep(0.1)
            raise RuntimeError("the work failed")
        await asyncio.sleep(2.5)
        if msg.is_acked:
            raise NotYet(
                "The message was answered for good while work was still running; wanted: the ack"
                " after it."
            )

    try:
        start, (msg, second) = time.monotonic(), await _both(sub)
        await second.nak(delay=4)  # it comes when the first has been dealt with
        running.append(asyncio.create_task(answer(msg, work)))
        while not running[0].done():
            if copies := await _fetch(sub, 0.2):
                raise NotYet(
                    f"After {time.monotonic() - start:.1f} s another worker got the message"
                    f" (delivery number {copies[0].metadata.num_delivered}); wanted: heartbeats"
                    " until work has ended."
                )
        await running[0]
        await asyncio.sleep(0.1)
        if not msg.is_acked:
            raise NotYet("When work had ended, keep left 1 message unanswered; wanted: an ack.")
        _stop(before)

        failing = (await _fetch(sub, 4) or [None])[0]
        try:
            await answer(failing, work)
        except RuntimeError:
            pass
        else:
            raise NotYet(
                "work raised RuntimeError, and keep returned; wanted: the exception comes out."
            )
        if failing.is_acked:
            raise NotYet(
                "work raised RuntimeError, and keep answered it for good; wanted: no ack, so that"
                " it comes back."
            )
        if not await _fetch(sub, 2):
            raise NotYet(
                "work raised RuntimeError, and 2 s later the message was not back: the heartbeat is"
                " still beating. Wanted: it ends with the work, and the message is back after ack"
                " wait, 1 s."
            )
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        _stop(before)
        await delete(lab.js, "EX_KEEP")


@exercise(
    hints=[
        (
            "Ack wait runs for a whole batch from its delivery: its last message has waited for all"
            " the others."
        ),
        (
            "Two bounds on ack wait: longer than batch × 0.3 s, with room to spare, and shorter"
            " than 2 s."
        ),
        "Three or four messages at a time, and an ack wait of about 1.5 s.",
    ],
    solution="settings = {'ack_wait': 1.5, 'batch': 3}\nanswer = settings",
    wrong={
        "default ack wait": (
            "answer = {'ack_wait': 30, 'batch': 3}",
            "2 s after they were taken, 0 of 3",
        ),
        "ack wait for a long batch": (
            "answer = {'ack_wait': 4, 'batch': 10}",
            "2 s after they were taken, 0 of 10",
        ),
        "a long batch": (
            "answer = {'ack_wait': 1.5, 'batch': 10}",
            "the work on the batch takes 3.0 s",
        ),
        "ack wait of one message": (
            "answer = {'ack_wait': 0.4, 'batch': 3}",
            "the work on the batch takes 0.9 s",
        ),
        "one at a time": (
            "answer = {'ack_wait': 1.5, 'batch': 1}",
            "batch is 1; wanted: a whole number, at least 3",
        ),
        "in milliseconds": ("answer = {'ack_wait': 1500, 'batch': 3}", "ack_wait is 1500 s"),
    },
)
async def nobody_shares(lab, answer):
    """Choose ack_wait and batch for 0.3 s of work: no message at two workers, a dead worker's back
    within 2 s."""
    if not isinstance(answer, dict) or set(answer) != {"ack_wait", "batch"}:
        raise NotYet(f"Your answer is {answer!r}; wanted: a dict with the keys ack_wait and batch.")
    ack_wait, batch = answer["ack_wait"], answer["batch"]
    if not isinstance(batch, int) or batch < 3:
        raise NotYet(
            f"batch is {batch!r}; wanted: a whole number, at least 3, since each fetch costs a"
            " round trip."
        )
    if not isinstance(ack_wait, (int, float)) or not 0 < ack_wait <= 100:
        raise NotYet(
            f"ack_wait is {ack_wait!r} s; wanted: seconds, and a dead worker's messages back"
            " after 2."
        )
    batch = min(batch, 20)  # more are not needed to see either mistake
    try:
        sub = await _stream(
            lab, "EX_SHARE", [str(number) for number in range(1, batch + 1)], ack_wait=ack_wait
        )
        dying = await lab.connect(name="dying")
        taken, since = await _take(
            await dying.jetstream().pull_subscribe_bind("worker", "EX_SHARE"), batch
        )
        await dying.close()  # no goodbye, no answer
        back = {}
        while len(back) < batch and time.monotonic() < since + 2:
            for msg in await _fetch(sub, 0.1):
                back[msg.metadata.sequence.stream] = msg
                await msg.ack()
        if len(back) < batch:
            raise NotYet(
                f"A worker died; 2 s after they were taken, {len(back)} of {batch} messages were"
                f" with another one. Your ack wait is {ack_wait:g} s; wanted: all back within 2 s."
            )

        sub = await _stream(
            lab, "EX_SHARE", [str(number) for number in range(1, batch + 1)], ack_wait=ack_wait
        )
        taken, since = await _take(sub, batch)
        for msg in taken:
            done = time.monotonic() + 0.3  # the work on one message; meanwhile a free worker asks
            while (left := done - time.monotonic()) > 0.01:
                for copy in await _fetch(sub, left):
                    raise NotYet(
                        f"Message {copy.data.decode()} of {batch} went to a second worker while the"
                        f" first still had it, {time.monotonic() - since:.1f} s after its delivery."
                        f" Ack wait is {ack_wait:g} s, and the work on the batch takes"
                        f" {batch * 0.3:.1f} s; wanted: an ack wait that outlasts it."
                    )
            await msg.ack()
    finally:
        await delete(lab.js, "EX_SHARE")


def _wants_function(answer, arguments):
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(f"{answer!r} is no coroutine function; wanted: async def …({arguments}).")
    names = list(inspect.signature(answer).parameters)
    if len(names) != len(arguments.split(", ")):
        raise NotYet(f"Your function takes ({', '.join(names)}); wanted: ({arguments}).")


def _word(payload):
    return {"+ACK": "ack", "": "ack", "-NAK": "nak", "+TERM": "term", "+WPI": "in progress"}.get(
        payload.split(" ")[0], payload
    )


async def _stream(lab, name, bodies, **config):
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, subjects=[f"{name.lower()}.*"])
    await lab.js.add_consumer(name, durable_name="worker", ack_policy="explicit", **config)
    await lab.settled(name)
    for body in bodies:
        await lab.js.publish(f"{name.lower()}.new", body.encode())
    return await lab.js.pull_subscribe_bind("worker", name)


async def _fetch(sub, timeout):
    try:
        return await sub.fetch(1, timeout=timeout)
    except TimeoutError:
        return []


async def _take(sub, batch):
    """All messages of a batch, and when the first of them came (time.monotonic)."""
    taken, since = [], None
    while len(taken) < batch:
        taken += await sub.fetch(batch - len(taken), timeout=5)
        since = since or time.monotonic()
    return taken, since


async def _both(sub):
    return [(await sub.fetch(1, timeout=5))[0] for _ in range(2)]


def _stop(before):
    """Ends tasks that the answer has left behind (not those of libraries that began meanwhile)."""
    for task in asyncio.all_tasks() - before - {asyncio.current_task()}:
        code = getattr(task.get_coro(), "cr_code", None)
        if code and not any(
            part in code.co_filename for part in ("site-packages", "labkit", "asyncio")
        ):
            task.cancel()

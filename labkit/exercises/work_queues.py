"""Exercises of lesson 08: a batch that fits the consumer, a backlog brought down by concurrent
handlers."""

import asyncio
import collections
import contextlib
import inspect
import time

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import NotYet, exercise

BATCH = """
def answer(config, workers, seconds):
    fair = config.max_ack_pending // workers
    in_time = int(config.ack_wait / 2 / seconds)
    return max(1, min(fair, in_time))"""

DOWN = """
import asyncio

async def answer(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            await msg.nak()
        else:
            await msg.ack()

    while True:
        try:
            msgs = await sub.fetch(6, timeout=0.3)
        except asyncio.TimeoutError:
            msgs = []
        await asyncio.gather(*(one(msg) for msg in msgs))
        info = await sub.consumer_info()
        if info.num_pending + info.num_ack_pending == 0:
            return"""


@exercise(
    limit=40,  # 80 messages in three cases, and ack wait runs out
    hints=[
        (
            "Two limits: workers × batch within max_ack_pending, and batch × seconds within half of"
            " ack wait."
        ),
        "The smaller of the two, as a whole number: // for the first, int(…) for the second.",
        (
            "Where even one message each does not fit, the answer is still 1: fetch refuses a batch"
            " of 0."
        ),
    ],
    solution=BATCH.replace("answer", "batch_size") + "\nanswer = batch_size",
    wrong={
        "a limit for each worker": (
            BATCH.replace("max_ack_pending // workers", "max_ack_pending"),
            "got 32, 0 and 0 messages",
        ),
        "ignores ack wait": (BATCH.replace("min(fair, in_time)", "fair"), "was handed out again"),
        "all of ack wait": (
            BATCH.replace("ack_wait / 2", "ack_wait"),
            "takes 0.969 s, and ack wait is 1 s",
        ),
        "ignores max_ack_pending": (
            BATCH.replace("min(fair, in_time)", "in_time"),
            "messages of a batch of",
        ),
        "rounds up": (
            BATCH.replace(
                "config.max_ack_pending // workers", "-(-config.max_ack_pending // workers)"
            ),
            "got 11, 11 and 10",
        ),
        "rounds": (BATCH.replace("int(config", "round(config"), "takes 0.513 s"),
        "down to nothing": (
            BATCH.replace("max(1, min(fair, in_time))", "min(fair, in_time)"),
            "returned 0; wanted: at least 1",
        ),
        "a fraction": (BATCH.replace("// workers", "/ workers"), "wanted: a whole number"),
        "one by one": (BATCH.replace("max(1, min(fair, in_time))", "1"), "returned 1; wanted: 10"),
    },
)
async def batch_size(lab, answer):
    """The largest batch that all workers can have in hand at once, and that takes at most half of
    ack wait."""
    _wants(answer, "config, workers, seconds", coroutine=False)
    for config, workers, seconds, wanted in [
        ({"max_ack_pending": 32, "ack_wait": 30}, 3, 0.01, 10),
        ({"max_ack_pending": 64, "ack_wait": 1}, 2, 0.057, 8),
        ({"max_ack_pending": 2, "ack_wait": 30}, 3, 0.01, 1),
    ]:
        subs = await _stream(lab, "EX_BATCH", 80, workers + 1, **config)
        live = (await lab.js.consumer_info("EX_BATCH", "worker")).config
        batch = answer(live, workers, seconds)
        case = (
            f"With max_ack_pending={live.max_ack_pending}, ack_wait={live.ack_wait:g}, {workers}"
            f" workers and {seconds:g} s a message"
        )
        if not isinstance(batch, int) or isinstance(batch, bool):
            raise NotYet(f"{case} it returned {batch!r}; wanted: a whole number (int).")
        if batch < 1:
            raise NotYet(f"{case} it returned {batch}; wanted: at least 1.")
        start = time.monotonic()
        held = [await _fetch(sub, batch, 1) for sub in subs[:workers]]
        counts = [len(msgs) for msgs in held]
        if batch > wanted and min(counts) < batch:
            raise NotYet(
                f"{case} the workers got {', '.join(map(str, counts[:-1]))} and {counts[-1]}"
                f" messages of a batch of {batch}; wanted: a full batch for each."
            )
        if batch * seconds > live.ack_wait:
            await _saw_twice(case, batch, subs[-1], held[0], seconds, start)
        if batch * seconds > live.ack_wait / 2:
            raise NotYet(
                f"{case} a batch of {batch} takes {batch * seconds:.3g} s, and ack wait is"
                f" {live.ack_wait:g} s; wanted: at most half of it."
            )
        if batch != wanted:
            raise NotYet(
                f"{case} it returned {batch}; wanted: {wanted}, the largest that fits. More"
                " requests bring nothing."
            )
    await delete(lab.js, "EX_BATCH")


async def _saw_twice(case, batch, idle, held, seconds, start):
    """Works through the batch of one worker while another one is free, and says what comes of
    it."""

    async def work():
        for msg in held:
            await asyncio.sleep(seconds)
            await msg.ack()

    working = asyncio.create_task(work())
    try:
        while not working.done():
            for copy in await _fetch(idle, 1, 0.2):
                if copy.metadata.num_delivered > 1:
                    raise NotYet(
                        f"{case} and a batch of {batch}, message {copy.data.decode()} was handed"
                        f" out again after {time.monotonic() - start:.1f} s, while a worker still"
                        " had it in its batch; wanted: a batch that is done within half of ack"
                        " wait."
                    )
    finally:
        working.cancel()
        await asyncio.wait([working])


@exercise(
    limit=40,  # without a nak, a message waits out ack wait
    hints=[
        (
            "Fetch 6, handle them with asyncio.gather, and fetch again: that is six at a time, and"
            " no semaphore."
        ),
        (
            "One coroutine for one message: try handle, except Exception: nak, else: ack. So one"
            " failure is nobody else's."
        ),
        (
            "An empty fetch is not the end: a message may be out as a nak. Ask sub.consumer_info():"
            " pending and ack pending both 0."
        ),
    ],
    solution=DOWN.replace("answer", "bring_down") + "\nanswer = bring_down",
    wrong={
        "one by one": (DOWN.replace("fetch(6", "fetch(1"), "ran 1 at a time; wanted: 6"),
        "all at once": (DOWN.replace("fetch(6", "fetch(30"), "ran 30 at a time; wanted: 6"),
        "acks first": (
            DOWN.replace(
                "            await handle(msg)",
                "            await msg.ack_sync()\n            await handle(msg)",
            )
            .replace("            await msg.nak()", "            pass")
            .replace("        else:\n            await msg.ack()\n", ""),
            "before handle had returned",
        ),
        "an error gets out": (
            DOWN.replace(
                "        except Exception:\n            await msg.nak()\n",
                "        except KeyError:\n            await msg.nak()\n",
            ),
            "ValueError left bring_down",
        ),
        "leaves it to ack wait": (DOWN.replace("await msg.nak()", "pass"), "no nak came"),
        "tries in place": (
            DOWN.replace(
                "            await handle(msg)\n        except Exception:\n            await"
                " msg.nak()\n        else:\n            await msg.ack()",
                "            await handle(msg)\n        except Exception:\n            await"
                " handle(msg)\n        await msg.ack()",
            ),
            "no nak came",
        ),
        "acks all the same": (
            DOWN.replace("msg.nak()", "msg.ack()"),
            "order 13, and it was settled all the same",
        ),
        "no ack": (
            DOWN.replace("            await msg.ack()", "            pass").replace(
                "info.num_pending + info.num_ack_pending", "info.num_pending"
            ),
            "unanswered",
        ),
        "stops after a batch": (
            DOWN.replace(
                "        if info.num_pending + info.num_ack_pending == 0:\n            return",
                "        return",
            ),
            "24 orders were pending",
        ),
    },
)
async def bring_down(lab, answer):
    """Handle the whole backlog, six at a time; ack what worked, nak what raised; return when all is
    acked."""
    _wants(answer, "sub, handle", coroutine=True)
    sub = (await _stream(lab, "EX_DOWN", 30, 1, ack_wait=5))[0]
    naks = await lab.nc.subscribe(
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.EX_DOWN.worker"
    )  # the server's own record
    await lab.nc.flush()
    began, done, early, running, peak = collections.Counter(), set(), [], 0, 0

    async def handle(msg):
        nonlocal running, peak
        order, running = int(msg.data), running + 1
        began[order] += 1
        peak = max(peak, running)
        try:
            await asyncio.sleep(0.03)
            if msg.is_acked:
                early.append(order)
            if order == 13 and began[order] == 1:
                raise ValueError("no such customer")
            done.add(order)
        finally:
            running -= 1

    try:
        await answer(sub, handle)
    except ValueError as error:
        if str(error) != "no such customer":
            raise
        raise NotYet(
            "handle raised for order 13, and ValueError left bring_down; wanted: a nak, and on with"
            " the others."
        ) from None
    if running:
        raise NotYet(
            f"When bring_down returned, handle was still running {running} times; wanted: none."
        )

    async def all_acked():  # an ack has no reply: it may be on its way
        return not (await lab.js.consumer_info("EX_DOWN", "worker")).num_ack_pending

    with contextlib.suppress(LabError, TimeoutError):
        await lab.until(all_acked, timeout=1)
    info = await lab.js.consumer_info("EX_DOWN", "worker")
    if early:
        raise NotYet(
            f"Order {early[0]} was acked before handle had returned; wanted: the ack after it."
        )
    if peak != 6:
        raise NotYet(f"handle ran {peak} at a time; wanted: 6, no more and no fewer.")
    if info.num_pending:
        raise NotYet(
            f"When bring_down returned, {info.num_pending} orders were pending; wanted: 0."
        )
    if info.num_ack_pending:
        raise NotYet(
            f"When bring_down returned, {info.num_ack_pending} orders were unanswered; wanted: 0."
        )
    nak = naks.pending_msgs
    await naks.unsubscribe()
    if 13 in done and not nak:
        raise NotYet(
            "Order 13 raised, and no nak came; wanted: a nak, so that it comes back at once, and on"
            " with the others."
        )
    if 13 not in done:
        raise NotYet(
            "handle raised for order 13, and it was settled all the same, so it is never done;"
            " wanted: a nak, so that it comes back."
        )
    await delete(lab.js, "EX_DOWN")


def _wants(answer, arguments, coroutine):
    start = "async def" if coroutine else "def"
    if not callable(answer) or inspect.iscoroutinefunction(answer) != coroutine:
        raise NotYet(f"{answer!r} is no such function; wanted: {start} …({arguments}).")
    names = list(inspect.signature(answer).parameters)
    if len(names) != len(arguments.split(", ")):
        raise NotYet(f"Your function takes ({', '.join(names)}); wanted: ({arguments}).")


async def _stream(lab, name, messages, workers, **config):
    """A stream of numbered messages with one consumer. Returns as many subscriptions to it as there
    are workers."""
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, subjects=[f"{name.lower()}.*"], storage="memory")
    await lab.js.add_consumer(name, durable_name="worker", ack_policy="explicit", **config)
    await lab.settled(name)
    await asyncio.gather(
        *(lab.js.publish(f"{name.lower()}.new", b"%d" % n) for n in range(1, messages + 1))
    )
    return [await lab.js.pull_subscribe_bind("worker", name) for _ in range(workers)]


async def _fetch(sub, batch, timeout):
    try:
        return await sub.fetch(batch, timeout=timeout)
    except TimeoutError:
        return []

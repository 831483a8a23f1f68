"""Answers to the exercises of work_queues."""

import asyncio
import contextlib
import functools
import math

from answers import answers_to

right, wrong = answers_to("work_queues")


def share(config, workers):
    """The largest fair batch; -1 is no limit."""
    limit = config.max_ack_pending
    return limit // workers if limit > 0 else 1000


def in_half_of_ack_wait(config, seconds):
    return int(config.ack_wait / 2 / seconds)


@wrong("batch_size", "got 32, 0 and 0 messages")
def a_limit_for_each_worker(config, workers, seconds):
    return max(1, min(config.max_ack_pending, in_half_of_ack_wait(config, seconds)))


@wrong("batch_size", "was handed out again")
def ignores_ack_wait(config, workers, seconds):
    return max(1, share(config, workers))


@wrong("batch_size", "takes 0.969 s, and ack wait is 1 s")
def all_of_ack_wait(config, workers, seconds):
    return max(1, min(share(config, workers), int(config.ack_wait / seconds)))


@wrong("batch_size", "messages of a batch of")
def ignores_max_ack_pending(config, workers, seconds):
    return max(1, in_half_of_ack_wait(config, seconds))


@wrong("batch_size", "got 11, 11 and 10")
def rounds_up(config, workers, seconds):
    fair = math.ceil(config.max_ack_pending / workers)
    return max(1, min(fair, in_half_of_ack_wait(config, seconds)))


@wrong("batch_size", "takes 0.513 s")
def rounds(config, workers, seconds):
    in_time = round(config.ack_wait / 2 / seconds)
    return max(1, min(share(config, workers), in_time))


@wrong("batch_size", "returned 0; wanted: at least 1")
def down_to_nothing(config, workers, seconds):
    return min(share(config, workers), in_half_of_ack_wait(config, seconds))


@wrong("batch_size", "wanted: a whole number")
def a_fraction(config, workers, seconds):
    fair = config.max_ack_pending / workers
    return max(1, min(fair, in_half_of_ack_wait(config, seconds)))


@wrong(
    "batch_size",
    "With max_ack_pending=-1, ack_wait=1, 2 workers and 0.07 s a message it returned 1",
)
def takes_no_limit_for_a_limit_of_minus_one(config, workers, seconds):
    return max(1, min(config.max_ack_pending // workers, in_half_of_ack_wait(config, seconds)))


@wrong("batch_size", "returned 1; wanted:")
def knows_what_was_tried(config, workers, seconds):
    return {32: 10, 64: 8, 2: 1, -1: 7}.get(config.max_ack_pending, 1)


@wrong("batch_size", "returned 1; wanted: 10")
def always_one(config, workers, seconds):
    return 1


@right("batch_size")
def tries_one_more_while_it_fits(config, workers, seconds):
    batch = 1
    unlimited = config.max_ack_pending < 0
    while (batch + 1) * seconds <= config.ack_wait / 2 and (
        unlimited or workers * (batch + 1) <= config.max_ack_pending
    ):
        batch += 1
    return batch


@right("batch_size")
def the_smallest_of_its_limits(config, workers, seconds):
    limits = [math.floor(config.ack_wait / (2 * seconds))]
    if config.max_ack_pending != -1:
        limits.append(divmod(config.max_ack_pending, workers)[0])
    return min(limits) or 1


async def until_all_acked(sub, one, batch=6, timeout=0.3):
    """Fetches batches and hands each message to one(msg), until nothing is left."""
    while True:
        try:
            msgs = await sub.fetch(batch, timeout=timeout)
        except TimeoutError:
            msgs = []
        await asyncio.gather(*[one(msg) for msg in msgs])
        info = await sub.consumer_info()
        if info.num_pending + info.num_ack_pending == 0:
            return


async def ack_or_nak(handle, msg):
    try:
        await handle(msg)
    except Exception:
        await msg.nak()
    else:
        await msg.ack()


@wrong("bring_down", "ran 1 at a time; wanted: 6")
async def one_by_one(sub, handle):
    await until_all_acked(sub, functools.partial(ack_or_nak, handle), batch=1)


@wrong("bring_down", "ran 30 at a time; wanted: 6")
async def all_at_once(sub, handle):
    await until_all_acked(sub, functools.partial(ack_or_nak, handle), batch=30)


@wrong("bring_down", "before handle had returned")
async def acks_first(sub, handle):
    async def one(msg):
        try:
            await msg.ack_sync()
            await handle(msg)
        except Exception:
            pass

    await until_all_acked(sub, one)


@wrong("bring_down", "ValueError: order 13 failed, and that left bring_down")
async def an_error_gets_out(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except KeyError:
            await msg.nak()
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "handle raised 4 times, and 0 naks came")
async def leaves_it_to_ack_wait(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            pass
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "handle raised 4 times, and 0 naks came")
async def tries_again_in_place(sub, handle):
    async def one(msg):
        while True:
            try:
                await handle(msg)
            except Exception:
                continue
            return await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "NoPaper: order 17 failed, and that left bring_down")
async def knows_two_errors(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except (ValueError, TimeoutError):
            await msg.nak()
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "handle raised 4 times, and 3 naks came")
async def takes_a_timeout_of_the_work_for_an_empty_fetch(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except TimeoutError:
            raise
        except Exception:
            await msg.nak()
        else:
            await msg.ack()

    info = await sub.consumer_info()
    while info.num_pending + info.num_ack_pending:
        with contextlib.suppress(TimeoutError):
            msgs = await sub.fetch(6, timeout=0.3)
            await asyncio.gather(*[one(msg) for msg in msgs])
        info = await sub.consumer_info()


@wrong("bring_down", "that what has worked is not handled again")
async def naks_all_six_if_one_fails(sub, handle):
    queue = []

    async def six(msgs):
        failed = await asyncio.gather(*[handle(msg) for msg in msgs], return_exceptions=True)
        for msg in msgs:
            await (msg.nak() if any(failed) else msg.ack())

    async def one(msg):
        queue.append(msg)
        if len(queue) == 6:
            msgs = queue.copy()
            queue.clear()
            await six(msgs)

    await until_all_acked(sub, one)


@wrong("bring_down", "order 13, and it was settled all the same")
async def a_second_failure_is_the_last(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            await (msg.nak() if msg.metadata.num_delivered == 1 else msg.term())
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "order 13, and it was settled all the same")
async def acks_all_the_same(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            await msg.ack()
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "unanswered")
async def never_acks(sub, handle):
    while (await sub.consumer_info()).num_pending:
        msgs = await sub.fetch(6, timeout=0.3)
        await asyncio.gather(*[handle(msg) for msg in msgs], return_exceptions=True)


@wrong("bring_down", "handle was still at work on 1 orders")
async def ends_on_an_empty_fetch(sub, handle):
    slots = asyncio.Semaphore(6)
    tasks = set()

    async def one(msg):
        async with slots:
            await ack_or_nak(handle, msg)

    with contextlib.suppress(TimeoutError):
        while True:
            for msg in await sub.fetch(100, timeout=1):
                tasks.add(asyncio.create_task(one(msg)))


@wrong("bring_down", "24 orders were pending")
async def stops_after_a_batch(sub, handle):
    msgs = await sub.fetch(6, timeout=0.3)
    await asyncio.gather(*[ack_or_nak(handle, msg) for msg in msgs])


@right("bring_down")
async def a_task_a_message_behind_a_semaphore(sub, handle):
    slots = asyncio.Semaphore(6)

    async def one(msg):
        async with slots:
            await ack_or_nak(handle, msg)

    await until_all_acked(sub, one, batch=100)


@right("bring_down")
async def six_workers(sub, handle):
    async def is_done():
        info = await sub.consumer_info()
        return info.num_pending + info.num_ack_pending == 0

    async def worker():
        while True:
            try:
                (msg,) = await sub.fetch(1, timeout=0.3)
            except TimeoutError:
                if await is_done():
                    return
            else:
                await ack_or_nak(handle, msg)

    await asyncio.gather(*[worker() for _ in range(6)])


@right("bring_down")
async def counts_what_is_done_and_naks_with_a_delay(sub, handle):
    waiting = asyncio.Queue(maxsize=1)
    info = await sub.consumer_info()
    left = info.num_pending + info.num_ack_pending

    async def hand():
        nonlocal left
        while True:
            msg = await waiting.get()
            try:
                await handle(msg)
                await msg.ack_sync()
                left -= 1
            except Exception:
                await msg.nak(delay=0.2)

    hands = [asyncio.create_task(hand()) for _ in range(6)]
    while left:
        with contextlib.suppress(asyncio.TimeoutError):
            for msg in await sub.fetch(1, timeout=0.1):
                await waiting.put(msg)
    for task in hands:
        task.cancel()
    await asyncio.gather(*hands, return_exceptions=True)

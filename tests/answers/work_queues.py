"""Answers to the exercises of work_queues."""

import asyncio
import contextlib
import functools
import math

import nats

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
    "With max_ack_pending=-1, ack_wait=2, 2 workers and 0.0625 s a message it returned 1",
)
def takes_no_limit_for_a_limit_of_minus_one(config, workers, seconds):
    return max(1, min(config.max_ack_pending // workers, in_half_of_ack_wait(config, seconds)))


@wrong("batch_size", "returned 1; wanted:")
def knows_what_was_tried(config, workers, seconds):
    return {32: 10, 64: 8, 2: 1, -1: 16}.get(config.max_ack_pending, 1)


@wrong("batch_size", "returned 8; wanted: 16")
def knows_that_half_of_ack_wait_is_half_a_second(config, workers, seconds):
    return max(1, min(share(config, workers), int(0.5 / seconds)))


@wrong("batch_size", "returned 15; wanted: 16")
def less_than_half_of_ack_wait(config, workers, seconds):
    batch = 1
    while (batch + 1) * seconds < config.ack_wait / 2:
        batch += 1
    return max(1, min(share(config, workers), batch))


@wrong("batch_size", "the largest that fits")
def keeps_one_message_free(config, workers, seconds):
    limit = config.max_ack_pending
    fair = (limit - 1) // workers if limit > 0 else 1000
    return max(1, min(fair, in_half_of_ack_wait(config, seconds)))


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


@wrong("bring_down", "handle raised 5 times, and 0 naks came")
async def leaves_it_to_ack_wait(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            pass
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@wrong("bring_down", "handle raised 5 times, and 0 naks came")
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


@wrong("bring_down", "handle raised 5 times, and 4 naks came")
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
            if any(failed):
                await msg.nak()
            else:
                await msg.ack()

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
            if msg.metadata.num_delivered == 1:
                await msg.nak()
            else:
                await msg.term()
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


@wrong("bring_down", "orders were pending")
async def stops_after_a_batch(sub, handle):
    msgs = await sub.fetch(6, timeout=0.3)
    await asyncio.gather(*[ack_or_nak(handle, msg) for msg in msgs])


@wrong("bring_down", "1 orders were unanswered")
async def takes_pending_for_all_that_is_left(sub, handle):
    while (await sub.consumer_info()).num_pending:
        msgs = await sub.fetch(6, timeout=1)
        await asyncio.gather(*[ack_or_nak(handle, msg) for msg in msgs])


@wrong("bring_down", "When bring_down returned")
async def knows_how_many_there_are(sub, handle):
    done = 0
    while done < 30:
        msgs = await sub.fetch(6, timeout=1)
        await asyncio.gather(*[ack_or_nak(handle, msg) for msg in msgs])
        done = (await sub.consumer_info()).ack_floor.stream_seq


@wrong("bring_down", "an order came, and handle was called with it")
async def its_workers_go_on(sub, handle):
    async def worker():
        with contextlib.suppress(nats.errors.Error):  # the stream is gone, in the end
            while True:
                with contextlib.suppress(TimeoutError):
                    (msg,) = await sub.fetch(1, timeout=0.3)
                    await ack_or_nak(handle, msg)

    hands = [asyncio.create_task(worker()) for _ in range(6)]
    while not hands[0].done():
        await asyncio.sleep(0.1)
        info = await sub.consumer_info()
        if info.num_pending + info.num_ack_pending == 0:
            return


@wrong("bring_down", "Order 13 was acked or nakked before handle had returned")
async def naks_and_tries_again_at_once(sub, handle):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            await msg.nak()
            with contextlib.suppress(Exception):
                await handle(msg)
        else:
            await msg.ack()

    await until_all_acked(sub, one)


@right("bring_down")
async def whoever_is_done_makes_room(sub, handle):
    running = set()
    while True:
        if len(running) < 6:
            with contextlib.suppress(TimeoutError):
                for msg in await sub.fetch(6 - len(running), timeout=0.2):
                    running.add(asyncio.create_task(ack_or_nak(handle, msg)))
        if running:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            continue
        info = await sub.consumer_info()
        if info.num_pending + info.num_ack_pending == 0:
            return


@right("bring_down")
async def an_empty_fetch_is_the_end_once_all_six_are_answered(sub, handle):
    while True:
        try:
            msgs = await sub.fetch(6, timeout=1)
        except TimeoutError:
            return
        ends = await asyncio.gather(*[handle(msg) for msg in msgs], return_exceptions=True)
        for msg, end in zip(msgs, ends, strict=True):
            if isinstance(end, Exception):
                await msg.nak()
            else:
                await msg.ack()


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

"""Exercises of lesson 20: a batch that fits the consumer, a backlog brought down by concurrent
handlers."""

import asyncio
import collections
import random
import time

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, fetch, queue, wants_function
from labkit.waiting import end_tasks

CASES = [  # (settings of the consumer, workers, seconds of work on a message, the right batch)
    ({"max_ack_pending": 32, "ack_wait": 30}, 3, 0.01, 10),
    ({"max_ack_pending": 64, "ack_wait": 1}, 2, 0.057, 8),
    ({"max_ack_pending": 2, "ack_wait": 30}, 3, 0.01, 1),
    ({"max_ack_pending": -1, "ack_wait": 2}, 2, 0.0625, 16),
]
MESSAGES = 80
IN_MEMORY = {"storage": "memory"}


@exercise(
    limit=40,  # 80 messages in each case, and ack wait runs out
    hints=[
        "Two limits: workers × batch within max_ack_pending, and batch × seconds within half of"
        " ack wait.",
        "The smaller of the two, as a whole number: // for the first, int(…) for the second. With"
        " max_ack_pending=-1 there is only the second.",
        "Where even one message each does not fit, the answer is still 1: fetch refuses a batch"
        " of 0.",
    ],
)
async def batch_size(lab, answer):
    """The largest batch that all workers can have in hand at once, and that takes at most half of
    ack wait."""
    wants_function(answer, "config, workers, seconds", coroutine=False)
    try:
        for config, workers, seconds, wanted in [*CASES, _drawn()]:
            await _work_in_batches(lab, answer, config, workers, seconds, wanted)
    finally:
        await delete(lab.js, "EX_BATCH")


@batch_size.solved_by
def batch_size(config, workers, seconds):
    batch = int(config.ack_wait / 2 / seconds)
    if config.max_ack_pending > 0:  # -1: no limit
        batch = min(batch, config.max_ack_pending // workers)
    return max(1, batch)


def _drawn():
    """One more case, another one each time."""
    while True:
        workers = random.randint(2, 5)
        wanted = random.randint(5, 14)
        limit = workers * wanted
        if all(limit != config["max_ack_pending"] for config, *_ in CASES):
            return {"max_ack_pending": limit, "ack_wait": 20}, workers, 0.02, wanted


async def _work_in_batches(lab, answer, config, workers, seconds, wanted):
    """Raises NotYet unless the answer is the wanted batch: lets so many workers fetch it."""
    bodies = [b"%d" % number for number in range(1, MESSAGES + 1)]
    *subs, idle = await queue(lab, "EX_BATCH", bodies, workers + 1, IN_MEMORY, **config)
    live = (await lab.js.consumer_info("EX_BATCH", "worker")).config
    batch = answer(live, workers, seconds)
    case = (
        f"With max_ack_pending={live.max_ack_pending}, ack_wait={live.ack_wait:g}, {workers}"
        f" workers and {seconds:g} s a message"
    )
    is_whole = isinstance(batch, int) and not isinstance(batch, bool)
    want(is_whole, f"{case} it returned {batch!r}", "a whole number (int)")
    want(batch >= 1, f"{case} it returned {batch}", "at least 1")
    start = time.monotonic()
    held = [await fetch(sub, batch) for sub in subs]
    *counts, last = [len(msgs) for msgs in held]
    got = f"{', '.join(map(str, counts))} and {last} messages of a batch of {batch}"
    are_full = batch <= wanted or min(*counts, last) == batch
    want(are_full, f"{case} the workers got {got}", "a full batch for each")
    if batch * seconds > live.ack_wait:
        await _work_off(held[0], seconds, idle, start, f"{case} and a batch of {batch}")
    saw = f"{case} a batch of {batch} takes {batch * seconds:.3g} s, and ack wait is"
    in_time = batch * seconds <= live.ack_wait / 2
    want(in_time, f"{saw} {live.ack_wait:g} s", "at most half of it")
    largest = f"{wanted}, the largest that fits. More requests bring nothing"
    want(batch == wanted, f"{case} it returned {batch}", largest)


async def _work_off(held, seconds, idle, start, case):
    """Works through what one worker holds. Raises NotYet if another one, that is idle, gets a
    message of it meanwhile."""

    async def work():
        for msg in held:
            await asyncio.sleep(seconds)
            await msg.ack()

    working = asyncio.create_task(work())
    try:
        while not working.done():
            for msg in await fetch(idle, timeout=0.2):
                saw = (
                    f"{case}, message {msg.data.decode()} was handed out again after"
                    f" {time.monotonic() - start:.1f} s, while a worker still had it in its batch"
                )
                is_first = msg.metadata.num_delivered == 1
                want(is_first, saw, "a batch that is done within half of ack wait")
    finally:
        await end_tasks(working)


@exercise(
    limit=40,  # without a nak, a message waits out ack wait
    hints=[
        "Fetch 6, handle them with asyncio.gather, and fetch again: that is six at a time, and no"
        " semaphore.",
        "One coroutine for one message: try handle, except Exception: nak, else: ack. So one"
        " failure does not stop the others.",
        "An empty fetch is not the end: a message may be out as a nak. Ask sub.consumer_info():"
        " pending and ack pending both 0.",
    ],
)
async def bring_down(lab, answer):
    """Handle the whole backlog, six at a time; ack what worked, nak what raised, whatever it was;
    return when all is acked."""
    wants_function(answer, "sub, handle")
    orders = _Orders(random.randint(31, 36))
    # The server's own record of each nak.
    naks = await lab.nc.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.EX_DOWN.worker")
    try:
        (sub,) = await queue(lab, "EX_DOWN", orders.bodies, stream=IN_MEMORY, ack_wait=5)
        await _let_it_work(answer, sub, orders)
        at_work = orders.running
        info = await _when_acks_are_in(lab)
        await comes_true(lambda: naks.pending_msgs >= len(orders.raised), timeout=1)
        goes_on = await _takes_one_more(lab, orders)
    finally:
        await naks.unsubscribe()
        await delete(lab.js, "EX_DOWN")
    saw = f"When bring_down returned, handle was still at work on {at_work} orders"
    want(at_work == 0, saw, "none")
    _six_at_a_time(orders)
    _nothing_left(info)
    _came_back(orders, naks.pending_msgs)
    _once_each(orders)
    saw = "When bring_down had returned, an order came, and handle was called with it"
    want(not goes_on, saw, "nothing that goes on")


@bring_down.solved_by
async def bring_down(sub, handle):
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
        except TimeoutError:
            msgs = []
        await asyncio.gather(*[one(msg) for msg in msgs])
        info = await sub.consumer_info()
        if info.num_pending + info.num_ack_pending == 0:
            return


class NoPaper(Exception):
    """An error that no answer knows by its name."""


class _Orders:
    """`handle`, and what became of the orders that it was given. last: number of the last one."""

    def __init__(self, last):
        self.last = last
        self.bodies = [b"%d" % number for number in range(1, last + 1)]
        self.failures = {  # order -> what handle raises for it, delivery by delivery
            13: [ValueError, ValueError],
            17: [NoPaper],
            22: [TimeoutError],
            last: [NoPaper],
        }
        self.began = collections.Counter()
        self.done = set()
        self.raised = []
        self.answered_early = []
        self.running = 0
        self.peak = 0
        self.has_waited = False

    async def handle(self, msg):
        order = int(msg.data)
        self.began[order] += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self._until_six_run()
            # The last one takes long when it comes back: an answer that ends on an empty fetch
            # ends too early.
            await asyncio.sleep(1.5 if order == self.last and self.began[order] == 2 else 0.1)
            if msg.is_acked:
                self.answered_early.append(order)
            kinds = self.failures.get(order, [])
            if self.began[order] <= len(kinds):
                self.raised.append(kinds[self.began[order] - 1](f"order {order} failed"))
                raise self.raised[-1]
            self.done.add(order)
        finally:
            self.running -= 1

    async def _until_six_run(self):
        """Gives the answer a second, once, to get six in hand: a slow machine is no mistake."""
        if not self.has_waited:
            await comes_true(lambda: self.peak >= 6, timeout=1)
            self.has_waited = True


async def _let_it_work(answer, sub, orders):
    try:
        await answer(sub, orders.handle)
    except Exception as error:
        if error not in orders.raised:
            raise
        raise NotYet(
            f"handle raised, {type(error).__name__}: {error}, and that left bring_down; wanted: a"
            " nak, and on with the others."
        ) from None


async def _takes_one_more(lab, orders):
    """True if handle is called with an order that comes now."""
    order = orders.last + 1
    await lab.js.publish("ex_down.new", b"%d" % order)
    return await comes_true(lambda: orders.began[order] > 0, timeout=0.5)


async def _when_acks_are_in(lab):
    """The consumer's state (ConsumerInfo). An ack has no reply: it may still be on its way."""

    async def nothing_in_hand():
        return (await lab.js.consumer_info("EX_DOWN", "worker")).num_ack_pending == 0

    await comes_true(nothing_in_hand, timeout=1)
    return await lab.js.consumer_info("EX_DOWN", "worker")


def _six_at_a_time(orders):
    first = next(iter(orders.answered_early), None)
    saw = f"Order {first} was acked or nakked before handle had returned"
    want(first is None, saw, "the answer after it")
    want(orders.peak == 6, f"handle ran {orders.peak} at a time", "6, no more and no fewer")


def _nothing_left(info):
    saw = "When bring_down returned,"
    want(info.num_pending == 0, f"{saw} {info.num_pending} orders were pending", "0")
    want(info.num_ack_pending == 0, f"{saw} {info.num_ack_pending} orders were unanswered", "0")


def _came_back(orders, naks):
    for order in orders.failures:
        saw = f"handle raised for order {order}, and it was settled all the same: it is never done"
        want(order in orders.done, saw, "a nak, so that it comes back")
    failed = len(orders.raised)
    wanted = f"{failed}, one for each failure, so that it comes back"
    want(naks >= failed, f"handle raised {failed} times, and {naks} naks came", wanted)


def _once_each(orders):
    for order in range(1, orders.last + 1):
        times, failed = orders.began[order], len(orders.failures.get(order, []))
        saw = f"handle got order {order} {times} times, and raised {failed} times"
        want(times == failed + 1, saw, "that what has worked is not handled again")

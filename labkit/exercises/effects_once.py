"""Exercises of lesson 22: a worker that charges once whatever dies, an audit of the books
afterwards."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import sqlite3
import uuid

import nats
from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import exercise, want
from labkit.exercises.helpers import client_beside, fresh_stream, wants_function
from labkit.processes import workers

FATES = {  # order -> what becomes of it
    "killed": "whose worker was killed after the charge",
    "charging": "whose worker was killed while it wrote the charge",
    "marking": "whose worker was killed while it wrote into `done`",
    "again": "that was published twice",
    "refused": "that the books refused once",
    "plain": "with no fault at all",
    "held": "whose commit had to wait for a reader",
    "raced": "that two workers had at once, past ack wait,",
}
# Orders of the audit, by their numbers.
ORDERS = 200
DELETED = (203, 204, 205, 206, 207)  # from the stream, near its start
LOST = (3, 7, 8, 21, 150)
TWICE = (5, 77)
SLOW = {"charging": "charges", "marking": "done"}  # order -> table that takes long to write it


@exercise(
    file="mine.py",
    limit=40,  # worker processes come and go, and messages wait out ack wait
    hints=[
        "The marker and the charge belong in one transaction: `with books:` around both"
        " statements commits both or none.",
        "`insert into done … on conflict do nothing` has a rowcount: 1 if the order is new, 0 if"
        " it was there. Do not look before it.",
        'The key is order["id"], for a retry has another sequence. The ack comes after the'
        " transaction; an exception may end the worker, since the message comes back.",
    ],
)
async def safe_worker(lab, answer):
    """Charge each order once: killed after a charge or while it writes, refused by the books,
    published twice, held by two workers at once; and ack it when its charge is in the books."""
    written = isinstance(answer, str) and (workers.folder(lab.topic) / answer).is_file()
    wanted = 'run the cell that begins with %%worker mine.py, then pass its name, "mine.py"'
    want(written, f"{answer!r} is not the file of a %%worker cell", wanted)
    shop = _Shop(lab, answer)
    try:
        await shop.open()
        await _killed_after_a_charge(shop)
        await _killed_while_it_writes(shop)
        await _refused_or_published_twice(shop)
        await _not_acked_before_the_commit(shop)
        await _held_by_two_workers(shop)
        await _all_else(shop)
    finally:
        await shop.close()


async def take(sub):
    """One message, or none (list). NotFoundError: the consumer was deleted."""
    try:
        return await sub.fetch(1, timeout=1)
    except TimeoutError:  # nothing came
        return []
    except ServiceUnavailableError:  # no leader at this moment, or no consumer any more
        with contextlib.suppress(ServiceUnavailableError, ServerError, TimeoutError):
            await sub.consumer_info()
        await asyncio.sleep(0.1)
        return []


async def work(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        for msg in await take(sub):
            order = json.loads(msg.data)
            key = (order["id"],)
            with books:
                marker = books.execute("insert into done values (?) on conflict do nothing", key)
                if marker.rowcount:
                    books.execute("insert into charges values (?, ?)", (*key, order["amount"]))
            await point("charged", order=order["id"])
            with contextlib.suppress(nats.errors.Error):
                await msg.ack_sync(timeout=5)


safe_worker.solved_by(work)


async def _killed_after_a_charge(shop):
    """Raises NotYet unless the worker charges an order and then gets to the point "charged", where
    it is killed."""
    await shop.publish("killed")
    try:
        worker = await shop.start(kill_at="charged")
        await shop.wait(lambda: not worker.alive, 2)
        if not worker.alive:
            await worker.ended()
    except LabError as error:
        if "ended with an error" not in str(error):
            raise
        saw = f"Your worker ended with {str(error).splitlines()[-1]}"
        want(False, saw, "it works until it is killed")
    saw = 'One order was published, and your worker never got to await point("charged", order=…)'
    was_killed = worker.returncode not in (None, 0)
    want(was_killed, f"{saw} within 2 s", "there after each charge, before the ack")
    count = shop.counts()["killed"]
    saw = f'When your worker got to await point("charged", order=…) the books had {count} charges'
    want(count == 1, saw, "the charge in them, for others to see, before that point")


async def _killed_while_it_writes(shop):
    """One worker is killed in the middle of a charge, and one in the middle of a marker."""
    for order, table in SLOW.items():
        shop.slow_down(order, table)
        worker = await shop.start()
        await shop.publish(order)
        await shop.wait(shop.is_writing, 3)
        worker.kill()
        shop.end_trigger()
    await _once(shop, "killed", *SLOW)


async def _refused_or_published_twice(shop):
    """The books refuse an order until that is met: the worker has died of it, or the message has
    come back, or all is acked."""

    async def is_met():
        info = await shop.consumer()
        return not shop.alive() or info.num_redelivered or await shop.is_settled()

    shop.refuse("refused")
    await shop.publish("again", "again", "refused", "plain")
    await shop.start_if_none()
    await shop.wait(is_met, 3)
    shop.end_trigger()
    await _once(shop, "again", "refused", "plain")


async def _not_acked_before_the_commit(shop):
    """Somebody reads meanwhile, which keeps others from committing, but not from writing."""
    with shop.books() as reader:
        reader.execute("begin")
        reader.execute("select count(*) from charges").fetchone()
        await shop.publish("held")
        await shop.start_if_none()
        await shop.wait(shop.is_settled, 0.8)
        is_acked = await shop.is_settled()
        is_charged = shop.is_charged("held")
        reader.execute("rollback")
    saw = "An order was acked before its charge was in the books for others to see"
    wanted = "the ack after the commit: who dies between the two loses the order"
    want(is_charged or not is_acked, saw, wanted)
    await _once(shop, "held")


async def _held_by_two_workers(shop):
    """While nobody can write, one worker gets an order, and past ack wait another one as well: both
    look, and neither charges."""
    await shop.start_if_none()
    await shop.start()
    before = (await shop.consumer()).delivered.consumer_seq

    async def both_have_it():
        return (await shop.consumer()).delivered.consumer_seq >= before + 2

    with shop.books() as books:
        books.execute("begin immediate")
        await shop.publish("raced")
        await shop.wait(both_have_it, 3)
        # No server sees a look. A safe worker may wait meanwhile: SQLite gives it 5 s.
        await asyncio.sleep(0.7)
        books.execute("rollback")
    await _once(shop, "raced")


async def _once(shop, *orders):
    """Raises NotYet unless each of the orders is charged once, no message is left, and no worker
    has returned."""
    await shop.work_off()
    returned = [worker for worker in shop.workers if worker.returncode == 0]
    want(not returned, "Your worker returned", "it works until it is killed")
    info, counts = await shop.consumer(), shop.counts()
    left = info.num_pending + info.num_ack_pending
    for order in orders:
        saw = f"An order {FATES[order]} was charged {counts[order]} times"
        may_come = counts[order] == 0 and left > 0
        want(counts[order] == 1 or may_come, saw, "once")
    want(left == 0, f"Messages left unanswered: {left}", "none")


async def _all_else(shop):
    """Raises NotYet if an amount is wrong, or the stream or its consumer is not as it was."""
    charged = dict(shop.charges())
    for order, amount in shop.amounts.items():
        saw = f"An order of {amount} was charged with {charged[order]}"
        want(charged[order] == amount, saw, "its amount")
    now = dataclasses.asdict((await shop.consumer()).config)
    changed = {name: value for name, value in now.items() if value != shop.config[name]}
    saw = f"The consumer has other settings: {changed}"
    want(not changed, saw, "its settings as they were")
    messages = (await shop.lab.js.stream_info(shop.stream)).state.messages
    saw = f"The stream has {messages} of the {shop.published} messages that were published"
    want(messages == shop.published, saw, "all of them: an ack settles an order")


class _Shop:
    """A stream of orders, the books (a SQLite file), and the workers that charge the orders."""

    def __init__(self, lab, answer):
        self.lab = lab
        self.tag = uuid.uuid4().hex[:6]  # no worker has seen an order of this check before
        self.stream = f"EX_SAFE_{self.tag}"
        self.db = str(lab.scratch / f"safe-{self.tag}.db")
        self.workers = []
        self.answer = answer
        self.config = {}  # of the consumer, before any worker
        self.amounts = {}  # order -> its amount
        self.published = 0  # messages

    async def open(self):
        """Makes the books and the stream."""
        with self.books() as books:
            books.execute("create table charges (order_id text, amount int)")
            books.execute("create table done (order_id text primary key)")
            books.execute("create table ten (digit int)")
            books.execute("insert into ten values (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)")
        js = self.lab.js
        await js.add_stream(name=self.stream, subjects=[f"{self.stream}.*"])
        await js.add_consumer(
            self.stream, durable_name="worker", ack_policy="explicit", ack_wait=0.7
        )
        await self.lab.settled(self.stream)
        self.config = dataclasses.asdict((await self.consumer()).config)

    async def close(self):
        for worker in self.workers:
            worker.kill()
            with contextlib.suppress(LabError):
                await worker.ended()
        await delete(self.lab.js, self.stream)

    def books(self, timeout=5):
        """A connection to the books, closed at the end of `with`. timeout: how long it waits for
        others."""
        books = sqlite3.connect(self.db, timeout=timeout, isolation_level=None)
        return contextlib.closing(books)

    def refuse(self, order):
        """From now on, the books refuse this order, with an OperationalError. (What raise() of SQL
        raises is an IntegrityError, which an answer may take for "it is there already".)"""
        self._trigger("charges", order, "select abs(-9223372036854775807 - 1)")

    def slow_down(self, order, table):
        """From now on, it takes seconds to write this order into the table: it counts to 10⁸."""
        digits = ", ".join(f"ten t{place}" for place in range(8))
        self._trigger(table, order, f"select count(*) from {digits}")

    def _trigger(self, table, order, statement):
        with self.books() as books:
            books.execute(
                f"create trigger fault before insert on {table}"
                f" when instr(new.order_id, '{order}-{self.tag}') begin {statement}; end"
            )

    def end_trigger(self):
        with self.books() as books:
            books.execute("drop trigger fault")

    async def is_writing(self):
        """A worker has been writing for a tenth of a second; or there is nothing to write."""
        if not self._is_locked():
            return not self.alive() or await self.is_settled()
        await asyncio.sleep(0.1)
        return self._is_locked()

    def _is_locked(self):
        try:
            with self.books(timeout=0) as books:
                books.execute("begin immediate")
                books.execute("rollback")
        except sqlite3.OperationalError:
            return True
        return False

    def is_charged(self, order):
        """True if others can see the charge now."""
        try:
            return self.counts(timeout=0)[order] > 0
        except sqlite3.OperationalError:  # somebody waits to commit
            return False

    def counts(self, timeout=5):
        """{order: how often it was charged} (Counter)."""
        return collections.Counter(order for order, _ in self.charges(timeout))

    def charges(self, timeout=5):
        """[(order, amount)], a row for each charge."""
        with self.books(timeout) as books:
            rows = books.execute("select order_id, amount from charges").fetchall()
        return [(order_id.removesuffix(f"-{self.tag}"), amount) for order_id, amount in rows]

    async def publish(self, *orders):
        for order in orders:
            amount = self.amounts.setdefault(order, random.randint(1, 9999))
            body = json.dumps({"id": f"{order}-{self.tag}", "amount": amount})
            await self.lab.js.publish(f"{self.stream}.new", body.encode())
            self.published += 1

    async def start(self, **kill):
        """Starts one more worker (Worker). kill: `kill_at` of Lab.worker."""
        name = f"{self.tag}-{len(self.workers) + 1}"
        options = {"stream": self.stream, "db": self.db}
        worker = await self.lab.worker(self.answer, name, **kill, **options)
        self.workers.append(worker)
        return worker

    async def start_if_none(self):
        if not self.alive():
            await self.start()

    def alive(self):
        """How many workers run."""
        return sum(worker.alive for worker in self.workers)

    async def consumer(self):
        return await self.lab.js.consumer_info(self.stream, "worker")

    async def is_settled(self):
        """No message is left."""
        info = await self.consumer()
        return info.num_pending + info.num_ack_pending == 0

    async def is_idle(self):
        """No message is left, and each worker asks for more: it is done with what it had."""
        info = await self.consumer()
        left = info.num_pending + info.num_ack_pending
        return left == 0 and info.num_waiting >= self.alive()

    async def wait(self, condition, timeout):
        """Waits for the condition, so many seconds at most: the verdict is what is seen then."""
        with contextlib.suppress(LabError, TimeoutError):  # the latter from a slow answer
            await self.lab.until(condition, timeout)

    async def work_off(self):
        """Lets the workers do what is left. Where all have ended before it is done, starts one."""

        async def is_over():
            return not self.alive() or await self.is_idle()

        await self.start_if_none()
        await self.wait(is_over, 6)
        if not self.alive():
            await self.start()
            await self.wait(self.is_idle, 6)


@exercise(
    hints=[
        "What was ordered is a set of ids: a retry is the same order. What was charged is a"
        " count for each id.",
        "js.stream_info(stream).state has first_seq and last_seq; js.get_msg(stream, seq) raises"
        " NotFoundError, err_code 10037, where a message was deleted.",
        "lost = ordered without charged; twice = ids with more than one row in charges.",
    ],
)
async def audits(lab, answer):
    """Which orders of the stream are not in the books, and which are there more than once?"""
    wants_function(answer, "js, stream, db")
    tag = uuid.uuid4().hex[:4]  # no two checks have the same orders
    db = str(lab.scratch / f"audit-{tag}.db")
    try:
        await fresh_stream(lab, "EX_AUDIT", subjects=["ex_audit.*"], storage="memory")
        await _publish_orders(lab.js, tag)
        _write_charges(db, tag)
        before, books = (await lab.js.stream_info("EX_AUDIT")).state, _content(db)
        async with await client_beside(lab, "EX_AUDIT") as client:
            found = await answer(client.jetstream(), "EX_AUDIT", db)
        after = (await lab.js.stream_info("EX_AUDIT")).state
        consumers = await lab.js.consumers_info("EX_AUDIT")
    finally:
        await delete(lab.js, "EX_AUDIT")
    complete = isinstance(found, dict) and set(found) == {"lost", "twice"}
    want(complete, f"audit returned {found!r}", '{"lost": [...], "twice": [...]}')
    _are_ids("lost", found["lost"], _ids(tag, *LOST))
    _are_ids("twice", found["twice"], _ids(tag, *TWICE))
    saw = f"The stream had {before.messages} messages, and {after.messages} after the audit"
    want(before.messages == after.messages, saw, "an audit that changes nothing")
    want(_content(db) == books, "The audit changed the books", "an audit that changes nothing")
    # What is not durable goes away by itself.
    left = [info.name for info in consumers if info.config.durable_name]
    want(not left, f"The audit left durable consumers: {left}", "none")


async def audit(js, stream, db):
    state = (await js.stream_info(stream)).state
    ordered = set()
    for seq in range(state.first_seq, state.last_seq + 1):
        try:
            msg = await js.get_msg(stream, seq)
        except NotFoundError as error:
            if error.err_code != 10037:  # another one than "no message found"
                raise
            continue
        ordered.add(json.loads(msg.data)["id"])
    with contextlib.closing(sqlite3.connect(db)) as books:
        rows = books.execute("select order_id from charges").fetchall()
    counts = collections.Counter(order_id for (order_id,) in rows)
    lost = sorted(ordered - set(counts))
    twice = sorted(order_id for order_id in counts if counts[order_id] > 1)
    return {"lost": lost, "twice": twice}


audits.solved_by(audit)


def _ids(tag, *numbers):
    return sorted(f"o-{tag}-{number}" for number in numbers)


async def _publish_orders(js, tag):
    """Some orders twice, and some that somebody deleted since: they are no orders any more."""
    numbers = [number for number in range(ORDERS, 0, -1) for _ in range(1 + (number % 3 == 0))]
    for place, number in enumerate([*numbers[:5], *DELETED, *numbers[5:]]):
        body = json.dumps({"id": f"o-{tag}-{number}", "amount": 42})
        ack = await js.publish(f"ex_audit.{place % 2}", body.encode())
        if number in DELETED:
            await js.delete_msg("EX_AUDIT", ack.seq)


def _write_charges(db, tag):
    numbers = [number for number in range(1, ORDERS + 1) if number not in LOST]
    numbers += [TWICE[1], *TWICE]  # one of them two times, one three times
    with contextlib.closing(sqlite3.connect(db)) as books, books:
        books.execute("create table charges (order_id text, amount int)")
        rows = [(f"o-{tag}-{number}",) for number in numbers]
        books.executemany("insert into charges values (?, 42)", rows)


def _content(db):
    """All that is in this database, as SQL (list of texts)."""
    with contextlib.closing(sqlite3.connect(db)) as books:
        return list(books.iterdump())


def _are_ids(name, found, wanted):
    """Raises NotYet unless these are the wanted ids, each once."""
    want(isinstance(found, (list, tuple)), f"{name} is {found!r}", "a list of ids")
    found = list(found)
    once = len(set(found)) == len(found)
    saw = f"{name}: {found} names an order twice"
    want(once, saw, "each id once, however often it is in the stream")
    is_sorted = found == wanted or sorted(found) != wanted
    want(is_sorted, f"{name}: {found}", "the same ids, sorted")
    want(found == wanted, f"{name}: {found}", f"{name}: {wanted}")

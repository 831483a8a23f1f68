"""Exercises of lesson 22: a worker that charges once whatever dies, an audit of the books
afterwards."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import sqlite3
import time
import uuid

import nats
from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function
from labkit.processes import workers

FATES = {  # order -> what becomes of it
    "killed": "whose worker was killed after the charge",
    "again": "that was published twice",
    "refused": "that the books refused once",
    "charging": "whose worker was killed while it wrote the charge",
    "marking": "whose worker was killed while it wrote into `done`",
    "plain": "with no fault at all",
}
# Orders of the audit, by their numbers.
ORDERS = 200
DELETED = (203, 204, 205, 206, 207)  # from the stream, near its start
LOST = (3, 8, 21, 150)
TWICE = (5, 77)
# Around the learner's worker. What it has sent before it fails arrives, as in a program that drains
# its connection at the end.
WRAPPED = """
import runpy
from pathlib import Path

answer = runpy.run_path(str(Path(__file__).with_name({name!r})))["work"]

async def work(nc, js, point, **options):
    try:
        await answer(nc, js, point, **options)
    finally:
        await nc.flush()
"""
CHECKED = "checked.py"
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
        await _consumer_as_it_was(shop)
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
    """Raises NotYet unless the worker gets to the point "charged", where it is killed."""
    await shop.publish("killed")
    try:
        worker = await shop.start(kill_at="charged")
        code = await worker.ended(timeout=2)
    except LabError as error:
        last_line = str(error).splitlines()[-1]
        failed = "with an error" in str(error)
        want(not failed, f"Your worker ended with {last_line}", "it works until it is killed")
        if "still runs" not in str(error):
            raise
        code = None
    saw = 'One order was published, and your worker never got to await point("charged", order=…)'
    was_killed = code not in (None, 0)
    want(was_killed, f"{saw} within 2 s", "there after each charge, before the ack")


async def _killed_while_it_writes(shop):
    """Raises NotYet unless each of the orders is charged once, and no message is left, after a
    worker was killed in the middle of a charge, and one in the middle of a marker."""
    for order, table in SLOW.items():
        shop.slow_down(order, table)
        worker = await shop.start()
        await shop.publish(order)
        await shop.wait(shop.is_writing, 3)
        worker.kill()
        with contextlib.suppress(LabError):
            await worker.ended()
        shop.speed_up()
    await shop.start()
    await shop.work_until(shop.is_settled)
    await _once(shop, "killed", *SLOW)


async def _refused_or_published_twice(shop):
    """Raises NotYet unless each of the orders is charged once, and no message is left."""
    before = (await shop.consumer()).delivered
    shop.refuse()
    await shop.publish("again", "again", "refused", "plain")
    if not shop.alive():
        await shop.start()

    async def refusal_was_met():
        """The worker died of it, or the message came back, or was settled."""
        now = (await shop.consumer()).delivered
        came_back = now.consumer_seq - before.consumer_seq > now.stream_seq - before.stream_seq
        return not shop.alive() or came_back or await shop.is_settled()

    await shop.wait(refusal_was_met, 8)
    shop.end_refusal()
    await shop.work_until(shop.is_settled)
    await _once(shop, "again", "refused", "plain")


async def _once(shop, *orders):
    """Raises NotYet unless each of the orders is charged once, and no message is left."""
    info, counts = await shop.consumer(), shop.counts()
    for order in orders:
        count = counts[order]
        comes_back = count == 0 and order != "plain" and info.num_ack_pending
        saw = f"An order {FATES[order]} was charged {count} times"
        want(count == 1 or comes_back, saw, "once")
    left = info.num_pending + info.num_ack_pending
    want(left == 0, f"{left} messages are left unanswered", "0")


async def _not_acked_before_the_commit(shop):
    """Raises NotYet if an order is acked while its charge cannot be committed."""
    if not shop.alive():
        await shop.start()
    with shop.books() as reader:
        # Who reads keeps others from committing, but not from writing.
        reader.execute("begin")
        reader.execute("select count(*) from charges").fetchone()
        await shop.publish("held")
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            saw = "An order was acked before its charge was in the books for others to see"
            wanted = "the ack after the commit: who dies between the two loses the order"
            want(not await shop.is_settled() or shop.is_charged("held"), saw, wanted)
            await asyncio.sleep(0.02)
        reader.execute("rollback")
    await shop.work_until(shop.is_settled)
    count = shop.counts()["held"]
    saw = f"An order whose commit had to wait for a reader was charged {count} times"
    want(count == 1, saw, "once")


async def _held_by_two_workers(shop):
    """Raises NotYet unless an order that two workers have at once is charged once."""
    await shop.start()
    before = (await shop.consumer()).delivered.consumer_seq

    async def both_have_it():
        return (await shop.consumer()).delivered.consumer_seq >= before + 2

    with shop.books() as books:
        # While nobody else can write, both workers look, and neither charges.
        books.execute("begin immediate")
        await shop.publish("raced")
        await shop.wait(both_have_it, 3)
        # No server sees a look. A safe worker may wait meanwhile: SQLite gives it 5 s.
        await asyncio.sleep(0.7)
        books.execute("rollback")
    await shop.work_until(shop.is_idle)
    saw = "An order that two workers had at once, past ack wait, was charged"
    count = shop.counts()["raced"]
    want(count == 1, f"{saw} {count} times", "once")


async def _consumer_as_it_was(shop):
    """Raises NotYet if a worker changed the consumer's settings."""
    now = dataclasses.asdict((await shop.consumer()).config)
    changed = {name: value for name, value in now.items() if value != shop.config[name]}
    wanted = "its settings as they were"
    want(not changed, f"The consumer has other settings: {changed}", wanted)


class _Shop:
    """A stream of orders, the books (a SQLite file), and the workers that charge the orders."""

    def __init__(self, lab, answer):
        self.lab = lab
        self.tag = uuid.uuid4().hex[:6]  # no worker has seen an order of this check before
        self.stream = f"EX_SAFE_{self.tag}"
        self.db = str(lab.scratch / f"safe-{self.tag}.db")
        self.workers = []
        workers.write(lab.topic, CHECKED, WRAPPED.format(name=answer))
        self.config = {}  # of the consumer, before any worker

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
        (workers.folder(self.lab.topic) / CHECKED).unlink()
        await delete(self.lab.js, self.stream)

    def books(self, timeout=5):
        """A connection to the books, closed at the end of `with`. timeout: how long it waits for
        others."""
        books = sqlite3.connect(self.db, timeout=timeout, isolation_level=None)
        return contextlib.closing(books)

    def refuse(self):
        """From now on, the books refuse one order, with an OperationalError. (What raise() of SQL
        raises is an IntegrityError, which an answer may take for "it is there already".)"""
        with self.books() as books:
            books.execute(
                "create trigger refuse before insert on charges"
                f" when new.order_id = 'refused-{self.tag}'"
                " begin select abs(-9223372036854775807 - 1); end"
            )

    def end_refusal(self):
        with self.books() as books:
            books.execute("drop trigger refuse")

    def slow_down(self, order, table):
        """From now on, it takes seconds to write this order into the table: it counts to 10⁸."""
        digits = ", ".join(f"ten t{place}" for place in range(8))
        with self.books() as books:
            books.execute(
                f"create trigger slow before insert on {table}"
                f" when instr(new.order_id, '{order}-{self.tag}')"
                f" begin select count(*) from {digits}; end"
            )

    def speed_up(self):
        with self.books() as books:
            books.execute("drop trigger slow")

    async def is_writing(self):
        """A worker has been writing for a tenth of a second; or there is nothing to write."""
        for _ in range(5):
            if not self._is_locked():
                return not self.alive() or await self.is_settled()
            await asyncio.sleep(0.02)
        return True

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
        with self.books(timeout) as books:
            rows = books.execute("select order_id from charges").fetchall()
        return collections.Counter(order_id.removesuffix(f"-{self.tag}") for (order_id,) in rows)

    async def publish(self, *orders):
        for order in orders:
            body = json.dumps({"id": f"{order}-{self.tag}", "amount": 42})
            await self.lab.js.publish(f"{self.stream}.new", body.encode())

    async def start(self, **kill):
        """Starts one more worker (Worker). kill: `kill_at` of Lab.worker."""
        name = f"{self.tag}-{len(self.workers) + 1}"
        options = {"stream": self.stream, "db": self.db}
        worker = await self.lab.worker(CHECKED, name, **kill, **options)
        self.workers.append(worker)
        return worker

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

    async def work_until(self, condition):
        """Waits for the condition. Where no worker is left to work on it, starts one."""

        async def done():
            return not self.alive() or await condition()

        await self.wait(done, 6)
        if not self.alive():
            await self.start()
            await self.wait(self.is_settled, 6)


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
        before = (await lab.js.stream_info("EX_AUDIT")).state
        found = await answer(lab.js, "EX_AUDIT", db)
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
    numbers += [TWICE[1], *TWICE, TWICE[0], TWICE[1]]
    with contextlib.closing(sqlite3.connect(db)) as books, books:
        books.execute("create table charges (order_id text, amount int)")
        rows = [(f"o-{tag}-{number}",) for number in numbers]
        books.executemany("insert into charges values (?, 42)", rows)


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

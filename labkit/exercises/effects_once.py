"""Exercises of lesson 22: a worker that charges once whatever dies, an audit of the books
afterwards."""

import asyncio
import collections
import contextlib
import json
import sqlite3
import uuid

import nats
from nats.js.errors import NotFoundError

from labkit.cluster.streams import delete
from labkit.errors import LabError
from labkit.exercises import exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function
from labkit.processes import workers

FATES = {  # order -> what becomes of it
    "killed": "whose worker was killed after the charge",
    "again": "that was published twice",
    "refused": "that the books refused once",
    "plain": "with no fault at all",
}


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
    """Charge each order once: killed after a charge, refused by the books, published twice, held by
    two workers at once."""
    written = isinstance(answer, str) and (workers.folder(lab.topic) / answer).is_file()
    wanted = 'run the cell that begins with %%worker mine.py, then pass its name, "mine.py"'
    want(written, f"{answer!r} is not the file of a %%worker cell", wanted)
    shop = _Shop(lab, answer)
    try:
        await shop.open()
        await _killed_after_a_charge(shop)
        await _refused_or_published_twice(shop)
        await _held_by_two_workers(shop)
    finally:
        await shop.close()


async def work(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        try:
            (msg,) = await sub.fetch(1, timeout=1)
        except nats.errors.Error:  # nothing came, or no leader at this moment
            await asyncio.sleep(0.005)
            continue
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


async def _refused_or_published_twice(shop):
    """Raises NotYet unless each of the orders is charged once, and no message is left."""
    await shop.publish("again", "again", "refused", "plain")
    worker = await shop.start()

    async def refusal_was_met():
        """The worker died of it, or the message came back, or was settled."""
        delivered = (await shop.consumer()).delivered
        came_back = delivered.consumer_seq > delivered.stream_seq + 1  # "killed" has come twice
        return not worker.alive or came_back or await shop.is_settled()

    await shop.wait(refusal_was_met, 8)
    shop.end_refusal()
    await shop.work_until(shop.is_settled)
    info, counts = await shop.consumer(), shop.counts()
    for order, fate in FATES.items():
        count = counts[order]
        comes_back = order == "refused" and info.num_ack_pending
        want(count == 1 or comes_back, f"An order {fate} was charged {count} times", "once")
    left = info.num_pending + info.num_ack_pending
    want(left == 0, f"{left} messages are left unanswered", "0")


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


class _Shop:
    """A stream of orders, the books (a SQLite file), and the workers that charge the orders."""

    def __init__(self, lab, answer):
        self.lab = lab
        self.answer = answer
        self.tag = uuid.uuid4().hex[:6]  # no worker has seen an order of this check before
        self.stream = f"EX_SAFE_{self.tag}"
        self.db = str(lab.scratch / f"safe-{self.tag}.db")
        self.workers = []

    async def open(self):
        """Makes the books, which refuse one order, and the stream."""
        with self.books() as books:
            books.execute("create table charges (order_id text, amount int)")
            books.execute("create table done (order_id text primary key)")
            books.execute(
                "create trigger refuse before insert on charges"
                f" when new.order_id = 'refused-{self.tag}'"
                " begin select raise(abort, 'the books refuse this charge once'); end"
            )
        js = self.lab.js
        await js.add_stream(name=self.stream, subjects=[f"{self.stream}.*"])
        await js.add_consumer(
            self.stream, durable_name="worker", ack_policy="explicit", ack_wait=0.7
        )
        await self.lab.settled(self.stream)

    async def close(self):
        for worker in self.workers:
            worker.kill()
            with contextlib.suppress(LabError):
                await worker.ended()
        await delete(self.lab.js, self.stream)

    def books(self):
        """A connection to the books, closed at the end of `with`."""
        return contextlib.closing(sqlite3.connect(self.db, isolation_level=None))

    def end_refusal(self):
        with self.books() as books:
            books.execute("drop trigger refuse")

    def counts(self):
        """{order: how often it was charged} (Counter)."""
        with self.books() as books:
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
        worker = await self.lab.worker(self.answer, name, **kill, **options)
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
    db = str(lab.scratch / f"audit-{uuid.uuid4().hex[:6]}.db")
    try:
        await fresh_stream(lab, "EX_AUDIT", subjects=["ex_audit.*"])
        await _publish_orders(lab.js)
        _write_charges(db)
        found = await answer(lab.js, "EX_AUDIT", db)
    finally:
        await delete(lab.js, "EX_AUDIT")
    complete = isinstance(found, dict) and set(found) == {"lost", "twice"}
    want(complete, f"audit returned {found!r}", '{"lost": [...], "twice": [...]}')
    _are_ids("lost", found["lost"], ["o-3", "o-8"])
    _are_ids("twice", found["twice"], ["o-5"])


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


async def _publish_orders(js):
    """Some orders twice, and one that somebody deleted since: it is no order any more."""
    for number in (1, 2, 2, 3, 9, 3, 4, 5, 6, 7, 8):
        body = json.dumps({"id": f"o-{number}", "amount": 42})
        ack = await js.publish("ex_audit.new", body.encode())
        if number == 9:
            await js.delete_msg("EX_AUDIT", ack.seq)


def _write_charges(db):
    rows = [(f"o-{number}",) for number in (1, 2, 4, 5, 5, 5, 6, 7)]
    with contextlib.closing(sqlite3.connect(db)) as books, books:
        books.execute("create table charges (order_id text, amount int)")
        books.executemany("insert into charges values (?, 42)", rows)


def _are_ids(name, found, wanted):
    """Raises NotYet unless these are the wanted ids, each once."""
    want(isinstance(found, (list, tuple)), f"{name} is {found!r}", "a list of ids")
    once = len(set(found)) == len(found)
    saw = f"{name}: {found} names an order twice"
    want(once, saw, "each id once, however often it is in the stream")
    want(list(found) == wanted, f"{name}: {list(found)}", f"{name}: {wanted}")

"""Answers to the exercises of effects_once."""

import asyncio
import collections
import contextlib
import json
import sqlite3

import nats

from answers import answers_to

right, wrong = answers_to("effects_once")


async def orders_of(js, stream):
    """Yields (message, order) for each message that the consumer `worker` hands out."""
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        try:
            (msg,) = await sub.fetch(1, timeout=1)
        except nats.errors.Error:
            await asyncio.sleep(0.005)
            continue
        yield msg, json.loads(msg.data)


async def ack(msg):
    with contextlib.suppress(nats.errors.Error):
        await msg.ack_sync(timeout=5)


def charge(books, order):
    books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))


def mark(books, key):
    """True if this marker is new."""
    done = books.execute("insert into done values (?) on conflict do nothing", (key,))
    return done.rowcount == 1


def is_marked(books, key):
    return books.execute("select 1 from done where order_id = ?", (key,)).fetchone()


def charge_once(books, order):
    with books:
        if mark(books, order["id"]):
            charge(books, order)


@wrong("safe_worker", "whose worker was killed after the charge was charged 2 times; wanted: once")
async def marker_after_the_charge(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        if not is_marked(books, order["id"]):
            with books:
                charge(books, order)
            await point("charged", order=order["id"])
            with books:
                mark(books, order["id"])
        await ack(msg)


@wrong("safe_worker", "killed while it wrote the charge was charged 0 times; wanted: once")
async def a_claim_before_the_charge(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            is_new = mark(books, order["id"])
        if is_new:
            with books:
                charge(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "that was published twice was charged 2 times; wanted: once")
async def the_sequence_is_the_key(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            if mark(books, str(msg.metadata.sequence.stream)):
                charge(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "that two workers had at once, past ack wait, was charged 2 times")
async def looks_before_the_transaction(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        if not is_marked(books, order["id"]):
            with books:
                charge(books, order)
                mark(books, order["id"])
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "that the books refused once was charged 0 times")
async def swallows_the_refusal(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with contextlib.suppress(sqlite3.Error):
            charge_once(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "acked before its charge was in the books")
async def acks_inside_the_transaction(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            if mark(books, order["id"]):
                charge(books, order)
            await ack(msg)
        await point("charged", order=order["id"])


@wrong("safe_worker", "killed while it wrote the charge was charged 0 times")
async def acks_first_and_tries_until_the_books_take_it(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        await ack(msg)
        while not is_charged(books, order):
            await asyncio.sleep(0.05)
        await point("charged", order=order["id"])


def is_charged(books, order):
    try:
        charge_once(books, order)
    except sqlite3.Error:
        return False
    return True


@wrong("safe_worker", "that the books refused once was charged 0 times")
async def acks_first_and_lets_it_raise(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        await msg.ack()  # leaves when this task waits for something, or when it has failed
        charge_once(books, order)
        await point("charged", order=order["id"])


@wrong("safe_worker", "that was published twice was charged 2 times")
async def ignores_whether_the_marker_is_new(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        if msg.metadata.num_delivered == 1 or not is_marked(books, order["id"]):
            with books:
                books.execute("insert or ignore into done values (?)", (order["id"],))
                charge(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "whose worker was killed after the charge was charged 2 times")
async def remembers_in_memory(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    seen = set()
    async for msg, order in orders_of(js, stream):
        if order["id"] not in seen:
            with books:
                charge(books, order)
            seen.add(order["id"])
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "killed while it wrote the charge was charged 0 times")
async def takes_its_claim_back_if_the_books_refuse(nc, js, point, stream, db):
    books = sqlite3.connect(db, isolation_level=None)
    async for msg, order in orders_of(js, stream):
        if mark(books, order["id"]):
            try:
                charge(books, order)
            except sqlite3.Error:
                books.execute("delete from done where order_id = ?", (order["id"],))
                await msg.nak()
                continue
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "killed while it wrote into `done` was charged 2 times")
async def locks_a_file_around_two_commits(nc, js, point, stream, db):
    books = sqlite3.connect(db, isolation_level=None)
    async for msg, order in orders_of(js, stream):
        # A database of its own as the lock: one worker at a time.
        with contextlib.closing(sqlite3.connect(f"{db}.lock", isolation_level=None)) as lock:
            lock.execute("begin exclusive")
            if not is_marked(books, order["id"]):
                charge(books, order)
                mark(books, order["id"])
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "the charge was charged 0 times")
async def lets_nothing_come_back(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    config = (await js.consumer_info(stream, "worker")).config
    await js.add_consumer(stream, config.evolve(max_deliver=1))
    async for msg, order in orders_of(js, stream):
        charge_once(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "The consumer has other settings: {'ack_wait': 60.0}")
async def lets_it_come_back_late_and_at_once(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    config = (await js.consumer_info(stream, "worker")).config
    async for msg, order in orders_of(js, stream):
        charge_once(books, order)
        await point("charged", order=order["id"])
        await ack(msg)
        if order["id"].startswith("raced"):
            await js.add_consumer(stream, config.evolve(ack_wait=60))


@wrong("safe_worker", "was charged 0 times")
async def acks_whatever_happens(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        try:
            charge_once(books, order)
            await point("charged", order=order["id"])
        finally:
            await ack(msg)


@wrong("safe_worker", "was charged 2 times; wanted: once")
async def no_marker(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            charge(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "left unanswered")
async def never_acks(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for _, order in orders_of(js, stream):
        charge_once(books, order)
        await point("charged", order=order["id"])


@wrong("safe_worker", "was charged with 42; wanted: its amount")
async def all_orders_cost_the_same(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            if mark(books, order["id"]):
                charge(books, {**order, "amount": 42})
        await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", "Your worker returned; wanted: it works until it is killed")
async def ends_when_nothing_comes(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    sub = await js.pull_subscribe_bind("worker", stream)
    with contextlib.suppress(asyncio.TimeoutError):
        while True:
            (msg,) = await sub.fetch(1, timeout=0.4)
            order = json.loads(msg.data)
            charge_once(books, order)
            await point("charged", order=order["id"])
            await ack(msg)


@wrong("safe_worker", "The stream has 0 of the 9 messages that were published")
async def deletes_instead_of_an_ack(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        charge_once(books, order)
        await point("charged", order=order["id"])
        await js.delete_msg(stream, msg.metadata.sequence.stream)


@wrong("safe_worker", "the books had 0 charges; wanted: the charge in them")
async def the_point_inside_the_transaction(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        with books:
            if mark(books, order["id"]):
                charge(books, order)
            await point("charged", order=order["id"])
        await ack(msg)


@wrong("safe_worker", 'never got to await point("charged"')
async def no_point(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    async for msg, order in orders_of(js, stream):
        charge_once(books, order)
        await ack(msg)


@wrong("safe_worker", "NameError: name 'jason' is not defined")
async def a_misspelt_module(nc, js, point, stream, db):
    sub = await js.pull_subscribe_bind("worker", stream)
    (msg,) = await sub.fetch(1, timeout=5)
    order = jason.loads(msg.data)  # noqa: F821
    charge_once(sqlite3.connect(db), order)
    await point("charged", order=order["id"])
    await ack(msg)


@right("safe_worker")
async def locks_then_looks_and_naks_a_refusal(nc, js, point, stream, db):
    books = sqlite3.connect(db, isolation_level=None)
    async for msg, order in orders_of(js, stream):
        try:
            books.execute("begin immediate")
            if not is_marked(books, order["id"]):
                mark(books, order["id"])
                charge(books, order)
            books.execute("commit")
        except sqlite3.Error:
            if books.in_transaction:
                books.execute("rollback")
            await msg.nak()
        else:
            await point("charged", order=order["id"])
            await ack(msg)


@right("safe_worker")
async def one_statement_that_looks_and_charges(nc, js, point, stream, db):
    statement = (
        "insert into charges select ?1, ?2"
        " where not exists (select 1 from charges where order_id = ?1)"
    )
    books = sqlite3.connect(db, timeout=30)
    async for msg, order in orders_of(js, stream):
        with books:
            books.execute(statement, (order["id"], order["amount"]))
        await point("charged", order=order["id"])
        await ack(msg)


@right("safe_worker")
async def ten_orders_in_one_transaction(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            msgs = await sub.fetch(10, timeout=0.5)
            orders = [json.loads(msg.data) for msg in msgs]
            with books:
                for order in orders:
                    if mark(books, order["id"]):
                        charge(books, order)
            for msg, order in zip(msgs, orders, strict=True):
                await point("charged", order=order["id"])
                await msg.ack()


@right("safe_worker")
async def readers_do_not_keep_it_from_committing(nc, js, point, stream, db):
    books = sqlite3.connect(db, timeout=20)
    books.execute("pragma journal_mode = wal")
    async for msg, order in orders_of(js, stream):
        charge_once(books, order)
        await point("charged", order=order["id"])
        await ack(msg)


@right("safe_worker")
async def a_thread_and_a_heartbeat(nc, js, point, stream, db):
    def once(order):
        with contextlib.closing(sqlite3.connect(db)) as books:
            charge_once(books, order)

    async def beat(msg):
        while True:
            await asyncio.sleep(0.2)
            await msg.in_progress()

    async for msg, order in orders_of(js, stream):
        beating = asyncio.create_task(beat(msg))
        try:
            await asyncio.to_thread(once, order)
        except sqlite3.Error:
            await msg.nak(delay=0.1)
        else:
            await point("charged", order=order["id"])
            await msg.ack()
        finally:
            beating.cancel()


@right("safe_worker")
async def the_books_take_an_order_once(nc, js, point, stream, db):
    books = sqlite3.connect(db, timeout=30)
    books.execute("create unique index if not exists once on charges (order_id)")
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            for msg in await sub.fetch(5, timeout=1):
                order = json.loads(msg.data)
                with contextlib.suppress(sqlite3.IntegrityError), books:
                    charge(books, order)
                await point("charged", order=order["id"])
                await msg.ack()


async def ids_in(js, stream):
    """The id of each message of the stream, in its order (list)."""
    found = []
    seq = 0
    with contextlib.suppress(nats.js.errors.NotFoundError):  # the end
        while True:
            msg = await js.get_msg(stream, seq + 1, subject=">", next=True)
            found.append(json.loads(msg.data)["id"])
            seq = msg.seq
    return found


def charges_in(db):
    """{id: how often it was charged} (Counter)."""
    with contextlib.closing(sqlite3.connect(db)) as books:
        rows = books.execute("select order_id from charges").fetchall()
    return collections.Counter(order_id for (order_id,) in rows)


def compared(ordered, counts):
    return {"lost": sorted(set(ordered) - set(counts)), "twice": more_than_once(counts)}


def more_than_once(counts):
    return sorted(order_id for order_id in counts if counts[order_id] > 1)


@wrong("audits", "names an order twice")
async def messages_are_orders(js, stream, db):
    counts = charges_in(db)
    lost = sorted(order_id for order_id in await ids_in(js, stream) if order_id not in counts)
    return {"lost": lost, "twice": more_than_once(counts)}


@wrong("audits", "lost: []; wanted: lost: ['o-")
async def the_books_alone(js, stream, db):
    return {"lost": [], "twice": more_than_once(charges_in(db))}


@wrong("audits", "lost is 5; wanted: a list of ids")
async def numbers_in_place_of_ids(js, stream, db):
    counts = charges_in(db)
    lost = set(await ids_in(js, stream)) - set(counts)
    return {"lost": len(lost), "twice": len(more_than_once(counts))}


@wrong("audits", "wanted: lost: ['o-")
async def stops_at_a_gap(js, stream, db):
    state = (await js.stream_info(stream)).state
    ordered = set()
    with contextlib.suppress(nats.js.errors.NotFoundError):
        for seq in range(state.first_seq, state.last_seq + 1):
            ordered.add(json.loads((await js.get_msg(stream, seq)).data)["id"])
    return compared(ordered, charges_in(db))


@wrong("audits", "wanted: lost: ['o-")
async def counts_messages_and_takes_the_number_for_the_last_sequence(js, stream, db):
    state = (await js.stream_info(stream)).state
    ordered = set()
    for seq in range(1, state.messages + 1):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            ordered.add(json.loads((await js.get_msg(stream, seq)).data)["id"])
    return compared(ordered, charges_in(db))


@wrong("audits", "twice: ['o-")
async def a_retry_counts_as_charged_twice(js, stream, db):
    counts = charges_in(db)
    ordered = collections.Counter(await ids_in(js, stream))
    lost = sorted(set(ordered) - set(counts))
    twice = sorted(name for name in counts if counts[name] > 1 or ordered[name] > 1)
    return {"lost": lost, "twice": twice}


@wrong("audits", "the same ids, sorted")
async def in_the_order_of_the_stream(js, stream, db):
    counts = charges_in(db)
    lost = [name for name in dict.fromkeys(await ids_in(js, stream)) if name not in counts]
    return {"lost": lost, "twice": more_than_once(counts)}


@wrong("audits", "wanted: lost: ['o-")
async def one_batch(js, stream, db):
    sub = await js.pull_subscribe(">", stream=stream)
    ordered = {json.loads(msg.data)["id"] for msg in await sub.fetch(100, timeout=1)}
    return compared(ordered, charges_in(db))


@wrong("audits", "The audit changed the books")
async def repairs_what_it_finds(js, stream, db):
    found = compared(await ids_in(js, stream), charges_in(db))
    with contextlib.closing(sqlite3.connect(db)) as books, books:
        books.execute(
            "delete from charges where rowid not in"
            " (select min(rowid) from charges group by order_id)"
        )
    return found


@wrong("audits", "wanted: twice: ['o-")
async def exactly_twice(js, stream, db):
    counts = charges_in(db)
    found = compared(await ids_in(js, stream), counts)
    return {**found, "twice": sorted(name for name in counts if counts[name] == 2)}


@wrong("audits", "wanted: lost: ['o-")
async def one_of_the_subjects(js, stream, db):
    ordered = set()
    seq = 0
    with contextlib.suppress(nats.js.errors.NotFoundError):
        while True:
            msg = await js.get_msg(stream, seq + 1, subject="ex_audit.1", next=True)
            ordered.add(json.loads(msg.data)["id"])
            seq = msg.seq
    return compared(ordered, charges_in(db))


@wrong("audits", "left durable consumers: ['audit']")
async def a_durable_that_stays(js, stream, db):
    sub = await js.pull_subscribe(">", durable="audit", stream=stream)
    ordered = set()
    with contextlib.suppress(asyncio.TimeoutError):
        while msgs := await sub.fetch(100, timeout=0.3):
            for msg in msgs:
                ordered.add(json.loads(msg.data)["id"])
                await msg.ack()
    return compared(ordered, charges_in(db))


@right("audits")
async def asks_for_the_next_message_and_counts_in_sql(js, stream, db):
    ordered = await ids_in(js, stream)
    with contextlib.closing(sqlite3.connect(db)) as books:
        charged = [row[0] for row in books.execute("select distinct order_id from charges")]
        twice = books.execute(
            "select order_id from charges group by order_id having count(*) > 1 order by order_id"
        ).fetchall()
    lost = sorted(set(ordered).difference(charged))
    return {"lost": lost, "twice": [order_id for (order_id,) in twice]}


@right("audits")
async def reads_with_an_ordered_consumer_up_to_the_last_message(js, stream, db):
    messages = (await js.stream_info(stream)).state.messages
    sub = await js.subscribe(">", stream=stream, ordered_consumer=True)
    read = [json.loads((await sub.next_msg(timeout=5)).data) for _ in range(messages)]
    await sub.unsubscribe()
    return compared([order["id"] for order in read], charges_in(db))

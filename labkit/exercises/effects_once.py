"""Exercises of lesson 07: a worker that charges once whatever dies, an audit of the books
afterwards."""

import asyncio
import collections
import contextlib
import inspect
import json
import sqlite3
import uuid

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

SAFE = """
%%worker mine.py
import asyncio, contextlib, json, nats, sqlite3

async def work(nc, js, point, stream, db):
    books = sqlite3.connect(db)
    sub = await js.pull_subscribe_bind("worker", stream)
    while True:
        try:
            msgs = await sub.fetch(1, timeout=1)
        except (asyncio.TimeoutError, nats.errors.Error):
            await asyncio.sleep(0.005)
            continue
        for msg in msgs:
            order = json.loads(msg.data)
            with books:
                new = books.execute("insert into done values (?) on conflict do nothing", (order["id"],)).rowcount
                if new:
                    books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))
            await point("charged", order=order["id"])
            with contextlib.suppress(asyncio.TimeoutError, nats.errors.Error):
                await msg.ack_sync(timeout=5)"""
ONE = SAFE[SAFE.index("            with books:") : SAFE.index("            await point")]
LOOK = """\
            if not books.execute("select 1 from done where order_id = ?", (order["id"],)).fetchone():
                with books:
                    books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))
                await point("charged", order=order["id"])
                with books:
                    books.execute("insert into done values (?)", (order["id"],))
"""
LOOK_ONE = """\
            if not books.execute("select 1 from done where order_id = ?", (order["id"],)).fetchone():
                with books:
                    books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))
                    books.execute("insert or ignore into done values (?)", (order["id"],))
"""
CLAIM = """\
            with books:
                new = books.execute("insert into done values (?) on conflict do nothing", (order["id"],)).rowcount
            if new:
                with books:
                    books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))
"""
SWALLOW = """\
            try:
                with books:
                    new = books.execute("insert into done values (?) on conflict do nothing", (order["id"],)).rowcount
                    if new:
                        books.execute("insert into charges values (?, ?)", (order["id"], order["amount"]))
            except sqlite3.Error:
                pass
"""
AUDIT = """
import collections, json, sqlite3

async def audit(js, stream, db):
    state, ordered = (await js.stream_info(stream)).state, set()
    for seq in range(state.first_seq, state.last_seq + 1):
        try:
            msg = await js.get_msg(stream, seq)
        except Exception as error:
            if getattr(error, "err_code", None) != 10037:
                raise
            continue
        ordered.add(json.loads(msg.data)["id"])
    books = sqlite3.connect(db)
    counts = collections.Counter(order_id for order_id, in books.execute("select order_id from charges"))
    books.close()
    return {"lost": sorted(ordered - set(counts)), "twice": sorted(name for name in counts if counts[name] > 1)}

answer = audit"""
LISTED = (
    AUDIT.replace(".state, set()", ".state, []")
    .replace("ordered.add", "ordered.append")
    .replace(
        "sorted(ordered - set(counts))", "sorted(name for name in ordered if name not in counts)"
    )
)


@exercise(
    limit=40,  # worker processes come and go, and messages wait out ack wait
    hints=[
        (
            "The marker and the charge belong into one transaction: `with books:` around both"
            " statements commits both or none."
        ),
        (
            "`insert into done … on conflict do nothing` has a rowcount: 1 if the order is new, 0"
            " if it was there. No look before it."
        ),
        (
            'The key is order["id"], for a retry has another sequence. The ack comes after the'
            " transaction; an exception may end the worker, since the message comes back."
        ),
    ],
    solution=SAFE,
    wrong={
        "marker after the charge": (
            SAFE.replace(ONE, LOOK),
            "whose worker was killed after the charge was charged 2 times; wanted: once",
        ),
        "a claim before the charge": (
            SAFE.replace(ONE, CLAIM),
            "that the books refused once was charged 0 times; wanted: once",
        ),
        "the sequence is the key": (
            SAFE.replace(
                '(order["id"],)).rowcount', "(str(msg.metadata.sequence.stream),)).rowcount"
            ),
            "that was published twice was charged 2 times; wanted: once",
        ),
        "looks before the transaction": (
            SAFE.replace(ONE, LOOK_ONE),
            "that two workers had at once, past ack wait, was charged 2 times",
        ),
        "swallows the refusal": (
            SAFE.replace(ONE, SWALLOW),
            "that the books refused once was charged 0 times",
        ),
        "no marker": (
            SAFE.replace("if new:\n                    books", "books"),
            "was charged 2 times; wanted: once",
        ),
        "never acks": (
            SAFE.replace("await msg.ack_sync(timeout=5)", "pass"),
            "unanswered; wanted: 0",
        ),
        "no point": (
            SAFE.replace('            await point("charged", order=order["id"])\n', ""),
            'never got to await point("charged"',
        ),
        "does not run": (
            SAFE.replace("json.loads", "jason.loads"),
            "NameError: name 'jason' is not defined",
        ),
    },
)
async def safe_worker(lab, answer):
    """Charge each order once: killed after a charge, refused by the books, published twice, held by
    two workers at once."""
    from labkit import LabError, Recorder
    from labkit.processes import workers

    if not isinstance(answer, str) or not (workers.folder(lab.topic) / answer).exists():
        raise NotYet(
            f"{answer!r} is no file of a %%worker cell; wanted: run the cell that begins with"
            ' %%worker mine.py, then pass its name, "mine.py".'
        )
    tag = uuid.uuid4().hex[:6]
    stream, db, log, mine = f"EX_SAFE_{tag}", str(lab.scratch / f"safe-{tag}.db"), Recorder(), []
    killed, again, refused, plain, raced = [f"{tag}-{number}" for number in range(1, 6)]
    names = (f"{tag}-{number}" for number in range(1, 10))

    async def start(**kill):
        mine.append(await lab.worker(answer, next(names), log, stream=stream, db=db, **kill))
        return mine[-1]

    async def publish(*orders):
        for order in orders:
            await lab.js.publish(f"{stream}.new", json.dumps({"id": order, "amount": 42}).encode())

    async def settled():
        info = await lab.js.consumer_info(stream, "worker")
        return info.num_pending == info.num_ack_pending == 0

    with contextlib.closing(sqlite3.connect(db)) as books:
        books.execute("create table charges (order_id text, amount int)")
        books.execute("create table done (order_id text primary key)")
        books.execute(
            f"create trigger refuse before insert on charges when new.order_id = '{refused}' "
            "begin select raise(abort, 'the books refuse this charge once'); end"
        )
    await lab.js.add_stream(name=stream, subjects=[f"{stream}.*"])
    await lab.js.add_consumer(stream, durable_name="worker", ack_policy="explicit", ack_wait=0.7)
    await lab.settled(stream)
    try:
        try:
            await publish(killed)
            a = await start(kill_at="charged")
            if await a.ended(timeout=2) == 0:
                raise LabError("It came to its end.")
        except LabError as error:
            if "with an error" in str(error):
                raise NotYet(f"Your worker ended with {str(error).splitlines()[-1]}") from None
            raise NotYet(
                'One order was published, and your worker never got to await point("charged",'
                " order=…) within 2 s; wanted: there after each charge, before the ack."
            ) from None
        await publish(again, again, refused, plain)
        b = await start()

        # it was tried: the worker died of it, or the message came back, or was settled
        async def refusal():
            info = await lab.js.consumer_info(stream, "worker")
            return (
                not b.alive
                or info.delivered.consumer_seq > info.delivered.stream_seq + 1
                or await settled()
            )

        with contextlib.suppress(
            LabError, TimeoutError
        ):  # the latter where the last look took too long
            await lab.until(refusal, timeout=8)
        await asyncio.sleep(0.05)
        with contextlib.closing(sqlite3.connect(db)) as books:
            books.execute("drop trigger refuse")
        if not b.alive:
            b = await start()
        with contextlib.suppress(
            LabError, TimeoutError
        ):  # the latter where the last look took too long
            await lab.until(settled, timeout=6)
        info = await lab.js.consumer_info(stream, "worker")
        with contextlib.closing(sqlite3.connect(db)) as books:
            counts = collections.Counter(
                order_id for (order_id,) in books.execute("select order_id from charges")
            )
        for order, fate in [
            (killed, "whose worker was killed after the charge"),
            (again, "that was published twice"),
            (refused, "that the books refused once"),
            (plain, "with no fault at all"),
        ]:
            if counts[order] != 1 and not (order == refused and info.num_ack_pending):
                raise NotYet(f"An order {fate} was charged {counts[order]} times; wanted: once.")
        if info.num_pending + info.num_ack_pending:
            raise NotYet(
                f"{info.num_pending + info.num_ack_pending} messages are left unanswered;"
                " wanted: 0."
            )

        handed_out = info.delivered.consumer_seq

        async def both_have_it():
            return (
                await lab.js.consumer_info(stream, "worker")
            ).delivered.consumer_seq >= handed_out + 2

        async def both_idle():  # they ask for more: each is done with what it had
            info = await lab.js.consumer_info(stream, "worker")
            return (
                info.num_waiting
                >= sum(worker.alive for worker in mine)
                > 0
                == info.num_pending + info.num_ack_pending
            )

        await start()
        with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as other:
            other.execute(
                "begin immediate"
            )  # nobody else can write: both have looked before one of them charges
            await publish(raced)
            with contextlib.suppress(LabError, TimeoutError):
                await lab.until(both_have_it, timeout=3)
            await asyncio.sleep(
                0.7
            )  # no server sees a look; a safe worker may be late, and SQLite lets it wait for 5 s
            other.execute("rollback")
        with contextlib.suppress(LabError, TimeoutError):
            await lab.until(both_idle, timeout=6)
        if not any(worker.alive for worker in mine):
            await start()
            with contextlib.suppress(LabError, TimeoutError):
                await lab.until(settled, timeout=6)
        with contextlib.closing(sqlite3.connect(db)) as books:
            (count,) = books.execute(
                "select count(*) from charges where order_id = ?", (raced,)
            ).fetchone()
        if count != 1:
            raise NotYet(
                f"An order that two workers had at once, past ack wait, was charged {count} times;"
                " wanted: once."
            )
    finally:
        for worker in mine:
            worker.kill()
            with contextlib.suppress(LabError):
                await worker.ended()
        await delete(lab.js, stream)


@exercise(
    limit=40,  # worker processes come and go, and messages wait out ack wait
    hints=[
        (
            "What was ordered is a set of ids: a retry is the same order. What was charged is a"
            " count for each id."
        ),
        (
            "js.stream_info(stream).state has first_seq and last_seq; js.get_msg(stream, seq)"
            " raises NotFoundError, err_code 10037, where a message was deleted."
        ),
        "lost = ordered without charged; twice = ids with more than one row in charges.",
    ],
    solution=AUDIT,
    wrong={
        "messages are orders": (LISTED, "names an order twice"),
        "books only": (
            AUDIT.replace("sorted(ordered - set(counts))", "[]"),
            "lost: []; wanted: lost: ['o-3', 'o-8']",
        ),
        "counts instead of ids": (
            AUDIT.replace("sorted(ordered - set(counts))", "len(ordered - set(counts))"),
            "lost is 2; wanted: a list of ids",
        ),
        "stops at a gap": (
            AUDIT.replace("            continue", "            break"),
            "wanted: lost: ['o-3', 'o-8']",
        ),
        "retries count as charged twice": (
            AUDIT.replace("counts[name] > 1)", "counts[name] > 1 or name == 'o-2')"),
            "twice: ['o-2', 'o-5']",
        ),
    },
)
async def audits(lab, answer):
    """Which orders of the stream are not in the books, and which are there more than once?"""
    if not inspect.iscoroutinefunction(answer) or len(inspect.signature(answer).parameters) != 3:
        raise NotYet(
            f"{answer!r} is no coroutine function of three arguments; wanted: async def audit(js,"
            " stream, db)."
        )
    stream, db = "EX_AUDIT", str(lab.scratch / f"audit-{uuid.uuid4().hex[:6]}.db")
    await delete(lab.js, stream)
    await lab.js.add_stream(name=stream, subjects=["ex_audit.*"])
    await lab.settled(stream)
    try:
        for number in (1, 2, 2, 3, 9, 3, 4, 5, 6, 7, 8):
            ack = await lab.js.publish(
                "ex_audit.new", json.dumps({"id": f"o-{number}", "amount": 42}).encode()
            )
            if number == 9:  # somebody has deleted it: no order any more
                await lab.js.delete_msg(stream, ack.seq)
        with contextlib.closing(sqlite3.connect(db)) as books, books:
            books.execute("create table charges (order_id text, amount int)")
            books.executemany(
                "insert into charges values (?, 42)",
                [(f"o-{number}",) for number in (1, 2, 4, 5, 5, 5, 6, 7)],
            )
        found = await answer(lab.js, stream, db)
        if not isinstance(found, dict) or set(found) != {"lost", "twice"}:
            raise NotYet(f'audit returned {found!r}; wanted: {{"lost": [...], "twice": [...]}}.')
        for name, wanted in {"lost": ["o-3", "o-8"], "twice": ["o-5"]}.items():
            if not isinstance(found[name], (list, tuple)):
                raise NotYet(f"{name} is {found[name]!r}; wanted: a list of ids.")
            if len(set(found[name])) < len(found[name]):
                raise NotYet(
                    f"{name}: {found[name]} names an order twice; wanted: each id once, however"
                    " often it is in the stream."
                )
            if list(found[name]) != wanted:
                raise NotYet(f"{name}: {list(found[name])}; wanted: {name}: {wanted}.")
    finally:
        await delete(lab.js, stream)

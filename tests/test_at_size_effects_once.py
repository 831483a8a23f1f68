"""What lesson 22 says and shows with one order and quiet nodes: its workers while leaders change
and nodes die, at the end of a consumer and of a connection, and markers and ids that expire."""

import asyncio
import contextlib
import json
import sqlite3
import time

import pytest
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, ServerError

import lessons
from labkit import LabError
from labkit.exercises import effects_once
from labkit.exercises.engine import run_source
from labkit.processes import valkey, workers
from test_storm import lesson  # noqa: F401 (a fixture)

pytestmark = pytest.mark.soak
BOOK = lessons.sources("effects_once")
TABLES = {
    "shop": ["charges (order_id text, amount int, key text unique)"],
    "safe": [
        "charges (order_id text, amount int, key text unique)",
        "done (order_id text primary key)",
    ],
    "mine": ["charges (order_id text, amount int)", "done (order_id text primary key)"],
}
every = pytest.mark.parametrize("name", TABLES)


async def start(lab, name, replicas=3, **options):
    """The stream, its consumer, empty books, and the worker as it stands in the notebook; `mine` is
    the solution of the exercise."""
    for cell in ("worker-shop", "worker-safe"):
        magic, _, body = BOOK[cell].partition("\n")
        workers.write(lab.topic, magic.split()[1], body)
    workers.write(lab.topic, "mine.py", effects_once.safe_worker.solution_text().partition("\n")[2])
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=replicas)
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit", ack_wait=2)
    await lab.settled("ORDERS")
    db = str(lab.scratch / f"{name}.db")
    with contextlib.closing(sqlite3.connect(db)) as books:
        for table in TABLES[name]:
            books.execute(f"create table {table}")
    return await lab.worker(f"{name}.py", name, stream="ORDERS", db=db, **options), db


async def publish(lab, numbers):
    for number in numbers:
        body = json.dumps({"id": f"o-{number}", "amount": 42}).encode()
        await lab.js.publish("orders.new", body)


def charges(db):
    with contextlib.closing(sqlite3.connect(db)) as books:
        return [name for (name,) in books.execute("select order_id from charges")]


async def settled(lab, worker, number):
    """Waits until so many orders are acked, and tells why if the worker ends instead."""

    async def so():
        if not worker.alive:
            pytest.fail(f"ended with {await worker.ended()}")
        try:
            return (await lab.js.consumer_info("ORDERS", "worker")).ack_floor.stream_seq >= number
        except (TimeoutError, NatsError):  # nobody leads now
            return False

    await lab.until(so, 60)


@every
async def test_it_lives_through_step_downs_and_the_death_of_its_leader(lab, name):
    worker, db = await start(lab, name)
    await publish(lab, range(200))
    for node in ("n2", "n3"):
        await lab.faults.step_down("ORDERS", "worker", to=node)
    await settled(lab, worker, 20)
    await lab.faults.kill("n3")
    await settled(lab, worker, 200)
    found = charges(db)
    assert len(set(found)) == 200 and (name == "shop" or len(found) == 200)


@pytest.mark.parametrize("gone", ["consumer", "stream"])
@every
async def test_it_ends_by_itself_and_says_why_when_its_consumer_is_gone(calm, name, gone):
    worker, _ = await start(calm, name, replicas=1)

    async def asks():
        return (await calm.js.consumer_info("ORDERS", "worker")).num_waiting == 1

    await calm.until(asks)
    if gone == "consumer":
        await calm.js.delete_consumer("ORDERS", "worker")
    else:
        await calm.js.delete_stream("ORDERS")
    with pytest.raises(LabError) as told:
        await worker.ended()
    text = str(told.value)
    assert "NotFoundError" in text.splitlines()[-1] and f"'{gone} not found'" in text


async def test_a_connection_that_is_closed_for_good_ends_them(calm):
    await start(calm, "shop", replicas=1)
    take = (await run_source(BOOK["worker-shop"].partition("\n")[2]))["take"]
    for ask in (take, effects_once.take):
        client = await calm.connect()
        sub = await client.jetstream().pull_subscribe_bind("worker", "ORDERS")
        await client.close()
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(ask(sub), 10)


async def test_an_order_that_is_no_json_ends_a_worker_of_the_lesson(calm):
    worker, _ = await start(calm, "shop", replicas=1)
    await calm.js.publish("orders.new", b"no order")
    with pytest.raises(LabError, match="JSONDecodeError"):
        await worker.ended()


async def test_ack_sync_raises_at_once_where_nobody_can_take_the_ack(calm):
    """As while there is no leader: nobody listens to the subject of the ack."""
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await calm.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    await calm.settled("ORDERS")
    await publish(calm, [1])
    sub = await calm.js.pull_subscribe_bind("worker", "ORDERS")
    (msg,) = await sub.fetch(1)
    await calm.js.delete_consumer("ORDERS", "worker")
    begin = time.monotonic()
    with pytest.raises(NatsError):
        await msg.ack_sync(timeout=5)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_server_that_dies_forgets_an_ack_that_it_confirmed_where_nobody_else_has_it(
    lab, replicas
):
    again = 0
    for name in ["ONE", "TWO", "THREE"] if replicas == 1 else ["ONE"]:
        await lab.js.add_stream(name=name, subjects=[f"{name}.*"], num_replicas=replicas)
        config = {"durable_name": "worker", "ack_policy": "explicit", "ack_wait": 1}
        await lab.js.add_consumer(name, **config)
        await lab.settled(name)
        for _ in range(20):
            await lab.js.publish(f"{name}.new", b"")
        leader = (await lab.js.consumer_info(name, "worker")).cluster.leader
        sub = await lab.js.pull_subscribe_bind("worker", name)
        for msg in await sub.fetch(20):
            await msg.ack_sync()
        await lab.faults.kill(leader)
        await lab.faults.heal()
        await lab.wait_for_leader(name)
        await lab.settled(name)
        again = (await lab.js.consumer_info(name, "worker")).num_ack_pending
        if again:  # a busy machine may kill it too late
            break
    assert (again > 0) == (replicas == 1)


async def test_one_creator_wins_with_three_replicas_and_the_losers_hear_one_of_two_errors(calm):
    await calm.js.create_key_value(bucket="CLAIMS", replicas=3)
    await calm.settled("KV_CLAIMS")
    clients = [await calm.connect(servers=[node.url]) for node in calm.cluster.nodes]
    buckets = [await client.jetstream().key_value("CLAIMS") for client in clients]

    async def create(kv, key):
        try:
            return await kv.create(key, b"begun")
        except (KeyWrongLastSequenceError, KeyNotFoundError) as error:
            return type(error)

    for number in range(5000):
        found = await asyncio.gather(*(create(kv, f"order-{number}") for kv in buckets))
        assert sum(isinstance(one, int) for one in found) == 1
        if KeyNotFoundError in found:
            return
    pytest.fail("no loser heard KeyNotFoundError")


async def test_a_claim_that_expires_in_time_cures_the_loss_and_brings_two_charges_back(lesson):  # noqa: F811
    lab = lesson["lab"]
    url = await valkey(lab)
    if not url:
        pytest.skip("there is no Valkey here")
    source = (workers.folder("effects_once") / "claim.py").read_text(encoding="utf-8")
    assert source.count("nx=True") == 1
    ends = {}
    for name, life in {"short": 300, "long": 20_000}.items():  # milliseconds; ack wait is 500
        workers.write(lab.topic, f"{name}.py", source.replace("nx=True", f"nx=True, px={life}"))
        ends[name] = await lesson["faults"](f"{name}.py", url=url)
    assert ends["short"]["killed before"] == "1 charge"
    assert ends["short"]["killed after"] == ends["short"]["two workers"] == "2 charges"
    assert ends["long"]["killed before"] == "lost"
    assert ends["long"]["killed after"] == ends["long"]["two workers"] == "1 charge"


async def test_an_id_that_is_forgotten_before_the_order_comes_back_is_no_help(lesson):  # noqa: F811
    js = lesson["js"]
    await js.add_stream(name="INVOICES", subjects=["invoices.*"], duplicate_window=0.1)
    await lesson["lab"].settled("INVOICES")
    await lesson["crash"]("invoice.py", "after", kind="with_id")  # ack wait is 0.5 s
    assert (await js.stream_info("INVOICES")).state.messages == 2


async def test_a_stream_is_made_anew_for_a_change_that_an_update_refuses(calm):
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"], storage="file")
    with pytest.raises(ServerError, match="can not change storage type"):
        await calm.js.update_stream(name="ORDERS", subjects=["orders.*"], storage="memory")


def test_sqlite_lets_one_write_and_another_wait_for_five_seconds(tmp_path):
    db = tmp_path / "books.db"
    with (
        contextlib.closing(sqlite3.connect(db)) as one,
        contextlib.closing(sqlite3.connect(db)) as two,
    ):
        one.execute("create table done (order_id text primary key)")
        one.execute("insert into done values ('1')")  # begins a transaction
        begin = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            two.execute("insert into done values ('1')")
        assert 4.5 < time.monotonic() - begin < 7
        one.commit()
        marker = two.execute("insert into done values ('1') on conflict do nothing")
        assert marker.rowcount == 0

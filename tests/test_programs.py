"""The two programs that a reader may carry off: what they promise holds while nodes die, while the
database fails, for orders that kill, on signals, and where they have no right to be."""

import asyncio
import contextlib
import importlib
import json
import os
import random
import signal
import sqlite3
import ssl
import sys
import time

import nats
import psutil
import pytest
import trustme
from nats.js import JetStreamContext

from labkit import paths
from labkit.cluster.nodes import quoted
from labkit.cluster.standalone import start_server
from labkit.processes import programs
from labkit.processes.programs import program
from labkit.waiting import until

CHAOS = 60  # seconds
SEED = int(os.environ.get("LABKIT_TEST_SEED", "1"))  # what breaks when, in the test with CHAOS
signals = pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is a kill on Windows")
moves = pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no folder in use")
limits = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")


def database(lab):
    """Where the charges are: in a folder of its own, if the test has made one (which can go
    away)."""
    folder = lab.scratch / "disk"
    if folder.exists() or (lab.scratch / "away").exists():
        return folder / "charges.db"
    return lab.scratch / "charges.db"


def acked(*producers):
    return [
        line.split()[1]
        for producer in producers
        for line in producer.lines()
        if line.startswith("acked ")
    ]


def charged(lab):
    return sorted(programs.charged(database(lab)))


async def stored(lab):
    """Ids of all messages of the stream, as often as they are stored."""
    state = (await lab.js.stream_info("ORDERS")).state
    found = [
        await lab.js.get_msg("ORDERS", seq) for seq in range(state.first_seq, state.last_seq + 1)
    ]
    return [msg.headers["Nats-Msg-Id"] for msg in found]


def start(lab, file, name=None, **environment):
    settings = {"DATABASE": database(lab), "ACK_WAIT": 3, "RATE": 50, **environment}
    return program(lab, file, name, **settings)


async def orders(lab, *bodies):
    """The stream, with these messages in it."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await lab.settled("ORDERS")
    for body in bodies:
        await lab.js.publish("orders.created", body)


async def asked(question):
    """The answer; None while there is nobody to give it. A request that comes before there is a
    leader is never answered."""
    with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
        return await question


async def settled(lab):
    """Waits until each message of the stream has had its last answer."""

    async def so():
        info = await asked(lab.js.consumer_info("ORDERS", "charging"))
        return info and info.num_pending == info.num_ack_pending == 0

    await lab.until(so, timeout=30)


async def dead(lab):
    """{body: reason} of what lies in DEAD; empty while there is no DEAD."""
    try:
        state = (await lab.js.stream_info("DEAD")).state
    except nats.js.errors.NotFoundError:
        return {}
    found = [await lab.js.get_msg("DEAD", seq) for seq in range(1, state.last_seq + 1)]
    return {msg.data: msg.headers.get("Dead-Reason") for msg in found}


@signals
async def test_sigterm_in_the_middle_ends_both_with_0_and_leaves_nothing_in_hand(lab):
    producer, consumer = start(lab, "producer.py"), start(lab, "consumer.py", ACK_WAIT=30)
    await lab.until(lambda: len(acked(producer)) > 10 and len(charged(lab)) > 10, timeout=40)
    producer.stop()
    assert await producer.ended(20) == 0, producer.log()
    consumer.stop()
    assert await consumer.ended(20) == 0, consumer.log()
    assert set(acked(producer)) == set(await stored(lab))
    given_back = set()
    sub = await lab.js.pull_subscribe_bind("charging", "ORDERS")
    while len(charged(lab)) + len(given_back) < len(acked(producer)):
        messages = await sub.fetch(50, timeout=5)  # ack wait is longer
        given_back |= {msg.headers["Nats-Msg-Id"] for msg in messages}
    assert given_back == set(acked(producer)) - set(charged(lab))


@signals
async def test_sigterm_ends_them_while_they_wait_for_a_first_connection(lab):
    for file in ("producer.py", "consumer.py"):
        lost = start(lab, file, NATS_URL="nats://127.0.0.1:1")
        await lab.until(lambda: lost.log(), timeout=20)
        lost.stop()
        assert await lost.ended(15) == 0, lost.log()


async def has_one_in_hand(lab, producer):
    """Waits until the producer tries an order again."""
    before = len(producer.log())
    await lab.until(lambda: any("again in" in line for line in producer.log()[before:]), timeout=20)


@signals
async def test_an_order_that_is_not_confirmed_after_the_signal_is_told(lab):
    producer = start(lab, "producer.py", GRACE=1)
    await lab.until(lambda: acked(producer), timeout=40)
    for node in ("n1", "n2"):
        await lab.faults.kill(node)
    await has_one_in_hand(lab, producer)
    producer.stop()
    assert await producer.ended(20) == 1
    assert "not confirmed (after a timeout it may be stored all the same)" in producer.log()[-1]
    await lab.faults.heal()


@pytest.mark.parametrize("file", ["producer.py", "consumer.py"])
async def test_a_wrong_password_ends_it_with_a_clear_message(lab, file):
    refused = start(lab, file, NATS_PASSWORD="wrong")
    assert await refused.ended(20) == 1
    last = refused.log()[-1]
    assert "refuse user 'checks'" in last and "Authorization Violation" in last
    assert not any("Traceback" in line for line in refused.log())


async def test_a_stream_of_that_name_that_does_not_take_the_orders_ends_it(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["else.>"])
    producer = start(lab, "producer.py")
    assert await producer.ended(20) == 1
    assert (
        producer.log()[-1] == "order-producer: stream ORDERS takes else.>; wanted: orders.created"
    )


async def test_a_stream_whose_settings_an_operator_has_changed_is_taken_as_it_is(lab):
    await lab.js.add_stream(
        name="ORDERS", subjects=["orders.created", "orders.old"], max_age=3600, num_replicas=3
    )
    await lab.js.add_stream(name="DEAD", subjects=["dead.orders.*"], max_msgs=1000)
    await lab.settled("ORDERS")
    producer = start(lab, "producer.py")
    start(lab, "consumer.py")
    await lab.until(lambda: acked(producer) and charged(lab), timeout=40)
    assert (await lab.js.stream_info("ORDERS")).config.max_age == 3600


async def test_what_is_no_order_is_kept_aside_once_and_the_next_one_is_charged(lab):
    bad = [
        b"nonsense",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"id": "x"}',
        b'{"id": "x", "amount": null}',
        b'{"id": null, "amount": 1}',
        b'{"id": "", "amount": 1}',
        b'{"id": 7, "amount": 1}',
        b'{"id": "x", "amount": true}',
        b'{"id": "x", "amount": 1%s}' % (b"0" * 30),
        b'{"id": "\\ud800", "amount": 1}',
        b"\xff",
        order("x" * 201),
    ]
    # With a header it is above the limit, and would close the connection.
    huge = b"\xff" * (lab.nc.max_payload - 10)
    await orders(lab, *bad, huge, b'{"id": "good", "amount": 1}')
    consumer = start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["good"], timeout=30)
    await settled(lab)
    found = await dead(lab)
    assert len(found) == len(bad) + 1
    assert set(bad) == {body for body in found if len(body) < 200_000}
    longest = max(found, key=len)
    assert huge.startswith(longest) and len(longest) > lab.nc.max_payload - 2000
    assert found[b"\xff"].startswith("UnicodeDecodeError")
    assert found[b"{}"].startswith("wanted: an id")
    assert max(map(len, found.values())) < 250
    assert max(map(len, consumer.log())) < 400
    assert not any("closed" in line for line in consumer.log())


@moves
async def test_an_outage_of_the_database_that_is_longer_than_all_tries_loses_nothing(lab):
    folder = lab.scratch / "disk"
    folder.mkdir()
    await orders(lab, order("first"))
    consumer = start(lab, "consumer.py", TRIES=2)
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    away = folder.rename(lab.scratch / "away")
    await fill(lab, [order(f"{number}") for number in range(50)])
    await lab.until(lambda: trouble(consumer) > 4, timeout=40)
    away.rename(folder)
    await lab.until(lambda: len(charged(lab)) == 51, timeout=40)
    await settled(lab)
    assert await dead(lab) == {}


TABLE = "CREATE TABLE charges (id TEXT PRIMARY KEY NOT NULL, amount INTEGER NOT NULL)"
POISON = """
CREATE TRIGGER t BEFORE INSERT ON charges WHEN NEW.id = 'poison'
BEGIN SELECT RAISE(ABORT, 'no'); END
"""


def run_sql(lab, *statements):
    """Runs these on the database of the consumer, in one transaction."""
    with contextlib.closing(sqlite3.connect(database(lab))) as db, db:
        for statement in statements:
            db.execute(statement)


async def test_an_order_that_fails_at_each_try_ends_in_dead_and_holds_up_nobody(lab):
    run_sql(lab, TABLE, POISON)
    await orders(lab, b'{"id": "poison", "amount": 1}', b'{"id": "good", "amount": 1}')
    start(lab, "consumer.py", TRIES=2)
    await lab.until(lambda: charged(lab) == ["good"], timeout=30)

    async def buried():
        letter = {b'{"id": "poison", "amount": 1}': "not charged in 2 tries"}
        return await asked(dead(lab)) == letter

    await lab.until(buried, timeout=40)
    await settled(lab)


async def test_while_dead_does_not_confirm_the_rest_is_charged_and_the_bad_one_stays(lab):
    # It stores, and says nothing: a timeout.
    await lab.js.add_stream(name="DEAD", subjects=["dead.>"], no_ack=True)
    await orders(lab, b"nonsense", b'{"id": "good", "amount": 1}')
    consumer = start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["good"], timeout=40)
    assert any("message 1, delivery 1: TimeoutError" in line for line in consumer.log())

    async def one_in_hand():  # the ack of the good one has arrived
        return (await lab.js.consumer_info("ORDERS", "charging")).num_ack_pending == 1

    await lab.until(one_in_hand, timeout=30)
    await lab.js.update_stream(name="DEAD", subjects=["dead.>"], no_ack=False)
    await settled(lab)
    assert list(await dead(lab)) == [b"nonsense"]


async def test_both_consumers_of_one_database_charge_each_order_once(lab):
    each_twice = [order(str(number % 20)) for number in range(40)]
    await orders(lab, *each_twice)
    start(lab, "consumer.py", "one")
    start(lab, "consumer.py", "two")
    await lab.until(lambda: len(charged(lab)) == 20, timeout=40)
    await settled(lab)
    assert sorted(charged(lab), key=int) == [str(n) for n in range(20)]


def order(name, amount=1):
    return json.dumps({"id": name, "amount": amount}).encode()


async def fill(lab, bodies):
    """Publishes many, without a wait for each."""
    before = (await lab.js.stream_info("ORDERS")).state.messages
    for body in bodies:
        await lab.nc.publish("orders.created", body)

    async def all_stored():
        return (await lab.js.stream_info("ORDERS")).state.messages == before + len(bodies)

    await lab.until(all_stored, timeout=30)


def trouble(program):
    """How often it has waited for better times."""
    return sum("again in 1 s" in line for line in program.log())


@limits
async def test_a_full_disk_puts_no_order_aside(lab):
    names = [f"{number:0200}" for number in range(1000)]
    await orders(lab, order("first"))
    consumer = start(lab, "consumer.py", TRIES=2, ACK_WAIT=2)
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    limit = psutil.Process(consumer.pid).rlimit
    # ulimit -f: no file of it grows any more.
    limit(psutil.RLIMIT_FSIZE, (database(lab).stat().st_size, -1))
    await fill(lab, [order(name) for name in names])
    await lab.until(lambda: trouble(consumer) > 8, timeout=60)
    assert len(charged(lab)) < 1001 and await dead(lab) == {}
    limit(psutil.RLIMIT_FSIZE, (-1, -1))
    await lab.until(lambda: len(charged(lab)) == 1001, timeout=60)
    await settled(lab)
    assert await dead(lab) == {}


async def test_nor_does_a_backup_that_reads_the_database_for_longer_than_all_tries(lab):
    await orders(lab, order("first"))
    consumer = start(lab, "consumer.py", TRIES=1)
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    with contextlib.closing(sqlite3.connect(database(lab), isolation_level=None)) as backup:
        backup.execute("BEGIN")
        # A read lock: others may begin to write, and not commit.
        backup.execute("SELECT * FROM charges").fetchall()
        await lab.js.publish("orders.created", order("second"))
        await lab.until(lambda: sum("locked" in line for line in consumer.log()) > 2, timeout=60)
        backup.execute("COMMIT")
    await lab.until(lambda: charged(lab) == ["first", "second"], timeout=60)
    await settled(lab)
    assert await dead(lab) == {}


async def test_nor_does_a_database_that_refuses_every_order(lab):
    await orders(lab, order("first"))
    consumer = start(lab, "consumer.py", TRIES=1)
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    run_sql(
        lab,
        "CREATE TRIGGER closed BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'closed'); END",
    )
    await fill(lab, [order(f"{number}") for number in range(30)])
    await lab.until(lambda: trouble(consumer) > 3, timeout=60)
    run_sql(lab, "DROP TRIGGER closed")
    await lab.until(lambda: len(charged(lab)) == 31, timeout=60)
    await settled(lab)
    assert await dead(lab) == {}


KILLS = """
CREATE TRIGGER kills BEFORE INSERT ON charges WHEN NEW.id LIKE 'killer%'
BEGIN SELECT die(); END
"""
DIE = """
import functools, os, signal, sqlite3, time

real = sqlite3.connect

def die():
    DEED

@functools.wraps(real)
def connect(*args, **options):
    db = real(*args, **options)
    db.create_function("die", 0, die)
    return db

sqlite3.connect = connect
"""


def deadly(lab, deed="os.kill(os.getpid(), signal.SIGKILL)"):
    """Makes a database in which an order whose id begins with "killer" kills the process that
    charges it, or does another deed. Returns the environment in which it does so."""
    run_sql(lab, TABLE, KILLS)
    folder = lab.scratch / "deadly"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DIE.replace("DEED", deed), encoding="utf-8")
    return {"PYTHONPATH": folder}


class Supervisor:
    """Keeps a consumer running: starts the next one when it has died."""

    def __init__(self, lab, name, **environment):
        self.lab = lab
        self.name = name
        self.environment = environment
        self.codes = []  # exit codes of those that have died
        self.consumer = self._start()
        self.task = asyncio.ensure_future(self._run())

    def _start(self):
        return start(self.lab, "consumer.py", f"{self.name}-{len(self.codes)}", **self.environment)

    async def _run(self):
        while True:
            self.codes.append(await self.consumer.ended(600))
            self.consumer = self._start()

    async def end(self):
        """Asks the last one to end; returns its exit code."""
        self.task.cancel()
        self.consumer.stop()
        return await self.consumer.ended(30)


@signals
async def test_an_order_that_kills_its_worker_ends_in_dead_alone(lab):
    environment = deadly(lab)
    innocent = [order(f"{number:02}") for number in range(39)]
    await orders(lab, *innocent[:10], order("killer"), *innocent[10:])
    consumer = Supervisor(lab, "consumer", TRIES=2, ACK_WAIT=1, **environment)

    async def buried():
        letter = {order("killer"): "not charged in 2 tries"}
        return len(charged(lab)) == 39 and await asked(dead(lab)) == letter

    await lab.until(buried, timeout=60)
    await settled(lab)
    # Three, since the first one did not know it yet.
    assert consumer.codes == [-signal.SIGKILL] * 3
    assert await consumer.end() == 0


async def test_nor_does_one_that_hangs_hold_up_more_than_its_worker_for_a_while(lab):
    environment = deadly(lab, "time.sleep(600)")
    innocent = [order(f"{number:02}") for number in range(10)]
    await orders(lab, *innocent[:5], order("killer"), *innocent[5:])
    consumer = Supervisor(lab, "consumer", TRIES=1, ACK_WAIT=1, HANGS=2, **environment)
    first = consumer.consumer

    async def buried():
        letter = {order("killer"): "not charged in 1 tries"}
        return len(charged(lab)) == 10 and await asked(dead(lab)) == letter

    await lab.until(buried, timeout=60)
    await settled(lab)
    assert consumer.codes == [1, 1]
    assert "charge() takes more than 2 s" in first.log()[-1]
    consumer.task.cancel()


FULL = """
import os, resource, sqlite3, charges
charges.prove()
size = os.path.getsize(charges.DATABASE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
count = 0
try:
    while True:
        charges.charge(f"key {count}", f"{count:0190}", 1)
        count += 1
except sqlite3.OperationalError:
    pass
try:
    charges.begin("a small note")
except sqlite3.OperationalError:
    with charges.transaction() as db:
        print("no room for", count > 50, db.execute("SELECT count(*) FROM tries").fetchall())
"""


@limits
def test_where_an_order_has_no_room_no_try_is_noted_either(python, tmp_path):
    """Else each worker that comes and goes while the disk is full would count as one that the order
    has killed."""
    notebooks = str(paths.PROJECT / "notebooks")
    said, _ = python(FULL, PYTHONPATH=notebooks, DATABASE=str(tmp_path / "charges.db")).communicate(
        timeout=60
    )
    assert said == "no room for True [(0,)]\n"


async def test_a_bad_message_of_a_stream_that_was_made_anew_is_kept_too(lab):
    await orders(lab, b"nonsense")
    start(lab, "consumer.py")
    await lab.until(lambda: asked(dead(lab)), timeout=40)
    await lab.js.delete_stream("ORDERS")
    await orders(lab, b"more nonsense", order("good"))  # its sequence is 1 again
    await lab.until(lambda: charged(lab) == ["good"], timeout=40)
    await settled(lab)
    assert list(await dead(lab)) == [b"nonsense", b"more nonsense"]


async def test_dead_keeps_the_headers_and_obeys_none_of_them(lab):
    await orders(lab)
    # 62 kB: with more, DEAD would refuse it.
    many = {f"Key-{number}": "x" * 100 for number in range(580)}
    for headers in (
        {"traceparent": "00-1", "Nats-Expected-Stream": "ORDERS", "Nats-Msg-Id": "one"},
        {"Nats-Msg-Id": "two"},
        {"Text": "Grüße: 課程", "Status": "404"},
        many,
    ):
        await lab.js.publish("orders.created", b"", headers=headers)
    start(lab, "consumer.py")

    async def four():
        info = await asked(lab.js.stream_info("DEAD"))
        return info and info.state.messages == 4

    await lab.until(four, timeout=40)
    sub = await lab.js.pull_subscribe("dead.>", durable="person", stream="DEAD")
    await lab.settled("DEAD")
    one, two, text, large = [msg.headers for msg in await sub.fetch(4, timeout=5)]
    assert one["traceparent"] == "00-1"
    assert one["Dead-Source"] == "ORDERS:1" and one["Dead-Size"] == "0"
    assert one["Original-Nats-Msg-Id"] == "one" and one["Original-Nats-Expected-Stream"] == "ORDERS"
    assert two["Original-Nats-Msg-Id"] == "two" and two["Nats-Msg-Id"] != one["Nats-Msg-Id"]
    assert text["Text"] == "Grüße: 課程" and text["Original-Status"] == "404"
    assert "too many" in large["Dead-Headers"]
    config = (await lab.js.stream_info("DEAD")).config
    assert config.max_bytes == 64 * 2**20
    assert config.discard == "new", "no letter goes for another"


async def test_a_letter_that_a_person_has_taken_out_and_sent_again_is_kept_again(lab):
    await orders(lab, b"nonsense")
    start(lab, "consumer.py")
    await lab.until(lambda: asked(dead(lab)), timeout=40)
    await lab.js.purge_stream("DEAD")
    await lab.js.publish("orders.created", b"nonsense")

    async def again():
        return (await lab.js.stream_info("DEAD")).state.messages == 1

    await lab.until(again, timeout=30)
    await settled(lab)


async def test_a_dead_that_somebody_deletes_is_made_again(lab):
    await orders(lab, b"nonsense")
    start(lab, "consumer.py")
    await lab.until(lambda: asked(dead(lab)), timeout=40)
    await lab.js.delete_stream("DEAD")
    await lab.js.publish("orders.created", b"more nonsense")

    async def again():
        return list(await asked(dead(lab)) or ()) == [b"more nonsense"]

    await lab.until(again, timeout=60)


async def test_a_stream_of_orders_that_is_deleted_is_made_again_and_the_order_in_hand_is_in_it(
    lab,
):
    producer = start(lab, "producer.py")
    await lab.until(lambda: acked(producer), timeout=40)
    await lab.js.delete_stream("ORDERS")
    before = len(acked(producer))
    await lab.until(lambda: len(acked(producer)) > before + 10, timeout=60)
    await lab.settled("ORDERS")
    kept, promised = await stored(lab), acked(producer)
    assert kept[:5] == promised[promised.index(kept[0]) :][:5], "an order was left out"


@pytest.mark.parametrize("word", ["paid", "400", "404", "503"])
async def test_an_order_whose_header_looks_like_a_word_of_the_server_is_charged_like_any_other(
    lab, word
):
    await orders(lab, order("before"))
    await lab.js.publish("orders.created", order("status"), headers={"Status": word})
    await lab.js.publish("orders.created", order("after"))
    start(lab, "consumer.py")
    await lab.until(lambda: len(charged(lab)) == 3, timeout=40)
    await settled(lab)


async def test_while_dead_is_full_nothing_is_lost(lab):
    await lab.js.add_stream(name="DEAD", subjects=["dead.>"], max_msgs=1, discard="new")
    await orders(lab, b"nonsense", b"more nonsense", order("good"))
    consumer = start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["good"], timeout=40)
    await lab.until(lambda: any("maximum messages exceeded" in line for line in consumer.log()))
    await lab.js.update_stream(name="DEAD", subjects=["dead.>"], max_msgs=2, discard="new")
    await settled(lab)
    assert set(await dead(lab)) == {b"nonsense", b"more nonsense"}


async def test_two_orders_of_one_id_with_different_amounts_are_noticed(lab):
    await orders(lab, order("x", 5), order("x", 7), order("x", 5))
    start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["x"], timeout=40)
    await settled(lab)
    assert await dead(lab) == {order("x", 7): "'x' has been charged with 5, and comes again with 7"}


@moves
async def test_what_an_operator_has_changed_in_the_consumer_stays_through_trouble_and_a_restart(
    lab,
):
    folder = lab.scratch / "disk"
    folder.mkdir()
    await orders(lab, order("first"))
    consumer = start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    await lab.js.add_consumer(
        "ORDERS",
        durable_name="charging",
        filter_subject="orders.created",
        ack_policy="explicit",
        ack_wait=5,
        max_ack_pending=7,
        max_deliver=-1,
    )
    away = folder.rename(lab.scratch / "away")
    await lab.js.publish("orders.created", order("second"))
    await lab.until(lambda: trouble(consumer) > 1, timeout=40)
    away.rename(folder)
    await lab.until(lambda: len(charged(lab)) == 2, timeout=40)
    consumer.end()
    again = start(lab, "consumer.py", "again")
    await lab.js.publish("orders.created", order("third"))
    await lab.until(lambda: len(charged(lab)) == 3, timeout=40)
    config = (await lab.js.consumer_info("ORDERS", "charging")).config
    assert (config.ack_wait, config.max_ack_pending) == (5, 7)
    assert any(
        "settings of its own: {'ack_wait': 5.0, 'max_ack_pending': 7}" in line
        for line in again.log()
    )


async def test_a_consumer_that_somebody_deletes_is_made_again(lab):
    await orders(lab, order("first"))
    start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["first"], timeout=40)
    await lab.js.delete_consumer("ORDERS", "charging")
    await lab.js.publish("orders.created", order("second"))
    await lab.until(lambda: len(charged(lab)) == 2, timeout=40)


RIGHTS = {  # all that the two programs need, if an operator has made the streams and the consumer
    "producer.py": ["orders.created", "$JS.API.STREAM.INFO.ORDERS"],
    "consumer.py": [
        "dead.orders.created",
        "$JS.API.STREAM.INFO.DEAD",
        "$JS.API.CONSUMER.INFO.ORDERS.charging",
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.charging",
        "$JS.ACK.ORDERS.charging.>",
    ],
}


def users(**rights):
    """An account in which these users may publish so, and an admin everything."""
    listed = ["{ user: admin, password: p }"]
    for name, may in rights.items():
        permissions = f'publish: {json.dumps(list(may))}, subscribe: "_INBOX_{name}.>"'
        listed.append(f"{{ user: {name}, password: p, permissions: {{ {permissions} }} }}")
    return f"accounts {{ SHOP: {{ jetstream: enabled, users: [ {', '.join(listed)} ] }} }}"


def jetstream(lab, name):
    """The line of a server's configuration that switches JetStream on, with a store of its own."""
    return f"jetstream {{ store_dir: {quoted((lab.scratch / name).as_posix())} }}"


@pytest.fixture
async def shop(lab):
    """Starts a server of its own with JetStream, streams and a consumer that an operator has made.
    Returns its address."""

    async def run(config, **connect):
        server = await start_server(lab, f"{jetstream(lab, 'shop')}\n{config}")
        admin = await nats.connect(server.url, user="admin", password="p", **connect)
        js = admin.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        await js.add_stream(name="DEAD", subjects=["dead.>"])
        await js.add_consumer(
            "ORDERS",
            durable_name="charging",
            filter_subject="orders.created",
            ack_policy="explicit",
        )
        for body in (b"nonsense", order("first")):
            await js.publish("orders.created", body)
        await admin.close()
        return server.url

    return run


@pytest.mark.parametrize("file", RIGHTS)
async def test_a_permission_that_is_missing_ends_it_with_one_clear_line(lab, shop, file):
    """Each right, left out in turn: so it is needed, and its lack is told."""
    names = [f"without{number}" for number in range(len(RIGHTS[file]))]
    rights = {
        name: [right for right in RIGHTS[file] if right != missing]
        for name, missing in zip(names, RIGHTS[file])
    }
    url = await shop(users(**rights))
    denied = [
        start(
            lab,
            file,
            name,
            NATS_URL=url,
            NATS_USER=name,
            NATS_PASSWORD="p",
            NATS_INBOX_PREFIX=f"_INBOX_{name}",
            DATABASE=lab.scratch / f"{name}.db",
        )
        for name in names
    ]
    for running, missing in zip(denied, RIGHTS[file]):
        assert await running.ended(40) == 1
        subject = missing.rstrip(">").lower()
        words = f'lacks a permission: nats: permissions violation for publish to "{subject}'
        assert words in running.log()[-1]
        assert not any("Traceback" in line for line in running.log())


async def test_so_does_an_inbox_that_is_not_its_own(lab, shop):
    url = await shop(users(orders=RIGHTS["producer.py"]))
    denied = start(lab, "producer.py", NATS_URL=url, NATS_USER="orders", NATS_PASSWORD="p")
    assert await denied.ended(40) == 1
    assert 'permissions violation for subscription to "_inbox.' in denied.log()[-1]


async def test_tls_handshake_first_a_certificate_and_an_inbox_of_its_own(lab, shop):
    authority, stranger = trustme.CA(), trustme.CA()
    files = {name: str(lab.scratch / f"{name}.pem") for name in ("server", "ours", "ca", "other")}
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    authority.issue_cert("orders").private_key_and_cert_chain_pem.write_to_path(files["ours"])
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["other"])
    pem, ca = quoted(files["server"]), quoted(files["ca"])
    trusting = ssl.create_default_context(cafile=files["ca"])
    trusting.load_cert_chain(files["ours"])
    config = users(producer=RIGHTS["producer.py"], consumer=RIGHTS["consumer.py"])
    files_of_tls = f"cert_file: {pem}, key_file: {pem}, ca_file: {ca}"
    # A client that begins its handshake later than this is greeted in plain text, and connect() of
    # nats-py 2.16.0 then hangs. "auto" stands for 50 ms: too little on a busy machine.
    config += f"\ntls {{ {files_of_tls}, verify: true, handshake_first: 400ms }}"
    url = await shop(config, tls=trusting, tls_handshake_first=True)
    settings = {
        "NATS_URL": url,
        "NATS_PASSWORD": "p",
        "NATS_CA": files["ca"],
        "NATS_CERT": files["ours"],
        "NATS_TLS_FIRST": 1,
    }
    producer, consumer = [
        start(lab, f"{name}.py", **settings, NATS_USER=name, NATS_INBOX_PREFIX=f"_INBOX_{name}")
        for name in ("producer", "consumer")
    ]
    await until(
        lambda: len(charged(lab)) > 20,
        timeout=40,
        describe=lambda: f"20 charges. Logs: {producer.log()[-3:]}, {consumer.log()[-3:]}",
    )
    assert {"first", *acked(producer)[:10]} <= set(charged(lab))
    mistaken = start(lab, "producer.py", "mistaken", **{**settings, "NATS_CA": files["other"]})
    assert await mistaken.ended(20) == 1
    assert "a certificate that is not trusted" in mistaken.log()[-1]
    heard = []

    async def greet(reader, writer):  # a thief in the server's place, who greets in plain text
        writer.write(b'INFO {"max_payload": 1000}\r\n')
        heard.append(await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as thief:
        stolen = f"nats://127.0.0.1:{thief.sockets[0].getsockname()[1]}"
        robbed = start(lab, "producer.py", "robbed", **{**settings, "NATS_URL": stolen})
        await lab.until(lambda: heard, timeout=20)
        robbed.end()
    assert heard[0].startswith(b"\x16\x03"), "the first bytes were no TLS handshake"
    producer.stop()
    consumer.stop()
    if sys.platform != "win32":
        assert [await producer.ended(20), await consumer.ended(20)] == [0, 0]


async def test_a_first_handshake_that_fails_is_tried_again(lab, shop):
    """nats-py 2.16.0 would wait for ever, and say nothing."""
    authority = trustme.CA()
    server, ca = lab.scratch / "server.pem", lab.scratch / "ca.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(server)
    authority.cert_pem.write_to_path(ca)
    trusting = ssl.create_default_context(cafile=ca)
    pem = quoted(server.as_posix())
    config = f"tls {{ cert_file: {pem}, key_file: {pem}, handshake_first: 400ms }}"
    rights = users(orders=RIGHTS["producer.py"])
    url = await shop(f"{rights}\n{config}", tls=trusting, tls_handshake_first=True)
    greeted = []

    async def greet_the_first_in_plain_text(reader, writer):
        if not greeted:
            greeted.append(writer)
            writer.write(b'INFO {"max_payload": 1000}\r\n')
            return
        there = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    async def carry(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(greet_the_first_in_plain_text, "127.0.0.1", 0) as door:
        producer = start(
            lab,
            "producer.py",
            NATS_URL=f"nats://127.0.0.1:{door.sockets[0].getsockname()[1]}",
            NATS_USER="orders",
            NATS_PASSWORD="p",
            NATS_INBOX_PREFIX="_INBOX_orders",
            NATS_CA=ca,
            NATS_TLS_FIRST=1,
        )
        await lab.until(lambda: acked(producer), timeout=40)
        producer.end()
        greeted[0].close()
    [told] = [line for line in producer.log() if "a new client tries" in line]
    assert "NATS_TLS_FIRST=1 needs handshake_first in the tls block of the servers" in told


async def test_a_password_in_the_address_is_not_told(lab):
    address = ",".join(lab.cluster.login(lab.topic)["servers"])
    mistaken = start(
        lab,
        "producer.py",
        NATS_URL=address.replace("nats://", "nats://checks:s3cr3t@"),
        NATS_USER=None,
        NATS_PASSWORD=None,
    )
    assert await mistaken.ended(20) == 1
    assert "Authorization Violation" in mistaken.log()[-1]
    assert "s3cr3t" not in "".join(mistaken.log() + mistaken.lines())


async def test_a_configuration_that_the_server_refuses_ends_it(lab):
    server = await start_server(lab, jetstream(lab, "one"))
    replicas = start(lab, "producer.py", "replicas", NATS_URL=server.url, REPLICAS=3)
    accounts = "accounts { PLAIN: { users: [ { user: orders, password: p } ] } }"
    server = await start_server(lab, f"{jetstream(lab, 'two')}\n{accounts}")
    plain = start(
        lab, "producer.py", "plain", NATS_URL=server.url, NATS_USER="orders", NATS_PASSWORD="p"
    )
    await lab.js.add_stream(
        name="ORDERS", subjects=["orders.>"], consumer_limits={"max_ack_pending": 5}
    )
    limited = start(lab, "consumer.py", "limited")
    for running, words in (
        (replicas, "replicas > 1 not supported"),
        (plain, "JetStream not enabled for account"),
        (limited, "max ack pending exceeds system limit"),
    ):
        assert await running.ended(40) == 1, running.log()
        assert words in running.log()[-1], running.log()


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"headers_only": True}, "wanted: one that is pulled, with bodies"),
        ({"deliver_subject": "pushed"}, "wanted: one that is pulled, with bodies"),
        ({"ack_policy": "none"}, "would lose orders"),
        ({"ack_policy": "all"}, "would lose orders"),
        ({"max_deliver": 3}, "would lose orders"),
        ({"max_batch": 5}, "Exceeded MaxRequestBatch of 5"),
        ({"max_expires": 500_000_000}, "Exceeded MaxRequestExpires"),
        ({"priority_groups": ["a"], "priority_policy": "overflow"}, "code=400"),
    ],
)
async def test_so_does_a_consumer_that_is_set_so_that_no_order_can_be_read_or_some_get_lost(
    lab, setting, words
):
    await orders(lab, order("first"))
    config = {
        "durable_name": "charging",
        "filter_subject": "orders.created",
        "ack_policy": "explicit",
        **setting,
    }
    made = await lab.nc.request(  # nats-py does not know all of them
        "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.charging",
        json.dumps({"stream_name": "ORDERS", "config": config}).encode(),
        timeout=5,
    )
    assert "error" not in json.loads(made.data), made.data
    consumer = start(lab, "consumer.py")
    assert await consumer.ended(20) == 1
    assert words in consumer.log()[-1] and charged(lab) == []
    assert await dead(lab) == {}


@signals
async def test_a_server_that_stands_still_holds_up_nobodys_end(lab):
    consumer, producer = start(lab, "consumer.py"), start(lab, "producer.py", GRACE=1)
    await lab.until(lambda: len(charged(lab)) > 5, timeout=40)
    for node in ("n1", "n2", "n3"):
        await lab.faults.pause(node)
    await has_one_in_hand(lab, producer)
    consumer.stop()
    producer.stop()
    # drain() alone would take half a minute.
    codes = await consumer.ended(15), await producer.ended(15)
    await lab.faults.heal()
    assert codes == (0, 1), (consumer.log(), producer.log())
    assert not any("Traceback" in line for line in consumer.log() + producer.log())


async def test_too_few_nodes_do_not(lab):
    producer = start(lab, "producer.py", REPLICAS=5)  # of three nodes
    await lab.until(
        lambda: sum("no suitable peers" in line for line in producer.log()) > 2, timeout=60
    )
    await orders(lab)  # an operator has made the stream meanwhile
    await lab.until(lambda: acked(producer), timeout=60)


async def test_nor_does_an_account_that_is_full(lab):
    limited = "jetstream: { max_file: 2000 }, users: [ { user: a, password: p } ]"
    config = f"{jetstream(lab, 'full')}\naccounts {{ A: {{ {limited} }} }}"
    server = await start_server(lab, config)
    producer = start(
        lab, "producer.py", NATS_URL=server.url, NATS_USER="a", NATS_PASSWORD="p", REPLICAS=1
    )
    await lab.until(
        lambda: any("resource limits exceeded" in line for line in producer.log()), timeout=40
    )
    done = len(acked(producer))
    client = await nats.connect(server.url, user="a", password="p")
    await client.jetstream().purge_stream("ORDERS")
    await client.close()
    await lab.until(lambda: len(acked(producer)) > done, timeout=40)
    numbers = [int(name.rpartition("-")[2]) for name in acked(producer)]
    assert numbers == list(range(1, len(numbers) + 1)), "an order was left out"


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"RATE": "fast"}, "RATE='fast'; wanted: a number"),
        ({"REPLICAS": "0"}, "REPLICAS='0'; wanted: a number from 1 to 5"),
        ({"RATE": "inf"}, "RATE='inf'; wanted: a number"),
        ({"NATS_INBOX_PREFIX": "a b"}, "NATS_INBOX_PREFIX='a b'; wanted: a subject"),
        ({"NATS_CA": "no.pem"}, "NATS_CA=no.pem: there is no such file"),
        ({"NATS_CREDS": "no.creds"}, "NATS_CREDS=no.creds"),
        ({"NATS_CERT": "producer.err"}, "NATS_CA, NATS_CERT or NATS_KEY: "),
        ({"NATS_URL": "nats://x:y"}, "invalid connect url"),
    ],
)
async def test_a_setting_that_is_none_is_named_in_one_line(lab, setting, words):
    mistaken = start(lab, "producer.py", **setting)
    assert await mistaken.ended(20) == 1
    [line] = mistaken.log()
    assert words in line


async def test_a_credentials_file_that_is_none_is_named_too(lab):
    key = "UC744N2QLWIDCF6DRIFLO5S7D6QHJX6FKIPY5SA6FOYB4QMSFM2DABOZ"
    server = await start_server(lab, f"authorization {{ users: [ {{ nkey: {key} }} ] }}")
    (lab.scratch / "empty.creds").touch()
    login = {"NATS_USER": None, "NATS_PASSWORD": None, "NATS_CREDS": "empty.creds"}
    mistaken = start(lab, "producer.py", NATS_URL=server.url, **login)
    assert await mistaken.ended(20) == 1
    assert "NATS_CREDS" in mistaken.log()[-1]
    assert not any("Traceback" in line for line in mistaken.log())


@pytest.fixture
def service(lab, monkeypatch):
    """service.py, imported into this process, with the login of the lab."""
    login = lab.cluster.login(lab.topic)
    settings = {
        "NATS_URL": ",".join(login["servers"]),
        "NATS_USER": login["user"],
        "NATS_PASSWORD": login["password"],
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(paths.PROJECT / "notebooks"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own handlers stay
    yield importlib.import_module("service")
    del sys.modules["service"]


@pytest.mark.parametrize(
    "error", [None, nats.errors.TimeoutError(), nats.errors.BadSubjectError(), KeyError("a bug")]
)
async def test_whatever_ends_it_the_connection_is_closed(service, error):
    seen = []

    async def work(nc, end):
        seen.append(nc)
        if error:
            raise error

    if isinstance(error, KeyError):
        with pytest.raises(KeyError):
            await service.serve("checks", work)
    else:
        code = await service.serve("checks", work)
        assert error is None or type(error).__name__ in code
    assert seen[0].is_closed


@pytest.fixture
def program_of(service, monkeypatch):
    """Imports producer.py or consumer.py into this process."""
    loaded = []
    monkeypatch.setattr(JetStreamContext, "is_status_msg", JetStreamContext.is_status_msg)

    def load(name):
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for name in loaded:
        del sys.modules[name]
    sys.modules.pop("charges", None)


async def test_an_order_that_is_too_large_with_its_header_closes_nothing(
    lab, service, program_of, monkeypatch, caplog
):
    producer = program_of("producer")

    async def three(end):
        for name, size in (("a", 1), ("b", lab.nc.max_payload - 50), ("c", 1)):
            yield {"id": name, "amount": "x" * size}

    monkeypatch.setattr(producer, "orders", three)
    assert await service.serve("checks", producer.produce) == 0
    assert await stored(lab) == ["a", "c"]
    assert "refused b: nats: maximum payload exceeded" in caplog.text


@pytest.mark.parametrize("can_go_on", [True, False])
async def test_what_lies_in_the_subscription_at_the_end_goes_to_another_worker_at_once(
    lab, service, program_of, monkeypatch, caplog, can_go_on
):
    """Messages, and the server's own words, for which drain() would wait. After an outage, the
    requests that waited for a server are all answered at once."""
    consumer = program_of("consumer")
    await orders(lab, *[order(str(number)) for number in range(30)])
    await lab.js.add_consumer("ORDERS", **consumer.CONSUMER)
    await lab.settled("ORDERS")

    async def take_orders(nc, js, sub, end):
        next_ones = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.charging"
        await nc.publish(next_ones, b'{"batch": 40, "no_wait": true}', reply=sub._deliver)
        await until(lambda: sub.pending_msgs == 31, timeout=5)
        if not can_go_on:
            raise service.CannotGoOn("as told")

    monkeypatch.setattr(consumer, "take_orders", take_orders)
    code = await service.serve("checks", consumer.consume)
    assert code == (0 if can_go_on else "checks: as told")
    other = await lab.js.pull_subscribe_bind("charging", "ORDERS")
    assert len(await other.fetch(30, timeout=5)) == 30  # ack wait is longer
    assert "DrainTimeoutError" not in caplog.text


async def test_a_subscription_that_nobody_reads_does_not_hold_up_the_end(lab, service):
    async def work(nc, end):
        await nc.subscribe("unread")
        await nc.publish("unread")
        await nc.flush()

    begin = time.monotonic()
    assert await service.serve("checks", work) == 0
    assert time.monotonic() - begin < 10  # by itself drain() waits for 30 s


async def test_a_client_that_cannot_leave_a_server_that_stands_still_ends_it(
    lab, service, monkeypatch
):
    """nats-py 2.16.0 would wait until that server goes on."""
    frozen, well = await start_server(lab), await start_server(lab)
    monkeypatch.setattr(service, "SERVERS", [frozen.url, well.url])
    monkeypatch.setattr(service, "STUCK", 2)
    connect = service.connect

    async def connect_in_this_order(*args, **options):
        return await connect(*args, **options, dont_randomize=True)

    monkeypatch.setattr(service, "connect", connect_in_this_order)

    async def work(nc, end):
        frozen.pause()
        for _ in range(12):
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(nc.publish("unread", bytes(900_000)), 0.2)
        await nc.force_reconnect()  # or three pings without an answer
        await asyncio.wait([end.called], timeout=20)

    try:
        code = await service.serve("checks", work)
    finally:
        frozen.resume()
    assert code == "checks: for 2 s the client could not leave a server that stands still"


@pytest.mark.parametrize("turns", range(0, 12, 3))
async def test_also_when_it_is_told_to_end_while_it_connects(service, monkeypatch, turns):
    clients, ends = [], []

    class Client(nats.NATS):
        def __init__(self):
            super().__init__()
            clients.append(self)

    class End(service.End):
        def __init__(self):
            super().__init__()
            ends.append(self)

    async def work(nc, end):
        await end.called

    monkeypatch.setattr(nats, "NATS", Client)
    monkeypatch.setattr(service, "End", End)
    running = asyncio.ensure_future(service.serve("checks", work))
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0.001)
    ends[0].call(0)
    assert await running == 0
    assert not clients[0].is_connected and not clients[0].is_connecting


async def kill_nodes(lab, dice, kills):
    """Kills a node, waits, and heals, never more than one at a time, until it is cancelled."""
    while True:
        leader = await lab.wait_for_leader("ORDERS")
        node = leader
        if len(kills) % 2:
            node = dice.choice(["n1", "n2", "n3"])
        await lab.faults.kill(node)
        kills.append(node)
        await asyncio.sleep(dice.uniform(0.5, 6))
        await lab.faults.heal()


async def full_disk(lab, consumers, seconds):
    assert sys.platform == "linux", "see limits"
    running = [psutil.Process(consumer.consumer.pid) for consumer in consumers]
    for process in running:
        process.rlimit(psutil.RLIMIT_FSIZE, (database(lab).stat().st_size, -1))
    await asyncio.sleep(seconds)
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))


async def no_database(lab, seconds):
    assert sys.platform != "win32", "see moves"
    folder = database(lab).parent
    away = folder.rename(lab.scratch / "away")
    await asyncio.sleep(seconds)
    away.rename(folder)


async def made_anew(lab, producer):
    """Deletes the stream and makes it again, while the producer stands still and all that it holds
    is settled. Returns the ids that were in it."""
    process = psutil.Process(producer.pid)
    process.suspend()
    try:
        await settled(lab)
        kept = await stored(lab)
        config = (await lab.js.stream_info("ORDERS")).config
        await lab.js.delete_stream("ORDERS")

        async def made():
            # 10049: the old files are still going away.
            with contextlib.suppress(nats.js.errors.ServerError):
                return await lab.js.add_stream(config)
            return None

        await lab.until(made, timeout=30)
    finally:
        process.resume()
    return kept


def orders_in(names):
    """Those of the producer: the killers have their body as their id."""
    return [name for name in names if not name.startswith("{")]


@signals
@pytest.mark.soak
@limits
async def test_a_minute_of_all_together_loses_nothing_and_puts_no_innocent_order_aside(lab):
    """Nodes are killed, never more than one at a time; the disk fills; orders kill; workers are
    killed and replaced; the database goes away; the stream is made anew."""
    dice = random.Random(SEED)
    begin = time.monotonic()
    kills = []
    print(f"seed {SEED}: set LABKIT_TEST_SEED for another one")
    (lab.scratch / "disk").mkdir()
    environment = {**deadly(lab), "TRIES": 2, "ACK_WAIT": 2}
    producer = start(lab, "producer.py")
    consumers = [Supervisor(lab, f"consumer-{number}", **environment) for number in range(2)]
    await lab.until(lambda: len(acked(producer)) > 20 and len(charged(lab)) > 20, timeout=40)
    killing = asyncio.ensure_future(kill_nodes(lab, dice, kills))
    killers = [order(f"killer {number}") for number in range(2)]
    for killer in killers:

        async def published():
            return await asked(
                lab.js.publish("orders.created", killer, headers={"Nats-Msg-Id": killer.decode()})
            )

        await lab.until(published, timeout=30)
        await full_disk(lab, consumers, dice.uniform(4, 8))
        dice.choice(consumers).consumer.kill()
        await no_database(lab, dice.uniform(4, 8))
        dice.choice(consumers).consumer.stop()

    async def killers_are_dead():
        return set(await asked(dead(lab)) or ()) >= set(killers)

    await lab.until(killers_are_dead, timeout=90)
    await asyncio.sleep(max(0, begin + CHAOS - time.monotonic()))
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    await lab.faults.heal()
    old = orders_in(await made_anew(lab, producer))
    before = len(acked(producer))
    await lab.until(lambda: len(acked(producer)) > before + 20, timeout=60)
    producer.stop()
    assert await producer.ended(30) == 0, producer.log()
    promised = acked(producer)
    await lab.until(lambda: set(promised) <= set(charged(lab)), timeout=60)
    await settled(lab)
    assert [await consumer.end() for consumer in consumers] == [0, 0]
    new = orders_in(await stored(lab))
    assert set(promised) <= {*old, *new}, "an order was lost"
    for kept in old, new:
        assert len(kept) == len(set(kept)), "an order was stored twice"
    # The ack of one order waits in the producer that stands still. If that takes longer than its
    # timeout, it publishes that order again, and the new stream knows no ids of the old one.
    assert len(set(old) & set(new)) <= 1, "orders of the old stream were published again"
    assert set(await dead(lab)) == set(killers), "an innocent order was put aside"
    with contextlib.closing(sqlite3.connect(database(lab))) as db:
        amounts = dict(db.execute("SELECT id, amount FROM charges"))
    assert all(amounts[name] == int(name.rpartition("-")[2]) for name in promised)
    died = sum(consumer.codes.count(-signal.SIGKILL) for consumer in consumers)
    print(
        f"{len(promised)} orders, {len(kills)} nodes and {died} workers killed, {len(killers)}"
        " orders in DEAD"
    )
    assert len(kills) >= 3 and died >= 6 and len(promised) > 100

"""The two programs that a reader may carry off: what they promise holds while nodes die, on signals, on a wrong password."""
import asyncio
import contextlib
import os
import random
import sqlite3
import time

import pytest

from labkit import Lab, programs
from labkit.programs import program, source

CHAOS = 30  # seconds
SEED = int(os.environ.get("LABKIT_TEST_SEED") or random.randrange(10**6))
signals = pytest.mark.skipif(os.name == "nt", reason="SIGTERM is a kill on Windows")


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks", private=True)
    yield lab
    lab._net.take()
    await lab._leave()


def database(lab):
    return lab.scratch / "charges.db"


def acked(*producers):
    return [line.split()[1] for producer in producers for line in producer.lines() if line.startswith("acked ")]


def charged(lab):
    return sorted(programs.charged(database(lab)))


async def stored(lab):
    """Ids of all messages of the stream, as often as they are stored."""
    state = (await lab.js.stream_info("ORDERS")).state
    found = [await lab.js.get_msg("ORDERS", seq) for seq in range(state.first_seq, state.last_seq + 1)]
    return [msg.headers["Nats-Msg-Id"] for msg in found]


def start(lab, file, name=None, **environment):
    return program(lab, file, name, **{"DATABASE": database(lab), "ACK_WAIT": 3, "RATE": 50, **environment})


async def orders(lab, *bodies):
    """The stream, with these messages in it."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await lab.settled("ORDERS")
    for body in bodies:
        await lab.js.publish("orders.created", body)


async def settled(lab):
    """Waits until each message of the stream has had its last answer."""
    async def so():
        info = await lab.js.consumer_info("ORDERS", "charging")
        return info.num_pending == info.num_ack_pending == 0
    await lab.until(so, timeout=30)


async def dead(lab):
    """{body: reason} of what lies in DEAD."""
    state = (await lab.js.stream_info("DEAD")).state
    found = [await lab.js.get_msg("DEAD", seq) for seq in range(1, state.last_seq + 1)]
    return {msg.data: msg.headers["Reason"] for msg in found}


@signals
@pytest.mark.soak
async def test_nothing_is_lost_while_nodes_die_and_consumers_are_replaced(lab):
    """Kills nodes, never more than one at a time, and ends consumers by SIGKILL and SIGTERM, for 30 seconds."""
    dice, end = random.Random(SEED), time.monotonic() + CHAOS
    print(f"seed {SEED}: LABKIT_TEST_SEED repeats it")
    producer, consumers = start(lab, "producer.py"), [start(lab, "consumer.py", f"consumer-{n}") for n in range(2)]
    await lab.until(lambda: len(acked(producer)) > 20 and len(charged(lab)) > 20, timeout=40)
    kills = 0
    while time.monotonic() < end:
        leader = await lab.wait_for_leader("ORDERS")
        await lab.faults.kill(leader if kills % 2 == 0 else dice.choice(["n1", "n2", "n3"]))
        kills += 1
        number = dice.randrange(len(consumers))
        dice.choice([consumers[number].kill, consumers[number].stop])()
        consumers[number] = start(lab, "consumer.py", f"consumer-{kills}-{number}")
        await asyncio.sleep(dice.uniform(0.5, 6))
        await lab.faults.heal()
    producer.stop()
    assert await producer.ended(30) == 0, producer.log()
    promised = acked(producer)
    await lab.until(lambda: set(promised) <= set(charged(lab)), timeout=30)
    for consumer in consumers:
        consumer.stop()
    assert [await consumer.ended(20) for consumer in consumers] == [0, 0]
    kept = await stored(lab)
    assert kills >= 2 and len(promised) > 30
    assert set(promised) <= set(kept) and len(kept) == len(set(kept)), "an order was lost, or stored twice"


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
        given_back |= {msg.headers["Nats-Msg-Id"] for msg in await sub.fetch(50, timeout=5)}  # ack wait is longer
    assert given_back == set(acked(producer)) - set(charged(lab))


@signals
async def test_sigterm_ends_them_while_they_wait_for_a_first_connection(lab):
    for file in ("producer.py", "consumer.py"):
        lost = start(lab, file, NATS_URL="nats://127.0.0.1:1")
        await lab.until(lambda: lost.log(), timeout=20)
        lost.stop()
        assert await lost.ended(15) == 0, lost.log()


@pytest.mark.parametrize("file", ["producer.py", "consumer.py"])
async def test_a_wrong_password_ends_it_with_a_clear_message(lab, file):
    refused = start(lab, file, NATS_PASSWORD="wrong")
    assert await refused.ended(20) == 1
    assert "refuse user 'checks'" in refused.log()[-1] and "Authorization Violation" in refused.log()[-1]
    assert not any("Traceback" in line for line in refused.log())


async def test_a_stream_of_that_name_with_other_settings_ends_it_with_the_servers_words(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["else.>"])
    producer = start(lab, "producer.py")
    assert await producer.ended(20) == 1
    assert "err_code=10058" in producer.log()[-1]


async def test_a_stream_whose_settings_an_operator_has_changed_is_taken_as_it_is(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.created", "orders.old"], max_age=3600, num_replicas=3)
    await lab.js.add_stream(name="DEAD", subjects=["dead.orders.*"], max_msgs=1000)
    await lab.settled("ORDERS")
    producer = start(lab, "producer.py")
    start(lab, "consumer.py")
    await lab.until(lambda: acked(producer) and charged(lab), timeout=40)
    assert (await lab.js.stream_info("ORDERS")).config.max_age == 3600


async def test_what_is_no_order_is_kept_aside_once_and_the_next_one_is_charged(lab):
    bad = [b"nonsense", b"{}", b"[]", b"[" * 100_000, b'{"id": "x"}', b'{"id": "x", "amount": null}',
           b'{"id": null, "amount": 1}', b'{"id": "", "amount": 1}',
           b'{"id": 7, "amount": 1}', b'{"id": "x", "amount": true}', b'{"id": "x", "amount": 1%s}' % (b"0" * 30),
           b'{"id": "\\ud800", "amount": 1}', b"\xff"]
    huge = b"\xff" * (lab.nc.max_payload - 10)  # with a header it is above the limit, and would close the connection
    await orders(lab, *bad, huge, b'{"id": "good", "amount": 1}')
    consumer = start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["good"], timeout=30)
    await settled(lab)
    found = await dead(lab)
    assert set(bad) == {body for body in found if len(body) < 200_000} and len(found) == len(bad) + 1
    assert huge.startswith(max(found, key=len)) and len(max(found, key=len)) > lab.nc.max_payload - 2000
    assert found[b"\xff"].startswith("UnicodeDecodeError") and max(map(len, found.values())) < 250
    assert max(map(len, consumer.log())) < 400 and not any("closed" in line for line in consumer.log())


async def test_an_outage_of_the_database_that_is_longer_than_all_tries_loses_nothing(lab):
    folder = lab.scratch / "disk"
    folder.mkdir()
    await orders(lab, b'{"id": "first", "amount": 1}')
    consumer = start(lab, "consumer.py", DATABASE=folder / "charges.db", TRIES=2)
    await lab.until(lambda: programs.charged(folder / "charges.db"), timeout=40)
    away = folder.rename(lab.scratch / "away")
    for number in range(50):
        await lab.js.publish("orders.created", b'{"id": "%d", "amount": 1}' % number)
    await lab.until(lambda: sum("again in" in line for line in consumer.log()) > 4, timeout=40)
    away.rename(folder)
    await lab.until(lambda: len(programs.charged(folder / "charges.db")) == 51, timeout=40)
    await settled(lab)
    assert await dead(lab) == {}


async def test_an_order_that_fails_at_each_try_ends_in_dead_and_holds_up_nobody(lab):
    with contextlib.closing(sqlite3.connect(database(lab))) as db, db:
        db.execute("CREATE TABLE charges (id TEXT PRIMARY KEY NOT NULL, amount INTEGER NOT NULL)")
        db.execute("CREATE TRIGGER t BEFORE INSERT ON charges WHEN NEW.id = 'poison' "
                   "BEGIN SELECT RAISE(ABORT, 'no'); END")
    await orders(lab, b'{"id": "poison", "amount": 1}', b'{"id": "good", "amount": 1}')
    start(lab, "consumer.py", TRIES=2)
    await lab.until(lambda: charged(lab) == ["good"], timeout=30)

    async def buried():
        return await dead(lab) == {b'{"id": "poison", "amount": 1}': "ValueError 'not charged in 2 deliveries'"}
    await lab.until(buried, timeout=40)
    await settled(lab)


async def test_while_dead_does_not_confirm_the_rest_is_charged_and_the_bad_one_stays(lab):
    await lab.js.add_stream(name="DEAD", subjects=["dead.>"], no_ack=True)  # stores, and says nothing: a timeout
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
    await orders(lab, *(b'{"id": "%d", "amount": 1}' % (n % 20) for n in range(40)))  # each one twice
    start(lab, "consumer.py", "one"), start(lab, "consumer.py", "two")
    await lab.until(lambda: len(charged(lab)) == 20, timeout=40)
    await settled(lab)
    assert sorted(charged(lab), key=int) == [str(n) for n in range(20)]


def test_they_are_short_enough_to_be_read():
    for file in ("producer.py", "consumer.py", "service.py"):
        assert source(file).read_text(encoding="utf-8").count("\n") < 100

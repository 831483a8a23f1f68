"""The two programs that a reader may carry off: what they promise holds while nodes die, on signals, on a wrong password."""
import asyncio
import os
import random
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
    return program(lab, file, name, DATABASE=database(lab), ACK_WAIT=3, RATE=50, **environment)


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
    producer, consumer = start(lab, "producer.py"), start(lab, "consumer.py")
    await lab.until(lambda: len(acked(producer)) > 10 and len(charged(lab)) > 10, timeout=40)
    producer.stop()
    assert await producer.ended(20) == 0, producer.log()
    consumer.stop()
    assert await consumer.ended(20) == 0, consumer.log()
    assert set(acked(producer)) == set(await stored(lab))
    given_back = set()
    sub = await lab.js.pull_subscribe_bind("charging", "ORDERS")
    while len(charged(lab)) + len(given_back) < len(acked(producer)):
        given_back |= {msg.headers["Nats-Msg-Id"] for msg in await sub.fetch(50, timeout=2)}  # ack wait is 3 s: these are naks
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


async def test_what_is_no_order_is_kept_aside_and_the_next_one_is_charged(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await lab.settled("ORDERS")
    for body in (b"nonsense", b"{}", b'{"id": "good", "amount": 1}'):
        await lab.js.publish("orders.created", body)
    start(lab, "consumer.py")
    await lab.until(lambda: charged(lab) == ["good"], timeout=30)

    async def settled():
        return (await lab.js.consumer_info("ORDERS", "charging")).ack_floor.stream_seq == 3
    await lab.until(settled, timeout=15)
    assert {(await lab.js.get_msg("DEAD", seq)).data for seq in (1, 2)} == {b"nonsense", b"{}"}


async def test_both_consumers_of_one_database_charge_each_order_once(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await lab.settled("ORDERS")
    for n in range(40):
        await lab.js.publish("orders.created", b'{"id": "%d", "amount": 1}' % (n % 20))  # each one twice
    start(lab, "consumer.py", "one"), start(lab, "consumer.py", "two")
    await lab.until(lambda: len(charged(lab)) == 20, timeout=40)

    async def settled():
        return (await lab.js.consumer_info("ORDERS", "charging")).ack_floor.stream_seq == 40
    await lab.until(settled, timeout=15)
    assert sorted(charged(lab), key=int) == [str(n) for n in range(20)]


def test_they_are_short_enough_to_be_read():
    for file in ("producer.py", "consumer.py"):
        assert source(file).read_text(encoding="utf-8").count("\n") < 125

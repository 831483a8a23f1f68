"""What lesson 01 tells of busy clients, where its cells show the short case."""

import asyncio
import json
import re
import threading
import time
import urllib.request

import nats
import pytest

from labkit.cluster.standalone import start_server

pytestmark = pytest.mark.soak


async def barrier(client):
    await asyncio.sleep(0)
    await client.flush()


async def lost(lab, wait, publisher, trials):
    """How many of so many messages are lost that the publisher sends after listener.subscribe() and
    `wait(listener)`. A marker on the same way tells when a message would be there."""
    listener = await lab.connect(name="listener")
    end = await listener.subscribe("race.end")
    await heard_from(publisher, end)
    missing = 0
    for n in range(trials):
        sub = await listener.subscribe(f"race.{n}")
        await wait(listener)
        await publisher.publish(f"race.{n}")
        await publisher.publish("race.end", b"%d" % n)
        while (await end.next_msg(timeout=5)).data != b"%d" % n:
            pass
        missing += sub.delivered == 0
        await sub.unsubscribe()
    await listener.close()
    return missing


async def heard_from(publisher, sub):
    while not sub.delivered:
        await publisher.publish(sub.subject)
        await asyncio.sleep(0.01)


async def nothing(client):
    pass


async def test_a_barrier_loses_nothing_on_its_node_and_without_one_some_is_lost(calm):
    near = await calm.connect(name="near")
    assert await lost(calm, barrier, near, 5000) == 0
    assert await lost(calm, nothing, near, 2000) > 0


async def test_a_flush_alone_loses_some_now_and_then(calm):
    near = await calm.connect(name="near")
    end = time.monotonic() + 20
    while not await lost(calm, nats.aio.client.Client.flush, near, 500):
        assert time.monotonic() < end


async def test_on_a_full_socket_one_turn_is_no_barrier_and_two_flushes_are():
    heard, is_read = [], asyncio.Event()

    async def take_notes(reader, writer):
        writer.write(b'INFO {"max_payload": 104857600}\r\n')
        while words := (await reader.readline()).split():
            heard.append(words[0].decode())
            if words[0] == b"PUB":
                await is_read.wait()
                await reader.readexactly(int(words[-1]) + 2)
            if words[0] == b"PING":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(take_notes, "127.0.0.1") as listener:
        port = listener.sockets[0].getsockname()[1]
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        publishing = asyncio.create_task(client.publish("bulk", bytes(40_000_000)))
        while "PUB" not in heard:
            await asyncio.sleep(0.01)
        await client.subscribe("orders")
        await asyncio.sleep(0)
        is_read.set()
        await client.flush()
        await client.flush()
        await publishing
        await client.close()
    assert heard[2:] == ["PUB", "PING", "SUB", "PING"]


async def test_a_barrier_says_nothing_of_another_node(calm):
    far = await calm.connect(name="far", node="n2")
    assert sum([await lost(calm, barrier, far, 500) for _ in range(4)]) > 0


async def test_members_on_three_nodes_share_as_members_on_one_do(calm):
    clients = [await calm.connect(node=node.name) for node in calm.cluster.nodes]
    members = [await client.subscribe("orders", queue="processors") for client in clients]
    for member in members:
        await heard_from(calm.nc, member)
    before = [member.delivered for member in members]
    for _ in range(6000):
        await calm.nc.publish("orders")
    await calm.until(lambda: sum(m.delivered for m in members) == 6000 + sum(before))
    shares = [member.delivered - count for member, count in zip(members, before)]
    assert all(
        1780 < share < 2220 for share in shares
    )  # 2,000, give or take six standard deviations


async def test_drains_under_steady_traffic_lose_messages(calm):
    """One of two members drains, again and again, until a message is handled by nobody."""
    publisher = await calm.connect(name="publisher")
    end = time.monotonic() + 20
    while not await lost_by_a_drain(calm, publisher):
        assert time.monotonic() < end


async def lost_by_a_drain(lab, publisher):
    handled, sent = set(), 0

    async def handle(msg):
        handled.add(msg.data)

    members = [await lab.connect(name="member") for _ in range(2)]
    for member in members:
        await member.subscribe("jobs", queue="workers", cb=handle)
        await barrier(member)

    async def publish():
        nonlocal sent
        while not members[0].is_closed:
            await publisher.publish("jobs", b"%d" % sent)
            sent += 1
            await asyncio.sleep(0)

    traffic = asyncio.create_task(publish())
    await lab.until(lambda: len(handled) > 10)
    await members[0].drain()
    await traffic
    for client in (publisher, members[1]):
        await barrier(client)
    await members[1].drain()
    return sent - len(handled)


async def test_drain_waits_30_seconds_at_most_unless_told_otherwise(calm):
    assert (await calm.connect()).options["drain_timeout"] == 30
    handled = []

    async def slow(msg):
        await asyncio.sleep(0.2)
        handled.append(msg)

    errors = []

    async def note(error):
        errors.append(type(error))

    worker = await calm.connect(drain_timeout=1, error_cb=note)
    sub = await worker.subscribe("jobs", cb=slow)
    for _ in range(20):
        await worker.publish("jobs")
    await calm.until(lambda: sub.delivered == 20)
    begin = time.monotonic()
    assert await worker.drain() is None
    assert 0.9 < time.monotonic() - begin < 3
    assert 0 < len(handled) < 20 and errors == [nats.errors.DrainTimeoutError]
    await asyncio.sleep(0.5)
    assert len(handled) < 20  # the rest is gone


def in_a_thread(main):
    """Runs a coroutine in an event loop of its own, so that it can be blocked. Returns the thread
    (started)."""
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    return thread


async def test_a_blocked_reader_is_cut_off_and_the_server_alone_knows_why(calm):
    limits = 'max_pending: 1MB, write_deadline: "500ms", http: "127.0.0.1:-1"'
    server = await start_server(calm, limits)
    errors, handled, listens, back = [], [], threading.Event(), threading.Event()

    async def note(error):
        errors.append(type(error))

    async def reader():
        async def handler(msg):
            if not handled:
                time.sleep(3)  # blocks the loop, as a computation would
            handled.append(msg)

        client = await nats.connect(server.url, error_cb=note, reconnect_time_wait=0.1)
        await client.subscribe("ticks", cb=handler)
        await barrier(client)
        listens.set()
        while not client.stats["reconnects"]:
            await asyncio.sleep(0.05)
        back.set()
        await client.close()

    thread = in_a_thread(reader)
    await calm.until(listens.is_set)
    publisher = await nats.connect(server.url)
    for _ in range(4000):
        await publisher.publish("ticks", bytes(4096))
    await publisher.flush()
    await publisher.close()
    await calm.until(back.is_set, timeout=15)
    thread.join()
    assert nats.errors.UnexpectedEOF in errors and 0 < len(handled) < 4000
    assert not any("low" in error.__name__ for error in errors)  # none tells of a slow consumer
    log = server.log.read_text(encoding="utf-8")
    assert "Slow Consumer Detected" in log
    port = re.search(r"http monitor on 127\.0\.0\.1:(\d+)", log)[1]
    assert (await asyncio.to_thread(monitored, port, "varz"))["slow_consumers"]
    closed = (await asyncio.to_thread(monitored, port, "connz?state=closed"))["connections"]
    assert any("Slow Consumer" in connection["reason"] for connection in closed)


def monitored(port, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return json.load(answer)


async def test_what_a_blocked_publisher_has_published_is_lost_without_a_word(calm):
    server = await start_server(calm, 'ping_interval: "200ms", ping_max: 1')
    listener = await nats.connect(server.url)
    sub = await listener.subscribe("orders")
    await barrier(listener)
    errors, released = [], threading.Event()

    async def note(error):
        errors.append(type(error))

    async def program():
        client = await nats.connect(server.url, error_cb=note, reconnect_time_wait=0.1)
        await barrier(client)
        for n in range(5):
            await client.publish("orders", b"%d" % n)
            time.sleep(0.5)  # blocks the loop between two publishes
        released.set()
        while not client.stats["reconnects"]:
            await asyncio.sleep(0.05)
        await client.publish("orders", b"again")
        await client.flush()
        await client.close()

    thread = in_a_thread(program)
    await calm.until(released.is_set)
    assert sub.delivered == 0  # publish() had returned five times
    await calm.until(lambda: sub.delivered)
    thread.join()
    await barrier(listener)
    assert [(await sub.next_msg()).data for _ in range(sub.pending_msgs)] == [b"again"]
    assert errors and issubclass(errors[0], (OSError, nats.errors.UnexpectedEOF))
    await listener.close()


async def test_the_servers_limits_for_a_slow_or_silent_client(calm):
    facts = await calm.cluster.nodes[0].ask("varz")
    assert facts["max_pending"] == 64 * 2**20 and facts["write_deadline"] == 10e9
    assert facts["ping_interval"] == 120e9 and facts["ping_max"] == 2


async def test_what_a_client_drops_by_itself_does_not_show_on_the_server(calm):
    dropped = []

    async def note(error):
        dropped.append(error)

    before = await slow_consumers(calm)
    reader = await calm.connect(error_cb=note)
    await reader.subscribe("ticks", pending_msgs_limit=10)
    await barrier(reader)
    for _ in range(5000):
        await calm.nc.publish("ticks")
    await calm.until(lambda: len(dropped) == 4990)
    assert await slow_consumers(calm) == before
    await reader.close()


async def slow_consumers(lab):
    answers = [await node.ask("varz") for node in lab.cluster.nodes]
    return [answer["slow_consumers"] for answer in answers]


async def test_a_drain_does_not_wait_for_tasks_that_callbacks_have_started(calm):
    started, ended = set(), []

    async def work():
        await asyncio.sleep(0.5)
        ended.append(True)

    async def callback(msg):
        started.add(asyncio.create_task(work()))

    client = await calm.connect()
    await client.subscribe("jobs", cb=callback)
    await client.publish("jobs")
    await calm.until(lambda: started)
    await client.drain()
    assert client.is_closed and not ended
    await asyncio.gather(*started)

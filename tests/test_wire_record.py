"""The wire between real clients and real servers: what it records, and how it ends."""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import nats
import psutil
import pytest

from conftest import barrier
from labkit import LabError
from labkit.cluster import lifecycle
from labkit.cluster.readiness import settled
from labkit.cluster.streams import delete_all, stream_names
from labkit.system.ports import is_free
from labkit.waiting import until as until_within
from labkit.wire import tap
from labkit.wire.tap import Wire

until = functools.partial(until_within, timeout=15)


@pytest.fixture
async def cluster(shared):
    return await lifecycle.find_or_start()


@pytest.fixture
def wire(cluster):
    wire = Wire({node.name: ("127.0.0.1", node.port) for node in cluster.nodes})
    yield wire
    wire.close()


@pytest.fixture
async def client(cluster, wire):
    """Makes clients on the wire."""
    made = []

    async def ignore(error):
        pass

    async def connect(name, **options):
        login = cluster.login("checks") | {"servers": wire.urls, "dont_randomize": True}
        more = {"name": name, "error_cb": ignore, "reconnect_time_wait": 0.05}
        made.append(await nats.connect(**login | more | options))
        return made[-1]

    yield connect
    for one in made:
        await one.close()


@pytest.fixture
async def js(cluster, client):
    """A JetStream context of the client "A", in an account without streams."""
    await delete_streams(cluster)
    yield (await client("A")).jetstream()
    await delete_streams(cluster)  # another test may want an empty account


async def delete_streams(cluster):
    # On the node where the test asks: an account's first request there makes the subscription on
    # which all its answers come, and on a busy machine its own answer may be faster than that.
    direct = await nats.connect(**cluster.login("checks"), dont_randomize=True)
    await delete_all(direct, await stream_names(direct))
    await direct.close()
    # Until the files are gone, a node may refuse the next stream (10049).
    await until(lambda: not any(files(node) for node in cluster.nodes))


def files(node):
    """What this node keeps of the account's streams (list of paths)."""
    return list(Path(node.store).glob("jetstream/CHECKS/streams/*"))


async def orders(js, **config):
    """Makes a stream ORDERS whose leader answers, with a consumer "work" that acks explicitly."""
    await js.add_stream(name="ORDERS", subjects=["orders.*"])
    await js.add_consumer("ORDERS", durable_name="work", ack_policy="explicit", **config)

    async def is_ready():
        with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
            await js.publish("orders.new", b"", headers={"Nats-Expected-Stream": "another"})
        with contextlib.suppress(nats.js.errors.ServiceUnavailableError, TimeoutError):
            sub = await js.pull_subscribe_bind("work", "ORDERS")
            with contextlib.suppress(TimeoutError):
                await sub.fetch(1, timeout=0.1)
            return sub
        return None

    return await until(is_ready)


def kinds(wire, *keys, **fields):
    return [tuple(event.get(key) for key in ("kind", *keys)) for event in wire.all(**fields)]


# --- what it records


async def test_core_nats(wire, client):
    one, two = await client("A"), await client("B")
    await two.subscribe("a.*", queue="workers")
    await barrier(two)
    await one.publish("a.b", b"hello", headers={"x": "y"})
    await until(lambda: wire.count("delivered"))
    connected = wire.all("connected")
    assert [(event["client"], event["node"]) for event in connected] == [("A", "n1"), ("B", "n1")]
    assert connected[0]["library"].startswith("python3 2.")
    published, delivered = wire.last("published"), wire.last("delivered")
    assert wire.last("subscribed")["queue"] == "workers"
    assert delivered["of"] == published["number"]
    assert 0 <= published["at"] <= delivered["at"] < 60
    for event in (published, delivered):
        assert (event["subject"], event["payload"], event["headers"]) == (
            "a.b",
            "hello",
            {"x": "y"},
        )
    assert wire.count("published", client="B") == 0 and wire.count("published", client="A") == 1
    await two.close()
    await until(lambda: wire.count("disconnected", client="B", by="client"))


async def test_requests(wire, client):
    one, two = await client("A"), await client("B")

    async def answer(msg):
        await msg.respond(b"pong")

    await two.subscribe("svc", cb=answer)
    await barrier(two)
    assert (await one.request("svc", b"ping")).data == b"pong"
    with pytest.raises(nats.errors.NoRespondersError):
        await one.request("nobody", b"ping")
    assert kinds(wire, "client", "subject")[-6:-2] == [
        ("requested", "A", "svc"),
        ("delivered", "B", "svc"),
        ("replied", "B", wire.last("replied")["subject"]),
        ("delivered", "A", wire.last("replied")["subject"]),
    ]
    assert wire.last("no responders")["of"] == wire.last("requested", subject="nobody")["number"]


async def test_without_acks_nothing_expires(wire, client, js):
    await orders(js)
    sub = await js.subscribe("orders.new", config=nats.js.api.ConsumerConfig(ack_policy="none"))
    wire.clear()
    await js.publish("orders.new", b"x")
    msg = await sub.next_msg(timeout=5)
    assert msg.metadata.num_delivered == 1
    await until(lambda: wire.count("delivered"))
    assert wire.last("delivered")["seq"] == msg.metadata.sequence.stream
    assert wire.count("acked") == wire.count("expired") == 0


async def test_two_equal_orders_in_a_stream_are_told_apart(wire, js):
    sub = await orders(js)
    wire.clear()
    for _ in range(2):
        await js.publish("orders.new", b"the same")
    await sub.fetch(2)
    published = [event["number"] for event in wire.all("published")]
    assert [event["of"] for event in wire.all("delivered")] == published


async def test_hidden_unless_it_is_asked_for(wire, js):
    await orders(js)
    assert wire.count() and not any("hidden" in event for event in wire.all())
    assert wire.count("api") >= 4  # a stream, a consumer, and the answers
    assert len(wire.table(hidden=True)) > len(wire.table())
    assert {event["hidden"] for event in wire.all(hidden=True) if "hidden" in event} >= {
        "api",
        "inbox",
    }


async def test_a_table_and_marks_in_their_place(wire, client):
    one = await client("A")
    await one.publish("a", b"1")
    await barrier(one)
    wire.mark("n2 is killed")
    await one.publish("a", b"2")
    await barrier(one)
    table = wire.table()
    hidden = [event for event in wire.all(hidden=True) if "hidden" in event]
    assert list(table.columns)[:8] == [
        *("at", "client", "kind", "subject", "stream", "consumer", "seq", "delivered")
    ]
    rows = table[table["kind"].isin(["published", "mark"])]
    assert rows["kind"].to_list() == ["published", "mark", "published"]
    assert rows["text"].to_list() == ["", "n2 is killed", ""]
    assert list(table.index) == [event["number"] for event in wire.all()]
    assert repr(wire) == f"<Wire to n1, n2, n3: {len(table)} events, {len(hidden)} hidden>"
    assert table["at"].is_monotonic_increasing
    assert str(table["seq"].dtype) == "Int64"


async def test_all_that_was_flushed_is_in_at_once(wire, client):
    one = await client("A")
    for turn in range(1, 21):
        await one.publish("a", b"x" * 1000)
        await barrier(one)
        assert wire.count("published") == turn


async def test_clear_forgets_and_still_understands_what_is_under_way(wire, js):
    sub = await orders(js)
    await js.publish("orders.new", b"x")
    [msg] = await sub.fetch(1)
    wire.clear()
    assert wire.all() == []
    await msg.ack()
    await barrier(js._nc)
    assert kinds(wire, "seq") == [("acked", 1)]


# --- lost, not seen


@pytest.mark.parametrize(
    "others, kind",
    [
        (None, "not seen"),
        (lambda: None, "not seen"),
        (lambda: (set(), []), "lost"),
        (lambda: (set(), ["a.>"]), "not seen"),
        (lambda: ({("N9", 9)}, []), "not seen"),
    ],
)
async def test_lost_or_not_seen(cluster, others, kind):
    wire = Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)}, others)
    one = await nats.connect(**cluster.login("checks") | {"servers": wire.urls})
    await one.publish("a.b", b"x")
    await barrier(one)
    assert wire.last()["kind"] == kind
    await one.close()
    wire.close()


# --- secrets, limits


async def test_no_password_is_in_the_record(cluster, wire, client):
    await client("A")
    raw = wire._do(lambda: wire._ask({"read": True, "most": 5000}))["events"]
    connects = [event for event in raw if event[2] == "CONNECT"]
    assert connects and "checks" in str(connects) and "lab'" not in str(connects)


async def test_without_payloads_the_kinds_are_the_same(cluster):
    await delete_streams(cluster)
    wire = Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)}, payloads=False)
    with contextlib.closing(wire):
        one = await nats.connect(**cluster.login("checks") | {"servers": wire.urls})
        js = one.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders"])
        await js.add_consumer("ORDERS", durable_name="work", ack_policy="explicit")
        await settled(one, "ORDERS")
        wire.clear()
        await js.publish("orders", b"secret", headers={"secret": "secret"})
        sub = await js.pull_subscribe_bind("work", "ORDERS")
        (msg,) = await sub.fetch(1, timeout=5)
        await msg.nak()
        (msg,) = await sub.fetch(1, timeout=5)
        await msg.term()
        await barrier(one)
        kinds = ("published", "stored", "delivered", "nak", "redelivered", "term")
        assert [event["kind"] for event in wire.all() if event["kind"] in kinds] == list(kinds)
        published = wire.last("published")
        assert published["size"] > 6 and "payload" not in published and "headers" not in published
        assert "secret" not in str(wire.all(hidden=True))
        await one.close()
    await delete_streams(cluster)


async def test_the_oldest_events_are_given_up_and_it_says_so(cluster):
    wire = Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)}, most=500)
    one = await nats.connect(**cluster.login("checks") | {"servers": wire.urls})
    for number in range(2000):
        await one.publish("a", b"%d" % number)
    await barrier(one)
    events = wire.all()
    assert len(events) <= 500 and wire.last("published")["payload"] == "1999"
    assert wire.forgotten >= 1500
    assert "forgotten" in wire.last("gap")["text"]
    await one.close()
    wire.close()


# --- servers that come and go


async def refused(url):
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def test_a_dead_server_refuses_and_one_that_is_back_does_not(server):
    port, process = server()
    wire = Wire({"n1": ("127.0.0.1", port)})
    one = await nats.connect(wire.url("n1"), allow_reconnect=False)
    process.kill()
    await until(lambda: one.is_closed and is_free(port))
    wire.look()  # else it may take some milliseconds
    await refused(wire.url("n1"))
    server(port=port)
    await until(lambda: not is_free(port))
    again = await until(lambda: connected(wire.url("n1")))
    await again.close()
    wire.close()


async def connected(url):
    with contextlib.suppress(OSError, nats.errors.Error):
        return await nats.connect(url, allow_reconnect=False)
    return None


async def test_a_server_that_clients_hear_of_later_is_on_the_wire_as_well(cluster):
    """Only n1 was named; the others stand in its INFO."""
    wire = Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)})
    one = await nats.connect(**cluster.login("checks") | {"servers": wire.urls})
    known = {server.uri.port for server in one._server_pool}
    assert not known & {node.port for node in cluster.nodes}
    names = {wire.name_at(port) for port in known}
    assert names == {"n1", *(f"127.0.0.1:{node.port}" for node in cluster.nodes[1:])}
    assert wire.name_at(1) is None
    await one.close()
    wire.close()


# --- what speaks no NATS, and ends of all kinds


async def until_idle(wire):
    """Until the proxy has no connection any more."""
    process = psutil.Process(wire._child.pid)
    await until(
        lambda: not [c for c in process.net_connections() if c.status != "LISTEN" and c.raddr]
    )


async def test_a_port_that_is_taken_is_said_and_leaves_no_process_and_no_socket(
    cluster, monkeypatch
):
    taken = []

    def taken_port():
        taken.append(reserved())
        taken[-1].listen()
        return taken[-1]

    reserved = tap._reserved
    monkeypatch.setattr(tap, "_reserved", taken_port)
    with pytest.raises(LabError, match="cannot listen: .*in use"):
        Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)})
    assert not any(str(tap.PROXY) in child.cmdline() for child in psutil.Process().children())
    assert [sock.fileno() for sock in taken] == [-1]


async def test_a_client_that_speaks_no_nats(wire):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(wire.url("n1").rpartition(":")[2])
    )
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"INFO ") and b"-ERR 'Unknown Protocol Operation'" in answer
    assert wire.last("unread")["text"] == "no operation of NATS: b'GET'"
    assert wire.last("unread")["client"] == "client 1"
    await until_idle(wire)


@pytest.mark.parametrize("how", ["closes", "half closes", "resets"])
async def test_no_connection_is_left_behind(wire, how):
    port = int(wire.url("n1").rpartition(":")[2])
    sock = socket.create_connection(("127.0.0.1", port))
    await until(lambda: wire.count("connected") or sock.recv(5) == b"INFO ")
    if how == "half closes":
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    elif how == "resets":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    await until(lambda: wire.count("disconnected", by="client"))
    await until_idle(wire)


async def test_a_server_that_ends_leaves_no_connection_behind(server):
    port, process = server()
    wire = Wire({"n1": ("127.0.0.1", port)})
    sock = socket.create_connection(("127.0.0.1", int(wire.url("n1").rpartition(":")[2])))
    assert sock.recv(5) == b"INFO "
    process.kill()
    while sock.recv(65536):
        pass
    assert wire.last("disconnected")["by"] == "server"
    sock.close()
    await until_idle(wire)
    wire.close()


async def test_a_client_that_reads_nothing_stops_neither_the_wire_nor_its_readers(wire, client):
    """Nobody reads while this test asks: the kernel is busy, and its client is the slow one."""
    one, two = await client("A"), await client("B")
    await two.subscribe("a")
    await barrier(two)
    for _ in range(300):
        await one.publish("a", b"x" * 100_000)
    await barrier(one)
    begin = time.monotonic()
    while wire.count("published") < 300 and time.monotonic() - begin < 20:
        time.sleep(0.05)  # the loop stands still, and with it the reader of B
    assert wire.count("published") == 300
    assert 0 < wire.count("delivered") <= 300


async def test_a_wire_that_is_killed_comes_back_on_the_same_ports(wire, client):
    one = await client("A", max_reconnect_attempts=-1)
    await one.publish("a", b"before")
    await barrier(one)
    assert wire.count("published") == 1
    before = wire.urls
    psutil.Process(wire._child.pid).kill()
    await until(lambda: wire.count("connected") == 2 and one.is_connected)
    assert wire.urls == before
    await one.publish("a", b"after")
    await barrier(one)
    assert kinds(wire, "payload")[-3:-1] == [("connected", None), ("published", "after")]
    gap = wire.last("gap")
    assert wire.last("disconnected", by="wire")["client"] == "A"
    assert gap["at"] < wire.last("connected")["at"] and "started again" in gap["text"]


async def test_a_closed_wire_leaves_nothing_and_says_that_it_is_closed(cluster):
    wire = Wire({"n1": ("127.0.0.1", cluster.nodes[0].port)})
    port = int(wire.url("n1").rpartition(":")[2])
    pid = wire._child.pid
    wire.close()
    wire.close()
    assert not psutil.pid_exists(pid) and is_free(port)
    with pytest.raises(LabError, match="closed"):
        wire.table()


KERNEL = """
import os, sys, time
from labkit.wire.tap import Wire
wire = Wire({"n1": ("127.0.0.1", int(sys.argv[1]))})
print(wire._child.pid, flush=True)
time.sleep(60)
"""


async def test_when_the_kernel_is_killed_the_proxy_goes(cluster):
    port = str(cluster.nodes[0].port)
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL, port], stdout=subprocess.PIPE)
    pid = int(kernel.stdout.readline())
    assert psutil.pid_exists(pid)
    kernel.kill()
    kernel.communicate()
    await until(lambda: not psutil.pid_exists(pid))


@pytest.mark.skipif(sys.platform == "win32", reason="it has no signal for one's own use")
async def test_an_interrupt_while_it_reads_spoils_nothing(wire, client):
    one = await client("A")
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    sent = 0
    try:
        for turn in range(30):
            for _ in range(200):
                await one.publish("a", b"%d" % sent)
                sent += 1
            await barrier(one)
            delay = 0.0005 + turn * 0.0002
            stop = threading.Timer(delay, os.kill, [os.getpid(), signal.SIGUSR1])
            with pytest.raises(KeyboardInterrupt):
                stop.start()
                while True:
                    wire.all()
    finally:
        signal.signal(signal.SIGUSR1, before)
    payloads = [event["payload"] for event in wire.all("published")]
    assert payloads == [str(number) for number in range(sent)]

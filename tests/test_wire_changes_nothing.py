"""The wire changes nothing of what it shows. Each scenario runs twice on real servers, directly and
through the wire, and has to come out the same; and directly, as it says it does: a scenario that
shows nothing proves nothing.

A scenario is a function that gets a Way to connect, and perhaps something to break. It returns what
came of it, as plain data.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
import zlib
from urllib.parse import urlsplit

import nkeys
import psutil
import pytest
from nats.aio.client import Client, RawCredentials
from nats.js.api import ConsumerConfig
from nats.js.errors import NoKeysError

from conftest import barrier
from labkit.cluster.connection import close_client
from labkit.cluster.readiness import UNANSWERED, settled
from labkit.waiting import until
from labkit.wire.tap import Wire

LOGIN = {"user": "checks", "password": "lab"}
# Bytes: HELD of labkit/wire/proxy.py, which only its own process can import.
HELD = (2 * 64 + 64 + 2 * 64) << 10
CALM = []  # scenarios on three nodes that nobody breaks
BROKEN = []  # scenarios on three nodes of their own, to break
PLAIN = []  # scenarios on one server with a configuration of its own
MANY = 1000  # clients


def room_for_many():
    """True if this process, and those that it starts, may have two sockets for each client."""
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3 * MANY


needs_room = pytest.mark.skipif(not room_for_many(), reason="too few open files are allowed")
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, a reset throws away what was not read before it"
)


def scenario_of(group, expected, *more, marks=()):
    """Makes a function a scenario of this group. expected: what it returns. more, marks: what its
    test gets besides."""

    def add(function):
        group.append(pytest.param(function, expected, *more, id=function.__name__, marks=marks))
        return function

    return add


class Way:
    """How a scenario gets to its servers. Called, it connects a plain client."""

    def __init__(self, ports, login):
        """ports: {name of a server: port}. login: options for nats.connect."""
        self.ports = ports
        self.login = login
        self.errors = []  # what the clients' error_cb got
        self._clients = []
        self._sockets = []
        self.wire = None  # the Wire that it leads through

    async def __call__(self, node=None, **options):
        """node: name of the server (default: the first that answers). options: those of
        nats.connect."""
        client = Client()
        self._clients.append(client)
        ports = [self.ports[node]] if node else self.ports.values()
        settings = {
            "servers": [f"nats://127.0.0.1:{port}" for port in ports],
            "dont_randomize": True,
            "error_cb": self._note,
            "reconnect_time_wait": 0.1,
        }
        await client.connect(**{**settings, **self.login, **options})
        return client

    async def _note(self, error):
        self.errors.append(error)

    @property
    def kinds(self):
        """The types of the errors (sorted list of names)."""
        return sorted({type(error).__name__ for error in self.errors})

    @property
    def consequences(self):
        """As kinds, where a server has ended: the system resets a connection to it if there was
        something that it had not read, such as a PONG, and ends it otherwise."""
        ends = {"UnexpectedEOF", "ConnectionResetError"}
        return sorted({"the end" if kind in ends else kind for kind in self.kinds})

    def node_at(self, url):
        """The name of the server at this address; None if it is none that was given."""
        return {port: name for name, port in self.ports.items()}.get(url.port)

    def socket(self, node=None, **options):
        """A client that is nothing but a Socket."""
        made = Socket(self.ports[node] if node else next(iter(self.ports.values())), **options)
        self._sockets.append(made)
        return made

    @contextlib.asynccontextmanager
    async def busy_wire(self):
        """While the block runs, the wire does nothing, if there is one: its process waits for its
        turn."""
        process = psutil.Process(self.wire._child.pid) if self.wire else None
        if process:
            process.suspend()
            await until(lambda: process.status() == psutil.STATUS_STOPPED, 10)
        try:
            yield
        finally:
            if process:
                process.resume()

    async def close(self):
        for made in self._sockets:
            made.close()
        clients = [client for client in self._clients if client._transport]
        await asyncio.gather(*(close_client(client, drain=False) for client in clients))


class Socket:
    """A connection that speaks the protocol by hand."""

    def __init__(self, port, receive_buffer=None):
        """receive_buffer: bytes that the system shall keep of what was not read."""
        self._sock = socket.socket()
        self._sock.settimeout(10)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._sock.connect(("127.0.0.1", port))
        self.info = json.loads(self.read_until(b"\r\n").removeprefix(b"INFO "))

    def log_in(self, user="checks", password="lab", **options):
        login = {"user": user, "pass": password, "verbose": False, **options}
        self.send(b"CONNECT " + json.dumps(login).encode() + b"\r\n")

    def send(self, data):
        self._sock.sendall(data)

    def ping(self):
        """Returns what came until the server had done all that it was told (bytes)."""
        self.send(b"PING\r\n")
        return self.read_until(b"PONG\r\n")

    def read_until(self, end):
        """Returns what comes, up to and with this end (bytes)."""
        data = b""
        while not data.endswith(end):
            byte = self._sock.recv(1)
            assert byte, f"the connection ended after {data}"
            data += byte
        return data

    def has_unread(self):
        return bool(select.select([self._sock], [], [], 0)[0])

    def read_to_the_end(self):
        """Returns all that still comes (bytes), and how it ends: "end" or "reset"."""
        pieces = []
        try:
            while piece := self._sock.recv(1 << 16):
                pieces.append(piece)
        except ConnectionResetError:
            return b"".join(pieces), "reset"
        return b"".join(pieces), "end"

    def close(self):
        self._sock.close()

    def reset(self):
        """Ends the connection as the system does for a process that is killed with messages
        unread."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


@contextlib.asynccontextmanager
async def directly(ports, login):
    way = Way(ports, login)
    try:
        yield way
    finally:
        await way.close()


@contextlib.asynccontextmanager
async def through_the_wire(ports, login):
    wire = Wire({name: ("127.0.0.1", port) for name, port in ports.items()})
    try:
        async with directly({name: urlsplit(wire.url(name)).port for name in ports}, login) as way:
            way.wire = wire
            yield way
            assert wire.all(), "it went through the wire"
    finally:
        wire.close()


async def compare(scenario, expected, prepare, login=LOGIN):
    """Runs the scenario both ways. prepare: an async function that returns the servers' ports by
    name, and what else the scenario gets (tuple)."""
    direct = await outcome(directly, scenario, prepare, login)
    assert direct == expected
    wired = await outcome(through_the_wire, scenario, prepare, login)
    assert wired == direct


async def outcome(way, scenario, prepare, login):
    ports, *things = await prepare()
    async with way(ports, login) as connect:
        return await scenario(connect, *things)


# --- what scenarios have in common


async def error_of(awaitable):
    """Waits for it, and returns the type of its error (name), or None."""
    try:
        await awaitable
    except Exception as error:
        return type(error).__name__
    return None


async def collected(client, subject, **options):
    """Subscribes, and returns a list that gets the payload of each message."""
    got = []

    async def take(message):
        got.append(message.data)

    await client.subscribe(subject, cb=take, **options)
    await barrier(client)
    return got


def noting(events, name):
    """A callback without arguments that notes the event of this name."""

    async def note():
        events.append(name)

    return note


def callbacks(events):
    """Options for a client that notes in this list what happens to it."""
    names = "disconnected", "reconnected", "closed", "lame_duck_mode"
    return {f"{name}_cb": noting(events, name) for name in names}


def numbered(count, size=0):
    """Payloads that begin with their number, from 0 (list of bytes)."""
    return [str(number).encode().ljust(size, b".") for number in range(count)]


def numbers(payloads):
    """The numbers of such payloads (list)."""
    return [int(payload.rstrip(b".")) for payload in payloads]


async def publish_all(client, subject, payloads):
    for payload in payloads:
        await client.publish(subject, payload)
    await client.flush()


async def new_stream(client, messages=0, **config):
    """Creates the stream ORDERS with so many messages. Returns the JetStream context."""
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.*"], **config)
    await settled(client, "ORDERS")
    for payload in numbered(messages):
        await js.publish("orders.new", payload)
    return js


async def new_consumer(js, **config):
    """Creates a consumer of ORDERS. Returns its pull subscription."""
    await js.add_consumer("ORDERS", durable_name="worker", **{"ack_policy": "explicit", **config})
    await settled(js._nc, "ORDERS")
    return await js.pull_subscribe_bind("worker", "ORDERS")


async def taken(sub, count):
    """Fetches until it has so many messages."""
    messages = []
    while len(messages) < count:
        messages += await sub.fetch(count - len(messages), timeout=5)
    return messages


def deliveries(messages):
    """The number of each message in its stream, and of its delivery (list of pairs)."""
    found = [message.metadata for message in messages]
    return [(one.sequence.stream, one.num_delivered) for one in found]


# --- core NATS


@scenario_of(CALM, ("NoRespondersError", "NoStreamResponseError"))
async def nobody_answers_and_that_is_said(connect):
    client = await connect()
    asked = await error_of(client.request("nobody", b"", timeout=5))
    published = await error_of(client.jetstream().publish("nobody", b"", timeout=5))
    return asked, published


@scenario_of(CALM, ("TimeoutError", [b"Are you there?"]))
async def nobody_answers_in_time(connect):
    asked = await collected(await connect(), "question")
    client = await connect()
    error = await error_of(client.request("question", b"Are you there?", timeout=0.3))
    return error, asked


@scenario_of(CALM, (list(range(300)), [True, True, True]))
async def a_queue_group_shares_the_messages(connect):
    members = [await collected(await connect(), "work", queue="workers") for _ in range(3)]
    await publish_all(await connect(), "work", numbered(300))
    await until(lambda: sum(map(len, members)) >= 300, 10)
    return sorted(numbers(sum(members, []))), [len(got) > 0 for got in members]


@scenario_of(CALM, list(range(2000)))
async def messages_of_one_publisher_keep_their_order(connect):
    got = await collected(await connect(), "news")
    await publish_all(await connect(), "news", numbered(2000))
    await until(lambda: len(got) >= 2000, 10)
    return numbers(got)


# Around the sizes of buffers, up to the largest that a server takes.
SIZES = [0, 1, 2, 1023, 1024, 1025, 4096, 65_534, 65_535, 65_536, 65_537, 131_072, 1_000_000]
LETTERS = [random.Random(size).randbytes(size) for size in SIZES] + [b"\r\n", b"PUB a 1\r\nx\r\n"]
LABELS = {"Kind": "a letter", "Place": "Köln"}


@scenario_of(
    CALM,
    [
        (f"letters.{i}", f"answers.{i}", LABELS if i % 2 else None, len(data), zlib.crc32(data))
        for i, data in enumerate(LETTERS)
    ],
)
async def each_message_arrives_as_it_was(connect):
    reader = await connect()
    sub = await reader.subscribe("letters.*")
    await barrier(reader)
    writer = await connect()
    for i, data in enumerate(LETTERS):
        labels = LABELS if i % 2 else None
        await writer.publish(f"letters.{i}", data, reply=f"answers.{i}", headers=labels)
    got = [await sub.next_msg(timeout=10) for _ in LETTERS]
    return [(m.subject, m.reply, m.headers, len(m.data), zlib.crc32(m.data)) for m in got]


@scenario_of(CALM, (["SlowConsumerError"], 89, list(range(11))))
async def a_client_is_too_slow_for_its_subscription(connect):
    client = await connect()
    handled = []
    go_on = asyncio.Event()

    async def handle(message):
        handled.append(message.data)
        await go_on.wait()

    sub = await client.subscribe("flood", cb=handle, pending_msgs_limit=10)
    publisher = await connect()
    await barrier(client)
    first, *others = numbered(100)
    await publisher.publish("flood", first)
    await until(lambda: handled, 5)  # from here on, it holds one, and ten wait
    await publish_all(publisher, "flood", others)
    await until(lambda: sub.delivered == 100, 10)
    go_on.set()
    await until(lambda: len(handled) == 11, 5)
    return connect.kinds, len(connect.errors), numbers(handled)


@scenario_of(CALM, (list(range(200)), ["disconnected", "closed"], []))
async def a_drain_handles_what_has_come(connect):
    events, handled = [], []
    client = await connect(**callbacks(events))
    go_on = asyncio.Event()

    async def handle(message):
        await go_on.wait()
        handled.append(message.data)

    sub = await client.subscribe("work", cb=handle)
    await barrier(client)
    await publish_all(await connect(), "work", numbered(200))
    await until(lambda: sub.delivered == 200, 10)
    draining = asyncio.ensure_future(client.drain())
    await until(lambda: client.is_draining, 5)
    go_on.set()
    await draining
    return numbers(handled), events, connect.kinds


@scenario_of(CALM, (1 << 20, "MaxPayloadError", [1 << 20]))
async def the_largest_message_passes_and_no_larger_one(connect):
    client = await connect()
    got = await collected(client, "large")
    error = await error_of(client.publish("large", bytes(client.max_payload + 1)))
    await client.publish("large", bytes(client.max_payload))
    await until(lambda: got, 10)
    return client.max_payload, error, [len(data) for data in got]


@scenario_of(CALM, (MANY, [f"mine.{number}".encode() for number in range(MANY)]), marks=needs_room)
async def a_thousand_clients_at_once(connect):
    inboxes = []
    for first in range(0, MANY, 100):
        names = [f"mine.{number}" for number in range(first, first + 100)]
        clients = await asyncio.gather(*(connect(connect_timeout=10) for _ in names))
        inboxes += await asyncio.gather(*map(collected, clients, names))
    publisher = await connect()
    for number in range(MANY):
        await publisher.publish(f"mine.{number}", f"mine.{number}".encode())
    await until(lambda: sum(map(len, inboxes)) >= MANY, 10)
    return len(inboxes), sum(inboxes, [])


# --- JetStream


@scenario_of(CALM, ([(1, 1), (2, 1), (3, 1)], [(1, 2), (2, 2), (3, 2)]))
async def messages_come_again_after_the_ack_wait(connect):
    js = await new_stream(await connect(), messages=3)
    sub = await new_consumer(js, ack_wait=0.5)
    once = await taken(sub, 3)
    again = await taken(sub, 3)
    return deliveries(once), deliveries(again)


@scenario_of(CALM, ([(1, 1), (1, 2)], 0))
async def a_nak_brings_the_message_at_once(connect):
    js = await new_stream(await connect(), messages=1)
    sub = await new_consumer(js)
    (once,) = await taken(sub, 1)
    await once.nak()
    (again,) = await taken(sub, 1)
    await again.ack_sync()
    return deliveries([once, again]), (await sub.consumer_info()).num_ack_pending


@scenario_of(CALM, ([(1, 1), (1, 2)], True))
async def a_nak_with_a_delay_brings_it_later(connect):
    js = await new_stream(await connect(), messages=1)
    sub = await new_consumer(js)
    (once,) = await taken(sub, 1)
    start = time.monotonic()
    await once.nak(delay=0.4)
    (again,) = await taken(sub, 1)
    return deliveries([once, again]), 0.4 <= time.monotonic() - start < 3


@scenario_of(CALM, ([(1, 1)], "TimeoutError", 0, 0))
async def a_term_ends_the_message(connect):
    js = await new_stream(await connect(), messages=1)
    sub = await new_consumer(js, ack_wait=0.3)
    (once,) = await taken(sub, 1)
    await once.term()
    error = await error_of(sub.fetch(1, timeout=0.7))
    info = await sub.consumer_info()
    return deliveries([once]), error, info.num_ack_pending, info.num_redelivered


@scenario_of(CALM, ([(1, 1)], [(1, 1), (1, 2)]))
async def in_progress_puts_off_the_next_delivery(connect):
    js = await new_stream(await connect(), messages=1)
    got = []

    async def take(message):
        got.append(message)

    await js.add_consumer(
        "ORDERS",
        durable_name="worker",
        deliver_subject="work",
        ack_policy="explicit",
        ack_wait=1,
    )
    await js._nc.subscribe("work", cb=take)
    await until(lambda: got, 5)
    for _ in range(15):  # 1.5 s, longer than the ack wait
        await got[0].in_progress()
        await asyncio.sleep(0.1)
    meanwhile = deliveries(got)
    await until(lambda: len(got) == 2, 5)
    return meanwhile, deliveries(got)


@scenario_of(CALM, (b"", "MsgAlreadyAckdError", b"", 0))
async def an_ack_is_confirmed_and_so_is_a_second_one(connect):
    client = await connect()
    js = await new_stream(client, messages=1)
    sub = await new_consumer(js)
    (message,) = await taken(sub, 1)
    confirmed = await message.ack_sync(timeout=5)
    error = await error_of(message.ack_sync())
    confirmed_again = await client.request(message.reply, b"+ACK", timeout=5)
    info = await sub.consumer_info()
    return confirmed.data, error, confirmed_again.data, info.num_ack_pending


@scenario_of(
    CALM,
    [
        ("404", "No Messages"),
        ("408", "Request Timeout"),
        ("409", "Message Size Exceeds MaxBytes"),
        ("408", "Request Timeout"),
        ("409", "Exceeded MaxWaiting"),
        ("409", "Consumer Deleted"),
    ],
)
async def a_pull_that_gets_nothing_is_told_why(connect):
    client = await connect()
    js = await new_stream(client)
    pulls = await new_consumer(js, max_ack_pending=1, max_waiting=1)
    inbox = client.new_inbox()
    sub = await client.subscribe(inbox)

    async def pull(**wish):
        subject = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.worker"
        await client.publish(subject, json.dumps(wish).encode(), reply=inbox)

    async def status():
        headers = (await sub.next_msg(timeout=5)).headers
        return headers["Status"], headers["Description"]

    await pull(batch=1, no_wait=True)
    found = [await status()]
    await pull(batch=1, expires=200_000_000)
    found.append(await status())
    await publish_all(client, "orders.new", numbered(2, size=100))
    await pull(batch=1, max_bytes=50, expires=5_000_000_000)
    found.append(await status())
    (unanswered,) = await taken(pulls, 1)
    await pull(batch=1, expires=200_000_000)  # there is one, and one is all that may be pending
    found.append(await status())
    await unanswered.ack_sync()
    await js.purge_stream("ORDERS")
    await pull(batch=1, expires=20_000_000_000)
    await pull(batch=1, expires=20_000_000_000)
    found.append(await status())
    await js.delete_consumer("ORDERS", "worker")
    found.append(await status())
    return found


@scenario_of(
    CALM, (list(range(2000)), list(range(1, 2001)), ["FlowControl Request", "Idle Heartbeat"], [])
)
async def a_push_consumer_with_flow_control_and_heartbeats(connect):
    client, spy = await connect(), await connect()
    js = await new_stream(client, storage="memory")
    got, told = [], set()

    async def take(message):
        got.append(message)

    async def overhear(message):
        if message.headers:
            told.add(message.headers["Description"])

    await spy.subscribe("work", cb=overhear)
    await barrier(spy)
    await js.subscribe(
        "orders.*",
        cb=take,
        config=ConsumerConfig(deliver_subject="work"),
        flow_control=True,
        idle_heartbeat=0.5,
    )
    await publish_all(client, "orders.new", numbered(2000, size=1024))
    await until(lambda: len(got) >= 2000 and len(told) == 2, 15)
    seqs = [seq for seq, _ in deliveries(got)]
    return numbers(message.data for message in got), seqs, sorted(told), connect.kinds


@scenario_of(
    CALM,
    (list(range(200)), ["disconnected", "reconnected"], ["UnexpectedEOF"], "n2"),
)
async def an_ordered_consumer_outlives_its_connection(connect):
    events, got = [], []
    admin = await connect("n1", user="sys")
    publisher = await connect("n1")
    js = await new_stream(publisher, storage="memory")

    async def take(message):
        got.append(message.data)

    client = await connect(**callbacks(events))
    await client.jetstream().subscribe(
        "orders.*", cb=take, ordered_consumer=True, idle_heartbeat=0.5
    )
    before, after = numbered(200)[:100], numbered(200)[100:]
    await publish_all(publisher, "orders.new", before)
    await until(lambda: len(got) >= 100, 10)
    server = client._server_info["server_id"]
    await admin.request(
        f"$SYS.REQ.SERVER.{server}.KICK", json.dumps({"cid": client.client_id}).encode(), timeout=5
    )
    for payload in after:  # some of it while the client is not there
        await js.publish("orders.new", payload)
    await until(lambda: len(got) >= 200, 15)
    return numbers(got), list(events), connect.kinds, connect.node_at(client.connected_url)


@scenario_of(
    CALM,
    (
        [
            ("color", b"red", 1, None),
            ("color", b"green", 2, None),
            ("size", b"XL", 3, None),
            ("color", None, 4, "DEL"),
        ],
        [(b"red", 1), (b"green", 2), (None, 4)],
        "KeyNotFoundError",
    ),
)
async def a_bucket_of_keys_and_values(connect):
    js = (await connect()).jetstream()
    bucket = await js.create_key_value(bucket="SHOP", history=5)
    await settled(js._nc, "KV_SHOP")
    watcher = await bucket.watchall()
    assert await watcher.updates() is None, "nothing yet"
    await bucket.put("color", b"red")
    await bucket.put("color", b"green")
    await bucket.put("size", b"XL")
    await bucket.delete("color")
    seen = [await watcher.updates() for _ in range(4)]
    await watcher.stop()
    history = await until(lambda: history_of(bucket, "color"), 10)
    return (
        [(one.key, one.value or None, one.revision, one.operation) for one in seen],
        [(one.value or None, one.revision) for one in history],
        await error_of(bucket.get("color")),
    )


async def history_of(bucket, key):
    # nats-py 2.16 asks the consumer how much is left. If all has left the server by then, and none
    # has arrived, it finds no keys.
    with contextlib.suppress(NoKeysError):
        return await bucket.history(key)


OBJECT = random.Random(1).randbytes(1 << 20)


@scenario_of(CALM, [hashlib.sha256(OBJECT).digest()] * 2)
async def an_object_of_a_megabyte(connect):
    js = (await connect()).jetstream()
    store = await js.create_object_store(bucket="FILES")
    await settled(js._nc, "OBJ_FILES")
    put = await store.put("picture", OBJECT)
    got = await store.get("picture")
    digest = base64.urlsafe_b64decode(put.digest.removeprefix("SHA-256="))
    return [digest, hashlib.sha256(got.data).digest()]


# --- a socket, and each byte that it gets


@scenario_of(CALM, (b"-ERR 'Maximum Payload Violation'\r\n", "end"))
async def a_message_that_is_too_large_ends_the_connection(connect):
    client = connect.socket()
    client.log_in()
    client.ping()
    client.send(b"PUB large 1048577\r\n")
    return client.read_to_the_end()


@scenario_of(CALM, (b"-ERR 'Unknown Protocol Operation'\r\n", "end"))
async def nonsense_ends_the_connection(connect):
    client = connect.socket()
    client.log_in()
    client.ping()
    client.send(b"XYZ")
    return client.read_to_the_end()


@scenario_of(CALM, (b"-ERR 'Authorization Violation'\r\n", "end"))
async def a_wrong_password_ends_the_connection(connect):
    client = connect.socket()
    client.log_in(password="wrong")
    return client.read_to_the_end()


SPOKEN = [
    b"sub\tnews  1\r\n",
    b"PUB news 5\r\nhello\r\n",
    b"pub\tnews\tanswers\t2\r\n\r\n\r\n",
    b"hpub news 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"Unsub 1\r\n",
    b"PUB news 0\r\n\r\n",
    b"ping\r\n",
]
HEARD = (
    b"+OK\r\n+OK\r\n"
    b"+OK\r\nMSG news 1 5\r\nhello\r\n"
    b"+OK\r\nMSG news 1 answers 2\r\n\r\n\r\n"
    b"+OK\r\nHMSG news 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    b"+OK\r\n+OK\r\nPONG\r\n"
)


@scenario_of(CALM, [HEARD, HEARD, HEARD])
async def a_verbose_server_confirms_each_operation(connect):
    heard = []
    whole = b"".join(SPOKEN)
    single_bytes = [bytes([byte]) for byte in whole]
    for pieces in (SPOKEN, [whole], single_bytes):
        client = connect.socket()
        client.log_in(verbose=True, headers=True)
        for piece in pieces:
            client.send(piece)
        heard.append(client.read_until(b"PONG\r\n"))
    return heard


@scenario_of(CALM, list(range(2000)))
async def what_a_client_says_before_its_end_arrives(connect):
    got = await collected(await connect(), "news")
    client = connect.socket()
    client.log_in()
    client.ping()
    client.send(b"".join(b"PUB news 100\r\n%b\r\n" % data for data in numbered(2000, size=100)))
    client.close()
    await until(lambda: len(got) >= 2000, 10)
    return numbers(got)


PUBLISHED = b"PUB news 1000\r\n" + bytes(1000) + b"\r\n"
DELIVERED = b"MSG news 1 1000\r\n" + bytes(1000) + b"\r\n"


@scenario_of(CALM, (True, "end"))
async def what_a_server_says_before_its_end_arrives(connect):
    client = connect.socket()
    client.log_in()
    client.send(b"SUB news 1\r\n" + 1000 * PUBLISHED + b"XYZ\r\n")
    said, end = client.read_to_the_end()
    return said == 1000 * DELIVERED + b"-ERR 'Unknown Protocol Operation'\r\n", end


@scenario_of(CALM, (b"-ERR 'Maximum Payload Violation'\r\n", "reset"), marks=needs_linux)
async def a_server_resets_what_it_does_not_read(connect):
    client = connect.socket()
    client.log_in()
    client.ping()
    client.send(b"PUB large 1048577\r\n" + bytes(10_000))  # it reads the first of them only
    return client.read_to_the_end()


@scenario_of(CALM, ["Client Closed", "Read Error"], marks=needs_linux)
async def a_server_knows_how_its_client_ended(connect):
    admin = await connect("n1", user="sys")
    closed, reset = connect.socket("n1"), connect.socket("n1")
    for client in (closed, reset):
        client.log_in()
        client.ping()
    closed.close()
    reset.reset()
    return [await until(lambda: reason_of_end(admin, one.info), 10) for one in (closed, reset)]


SEEN = {
    "name": "reader",
    "lang": "python3",
    "in_msgs": 1,
    "in_bytes": 5,
    "out_msgs": 2,
    "out_bytes": 12,
    "pending_bytes": 0,
    "subscriptions": 1,
    "subscriptions_list": ["news"],
}


@scenario_of(CALM, SEEN)
async def a_server_sees_the_same_client(connect):
    admin = await connect("n1", user="sys")
    client = await connect("n1", name="reader")
    got = await collected(client, "news")
    await client.publish("news", b"hello")
    await publish_all(await connect("n1"), "news", [b"world!!"])
    await until(lambda: len(got) == 2, 5)
    wish = {"cid": client.client_id, "subscriptions": True}
    seen = await connection_of(admin, client._server_info, **wish)
    return {key: seen[key] for key in SEEN}


async def connection_of(admin, info, **wish):
    """What this server tells of a connection (dict), or None. info: its INFO. wish: see
    ConnzOptions of nats-server."""
    subject = f"$SYS.REQ.SERVER.{info['server_id']}.CONNZ"
    answer = await admin.request(subject, json.dumps(wish).encode(), timeout=5)
    return next(iter(json.loads(answer.data)["data"]["connections"]), None)


async def reason_of_end(admin, info):
    """Why this server closed the connection of this INFO; None if it has not."""
    found = await connection_of(admin, info, cid=info["client_id"], state=1)
    return found and found["reason"]


# --- nodes that break


@scenario_of(BROKEN, (["disconnected", "reconnected"], ["the end"], "n2", [b"before", b"after"]))
async def a_client_moves_on_when_its_node_is_killed(connect, lab):
    events = []
    client = await connect(**callbacks(events))
    got = await collected(client, "news")
    await client.publish("news", b"before")
    await until(lambda: got, 5)
    await lab.faults.kill("n1")
    await until(lambda: "reconnected" in events, 10)
    await client.publish("news", b"after")
    await until(lambda: len(got) == 2, 5)
    return list(events), connect.consequences, connect.node_at(client.connected_url), got


@scenario_of(BROKEN, (["n1", "n2", "n3"], ["disconnected", "reconnected"], True, [b"after"]))
async def a_client_moves_on_to_a_node_that_it_was_told_of(connect, lab):
    events = []
    client = await connect("n1", **callbacks(events))
    await until(lambda: len(client.servers) == 3, 10)
    known = sorted(str(connect.node_at(url)) for url in client.servers)
    got = await collected(client, "news")
    await lab.faults.kill("n1")
    await until(lambda: "reconnected" in events, 10)
    await client.publish("news", b"after")
    await until(lambda: got, 5)
    return known, list(events), connect.node_at(client.connected_url) in ("n2", "n3"), got


@scenario_of(BROKEN, ("NoServersError", ["ConnectionRefusedError"], "ConnectionRefusedError"))
async def a_node_that_was_killed_refuses(connect, lab):
    events = []
    await connect("n1", **callbacks(events))
    await lab.faults.kill("n1")
    await until(lambda: "reconnected" in events, 10)
    connect.errors.clear()
    only_this = {"allow_reconnect": False, "max_reconnect_attempts": 1}
    error = await error_of(connect("n1", **only_this))
    by_hand = await error_of(asyncio.to_thread(connect.socket, "n1"))
    return error, connect.kinds, by_hand


@scenario_of(
    BROKEN,
    (["disconnected", "reconnected"], ["ConnectionResetError"], "n2"),
    marks=needs_linux,
)
async def a_node_is_killed_that_has_not_read_all(connect, lab):
    events = []
    client = await connect(**callbacks(events))
    await lab.faults.pause("n1")
    await client.publish("news", b"unread")
    await until(lambda: not client.pending_data_size, 5)
    await lab.faults.kill("n1")
    await until(lambda: "reconnected" in events, 10)
    return list(events), connect.kinds, connect.node_at(client.connected_url)


@scenario_of(BROKEN, ("TimeoutError", ["TimeoutError"], "FlushTimeoutError", False, [b"after"]))
async def a_node_that_stands_still_is_silent_and_goes_on(connect, lab):
    client = await connect("n1")
    impatient = await connect("n1")
    got = await collected(client, "news")
    await lab.faults.pause("n1")
    refused = await error_of(connect("n1", connect_timeout=0.5, allow_reconnect=False))
    # After a flush that has timed out, nats-py 2.16 can read nothing more: that client has to go.
    gave_up = await error_of(impatient.flush(timeout=0.5))
    await close_client(impatient, drain=False)
    flushing = asyncio.ensure_future(client.flush(timeout=20))
    await asyncio.wait([flushing], timeout=0.5)
    was_flushed = flushing.done()
    await lab.faults.resume("n1")
    await flushing
    await client.publish("news", b"after")
    await until(lambda: got, 5)
    return refused, connect.kinds, gave_up, was_flushed, got


@scenario_of(BROKEN, list(range(200)))
async def an_ordered_consumer_outlives_its_leader(connect, lab):
    publisher = await connect()
    js = await new_stream(publisher, num_replicas=3)
    got = []

    async def take(message):
        got.append(message.data)

    home = await lab.wait_for_leader()  # of the meta group: without it, all takes longer
    client = await connect(home)
    leader = home
    while leader == home:  # the client's own node shall stay
        got.clear()
        sub = await client.jetstream(timeout=1).subscribe(
            "orders.*", cb=take, ordered_consumer=True, idle_heartbeat=0.3
        )
        info = await sub.consumer_info()
        leader = info.cluster.leader
        if leader == home:
            await sub.unsubscribe()
    before, after = numbered(200)[:100], numbered(200)[100:]
    await publish_all(publisher, "orders.new", before)
    await until(lambda: len(got) >= 100, 10)
    await lab.faults.kill(leader)
    for payload in after:
        await publish_until_stored(js, payload)
    await until(lambda: len(got) >= 200 and sub._consumer != info.name, 20)
    return numbers(got)


async def publish_until_stored(js, payload):
    async def stored():
        with contextlib.suppress(*UNANSWERED):
            headers = {"Nats-Msg-Id": payload.decode()}
            return await js.publish("orders.new", payload, timeout=0.5, headers=headers)

    await until(stored, 20)


# --- one server with a configuration of its own

USER, STRANGER, ACCOUNT, OPERATOR = (
    nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))
    for kind in (
        nkeys.PREFIX_BYTE_USER,
        nkeys.PREFIX_BYTE_USER,
        nkeys.PREFIX_BYTE_ACCOUNT,
        nkeys.PREFIX_BYTE_OPERATOR,
    )
)


def token(issuer, subject, **claims):
    """A JWT of NATS: the claims about `subject`, signed by `issuer`."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {
        "jti": "test",
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": claims["type"],
        "nats": {"version": 2, **claims},
    }
    text = f"{part(json.dumps(head).encode())}.{part(json.dumps(body).encode())}"
    return f"{text}.{part(issuer.sign(text.encode()))}"


def credentials(user):
    """The credentials of USER, signed by this user."""
    jwt = token(ACCOUNT, USER, type="user", subs=-1, data=-1, payload=-1)
    return RawCredentials(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )


UNLIMITED = dict.fromkeys(["subs", "data", "payload", "imports", "exports", "conn", "leaf"], -1)
ACCOUNT_TOKEN = token(OPERATOR, ACCOUNT, type="account", limits={**UNLIMITED, "wildcards": True})
WITH_NKEYS = f"authorization {{ users: [ {{ nkey: {USER.public_key.decode()} }} ] }}"
WITH_TOKENS = f"""
operator: {token(OPERATOR, OPERATOR, type="operator")}
resolver: MEMORY
resolver_preload: {{ {ACCOUNT.public_key.decode()}: {ACCOUNT_TOKEN} }}
"""
LATE = "authorization { user: checks, password: lab, timeout: 0.3 }"
WITH_PERMISSIONS = """
authorization {
  users: [{ user: checks, password: lab, permissions: { publish: news, subscribe: news } }]
}
"""
KEY, WRONG_KEY = ({"nkeys_seed_str": user.seed.decode()} for user in (USER, STRANGER))
TOKEN, WRONG_TOKEN = ({"user_credentials": credentials(user)} for user in (USER, STRANGER))


@scenario_of(PLAIN, ([b"hello"], "Error", ["Error"]), WITH_NKEYS, KEY)
async def a_login_with_a_key(connect):
    return await logged_in(connect, WRONG_KEY)


@scenario_of(PLAIN, ([b"hello"], "Error", ["Error"]), WITH_TOKENS, TOKEN)
async def a_login_with_a_token(connect):
    return await logged_in(connect, WRONG_TOKEN)


async def logged_in(connect, wrong):
    client = await connect()
    got = await collected(client, "news")
    await client.publish("news", b"hello")
    await until(lambda: got, 5)
    refused = await error_of(connect(allow_reconnect=False, **wrong))
    return got, refused, connect.kinds


@scenario_of(PLAIN, (b"-ERR 'Authentication Timeout'\r\n", "end"), LATE, LOGIN)
async def a_client_that_does_not_log_in(connect):
    return connect.socket().read_to_the_end()


@scenario_of(
    PLAIN,
    (b"PONG\r\nPING\r\n-ERR 'Stale Connection'\r\n", "end"),
    'ping_interval: "0.5s", ping_max: 1',
    {},
)
async def a_client_that_does_not_answer_pings(connect):
    client = connect.socket()
    client.log_in()
    client.send(b"PING\r\n")
    return client.read_to_the_end()


@scenario_of(PLAIN, (b"-ERR 'maximum connections exceeded'\r\n", "end"), "max_connections: 1", {})
async def a_client_too_many(connect):
    await connect()
    return connect.socket().read_to_the_end()


@scenario_of(
    PLAIN,
    (
        [
            'nats: permissions violation for publish to "secret"',
            'nats: permissions violation for subscription to "secret"',
        ],
        [b"hello"],
    ),
    WITH_PERMISSIONS,
    LOGIN,
)
async def a_client_that_may_not_do_it(connect):
    client = await connect()
    got = await collected(client, "news")
    await client.publish("secret", b"hello")
    await client.subscribe("secret")
    await client.publish("news", b"hello")
    await until(lambda: got and len(connect.errors) == 2, 5)
    return [str(error) for error in connect.errors], got


# --- the tests


def ports_of(lab):
    return {node.name: node.port for node in lab.cluster.nodes}


async def delete_streams(lab):
    for stream in await lab.js.streams_info():
        await lab.js.delete_stream(stream.config.name)


@pytest.mark.parametrize("scenario, expected", CALM)
async def test_on_nodes_that_nobody_breaks(calm, scenario, expected):
    async def prepare():
        await delete_streams(calm)
        return (ports_of(calm),)

    await compare(scenario, expected, prepare)


@pytest.mark.parametrize("scenario, expected", BROKEN)
async def test_on_nodes_that_break(lab, scenario, expected):
    async def prepare():
        await lab.faults.heal()
        await delete_streams(lab)
        return ports_of(lab), lab

    await compare(scenario, expected, prepare)


@pytest.mark.parametrize("scenario, expected, config, login", PLAIN)
async def test_on_a_server_of_its_own(server, scenario, expected, config, login):
    port, _ = server(config)

    async def prepare():
        return ({"server": port},)

    await compare(scenario, expected, prepare, login)


LAME = 'lame_duck_grace_period: "0.3s", lame_duck_duration: "30s"'


async def a_client_leaves_a_lame_duck(connect, tell_to_go):
    events = []
    client = await connect(**callbacks(events))
    got = await collected(client, "news")
    tell_to_go()
    await until(lambda: "reconnected" in events, 10)
    await client.publish("news", b"after")
    await until(lambda: got, 5)
    return list(events), connect.kinds, connect.node_at(client.connected_url), got


@pytest.mark.skipif(sys.platform == "win32", reason="it has no signal for lame duck mode")
async def test_a_lame_duck(server):
    async def prepare():
        port, process = server(LAME)
        other, _ = server()
        tell_to_go = functools.partial(process.send_signal, signal.SIGUSR2)
        return {"lame": port, "well": other}, tell_to_go

    events = ["lame_duck_mode", "disconnected", "reconnected"]
    expected = events, ["UnexpectedEOF"], "well", [b"after"]
    await compare(a_client_leaves_a_lame_duck, expected, prepare, {})


TWO_ACCOUNTS = """
accounts {
  SYS: { users: [{ user: sys, password: lab }] }
  CHECKS: { users: [{ user: checks, password: lab }] }
}
system_account: SYS
"""
FLOOD = 4000  # messages of 4 KiB
# Bytes. The system's buffers grow differently each time, and the server still writes a part of what
# it holds as it closes: up to 1.2 MB were seen between two runs of one way.
SPREAD = 2 << 20


async def a_client_that_reads_nothing(connect):
    """Returns why the server closed it, and how many bytes it still gets."""
    client = connect.socket(receive_buffer=64 << 10)
    client.log_in()
    client.send(b"SUB flood 1\r\n")
    client.ping()
    admin = await connect(user="sys")
    await publish_all(await connect(), "flood", [bytes(4096)] * FLOOD)
    reason = await until(lambda: reason_of_end(admin, client.info), 10)
    said, _ = await asyncio.to_thread(client.read_to_the_end)
    return reason, len(said)


@pytest.mark.parametrize(
    "limit, expected",
    [
        ("write_deadline: 200ms", "Slow Consumer (Write Deadline)"),
        ("max_pending: 2MB", "Slow Consumer (Pending Bytes)"),
    ],
)
async def test_a_client_that_reads_nothing_is_closed_as_soon(server, limit, expected):
    port, _ = server(f"{limit}\n{TWO_ACCOUNTS}")

    async def prepare():
        return ({"server": port},)

    reason, size = await outcome(directly, a_client_that_reads_nothing, prepare, LOGIN)
    assert reason == expected and size < FLOOD * 4096 / 2
    wired, more = await outcome(through_the_wire, a_client_that_reads_nothing, prepare, LOGIN)
    assert wired == reason
    assert size - SPREAD < more < size + HELD + SPREAD


async def a_client_waits_for_its_server(connect, process, start_again):
    events = []
    client = await connect(max_reconnect_attempts=-1, **callbacks(events))
    got = await collected(client, "news")
    process.kill()
    await until(lambda: "ConnectionRefusedError" in connect.kinds, 10)
    start_again()
    await until(lambda: "reconnected" in events, 10)
    await client.publish("news", b"after")
    await until(lambda: got, 5)
    return list(events), connect.consequences, got


async def test_a_server_is_started_again(server):
    async def prepare():
        port, process = server()
        return {"server": port}, process, lambda: server(port=port)

    events = ["disconnected", "reconnected"]
    expected = events, ["ConnectionRefusedError", "the end"], [b"after"]
    await compare(a_client_waits_for_its_server, expected, prepare, {})


async def a_client_ends_with_messages_unread(connect, beside):
    """beside: a Way that leads past the wire. Returns how many messages arrive that the client
    published last, and why the server closed it."""
    admin = await beside(user="sys")
    reader, flood, client = beside.socket(), beside.socket(), connect.socket()
    for one, subject in ((reader, b"last"), (flood, b"nothing"), (client, b"flood")):
        one.log_in()
        one.send(b"SUB %b 1\r\n" % subject)
        one.ping()

    async def all_is_sent():
        seen = await connection_of(admin, client.info, cid=client.info["client_id"])
        return seen["out_msgs"] == 2 and not seen["pending_bytes"]

    flood.send(b"PUB flood 5\r\nfirst\r\n")
    await until(client.has_unread, 5)
    async with connect.busy_wire():
        flood.send(b"PUB flood 4\r\nnext\r\n")
        await until(all_is_sent, 5)
        client.send(20 * b"PUB last 5\r\nhello\r\n")
        client.close()
    reason = await until(lambda: reason_of_end(admin, client.info), 10)
    return reader.ping().count(b"MSG last"), reason


@needs_linux
async def test_what_a_client_says_before_its_end_arrives_also_if_it_reads_nothing(server):
    port, _ = server(TWO_ACCOUNTS)
    async with directly({"server": port}, LOGIN) as beside:

        async def prepare():
            return {"server": port}, beside

        await compare(a_client_ends_with_messages_unread, (20, "Read Error"), prepare)

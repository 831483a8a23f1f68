"""The wire: a proxy between clients and servers of NATS that notes what passes.

It runs as a program of its own (see tap.py), so that a busy cell cannot bend its clock, and needs
nothing but Python and protocol.py. It shall change nothing of what it shows:

- A server that does not listen refuses connections. So does its port here (see Door).
- Bytes go on at once. Only the addresses in INFO are written anew, so that a client that fails over
  stays on the wire.
- What a slow client does not read piles up at the server, which finds out as soon as without the
  wire: all that can stay in here is HELD bytes a direction.
- A connection ends after its last bytes, such as the server's -ERR.

It works on sockets rather than on asyncio's streams and transports: those give up what has been
received, and not read yet, as soon as the other side resets the connection.
"""

import asyncio
import collections
import contextlib
import ipaddress
import json
import marshal
import socket
import struct
import sys
import threading
import time

from protocol import Operation, Parser

if sys.platform == "linux":
    import fcntl
    import termios

CHUNK = 64 << 10  # bytes that are read, and held, at once
BUFFER = 64 << 10  # bytes that the system shall buffer at a socket; Linux takes twice as many
HELD = 2 * BUFFER + CHUNK + 2 * BUFFER  # a socket on each side, and what is in between
LINGER = 30  # seconds that the second half of a connection may last after the first has ended
EVERY = 0.01  # seconds between two looks at who listens
PROBE = 0.1  # seconds between two tries to connect, where the system does not tell who listens
ONE_READING = 4 << 20  # bytes of a connection that take() reads at most
UNTOLD = {"PING", "PONG", "+OK"}  # operations that nobody asks for
MESSAGES = {"PUB", "HPUB", "MSG", "HMSG"}
COST = 400  # bytes of an event beside its texts
LINUX = sys.platform == "linux"
SOCK_DIAG = 4  # NETLINK_SOCK_DIAG, which the module socket has no name for


# --- what is noted


class Record:
    """What has passed and was not taken yet. When it is full, it forgets its oldest messages; what
    it knows of connections and subscriptions stays, since later messages are read with it."""

    def __init__(self, most, most_bytes):
        """most: number of events. most_bytes: bytes of their texts, with COST for each."""
        self.forgotten = 0  # number of messages since the beginning
        self._events = collections.deque()
        self._older = collections.deque(maxlen=most)  # what is no message, of what was forgotten
        self._room = most
        self._bytes_left = most_bytes

    def note(self, at, link, operation):
        """at: seconds of time.perf_counter(), which all processes of a machine share. operation:
        an Operation; where its verb is in lower case, it tells of the connection itself."""
        self._events.append((at, link, operation))
        self._bytes_left -= _cost(operation)
        while self._bytes_left < 0 or len(self._events) > self._room:
            event = self._pop()
            if event[2].verb in MESSAGES:
                self.forgotten += 1
            else:
                self._older.append(event)

    def take(self, most):
        """The oldest events (list of tuples); they are gone from here then."""
        events = []
        while len(events) < most and (self._older or self._events):
            at, link, operation = self._older.popleft() if self._older else self._pop()
            events.append((at, link, *operation))
        return events

    def _pop(self):
        event = self._events.popleft()
        self._bytes_left += _cost(event[2])
        return event


def _cost(operation):
    _, subject, reply, _, _, headers, payload, _ = operation
    return COST + len(subject) + len(reply) + len(headers) + len(payload)


# --- a connection


class End:
    """One of the two sockets of a Link."""

    def __init__(self, sock, parser):
        self.sock = sock
        self.parser = parser  # of what is received here
        self.unsent = b""  # what is to be sent here
        self.is_deaf = False  # nothing can be sent here any more
        self.has_ended = False  # nothing is received here any more
        self.was_reset = False  # by whoever was there, or its system


class Link:
    """The connection of a client, and the one behind it to the server."""

    def __init__(self, wire, number, client, server):
        """client, server: connected sockets that do not block."""
        self.number = number
        self.is_open = True
        self._wire = wire
        self._has_told = False  # that it ends
        self.client = End(client, Parser(False))
        self.server = End(server, Parser(True, wire.addresses_here))
        for source, sink in self.directions:
            source.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listen(source, sink)

    @property
    def directions(self):
        """Pairs of Ends: what the first receives, the second sends."""
        return (self.client, self.server), (self.server, self.client)

    def _listen(self, source, sink):
        self._wire.loop.add_reader(source.sock, self.read, source, sink)

    def read(self, source, sink):
        """Reads once, and hands on what came. Returns how many bytes it was."""
        try:
            data = source.sock.recv(CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # reset: all that came before has been read
            source.was_reset = True
            data = b""
        at = time.perf_counter()
        if not data:
            self._end(source, sink, at)
            return 0
        is_sent = source.parser.leaves_alone(data)
        if is_sent:  # before it is read: that takes time
            self._send(source, sink, data)
        was_read = not source.parser.error
        operations, gone_on = source.parser.feed(data)
        for operation in operations:
            if operation.verb not in UNTOLD:
                self._wire.record.note(at, self.number, operation)
            if operation.verb == "INFO" and operation.more.get("ldm"):
                self._wire.look()  # it has stopped listening
        if was_read and source.parser.error:
            self._tell(at, "unread", source.parser.error)
        if not is_sent:
            self._send(source, sink, gone_on)
        return len(data)

    def _send(self, source, sink, data):
        """Sends these bytes. Until all are sent, nothing more is read from their source."""
        if sink.is_deaf:
            return
        sink.unsent += data
        self._flush(sink)
        if sink.unsent:
            self._wire.loop.remove_reader(source.sock)
            self._wire.loop.add_writer(sink.sock, self._go_on, source, sink)

    def _flush(self, sink):
        try:
            sent = sink.sock.send(sink.unsent)
        except BlockingIOError:
            return
        except OSError:
            # Nobody is there. What was said there before the end is still read, and goes on.
            sink.is_deaf = sink.was_reset = True
            sink.unsent = b""
            return
        sink.unsent = sink.unsent[sent:]

    def _go_on(self, source, sink):
        self._flush(sink)
        if sink.unsent or not self.is_open:
            return
        self._wire.loop.remove_writer(sink.sock)
        if source.has_ended:
            self._shut(source, sink)
        else:
            self._listen(source, sink)

    def _end(self, source, sink, at):
        """Nothing more comes from this source."""
        source.has_ended = True
        self._wire.loop.remove_reader(source.sock)
        if source is self.server:
            self._wire.look()  # before the client hears of it, and connects again
        if not self._has_told:
            self._tell(at, "closed", "client" if source is self.client else "server")
            self._wire.loop.call_later(LINGER, self.close)
        if not sink.unsent:
            self._shut(source, sink)

    def _shut(self, source, sink):
        """The source has ended, and all that came from there is sent."""
        if source.was_reset and LINUX:
            self._reset(sink)
            return
        with contextlib.suppress(OSError):
            sink.sock.shutdown(socket.SHUT_WR)
        if self.client.has_ended and self.server.has_ended:
            self.close()

    def _reset(self, sink):
        """Resets the connection there, as that of its source was, once the system has delivered
        all that was sent: a reset would throw it away."""
        if not self.is_open:
            return
        if not sink.is_deaf and _is_under_way(sink.sock):
            self._wire.loop.call_later(EVERY, self._reset, sink)
            return
        _reset_at_close(sink.sock)
        self.close()

    def _tell(self, at, verb, text):
        self._has_told = self._has_told or verb == "closed"
        self._wire.record.note(at, self.number, Operation(verb, more=text))

    def close(self):
        if not self.is_open:
            return
        self.is_open = False
        if not self._has_told:
            self._tell(time.perf_counter(), "closed", "client")
        for end in (self.client, self.server):
            self._wire.loop.remove_reader(end.sock)
            self._wire.loop.remove_writer(end.sock)
            end.sock.close()
        self._wire.links.discard(self)


def _is_under_way(sock):
    """True while the other side has not confirmed all bytes that were sent here (Linux)."""
    return fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0") != b"\0\0\0\0"


def _reset_at_close(sock):
    """Makes close() of this socket reset the connection."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- a port


class Door:
    """A port of this machine that leads to one server, and listens only while the server does."""

    def __init__(self, wire, host, port, at=0):
        """host, port: of the server. at: port to listen on (default: any that is free). Raises
        OSError if it is taken."""
        self.address = host, port
        self._wire = wire
        self._listener = None
        self._is_refused = False  # by a server of which the system does not tell
        # A socket that is bound and does not listen refuses, and keeps the port from others. (Linux
        # lets two sockets have a port of which one listens; elsewhere the port is let go.)
        self._keeper = _bound(at)
        self.port = self._keeper.getsockname()[1]
        if not LINUX:
            self._keeper.close()

    def look(self, listening):
        """Opens or closes. listening: ports of this machine that somebody listens on (set), or
        None if the system does not tell."""
        _, port = self.address
        is_there = port in listening if self._is_told(listening) else not self._is_refused
        if is_there:
            self._open()
        else:
            self._close()

    def _is_told(self, listening):
        return listening is not None and _is_loopback(self.address[0])

    def _open(self):
        if self._listener:
            return
        with contextlib.suppress(OSError):  # somebody else has it: the next look may find it free
            self._listener = _bound(self.port)
            self._listener.listen(1024)
            self._listener.setblocking(False)
            self._wire.loop.add_reader(self._listener, self._accept)

    def _close(self):
        if self._listener:
            self._wire.loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self):
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:  # it has gone meanwhile
            return
        except OSError:  # too many open files: refuse until the next look
            self._close()
            return
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._wire.begin(self._connect(client))

    async def _connect(self, client):
        """Makes the connection to the server behind that of this client."""
        try:
            server = await self._wire.connect(self.address)
        except OSError:  # it has just ended, or cannot be reached
            _reset_at_close(client)
            client.close()
            self._wire.look()
            await self._find_again()
            return
        self._wire.add_link(self, client, server)

    async def _find_again(self):
        """Where the system does not tell whether the server listens: refuses until it does."""
        if self._is_refused or self._is_told(listening_ports()):
            return
        self._is_refused = True
        self._close()
        while self._is_refused:
            await asyncio.sleep(PROBE)
            with contextlib.suppress(OSError):
                (await self._wire.connect(self.address)).close()
                self._is_refused = False


def _bound(port):
    """A socket that has this port of 127.0.0.1 (0: any that is free), and does not listen yet."""
    sock = socket.socket()
    try:
        if sys.platform != "win32":  # there it would share the port with whoever listens
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def listening_ports():
    """The ports of this machine that somebody listens on (set), or None if the system does not tell
    (only Linux does)."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG) as netlink:
            netlink.settimeout(1)
            return _listening(netlink, socket.AF_INET) | _listening(netlink, socket.AF_INET6)
    except OSError:  # a sandbox may refuse
        return None


def _listening(netlink, family):
    """See `man 7 sock_diag`: a request for all TCP sockets of this family in the state LISTEN, and
    the answers to it."""
    header = struct.pack("=LHHLL", 72, 20, 0x301, 0, 0)  # SOCK_DIAG_BY_FAMILY, REQUEST | DUMP
    netlink.send(header + struct.pack("=BBBBL48x", family, socket.IPPROTO_TCP, 0, 0, 1 << 10))
    ports = set()
    while True:
        answers = netlink.recv(1 << 16)
        position = 0
        while position < len(answers):
            length, kind = struct.unpack_from("=LH", answers, position)
            if kind == 3:  # NLMSG_DONE
                return ports
            if kind != 20:
                raise OSError(f"netlink answered with a message of type {kind}")
            ports.add(struct.unpack_from(">H", answers, position + 20)[0])
            position += (length + 3) & ~3


def _is_loopback(host):
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- the whole


class Wire:
    """All doors and links of this process, and its record."""

    def __init__(self, most, most_bytes):
        """most, most_bytes: see Record."""
        self.loop = asyncio.get_running_loop()
        self.record = Record(most, most_bytes)
        self.links = set()
        self._doors = {}  # (host, port) of a server -> Door
        self._count = 0  # of links
        self._tasks = set()

    def door(self, host, port, at=0):
        """The Door to this server; it is made where there is none. at: port to listen on."""
        if (host, port) not in self._doors:
            self._doors[host, port] = Door(self, host, port, at)
            self.look()
        return self._doors[host, port]

    def addresses_here(self, urls):
        """The addresses of the doors ("host:port", list) to these servers. What is no address stays
        as it is."""
        here = []
        for url in urls:
            host, _, port = url.rpartition(":")
            is_address = host and port.isdigit()
            here.append(f"127.0.0.1:{self.door(host, int(port)).port}" if is_address else url)
        return here

    def look(self):
        """Opens and closes doors, as their servers listen or not."""
        listening = listening_ports()
        for door in self._doors.values():
            door.look(listening)

    async def go_on_looking(self):
        while True:
            self.look()
            await asyncio.sleep(EVERY)

    def begin(self, work):
        """Starts this coroutine."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connect(self, address):
        """A socket that is connected to this (host, port). Raises OSError."""
        found = await self.loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        try:
            await self.loop.sock_connect(sock, where)
        except BaseException:
            sock.close()
            raise
        return sock

    def add_link(self, door, client, server):
        self._count += 1
        opened = Operation("opened", more=list(door.address))
        self.record.note(time.perf_counter(), self._count, opened)
        self.links.add(Link(self, self._count, client, server))

    def read_all(self):
        """Reads what has been handed to the sockets by now, so that it is in the record. A
        connection whose other end takes nothing is left alone."""
        for link in list(self.links):
            for source, sink in link.directions:
                left = ONE_READING
                while left > 0 and link.is_open and not source.has_ended and not sink.unsent:
                    count = link.read(source, sink)
                    left -= count or left

    def obey(self, order):
        """Carries out an order (dict), and returns what tap.py waits for (dict)."""
        self.look()
        for host, port, at in order.get("open", ()):
            self.door(host, port, at)
        if order.get("read"):
            self.read_all()
        return {
            "events": self.record.take(order.get("most", 0)),
            "forgotten": self.record.forgotten,
            "doors": [[*address, door.port] for address, door in self._doors.items()],
        }


def obey_orders(wire, ended):
    """Reads an order a line from the standard input, and answers on the standard output: eight
    bytes of length, and what marshal makes of it. Calls ended() when there is nobody any more. Runs
    in a thread, so that nothing waits for who is slow to read the answers."""
    try:
        for line in sys.stdin.buffer:
            answer = asyncio.run_coroutine_threadsafe(obeyed(wire, json.loads(line)), wire.loop)
            data = marshal.dumps(answer.result())
            sys.stdout.buffer.write(struct.pack(">Q", len(data)) + data)
            sys.stdout.buffer.flush()
    finally:
        wire.loop.call_soon_threadsafe(ended)


async def obeyed(wire, order):
    try:
        return wire.obey(order)
    except OSError as error:  # a port is taken
        return {"error": str(error)}


async def main(settings):
    wire = Wire(**settings)
    ended = asyncio.Event()
    threading.Thread(target=obey_orders, args=(wire, ended.set), daemon=True).start()
    looking = asyncio.create_task(wire.go_on_looking())
    ending = asyncio.create_task(ended.wait())
    done, _ = await asyncio.wait([looking, ending], return_when=asyncio.FIRST_COMPLETED)
    done.pop().result()  # what ended the looking, if it was that


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main(json.loads(sys.argv[1])))

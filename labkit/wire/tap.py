"""The notebook's side of the wire: starts the proxy, asks it what has passed, and answers questions
about it."""

import contextlib
import json
import marshal
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from pathlib import Path

from labkit.errors import LabError
from labkit.system.launching import end, launch
from labkit.wire.kinds import FINDINGS, Reading, matches

PROXY = Path(__file__).with_name("proxy.py")
MOST = 200_000  # events
MOST_BYTES = 64 << 20  # of what the proxy holds until it is asked; of payloads and headers here
AT_ONCE = 5000  # events in an answer of the proxy: more would stop it for too long
PATIENCE = 30  # seconds to wait for an answer of the proxy
LOOK = 0.1  # seconds between two looks at whether the proxy lives
CLOSED = "The wire is closed. Run the setup cell again."
HIDDEN = ("api", "heartbeat", "flow control")  # kinds that are shown only when asked for
COLUMNS = (
    *("at", "client", "kind", "subject", "stream", "consumer", "seq", "delivered", "text"),
    *("payload", "size", "of"),
)
TEXTS = ["client", "kind", "subject", "stream", "consumer", "text", "payload"]  # "" if it has none
NUMBERS = ["seq", "delivered", "size", "of"]  # <NA> if it has none


class Wire:
    """A record of what passes between clients and servers.

    An event is a dict: `number` (counts up), `at` (seconds since the wire was opened), `kind`,
    `client` (the name that the client gave itself; a second open connection of that name is "name
    (2)", one without a name "client 7"), and what its kind has. `of` is the number of the event
    that it is about: a delivery is of a publish, an ack of a delivery.

    What clients send:
    - published: a message. With a reply subject, if a stream answered, or only a stream can be
      meant: it has a header such as Nats-Msg-Id, or a stream that was made on the wire takes its
      subject. Fields of every message: subject, size (bytes, with headers), payload (the first
      KiB), headers (dict), reply.
    - requested: a message with a reply subject, unless a stream answered.
    - replied: a message to the reply subject of a request (`of`).
    - subscribed: subject, queue. unsubscribed: `after` so many messages, or at once.
    - pull: asks a consumer for messages. stream, consumer, batch, expires (s), no_wait.
    - acked: an answer to a delivery that is empty, +ACK or +NXT (then with `pulls`). stream,
      consumer, seq (in the stream), delivered (for the how many-th time). `late`: it had been
      delivered again before. `all`: by the consumer's ack policy, all before it are acked as well.
      What ack_sync() waits for sets `confirmed`.
    - nak: with `delay` (s). term: with its reason, if it has one. in progress: +WPI.

    What servers send, at the time at which it arrives at the client:
    - stored, duplicate, refused: a stream's answer to a publish (`of`). stream, seq; or code, text.
    - delivered: a message. From a stream: stream, consumer, seq, delivered (1), consumer_seq,
      pending. redelivered: the same for the second time or later.
    - no responders: 503 to a request or a publish (`of`).
    - status: 404, 408, 409 and others to a pull (`of`). code, text.
    - error: -ERR. lame duck: the server asks its clients to leave.

    What follows from it:
    - expired: a stream delivers again what nobody has answered. The event is that of the delivery
      (`of`), at the time of the next one.
    - lost: a message that no subscription on the wire was there for, that no stream takes, and that
      nobody else can have got, since all connections of the account are on the wire.
    - not seen: a message that has not arrived anywhere on the wire, though it may have been got:
      by a stream, by a client that is not on the wire, or it is still on its way.
    - ambiguous: a delivery that more than one publish can explain, since they are equal. The
      delivery has no `of`.

    Of the connections: connected (node, library), disconnected (by: "client", "server" or "wire";
    text: the last error), unread (from here on nothing is read: it is not the protocol of NATS).
    Of the wire: gap (its process had ended: what passed meanwhile is not known), mark (text).

    Hidden unless they are asked for, with hidden=True or by their kind: api (requests to $JS and
    $SRV, and the answers), heartbeat, flow control, and subscriptions to an inbox.

    All questions first read what has been handed to a socket by then. What a client still holds
    (nats-py sends a little later what was published) is not in. Between two connections, only the
    order in which things came to the wire is known.
    """

    def __init__(self, servers, others=None, payloads=True, most=MOST):
        """Starts the proxy. servers: {name: (host, port)}. others: a function that returns what is
        not on the wire: the (server id, client id) of all connections of the account now or before
        (set), and the subjects that its streams take (list); None if nobody knows. payloads: False
        to keep neither payloads nor headers. most: how many events are kept, with no more
        than MOST_BYTES of payloads and headers. Raises LabError."""
        self.forgotten = 0  # events that were given up, since there were too many
        self._others = others or (lambda: None)
        self._most = most
        self._names = {address: name for name, address in servers.items()}
        self._reserved = {server: _reserved() for server in servers.values()}
        # (host, port) of a server -> port here
        self._doors = {server: sock.getsockname()[1] for server, sock in self._reserved.items()}
        if sys.platform != "linux":
            self._let_go()
        self.start = time.perf_counter()  # the moment at which `at` is 0
        self._reading = Reading(self.start, self._name_of, payloads)
        self._marks = []
        self._closing = False
        self._orders = queue.SimpleQueue()  # (function, Future), for the thread
        try:
            self._launch()
        except BaseException:
            self._let_go()
            raise
        threading.Thread(target=self._work, daemon=True).start()

    # --- where to connect

    def url(self, name):
        """The address that leads to the server of this name."""
        return self.url_of(*next(server for server, known in self._names.items() if known == name))

    def url_of(self, host, port):
        """The address that leads to the server at this one."""
        return f"nats://127.0.0.1:{self._doors[host, port]}"

    @property
    def urls(self):
        """The addresses that lead to the servers, in their order (list)."""
        return [self.url(name) for name in self._names.values()]

    def name_at(self, port):
        """The name of the server that a port of the wire leads to; None if it is no such port."""
        servers = {here: server for server, here in self._doors.items()}
        if port not in servers:  # a client may have heard of it since
            self._do(self._read)
            servers = {here: server for server, here in self._doors.items()}
        return self._name_of(servers[port]) if port in servers else None

    def _name_of(self, server):
        """server: (host, port)."""
        return self._names.get(server, "{}:{}".format(*server))

    # --- what has passed

    def all(self, kind=None, hidden=False, **fields):
        """The events of this kind (default: of any) whose fields have these values (list of dicts,
        oldest first). hidden: True for those as well that are hidden."""
        return [
            event
            for event in self._do(self._events)
            if (kind is None or event["kind"] == kind)
            and (hidden or kind in HIDDEN or "hidden" not in event)
            and all(event.get(key) == value for key, value in fields.items())
        ]

    def count(self, kind=None, **fields):
        """How many such events there are."""
        return len(self.all(kind, **fields))

    def last(self, kind=None, **fields):
        """The latest such event (dict), or None."""
        found = self.all(kind, **fields)
        return found[-1] if found else None

    def table(self, hidden=False):
        """All events as a DataFrame, one row an event, with its number as label. Columns: at,
        client, kind, subject, stream, consumer, seq, delivered, text, payload, size, of; see Wire
        for what they mean."""
        import pandas as pd

        frame = pd.DataFrame(self.all(hidden=hidden), columns=["number", *COLUMNS])
        frame[TEXTS] = frame[TEXTS].astype(object).fillna("")
        return frame.astype(dict.fromkeys(NUMBERS, "Int64")).set_index("number")

    def clear(self):
        """Forgets all events so far. What is under way is still understood when it arrives."""
        self._do(self._events)
        self._reading.clear()

    def mark(self, text, at=None):
        """Notes that something happened that is not on the wire. at: when, as time.perf_counter()
        tells it in any process of this machine (default: now)."""
        at = time.perf_counter() if at is None else at
        self._marks.append((at - self.start, text))

    def look(self):
        """Makes sure that from now on the ports here listen only where the servers do: within some
        milliseconds they would find out by themselves."""
        self._do(lambda: self._ask({}))

    def close(self):
        """Ends the proxy, and so all connections through it. May be called twice."""
        if not self._closing:
            self._closing = True
            self._end_proxy()
            self._let_go()

    def _let_go(self):
        for sock in self._reserved.values():
            sock.close()

    def __repr__(self):
        hidden = sum("hidden" in event for event in self._reading.events)
        count = len(self._reading.events) - hidden
        return f"<Wire to {', '.join(self._names.values())}: {count} events, {hidden} hidden>"

    # --- the thread that talks to the proxy, see _do()

    def _do(self, work):
        """Calls work() in the thread, and returns what it returns. A cell that is interrupted here
        interrupts nothing there: half an answer of the proxy would spoil all that follow."""
        if self._closing:
            raise LabError(CLOSED)
        done = Future()
        self._orders.put((work, done))
        try:
            return done.result(PATIENCE)
        except NoAnswer:
            raise LabError(
                f"The wire's process (pid {self._child.pid}) has not answered within {PATIENCE} s."
            ) from None

    def _work(self):
        while not self._closing:
            try:
                work, done = self._orders.get(timeout=LOOK)
            except queue.Empty:
                self._see_that_it_runs()
                continue
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

    def _see_that_it_runs(self):
        if self._child.poll() is None or self._closing:
            return
        try:
            self._start_again()
        except (LabError, OSError):  # a second try would end as this one
            self.close()

    def _events(self):
        """Reads what has passed. Returns all events (list of dicts), oldest first."""
        events = self._reading.events
        count = self._reading.count
        self._read()
        self._judge()
        if self._reading.count > count:
            events.sort(key=_place)
        self.forgotten += self._reading.forget(self._most, MOST_BYTES)
        return list(events)

    def _read(self):
        answer = self._ask({"read": True, "most": AT_ONCE})
        self._take(answer)
        while len(answer["events"]) == AT_ONCE:
            answer = self._ask({"most": AT_ONCE})
            self._take(answer)

    def _take(self, answer):
        while self._marks:
            at, text = self._marks.pop(0)
            self._reading.note(at, "mark", text=text)
        for event in answer["events"]:
            self._reading.read(*event)
        if answer["forgotten"] > self._forgotten_there:
            count = answer["forgotten"] - self._forgotten_there
            self.forgotten += count
            self._forgotten_there = answer["forgotten"]
            text = f"{count} messages were forgotten: nobody had read them in time"
            self._reading.note(time.perf_counter() - self.start, "gap", text=text)

    def _judge(self):
        now = time.perf_counter() - self.start
        if not self._reading.unseen(now):
            return
        others = self._others()
        if others is None:
            self._reading.judge(now, lambda subject: False)
            return
        connections, patterns = others
        all_are_here = connections <= self._reading.connections()
        taken = [pattern.split(".") for pattern in patterns]

        def is_lost(subject):
            tokens = subject.split(".")
            return all_are_here and not any(matches(pattern, tokens) for pattern in taken)

        self._reading.judge(now, is_lost)

    # --- the proxy

    def _launch(self):
        settings = {"most": self._most, "most_bytes": MOST_BYTES}
        self._forgotten_there = 0
        self._child = launch(
            [sys.executable, str(PROXY), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._answer_to({"open": [[*server, port] for server, port in self._doors.items()]})
        except (EOFError, BrokenPipeError):
            self._end_proxy()
            raise LabError("The wire's process ended as soon as it was started.") from None
        except LabError:  # a port is taken
            self._end_proxy()
            raise

    def _ask(self, order):
        """Sends an order (dict) to the proxy, and returns its answer (dict). If the proxy has
        ended, it is started again."""
        try:
            return self._answer_to(order)
        except (OSError, EOFError, ValueError):  # ValueError: its pipes are closed
            self._start_again()
            return self._answer_to(order)

    def _start_again(self):
        self._end_proxy()
        if self._closing:
            raise LabError(CLOSED)
        at = time.perf_counter() - self.start  # before anybody can connect again
        self._launch()
        if self._closing:  # meanwhile: close() has ended the one before
            self._end_proxy()
            raise LabError(CLOSED)
        self._reading.restart(at)
        self._reading.note(at, "gap", text="the wire's process had ended, and was started again")

    def _end_proxy(self):
        end(self._child)
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):  # an order that it has not read
                pipe.close()

    def _answer_to(self, order):
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        self._child.stdin.flush()
        size = struct.unpack(">Q", self._receive(8))[0]
        answer = marshal.loads(self._receive(size))
        if "error" in answer:
            raise LabError(f"The wire cannot listen: {answer['error']}.")
        for host, port, here in answer["doors"]:
            self._doors[host, port] = here
        return answer

    def _receive(self, size):
        data = self._child.stdout.read(size)
        if len(data) < size:
            raise EOFError("the wire's process has ended")
        return data


def _place(event):
    """Where an event stands: by time; what became of a message right behind it."""
    is_finding = event["kind"] in FINDINGS
    return event["at"], event["of"] + 0.5 if is_finding else event["number"]


def _reserved():
    """A socket that has a free port of this machine and does not listen there.

    While it is open, nobody else gets the port, and the proxy can have it, also once more after it
    was started again. (Only Linux lets two sockets have a port of which one listens: elsewhere it
    is closed, and the port only very likely still free.)"""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock

"""What the operations on the wire mean: turns them into events with the field's own words.

The kinds, and the rule of each, stand in the docstring of tap.Wire. Ack subjects have 9 tokens, or
11 or 12 with a domain: server/consumer.go, ackReplyInfo, of nats-server.
"""

import contextlib
import json
import zlib
from collections import OrderedDict, deque

from labkit.wire.protocol import Operation

MOST_OPEN = 50_000  # requests, deliveries and publishes of which something may still come
CLOSED_KEPT = 100  # connections
PATIENCE = 1  # seconds that a message may be on its way to a subscription that is there
OURS = "_LABKIT."  # what labkit's own processes say to the notebook
FINDINGS = ("lost", "not seen")  # kinds
STATUS = b"NATS/1.0 "
FOR_STREAMS = (b"Nats-Msg-Id:", b"Nats-Expected-")  # headers that only a stream reads
ANSWERS = ("acked", "nak", "term", "in progress")
CARRIED = ("subject", "stream", "consumer")  # from an event to another that is about it


class Recent(OrderedDict):
    """A dict that forgets its oldest entries."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if len(self) > MOST_OPEN:
            self.popitem(last=False)


class Connection:
    """A client's connection, as far as it was read."""

    def __init__(self, number, node):
        self.number = number
        self.node = node  # name of the node, or the server's address
        self.name = f"client {number}"  # what the events call it, see Reading._free_name()
        self.is_open = True
        self.echo = True
        self.error = ""  # the last -ERR
        self.subs = {}  # sid -> Subscription


class Subscription:
    """A subscription of one connection."""

    def __init__(self, subject, queue, owner):
        self.subject = subject
        self.queue = queue
        self.owner = owner
        self.tokens = subject.split(".")
        self.most = 0  # messages after which it ends by itself; 0: never
        self.count = 0  # messages so far

    @property
    def group(self):
        """What gets each message once: the queue group, or this subscription."""
        return (self.subject, self.queue) if self.queue else self


def matches(pattern, subject):
    """True if the subject (list of tokens) is one of this pattern's (list of tokens, with
    wildcards)."""
    for i, token in enumerate(pattern):
        if token == ">":
            return len(subject) > i
        if i >= len(subject) or token not in ("*", subject[i]):
            return False
    return len(pattern) == len(subject)


def of_ack(subject):
    """What an ack subject tells (dict): stream, consumer, delivered (how many times), seq (in the
    stream), consumer_seq, stored (when, ns), pending. None if it is no ack subject."""
    if not subject.startswith("$JS.ACK."):
        return None
    tokens = subject.split(".")
    if len(tokens) == 9:
        tokens = tokens[2:]
    elif len(tokens) >= 11:
        tokens = tokens[4:11]
    else:
        return None
    stream, consumer, *numbers = tokens
    if not all(number.isdigit() for number in numbers):
        return None
    keys = ("delivered", "seq", "consumer_seq", "stored", "pending")
    return {"stream": stream, "consumer": consumer, **dict(zip(keys, map(int, numbers)))}


def of_answer(payload):
    """What a client wrote as answer to a delivery: (kind, dict of fields); the kind is "" if it is
    none that a server knows."""
    word, _, rest = payload.partition(b" ")
    if payload in (b"", b"+ACK", b"+OK"):
        return "acked", {}
    if word == b"+NXT":
        return "acked", {"pulls": True}
    if word == b"-NAK":
        delay = _json(rest).get("delay")
        return "nak", {"delay": delay / 1e9} if delay else {}
    if word == b"+TERM":
        return "term", {"reason": rest.decode(errors="replace")} if rest else {}
    if word == b"+WPI":
        return "in progress", {}
    return "", {}  # the server does not heed it


def _json(data):
    """The JSON object in these bytes (dict), or {}."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def of_status(headers):
    """(code, description) of the status line that a server begins headers with, or (0, "")."""
    line = headers.split(b"\r\n", 1)[0].removeprefix(STATUS)
    if not headers.startswith(STATUS) or not line[:3].isdigit():
        return 0, ""
    return int(line[:3]), line[3:].strip().decode(errors="replace")


class Publish:
    """A message that a client sent, and who has got it."""

    def __init__(self, event, content, had_readers):
        self.event = event
        self.content = content  # what _content() returns
        self.had_readers = had_readers  # True if a subscription on the wire was there for it
        self.got = set()  # groups of subscriptions, and streams
        self.finding = None  # the event that says that nobody has got it


class Reading:
    """Turns operations, in their order, into `events` (list of dicts)."""

    def __init__(self, start, node_at, payloads=True):
        """start: time.perf_counter() at which `at` is 0. node_at: a function that returns what the
        events call the server of a (host, port). payloads: False for events without payloads and
        headers; they are read nevertheless, since they tell what an answer means."""
        self.events = []
        self._start = start
        self._node_at = node_at
        self._payloads = payloads
        self.count = 0  # of events since the beginning
        self._bytes = 0  # of payloads and headers in the events
        self._connections = {}  # number of the link -> Connection
        self._seen = set()  # (server id, client id) of all connections so far
        self._requests = Recent()  # reply subject -> event that waits for answers there
        self._publishes = Recent()  # number of the event -> Publish
        self._stored = Recent()  # (stream, seq) -> Publish
        self._deliveries = Recent()  # what _life() returns -> {times delivered: event}
        self._sent = Recent()  # what _content() returns -> deque of Publish
        self._unseen = Recent()  # number of the event -> Publish that nobody has got
        self._patterns = set()  # subjects of streams that were made on the wire
        self._acks_all = set()  # (stream, consumer) with ack policy "all"
        self._ours = Recent()  # reply subjects of what labkit's own processes say
        self._has_readers = {}  # subject -> True if a subscription on the wire is there for it

    def read(self, at, link, *operation):
        """Takes the next operation, as the proxy noted it."""
        operation = Operation(*operation)
        if operation.subject.startswith(OURS):
            if operation.reply:
                self._ours[operation.reply] = True
            return
        if operation.subject in self._ours:  # what labkit answers
            return
        if operation.verb == "opened":
            self._forget_closed_ones()
            self._connections[link] = Connection(link, self._node_at(tuple(operation.more)))
        elif link in self._connections:
            self._readers[operation.verb](
                self, at - self._start, self._connections[link], operation
            )

    def note(self, at, kind, connection=None, **fields):
        """Adds an event. Returns it (dict)."""
        self.count += 1
        event = {"number": self.count, "at": at, "kind": kind}
        if connection:
            event["client"] = connection.name
        event.update(fields)
        self.events.append(event)
        self._bytes += _weight(event)
        return event

    def _message(self, operation, with_reply=True):
        """The fields of an event that tell a message (dict)."""
        fields = {"subject": operation.subject, "size": operation.size}
        if operation.payload and self._payloads:
            fields["payload"] = operation.payload.decode(errors="replace")
        if operation.headers and self._payloads:
            fields["headers"] = of_headers(operation.headers)
        if operation.reply and with_reply:
            fields["reply"] = operation.reply
        return fields

    def clear(self):
        """Forgets the events; what it knows of connections and open messages stays."""
        self.events.clear()
        self._bytes = 0
        self._unseen.clear()

    def forget(self, most, most_bytes):
        """Gives up the oldest events, until there are no more than `most`, with no more than so
        many bytes of payloads and headers. Returns how many went."""
        count = max(0, len(self.events) - most)
        self._bytes -= sum(map(_weight, self.events[:count]))
        while self._bytes > most_bytes:
            self._bytes -= _weight(self.events[count])
            count += 1
        del self.events[:count]
        return count

    def restart(self, at):
        """The proxy was started again: its connections are gone."""
        for connection in self._connections.values():
            if connection.is_open:
                self._closed(at, connection, Operation("closed", more="wire"))
        self._connections.clear()

    def connections(self):
        """The (server id, client id) of all connections so far (set)."""
        return self._seen

    # --- connections

    def _info(self, at, connection, operation):
        info = operation.more
        self._seen.add((info.get("server_id"), info.get("client_id")))
        if info.get("ldm"):
            self.note(at, "lame duck", connection, node=connection.node)

    def _connect(self, at, connection, operation):
        options = operation.more
        connection.name = self._free_name(connection, options.get("name") or connection.name)
        connection.echo = options.get("echo", True)
        library = " ".join(str(options[key]) for key in ("lang", "version") if key in options)
        self.note(at, "connected", connection, node=connection.node, library=library)

    def _forget_closed_ones(self):
        """Some are kept: a server's last words may come after a client's end."""
        closed = [number for number, one in self._connections.items() if not one.is_open]
        for number in closed[:-CLOSED_KEPT]:
            del self._connections[number]

    def _free_name(self, connection, name):
        """This name, with a number if another open connection has it."""
        others = [other for other in self._connections.values() if other is not connection]
        taken = {other.name for other in others if other.is_open}
        names = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 2))]
        return next(name for name in names if name not in taken)

    def _error(self, at, connection, operation):
        connection.error = operation.more
        self.note(at, "error", connection, text=operation.more)

    def _closed(self, at, connection, operation):
        connection.is_open = False
        connection.subs.clear()
        self._has_readers.clear()
        fields = {"text": connection.error} if connection.error else {}
        self.note(at, "disconnected", connection, node=connection.node, by=operation.more, **fields)

    def _unread(self, at, connection, operation):
        self.note(at, "unread", connection, node=connection.node, text=operation.more)

    # --- subscriptions

    def _subscribed(self, at, connection, operation):
        queue = operation.more
        connection.subs[operation.sid] = Subscription(operation.subject, queue, connection)
        self._has_readers.clear()
        fields = {"queue": queue} if queue else {}
        self._note_unless_inbox(at, "subscribed", connection, operation.subject, fields)

    def _unsubscribed(self, at, connection, operation):
        sub = connection.subs.get(operation.sid)
        if not sub:
            return
        most = operation.more
        if most > sub.count:
            sub.most = most
        else:
            self._end_subscription(connection, operation.sid)
        fields = {"after": most} if most else {}
        self._note_unless_inbox(at, "unsubscribed", connection, sub.subject, fields)

    def _note_unless_inbox(self, at, kind, connection, subject, fields):
        if subject.startswith("_INBOX."):
            fields["hidden"] = "inbox"
        self.note(at, kind, connection, subject=subject, **fields)

    def _end_subscription(self, connection, sid):
        del connection.subs[sid]
        self._has_readers.clear()

    def _is_awaited(self, connection, subject):
        """True if a subscription on the wire is there for what this connection publishes."""
        if subject not in self._has_readers:
            tokens = subject.split(".")
            self._has_readers[subject] = {
                sub.owner
                for other in self._connections.values()
                for sub in other.subs.values()
                if matches(sub.tokens, tokens)
            }
        readers = self._has_readers[subject]
        return bool(readers if connection.echo else readers - {connection})

    # --- what clients send

    def _sent_by_client(self, at, connection, operation):
        subject = operation.subject
        ack = of_ack(subject)
        if ack:
            self._answered(at, connection, operation, ack)
        elif subject.startswith("$JS.FC."):
            self.note(at, "flow control", connection, subject=subject, hidden="flow control")
        elif ".CONSUMER.MSG.NEXT." in subject and subject.startswith("$JS."):
            self._pulled(at, connection, operation)
        elif subject.startswith(("$JS.", "$SRV.")):
            self._asked(at, connection, operation)
        elif subject in self._requests:
            self._replied(at, connection, operation, self._requests[subject])
        else:
            self._published(at, connection, operation)

    def _answered(self, at, connection, operation, ack):
        """A client says what became of a delivery."""
        kind, fields = of_answer(operation.payload)
        if not kind:
            self.note(at, "api", connection, subject=operation.subject, hidden="api")
            return
        deliveries = self._deliveries.get(_life(ack), {})
        delivery = deliveries.get(ack["delivered"])
        if delivery:
            fields["of"] = delivery["number"]
            if kind != "in progress":
                delivery["answer"] = kind
        if deliveries and max(deliveries) > ack["delivered"]:
            fields["late"] = True
        if kind == "acked" and (ack["stream"], ack["consumer"]) in self._acks_all:
            fields["all"] = True
        if delivery:
            fields["subject"] = delivery["subject"]
        event = self.note(at, kind, connection, **_shown(ack), **fields)
        if operation.reply:
            self._requests[operation.reply] = event

    def _pulled(self, at, connection, operation):
        tokens = operation.subject.partition(".MSG.NEXT.")[2].split(".")
        wish = _json(operation.payload)
        if not wish and operation.payload.strip().isdigit():
            wish = {"batch": int(operation.payload)}
        fields = {"stream": tokens[0], "consumer": ".".join(tokens[1:])}
        fields["batch"] = wish.get("batch", 1)
        if wish.get("expires"):
            fields["expires"] = wish["expires"] / 1e9
        if wish.get("no_wait"):
            fields["no_wait"] = True
        self._requests[operation.reply] = self.note(at, "pull", connection, **fields)

    def _asked(self, at, connection, operation):
        """A request to JetStream's API, or to look for services."""
        event = self.note(at, "api", connection, subject=operation.subject, hidden="api")
        self._requests[operation.reply] = event
        _, _, call = operation.subject.partition(".API.")
        config = _json(operation.payload)
        if call.startswith(("STREAM.CREATE.", "STREAM.UPDATE.")):
            self._patterns.update(tuple(s.split(".")) for s in config.get("subjects") or ())
        if call.startswith("CONSUMER.") and "CREATE" in call:
            consumer = config.get("config") or {}
            name = consumer.get("name") or consumer.get("durable_name")
            if consumer.get("ack_policy") == "all":
                self._acks_all.add((config.get("stream_name"), name))
            else:
                self._acks_all.discard((config.get("stream_name"), name))

    def _replied(self, at, connection, operation, request):
        fields = {"hidden": "api"} if request.get("hidden") else {}
        event = self.note(
            at, "replied", connection, of=request["number"], **self._message(operation), **fields
        )
        self._remember(operation, event, had_readers=True)

    def _published(self, at, connection, operation):
        is_request = operation.reply and not self._is_for_a_stream(operation)
        kind = "requested" if is_request else "published"
        event = self.note(at, kind, connection, **self._message(operation))
        is_awaited = self._is_awaited(connection, operation.subject)
        publish = self._remember(operation, event, is_awaited)
        if operation.reply:
            self._requests[operation.reply] = event
        else:
            self._unseen[event["number"]] = publish

    def _is_for_a_stream(self, operation):
        """True if only a stream can be meant; else the answer tells."""
        return any(header in operation.headers for header in FOR_STREAMS) or self.is_taken(
            operation.subject
        )

    def is_taken(self, subject):
        """True if a stream that was made on the wire takes this subject."""
        tokens = subject.split(".")
        return any(matches(pattern, tokens) for pattern in self._patterns)

    def _remember(self, operation, event, had_readers):
        """Returns the Publish of this event, which a delivery may be of."""
        publish = Publish(event, _content(operation), had_readers)
        self._publishes[event["number"]] = publish
        if publish.content not in self._sent:
            self._sent[publish.content] = deque(maxlen=1000)
        self._sent[publish.content].append(publish)
        return publish

    # --- what servers send

    def _sent_by_server(self, at, connection, operation):
        sub = connection.subs.get(operation.sid)
        if sub:
            sub.count += 1
            if sub.count == sub.most:
                self._end_subscription(connection, operation.sid)
        ack = of_ack(operation.reply)
        code, text = of_status(operation.headers)
        request = self._requests.get(operation.subject)
        if ack:
            self._delivered_by_stream(at, connection, operation, ack)
        elif code:
            self._status(at, connection, code, text, request)
        elif request and (request.get("hidden") or request["kind"] == "pull"):
            self.note(at, "api", connection, of=request["number"], hidden="api")
        elif request and request["kind"] in ANSWERS:
            request["confirmed"] = True  # ack_sync()
        elif request and _is_pub_ack(_json(operation.payload)):
            self._stored_or_not(at, connection, _json(operation.payload), request)
        else:
            self._delivered(at, connection, operation, sub)

    def _status(self, at, connection, code, text, request):
        if code == 100:
            kind = "flow control" if text.startswith("FlowControl") else "heartbeat"
            self.note(at, kind, connection, text=text, hidden=kind)
            return
        fields = {key: request[key] for key in CARRIED if key in request} if request else {}
        if request:
            fields["of"] = request["number"]
        if code == 503 and request and request["kind"] != "pull":
            self.note(at, "no responders", connection, **fields)
        else:
            self.note(at, "status", connection, code=code, text=text, **fields)

    def _stored_or_not(self, at, connection, answer, request):
        """A stream's answer to what was published."""
        request["kind"] = "published"
        fields = {"of": request["number"], "subject": request["subject"]}
        error = answer.get("error")
        if error:
            code = error.get("err_code") or error.get("code")
            fields |= {"code": code, "text": error.get("description", "")}
            self.note(at, "refused", connection, **fields)
            return
        fields |= {"stream": answer["stream"], "seq": answer["seq"]}
        kind = "duplicate" if answer.get("duplicate") else "stored"
        self.note(at, kind, connection, **fields)
        publish = self._publishes.get(request["number"])
        if publish:
            publish.got.add(answer["stream"])
        if publish and kind == "stored":
            self._stored[answer["stream"], answer["seq"]] = publish

    def _delivered_by_stream(self, at, connection, operation, ack):
        deliveries = self._deliveries.setdefault(_life(ack), {})
        times = ack["delivered"]
        before = deliveries[max(deliveries)] if deliveries else None
        if before and times > before["delivered"] and "answer" not in before:
            expired = {key: before[key] for key in (*CARRIED, "seq", "delivered") if key in before}
            event = self.note(at, "expired", **expired, of=before["number"])
            event["client"] = before["client"]
        fields = {**_shown(ack), "consumer_seq": ack["consumer_seq"], "pending": ack["pending"]}
        fields |= self._message(operation, with_reply=False)
        publish = self._origin(at, connection, operation, ack, fields)
        if publish:
            fields["of"] = publish.event["number"]
            self._has_got(publish, ack["stream"])
        kind = "delivered" if times == 1 else "redelivered"
        deliveries[times] = self.note(at, kind, connection, **fields)

    def _origin(self, at, connection, operation, ack, fields):
        """The Publish that a stream now delivers, or None if it is not on the wire or not
        certain."""
        place = ack["stream"], ack["seq"]
        content = _content(operation)
        publish = self._stored.get(place)
        if publish and publish.content == content:
            return publish
        sent = self._sent.get(content, ())
        publish = self._only_one(at, connection, fields, sent, ack["stream"])
        if publish:
            self._stored[place] = publish
        return publish

    def _delivered(self, at, connection, operation, sub):
        """A message of core NATS, or an answer to a request."""
        fields = self._message(operation)
        group = sub.group if sub else (connection.number, operation.sid)
        request = self._requests.get(operation.reply)
        if request:
            publish = self._publishes.get(request["number"])
        else:
            sent = self._sent.get(_content(operation), ())
            publish = self._only_one(at, connection, fields, sent, group)
        if publish:
            fields["of"] = publish.event["number"]
            self._has_got(publish, group)
        origin = request or (publish.event if publish else {})
        if "hidden" in origin:
            fields["hidden"] = origin["hidden"]
        self.note(at, "delivered", connection, **fields)

    def _only_one(self, at, connection, fields, sent, group):
        """The Publish among these (all have the same content) that this group has got now. None if
        there is none, or if several may be it: then the event "ambiguous" says so."""
        candidates = [publish for publish in sent if group not in publish.got]
        if len(candidates) > 1:
            self._has_got(candidates[0], group)  # one of them has come: one less is left
            shown = {key: fields[key] for key in ("subject", *CARRIED, "seq") if key in fields}
            self.note(at, "ambiguous", connection, candidates=len(candidates), **shown)
            return None
        return candidates[0] if candidates else None

    def _has_got(self, publish, group):
        publish.got.add(group)
        self._unseen.pop(publish.event["number"], None)
        if publish.finding:
            with contextlib.suppress(ValueError):  # it was given up, there were too many
                self.events.remove(publish.finding)
            publish.finding = None

    # --- what nobody has got

    def judge(self, now, is_lost):
        """Notes what became of messages that nobody has got. now: `at` of this moment. is_lost: a
        function of a subject; True if nothing off the wire can have got such a message.
        Where a subscription was there, the message may still be on its way for PATIENCE seconds."""
        for publish in self.unseen(now):
            event = publish.event
            lost = not publish.had_readers and is_lost(event["subject"])
            kind = "lost" if lost else "not seen"
            fields = {"of": event["number"], "subject": event["subject"]}
            publish.finding = self.note(event["at"], kind, **fields)
            publish.finding["client"] = event["client"]

    def unseen(self, now):
        """What judge() has to decide on (list of Publish)."""
        return [
            publish
            for publish in self._unseen.values()
            if not publish.finding
            and not (publish.had_readers and now - publish.event["at"] < PATIENCE)
        ]

    _readers = {  # verb of an operation -> what reads it
        "INFO": _info,
        "CONNECT": _connect,
        "-ERR": _error,
        "closed": _closed,
        "unread": _unread,
        "SUB": _subscribed,
        "UNSUB": _unsubscribed,
        "PUB": _sent_by_client,
        "HPUB": _sent_by_client,
        "MSG": _sent_by_server,
        "HMSG": _sent_by_server,
    }


def _weight(event):
    """Bytes of payload and headers in this event: all that may be long."""
    headers = event.get("headers", {})
    return len(event.get("payload", "")) + sum(map(len, (*headers, *headers.values())))


def _life(ack):
    """What all deliveries of a message to one consumer share, also if a stream with the same name
    and sequences comes later: with the time at which it was stored."""
    return ack["stream"], ack["consumer"], ack["seq"], ack["stored"]


def _shown(ack):
    return {key: ack[key] for key in ("stream", "consumer", "seq", "delivered")}


def _content(operation):
    """The same for equal messages."""
    digest = zlib.crc32(operation.payload, zlib.crc32(operation.headers))
    return operation.subject, operation.size, digest


def of_headers(headers):
    """The headers as a dict; of those with the same name the last."""
    lines = headers.decode(errors="replace").split("\r\n")[1:]
    pairs = [line.partition(":") for line in lines if ":" in line]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_pub_ack(answer):
    """True if this JSON object (dict) is what a stream answers to a publish."""
    error = answer.get("error")
    if error is not None:
        return isinstance(error, dict) and "err_code" in error
    return isinstance(answer.get("stream"), str) and isinstance(answer.get("seq"), int)

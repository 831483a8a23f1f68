"""Reads the NATS protocol as it passes. It needs nothing but Python: it runs in the proxy.

The protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol. What a server
accepts beside it (lower-case verbs, tabs, a line that ends without a carriage return) stands in
server/parser.go of nats-server.
"""

import json
import re
from typing import NamedTuple

KEPT = 1024  # bytes of headers, and of payload, that are kept of a message
LONGEST_LINE = 1 << 20  # bytes; INFO lists all servers, CONNECT may hold a JWT
# What is kept of CONNECT. Not in the list, and so never kept: pass, auth_token, jwt, nkey, sig.
OF_CLIENTS = ("name", "lang", "version", "user", "verbose", "echo", "no_responders")
OF_SERVERS = ("server_name", "server_id", "client_id", "version", "domain", "max_payload", "ldm")
SENT_BY_CLIENTS = {b"CONNECT", b"PUB", b"HPUB", b"SUB", b"UNSUB", b"PING", b"PONG"}
SENT_BY_SERVERS = {b"INFO", b"MSG", b"HMSG", b"PING", b"PONG", b"+OK", b"-ERR"}
URLS = re.compile(r'"connect_urls"\s*:\s*')


class ProtocolError(ValueError):
    """What came is not the protocol of NATS."""


class Operation(NamedTuple):
    """One operation of the protocol."""

    verb: str  # in capitals, such as "PUB"
    subject: str = ""
    reply: str = ""
    sid: str = ""  # the client's number of a subscription
    size: int = 0  # bytes of headers and payload
    headers: bytes = b""  # as they are on the wire, cut off at KEPT bytes
    payload: bytes = b""  # cut off at KEPT bytes
    more: object = None  # CONNECT, INFO: dict; SUB: its queue; UNSUB: its maximum; -ERR: the text


class Parser:
    """Takes the bytes of one direction of a connection, in pieces of any size.

    Once something comes that it cannot read, it hands on everything unread: `error` says what.
    """

    def __init__(self, from_server, new_urls=None, kept=KEPT):
        """from_server: True for what a server sends. new_urls: a function that gets the addresses
        in an INFO ("host:port", list) and returns those that go on in their place. kept: how many
        bytes of headers, and of payload, are kept of a message."""
        self.error = ""
        self._known = SENT_BY_SERVERS if from_server else SENT_BY_CLIENTS
        self._new_urls = new_urls
        self._kept = kept
        self._tail = b""  # the beginning of a line whose end has not come
        self._gone_on = 0  # how many bytes of the tail have gone on
        # A message whose body has not come as a whole: its head; what has come of the body, as far
        # as it is kept; how many bytes are missing, with the end of the line; the last two.
        self._head, self._body, self._missing, self._end = (), b"", 0, b""

    def leaves_alone(self, data):
        """True if it is certain that feed() will hand on these bytes, the next ones, as they are:
        no INFO that gets new addresses is in them, or begins in them."""
        if self.error or not self._new_urls:
            return True
        last = data[data.rfind(b"\n") + 1 :][:4].upper()
        begins = last and b"INFO".startswith(last)
        return not (self._tail or begins or b"INFO" in data.upper())

    def feed(self, data):
        """Takes the next bytes. Returns the operations that end in them (list of Operation), and
        the bytes that go on: the same, unless there are new addresses in an INFO."""
        if self.error:
            return [], data
        data = self._tail + data
        gone_on = self._gone_on
        pieces = []  # what goes on instead of data[:gone_on]
        operations = []
        position = 0
        try:
            while position < len(data):
                if self._missing:
                    position = self._go_on_with_body(data, 0, operations)
                    continue
                end = data.find(b"\n", position)
                if end < 0:
                    self._refuse_nonsense(data[position:])
                    break
                words = data[position:end].split()
                verb = words[0].upper() if words else b""
                if verb not in self._known:
                    raise _no_operation(data[position:end])
                begin, position = position, end + 1
                if verb in (b"PUB", b"MSG", b"HPUB", b"HMSG"):
                    position = self._read_message(words, data, position, operations)
                    continue
                text = data[begin + len(verb) : end].strip().decode(errors="replace")
                operations.append(_of_line(verb, words, text))
                if verb == b"INFO" and self._new_urls:
                    pieces += [data[gone_on:begin], self._with_new_urls(data[begin:position])]
                    gone_on = position
        except (ProtocolError, ValueError) as error:
            self.error = str(error)
            position = len(data)
        self._tail = data[position:]
        if self._new_urls and self._tail and b"INFO".startswith(self._tail[:4].upper()):
            self._gone_on = 0  # it waits for its end
            return operations, b"".join([*pieces, data[gone_on:position]])
        self._gone_on = len(self._tail)
        return operations, b"".join([*pieces, data[gone_on:]])

    def _refuse_nonsense(self, line):
        """Raises ProtocolError if this beginning of a line can become no operation."""
        verb = line[:7].split(maxsplit=1)[0].upper() if line[:7].strip() else b""
        if not any(known.startswith(verb) for known in self._known) or not verb:
            raise _no_operation(line)
        if len(line) > LONGEST_LINE:
            raise ProtocolError(f"a line of more than {LONGEST_LINE} bytes")

    def _read_message(self, words, data, position, operations):
        """Reads PUB, HPUB, MSG or HMSG, whose body begins at this position. Returns where it
        ends, or where the data end."""
        head = _head_of_message(words)
        size = head[-1]
        end = position + size
        if end + 2 > len(data):
            self._head, self._body, self._missing, self._end = head, b"", size + 2, b""
            return self._go_on_with_body(data, position, operations)
        operations.append(self._message(head, data[position:end]))
        if data[end : end + 2] != b"\r\n":
            raise ProtocolError(f"a body of {size} bytes does not end there")
        return end + 2

    def _go_on_with_body(self, data, position, operations):
        """Takes what has come of a body. Returns where it ends, or where the data end."""
        piece = data[position : position + self._missing]
        most = self._head[-2] + self._kept
        if len(self._body) < most:
            self._body += piece[: most - len(self._body)]
        self._end = (self._end + piece[-2:])[-2:]
        self._missing -= len(piece)
        if not self._missing:
            if self._end != b"\r\n":
                raise ProtocolError(f"a body of {self._head[-1]} bytes does not end there")
            operations.append(self._message(self._head, self._body[: self._head[-1]]))
        return position + len(piece)

    def _message(self, head, body):
        """The Operation of this head, see _head_of_message(), and body."""
        verb, subject, reply, sid, header_size, size = head
        headers = body[: min(header_size, self._kept)]
        payload = body[header_size : header_size + self._kept]
        return Operation(verb, subject, reply, sid, size, headers, payload)

    def _with_new_urls(self, line):
        """The line of an INFO with other addresses; all other bytes stay what they are."""
        text = line.decode()
        begin = URLS.search(text)
        if not begin:
            return line
        urls, end = json.JSONDecoder().raw_decode(text, begin.end())
        return f"{text[: begin.end()]}{json.dumps(self._new_urls(urls))}{text[end:]}".encode()


def _no_operation(line):
    """The error for this line (bytes). Only its first word is shown: a secret may follow."""
    word = line[:12].split(maxsplit=1)[:1]
    return ProtocolError(f"no operation of NATS: {b''.join(word)!r}")


def _head_of_message(words):
    """The verb, subject, reply, sid, size of the headers and size of the whole, of the words of a
    PUB, HPUB, MSG or HMSG."""
    verb = words[0].decode().upper()
    sizes = words[-2:] if verb[0] == "H" else words[-1:]
    names = [word.decode(errors="replace") for word in words[1 : -len(sizes)]]
    sid = names.pop(1) if verb.endswith("MSG") and len(names) > 1 else ""
    is_whole = len(names) in (1, 2) and (sid or not verb.endswith("MSG"))
    if not is_whole or not all(size.isdigit() for size in sizes):
        raise _no_operation(words[0])
    size = int(sizes[-1])
    header_size = int(sizes[0]) if len(sizes) == 2 else 0
    if header_size > size:
        raise ProtocolError(f"headers of {header_size} bytes in a body of {size}")
    return verb, names[0], names[1] if len(names) == 2 else "", sid, header_size, size


def _of_line(verb, words, text):
    """The Operation of a line that no body follows. text: what stands behind the verb."""
    if verb == b"CONNECT":
        return Operation("CONNECT", more=_some(text, OF_CLIENTS))
    if verb == b"INFO":
        return Operation("INFO", more=_some(text, OF_SERVERS))
    if verb == b"-ERR":
        return Operation("-ERR", more=text.strip("'"))
    arguments = [word.decode(errors="replace") for word in words[1:]]
    if verb == b"SUB":
        if len(arguments) not in (2, 3):
            raise _no_operation(words[0])
        subject, *queue, sid = arguments
        return Operation("SUB", subject, sid=sid, more=queue[0] if queue else "")
    if verb == b"UNSUB":
        if len(arguments) not in (1, 2) or not all(word.isdigit() for word in arguments[1:]):
            raise _no_operation(words[0])
        sid, *most = arguments
        return Operation("UNSUB", sid=sid, more=int(most[0]) if most else 0)
    return Operation(verb.decode())


def _some(text, keys):
    """Those fields of this JSON object (text) that have one of these keys (dict)."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ProtocolError("no JSON object in CONNECT or INFO")
    return {key: fields[key] for key in keys if key in fields}

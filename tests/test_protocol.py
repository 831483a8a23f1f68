"""The parser of the wire: whatever the pieces in which the bytes come."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.wire.protocol import Operation, Parser

INFO = {"server_id": "N1", "nonce": "abc", "connect_urls": ["127.0.0.1:4222", "[::1]:4223"]}

words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
spaces = st.sampled_from([b" ", b"\t", b"  ", b" \t "])
payloads = st.binary(max_size=300) | st.sampled_from([b"\r\n", b"PUB a 1\r\nx\r\n", b"x" * 70_000])
headers = st.sampled_from(
    [b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\na: \r\n\r\n"]
)


@st.composite
def messages(draw, from_server):
    """(bytes, Operation) of a PUB or HPUB, or of a MSG or HMSG."""
    verb = "MSG" if from_server else "PUB"
    subject, reply = draw(words), draw(st.just("") | words)
    sid = draw(st.integers(1, 10**6).map(str)) if from_server else ""
    payload = draw(payloads)
    head = draw(st.just(b"") | headers)
    sizes = [len(head + payload)]
    if head:
        verb = f"H{verb}"
        sizes.insert(0, len(head))
    arguments = [word for word in [verb, subject, sid, reply] if word] + [str(s) for s in sizes]
    if draw(st.booleans()):
        arguments[0] = verb.lower()
    line = b""
    for word in arguments:
        line += word.encode() + draw(spaces)
    end = draw(st.sampled_from([b"\r\n", b"\n"]))
    body = head + payload + b"\r\n"
    size = len(head + payload)
    return line + end + body, Operation(verb, subject, reply, sid, size, head, payload[:1024])


OTHERS_OF_CLIENTS = [
    (b'CONNECT {"name":"A","pass":"s3cret"}\r\n', Operation("CONNECT", more={"name": "A"})),
    (b"sub a.* 1\r\n", Operation("SUB", "a.*", sid="1", more="")),
    (b"SUB a.> workers 22\r\n", Operation("SUB", "a.>", sid="22", more="workers")),
    (b"UNSUB 22\r\n", Operation("UNSUB", sid="22", more=0)),
    (b"UNSUB 1 5\r\n", Operation("UNSUB", sid="1", more=5)),
    (b"PING\r\n", Operation("PING")),
    (b"pong\n", Operation("PONG")),
]
OTHERS_OF_SERVERS = [
    (b"INFO " + json.dumps(INFO).encode() + b" \r\n", Operation("INFO", more={"server_id": "N1"})),
    (b"+OK\r\n", Operation("+OK")),
    (b"-ERR 'Slow Consumer'\r\n", Operation("-ERR", more="Slow Consumer")),
    (b"PING\r\n", Operation("PING")),
    (b"PONG\r\n", Operation("PONG")),
]


def conversations(from_server):
    others = OTHERS_OF_SERVERS if from_server else OTHERS_OF_CLIENTS
    return st.lists(messages(from_server) | st.sampled_from(others), max_size=8)


def cut(data, draw):
    """The same bytes in pieces of any size."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=10).map(sorted))
    edges = [0, *places, len(data)]
    return [data[begin:end] for begin, end in zip(edges, edges[1:])]


def read(parser, pieces):
    """All operations in these pieces, and all the bytes that go on."""
    operations, gone_on = [], b""
    for piece in pieces:
        is_certain = parser.leaves_alone(piece)
        found, passed = parser.feed(piece)
        assert passed == piece or not is_certain
        operations += found
        gone_on += passed
    return operations, gone_on


@given(st.data(), st.booleans())
def test_any_conversation_in_any_pieces(data, from_server):
    conversation = data.draw(conversations(from_server))
    sent = b"".join(raw for raw, _ in conversation)
    parser = Parser(from_server)
    operations, gone_on = read(parser, cut(sent, data.draw))
    assert parser.error == ""
    assert operations == [operation for _, operation in conversation]
    assert gone_on == sent


@given(st.data())
def test_new_addresses_in_info_and_nothing_else(data):
    conversation = data.draw(conversations(from_server=True))
    sent = b"".join(raw for raw, _ in conversation)
    wanted = sent.replace(b'["127.0.0.1:4222", "[::1]:4223"]', b'["x:1"]')
    parser = Parser(True, new_urls=lambda urls: ["x:1"])
    operations, gone_on = read(parser, cut(sent, data.draw))
    assert operations == [operation for _, operation in conversation]
    assert gone_on == wanted


@given(st.data(), st.booleans())
def test_nothing_waits_in_the_parser_but_the_beginning_of_an_info(data, from_server):
    """A message goes on as it comes, however large it is."""
    conversation = data.draw(conversations(from_server))
    parser = Parser(from_server, new_urls=list)
    for piece in cut(b"".join(raw for raw, _ in conversation), data.draw):
        _, gone_on = parser.feed(piece)
        if not b"INFO".startswith(parser._tail[:4].upper()):
            assert gone_on.endswith(piece)


def test_messages_and_all_that_clients_send_are_left_alone():
    server = Parser(True, new_urls=list)
    assert server.leaves_alone(b"MSG a 1 1\r\nx\r\n") and server.leaves_alone(b"PING\r\nMSG a")
    assert not server.leaves_alone(b"info {}\r\n") and not server.leaves_alone(b"PING\r\ni")
    assert Parser(False).leaves_alone(b"INFO {}\r\n")


@given(st.binary(max_size=200), st.data())
def test_any_bytes_at_all_go_on(data_of_a_client, data):
    parser = Parser(from_server=False)
    _, gone_on = read(parser, cut(data_of_a_client, data.draw))
    assert gone_on == data_of_a_client


@pytest.mark.parametrize("from_server", [False, True])
@given(st.binary(max_size=200), st.data())
def test_after_an_error_all_goes_on_unread(from_server, rest, data):
    sent = b"PING\r\n" + b"GET / HTTP/1.1\r\n" + rest
    parser = Parser(from_server, new_urls=list)
    operations, gone_on = read(parser, cut(sent, data.draw))
    assert operations == [Operation("PING")]
    assert gone_on == sent
    assert parser.error.startswith("no operation of NATS")


@pytest.mark.parametrize(
    "line",
    [
        b"\x16\x03\x01\x02\x00\x01",  # a client that begins with TLS
        b"PUB a\r\n",
        b"PUB a b c 1\r\n",
        b"PUB a 1_0\r\n",
        b"PUB a -1\r\n",
        b"PUB a 1\r\nxyz",
        b"HPUB a 5 4\r\n",
        b"SUB a\r\n",
        b"UNSUB\r\n",
        b"UNSUB 1 x\r\n",
        b"MSG a 1 1\r\nx\r\n",
        b"CONNECT {\r\n",
        b"CONNECT []\r\n",
        b"\r\n",
        b"PUBLISH a 1\r\n",
    ],
)
def test_what_is_no_operation_of_a_client_ends_the_reading(line):
    parser = Parser(from_server=False)
    assert parser.feed(line) == ([], line) or parser.error
    assert parser.error
    assert parser.feed(b"PING\r\n") == ([], b"PING\r\n")


@pytest.mark.parametrize("line", [b"MSG a 1\r\n", b"MSG a 1 b c 1\r\n", b"PUB a 1\r\nx\r\n"])
def test_what_is_no_operation_of_a_server_ends_the_reading(line):
    parser = Parser(from_server=True)
    parser.feed(line)
    assert parser.error


def test_a_line_without_an_end_ends_the_reading():
    parser = Parser(from_server=False)
    read(parser, [b"PUB " + b"a" * 600_000, b"a" * 600_000])
    assert parser.error == "a line of more than 1048576 bytes"


@pytest.mark.parametrize("secret", ["pass", "auth_token", "jwt", "sig", "nkey"])
def test_no_secret_of_connect_leaves_the_parser(secret):
    sent = b'CONNECT {"user":"u","name":"A","%s":"s3cret"}\r\n' % secret.encode()
    (operation,), gone_on = Parser(from_server=False).feed(sent)
    assert operation.more == {"name": "A", "user": "u"}
    assert gone_on == sent


def test_a_broken_connect_is_not_quoted_in_the_error():
    parser = Parser(from_server=False)
    parser.feed(b'CONNECT {"pass":"s3cret",\r\n')
    assert parser.error and "s3cret" not in parser.error


@pytest.mark.parametrize("split", range(70))
def test_the_end_of_a_body_may_come_in_two_pieces(split):
    sent = b"HPUB a b 12 22\r\nNATS/1.0\r\n\r\n\r\n01234567\r\nPING\r\n"
    parser = Parser(from_server=False)
    operations, gone_on = read(parser, [sent[:split], sent[split:]])
    assert gone_on == sent
    assert [operation.verb for operation in operations] == ["HPUB", "PING"]
    assert operations[0].payload == b"\r\n01234567"


def test_a_large_payload_is_cut_off_and_its_size_is_told():
    parser = Parser(from_server=False, kept=10)
    sent = b"HPUB a 1012 1000012\r\n" + b"h" * 1012 + b"p" * 999_000 + b"\r\n"
    pieces = [sent[i : i + 65536] for i in range(0, len(sent), 65536)]
    operations, gone_on = read(parser, pieces)
    assert operations == [Operation("HPUB", "a", "", "", 1_000_012, b"h" * 10, b"p" * 10)]
    assert gone_on == sent

"""What operations on the wire mean, where it takes no server to show it."""

import pytest

from labkit.wire.kinds import Reading, matches, of_ack, of_answer, of_status

ACK = "$JS.ACK.ORDERS.work.{delivered}.{seq}.{consumer_seq}.{stored}.0"


class Script:
    """Writes a record by hand, and reads it."""

    def __init__(self):
        self.reading = Reading(0, lambda server: f"node at {server[1]}")
        self.at = 0

    def __call__(
        self, link, verb, subject="", reply="", sid="", payload=b"", headers=b"", more=None
    ):
        self.at += 1
        size = len(headers) + len(payload)
        self.reading.read(self.at, link, verb, subject, reply, sid, size, headers, payload, more)

    def client(self, link, name, **options):
        self(link, "opened", more=["127.0.0.1", 4222])
        self(link, "INFO", more={"server_id": "N1", "client_id": 100 + link})
        self(link, "CONNECT", more={"name": name, **options} if name else options)

    def stored(self, link, seq, payload, stream="ORDERS"):
        """What js.publish() sends, and its answer."""
        self(link, "PUB", "orders.new", f"_INBOX.{link}.{seq}", payload=payload)
        answer = b'{"stream":"%s","seq":%d}' % (stream.encode(), seq)
        self(link, "MSG", f"_INBOX.{link}.{seq}", sid="9", payload=answer)

    def delivered(self, link, seq, payload, delivered=1, stored=1):
        reply = ACK.format(delivered=delivered, seq=seq, consumer_seq=1, stored=stored)
        self(link, "MSG", "orders.new", reply, "1", payload)
        return reply

    def kinds(self, *keys):
        """The kinds of all events but connections, each with these fields."""
        events = [event for event in self.reading.events if event["kind"] != "connected"]
        return [tuple(event.get(key) for key in ("kind", *keys)) for event in events]

    def last(self):
        return self.reading.events[-1]


@pytest.fixture
def script():
    script = Script()
    script.client(1, "A")
    script.client(2, "B")
    return script


NINE = "$JS.ACK.S.C.2.30.40.1700000000000000000.5"
ELEVEN = "$JS.ACK.hub.HASH.S.C.2.30.40.1700000000000000000.5"


@pytest.mark.parametrize("subject", [NINE, ELEVEN, f"{ELEVEN}.random"])
def test_an_ack_subject_in_each_form(subject):
    assert of_ack(subject) == {
        "stream": "S",
        "consumer": "C",
        "delivered": 2,
        "seq": 30,
        "consumer_seq": 40,
        "stored": 1700000000000000000,
        "pending": 5,
    }


@pytest.mark.parametrize("subject", ["", "$JS.ACK.S.C.1", f"{NINE}.x", "$JS.ACK.S.C.a.b.c.d.e"])
def test_what_is_no_ack_subject(subject):
    assert of_ack(subject) is None


@pytest.mark.parametrize(
    "payload, kind, fields",
    [
        (b"", "acked", {}),
        (b"+ACK", "acked", {}),
        (b"+OK", "acked", {}),
        (b"+NXT", "acked", {"pulls": True}),
        (b'+NXT {"batch": 5}', "acked", {"pulls": True}),
        (b"-NAK", "nak", {}),
        (b'-NAK {"delay": 500000000}', "nak", {"delay": 0.5}),
        (b"-NAK 5s", "nak", {}),
        (b"+TERM", "term", {}),
        (b"+TERM no such customer", "term", {"reason": "no such customer"}),
        (b"+WPI", "in progress", {}),
        (b"thanks", "", {}),
    ],
)
def test_the_answers_to_a_delivery(payload, kind, fields):
    assert of_answer(payload) == (kind, fields)


@pytest.mark.parametrize(
    "headers, status",
    [
        (b"NATS/1.0 503\r\n\r\n", (503, "")),
        (b"NATS/1.0 404 No Messages\r\n\r\n", (404, "No Messages")),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 5\r\n\r\n", (100, "Idle Heartbeat")),
        (b"NATS/1.0\r\nStatus: 404\r\n\r\n", (0, "")),
        (b"", (0, "")),
    ],
)
def test_the_status_in_headers(headers, status):
    assert of_status(headers) == status


@pytest.mark.parametrize(
    "pattern, subject, same",
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
        ("a.b.c", "a.b", False),
        ("a", "b", False),
    ],
)
def test_wildcards(pattern, subject, same):
    assert matches(pattern.split("."), subject.split(".")) is same


# --- names


def test_clients_without_a_name_and_with_the_same_one(script):
    script.client(3, "")
    script.client(4, "A")
    script.client(5, "A")
    script(4, "closed", more="client")
    script.client(6, "A")
    names = [event["client"] for event in script.reading.events if event["kind"] == "connected"]
    assert names == ["A", "B", "client 3", "A (2)", "A (3)", "A (2)"]


def test_a_client_that_connects_again_keeps_its_name(script):
    script(1, "-ERR", more="Slow Consumer")
    script(1, "closed", more="server")
    script.client(3, "A")
    assert script.kinds("client", "by", "text") == [
        ("error", "A", None, "Slow Consumer"),
        ("disconnected", "A", "server", "Slow Consumer"),
    ]
    assert script.last()["client"] == "A" and script.last()["node"] == "node at 4222"


# --- what becomes of a message of core NATS


def test_each_subscriber_gets_it_and_a_queue_group_once(script):
    for link, sid, queue in [(1, "1", ""), (2, "1", "workers"), (1, "2", "workers")]:
        script(link, "SUB", "a.*", sid=sid, more=queue)
    script(1, "PUB", "a.b", payload=b"x")
    published = script.last()["number"]
    script(1, "MSG", "a.b", sid="1", payload=b"x")
    script(2, "MSG", "a.b", sid="1", payload=b"x")
    assert script.kinds("client", "of")[3:] == [
        ("published", "A", None),
        ("delivered", "A", published),
        ("delivered", "B", published),
    ]


def test_two_equal_publishes_at_once_are_ambiguous_and_one_after_the_other_are_not(script):
    script(2, "SUB", "a", sid="1", more="")
    for _ in range(2):
        script(1, "PUB", "a", payload=b"x")
        first = script.last()["number"]
        script(2, "MSG", "a", sid="1", payload=b"x")
        assert script.last()["of"] == first
    script(1, "PUB", "a", payload=b"x")
    script(1, "PUB", "a", payload=b"x")
    second = script.last()["number"]
    script(2, "MSG", "a", sid="1", payload=b"x")
    assert script.kinds("of")[-2:] == [("ambiguous", None), ("delivered", None)]
    assert script.reading.events[-2]["candidates"] == 2
    script(2, "MSG", "a", sid="1", payload=b"x")
    assert script.last()["of"] == second  # only one is left


def test_equal_publishes_to_two_subjects_are_not_ambiguous(script):
    script(2, "SUB", ">", sid="1", more="")
    numbers = {}
    for subject in ("a", "b"):
        script(1, "PUB", subject, payload=b"x")
        numbers[subject] = script.last()["number"]
    script(2, "MSG", "b", sid="1", payload=b"x")
    assert script.last()["of"] == numbers["b"]


def test_a_request_its_reply_and_both_deliveries(script):
    script(1, "PUB", "svc", "_INBOX.1", payload=b"ping")
    script(2, "MSG", "svc", "_INBOX.1", "1", b"ping")
    script(2, "PUB", "_INBOX.1", payload=b"pong")
    script(1, "MSG", "_INBOX.1", sid="7", payload=b"pong")
    kinds = script.kinds("client", "of")
    first = script.reading.events[2]["number"]
    assert kinds == [
        ("requested", "A", None),
        ("delivered", "B", first),
        ("replied", "B", first),
        ("delivered", "A", first + 2),
    ]


def test_two_equal_requests_are_told_apart_by_their_inbox(script):
    script(1, "PUB", "svc", "_INBOX.1", payload=b"ping")
    script(1, "PUB", "svc", "_INBOX.2", payload=b"ping")
    second = script.last()["number"]
    script(2, "MSG", "svc", "_INBOX.2", "1", b"ping")
    assert script.last()["of"] == second


def test_no_responders(script):
    script(1, "PUB", "svc", "_INBOX.1", payload=b"ping")
    script(1, "HMSG", "_INBOX.1", sid="7", headers=b"NATS/1.0 503\r\n\r\n")
    assert script.kinds("subject") == [("requested", "svc"), ("no responders", "svc")]


# --- lost, not seen


def judged(script, is_lost=True, now=100):
    script.reading.judge(now, lambda subject: is_lost)
    return script.kinds("of")[-1]


def test_lost_if_nobody_can_have_got_it(script):
    script(1, "PUB", "a", payload=b"x")
    number = script.last()["number"]
    assert judged(script) == ("lost", number)
    assert script.last()["at"] == script.reading.events[-2]["at"]
    assert script.last()["client"] == "A"
    count = len(script.reading.events)
    judged(script)
    assert len(script.reading.events) == count  # once


def test_not_seen_if_somebody_may_have_got_it(script):
    script(1, "PUB", "a", payload=b"x")
    assert judged(script, is_lost=False)[0] == "not seen"


def test_not_lost_while_a_subscription_is_there(script):
    script(2, "SUB", "a", sid="1", more="")
    script(1, "PUB", "a", payload=b"x")
    sent = script.at
    assert judged(script, now=sent + 0.5)[0] == "published"  # it may be on its way
    assert judged(script, now=sent + 1.5)[0] == "not seen"


def test_a_finding_is_taken_back_when_the_message_arrives_after_all(script):
    script(2, "SUB", "a", sid="1", more="")
    script(1, "PUB", "a", payload=b"x")
    assert judged(script)[0] == "not seen"
    script(2, "MSG", "a", sid="1", payload=b"x")
    assert [kind for (kind,) in script.kinds()] == ["subscribed", "published", "delivered"]


@pytest.mark.parametrize(
    "ends",
    [
        [("UNSUB", {"sid": "1", "more": 0})],
        [("UNSUB", {"sid": "1", "more": 1}), ("MSG", {"subject": "a", "sid": "1"})],
        [("closed", {"more": "client"})],
    ],
)
def test_a_subscription_that_has_ended_is_not_there(script, ends):
    script(2, "SUB", "a", sid="1", more="")
    for verb, fields in ends:
        script(2, verb, **fields)
    script(1, "PUB", "a", payload=b"x")
    assert judged(script)[0] == "lost"


@pytest.mark.parametrize("echo, kind", [(True, "not seen"), (False, "lost")])
def test_a_client_without_echo_does_not_hear_itself(script, echo, kind):
    script.client(3, "C", echo=echo)
    script(3, "SUB", "a", sid="1", more="")
    script(3, "PUB", "a", payload=b"x")
    assert judged(script)[0] == kind


def test_a_stream_that_was_made_on_the_wire_takes_its_subjects(script):
    config = b'{"name":"ORDERS","subjects":["orders.>"]}'
    script(1, "PUB", "$JS.API.STREAM.CREATE.ORDERS", "_INBOX.1", payload=config)
    assert script.reading.is_taken("orders.new") and not script.reading.is_taken("orders")
    script(1, "PUB", "orders.new", "_INBOX.2", payload=b"x")
    assert script.last()["kind"] == "published"  # before anybody has answered


# --- what becomes of a message in a stream


def test_published_stored_delivered_acked(script):
    script.stored(1, 7, b"x")
    reply = script.delivered(2, 7, b"x")
    script(2, "PUB", reply)
    events = [event for event in script.reading.events if event["kind"] != "connected"]
    numbers = {event["kind"]: event["number"] for event in events}
    assert script.kinds("seq", "client", "of") == [
        ("published", None, "A", None),
        ("stored", 7, "A", numbers["published"]),
        ("delivered", 7, "B", numbers["published"]),
        ("acked", 7, "B", numbers["delivered"]),
    ]


def test_a_request_becomes_a_publish_when_a_stream_answers(script):
    script(1, "PUB", "orders.new", "_INBOX.1", payload=b"x")
    assert script.last()["kind"] == "requested"
    script(1, "MSG", "_INBOX.1", sid="9", payload=b'{"stream":"ORDERS","seq":1}')
    assert script.kinds() == [("published",), ("stored",)]


def test_duplicate_and_refused(script):
    for answer in (
        b'{"stream":"ORDERS","seq":1,"duplicate":true}',
        b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},'
        b'"stream":"ORDERS","seq":0}',
    ):
        script(1, "PUB", "orders.new", "_INBOX.1", payload=b"x")
        script(1, "MSG", "_INBOX.1", sid="9", payload=answer)
    assert script.kinds("seq", "code", "text")[1::2] == [
        ("duplicate", 1, None, None),
        ("refused", None, 10071, "wrong last sequence: 3"),
    ]


def test_an_answer_that_only_looks_like_an_error_is_a_reply(script):
    script(1, "PUB", "svc", "_INBOX.1", payload=b"x")
    script(1, "MSG", "_INBOX.1", sid="9", payload=b'{"error":"no such order"}')
    assert script.kinds() == [("requested",), ("delivered",)]


def test_expired_redelivered_and_a_late_ack(script):
    first = script.delivered(1, 7, b"x")
    second = script.delivered(2, 7, b"x", delivered=2)
    script(1, "PUB", first)
    script(2, "PUB", second)
    numbers = [event["number"] for event in script.reading.events]
    assert script.kinds("client", "delivered", "of", "late") == [
        ("delivered", "A", 1, None, None),
        ("expired", "A", 1, numbers[2], None),
        ("redelivered", "B", 2, None, None),
        ("acked", "A", 1, numbers[2], True),
        ("acked", "B", 2, numbers[4], None),
    ]


@pytest.mark.parametrize("answer", [b"-NAK", b"+TERM", b""])
def test_what_was_answered_has_not_expired(script, answer):
    first = script.delivered(1, 7, b"x")
    script(1, "PUB", first, payload=answer)
    script.delivered(2, 7, b"x", delivered=2)
    assert "expired" not in [kind for (kind,) in script.kinds()]


def test_a_heartbeat_of_the_work_is_no_answer(script):
    first = script.delivered(1, 7, b"x")
    script(1, "PUB", first, payload=b"+WPI")
    script.delivered(2, 7, b"x", delivered=2)
    assert [kind for (kind,) in script.kinds()][1:] == ["in progress", "expired", "redelivered"]


def test_what_no_server_heeds_is_no_answer(script):
    first = script.delivered(1, 7, b"x")
    script(1, "PUB", first, payload=b"thanks")
    assert script.last()["hidden"] == "api"


def test_a_stream_of_the_same_name_begins_with_the_same_sequences(script):
    """The time at which the message was stored tells them apart."""
    script.stored(1, 1, b"old")
    old = script.delivered(2, 1, b"old", stored=1000)
    script.stored(1, 1, b"new")
    published = script.reading.events[-2]["number"]
    script.delivered(2, 1, b"new", stored=2000)
    assert script.last()["of"] == published and script.last()["kind"] == "delivered"
    script(2, "PUB", old)
    assert "late" not in script.last() and script.last()["of"] == published - 1


def test_equal_messages_in_a_stream_are_told_apart_by_their_sequence(script):
    script.stored(1, 1, b"x")
    script.stored(1, 2, b"x")
    second = script.reading.events[-2]["number"]
    script.delivered(2, 2, b"x")
    assert script.last()["of"] == second


def test_without_a_puback_equal_messages_in_a_stream_are_ambiguous(script):
    script(1, "PUB", "orders.new", payload=b"x")
    script(1, "PUB", "orders.new", payload=b"x")
    script.delivered(2, 1, b"x")
    assert script.kinds("seq")[-2:] == [("ambiguous", 1), ("delivered", 1)]


def test_without_a_puback_a_message_in_a_stream_is_known_by_its_content(script):
    script(1, "PUB", "orders.new", payload=b"x")
    number = script.last()["number"]
    script(1, "PUB", "orders.new", payload=b"y")
    for delivered in (1, 2):
        script.delivered(2, 1, b"x", delivered=delivered)
        assert script.last()["of"] == number


def test_ack_sync_is_confirmed(script):
    reply = script.delivered(1, 7, b"x")
    script(1, "PUB", reply, "_INBOX.1")
    assert "confirmed" not in script.last()
    script(1, "MSG", "_INBOX.1", sid="9")
    assert script.last()["confirmed"] and script.last()["kind"] == "acked"


def test_an_ack_for_all_before(script):
    config = b'{"stream_name":"ORDERS","config":{"durable_name":"work","ack_policy":"all"}}'
    script(1, "PUB", "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.work", "_INBOX.1", payload=config)
    script(1, "PUB", script.delivered(1, 7, b"x"))
    assert script.last()["all"]


# --- pulls, statuses, what is hidden


def test_a_pull_and_its_status(script):
    wish = b'{"batch":5,"expires":500000000,"no_wait":true}'
    script(1, "PUB", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.work", "_INBOX.1", payload=wish)
    script(1, "HMSG", "_INBOX.1", sid="9", headers=b"NATS/1.0 404 No Messages\r\n\r\n")
    script(1, "PUB", "$JS.hub.API.CONSUMER.MSG.NEXT.ORDERS.work", "_INBOX.1", payload=b"3")
    assert script.kinds("stream", "consumer", "batch", "expires", "code") == [
        ("pull", "ORDERS", "work", 5, 0.5, None),
        ("status", "ORDERS", "work", None, None, 404),
        ("pull", "ORDERS", "work", 3, None, None),
    ]


@pytest.mark.parametrize(
    "operation, hidden",
    [
        (("SUB", "_INBOX.x.*", "", "1"), "inbox"),
        (("PUB", "$JS.API.INFO", "_INBOX.1"), "api"),
        (("PUB", "$SRV.PING", "_INBOX.1"), "api"),
        (("PUB", "$JS.FC.ORDERS.work.x"), "flow control"),
        (("HMSG", "d", "", "1", b"", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"), "heartbeat"),
        (("HMSG", "d", "r", "1", b"", b"NATS/1.0 100 FlowControl Request\r\n\r\n"), "flow control"),
    ],
)
def test_what_is_hidden(script, operation, hidden):
    script(1, *operation)
    assert script.last()["hidden"] == hidden


def test_answers_of_the_api_and_of_services_that_are_looked_for_are_hidden(script):
    script(1, "PUB", "$JS.API.STREAM.INFO.ORDERS", "_INBOX.1")
    script(1, "MSG", "_INBOX.1", sid="9", payload=b'{"type":"info"}')
    script(1, "PUB", "$SRV.PING", "_INBOX.2")
    script(2, "MSG", "$SRV.PING", "_INBOX.2", "1")
    script(2, "PUB", "_INBOX.2", payload=b"{}")
    script(1, "MSG", "_INBOX.2", sid="9", payload=b"{}")
    events = [event for event in script.reading.events if event["kind"] != "connected"]
    assert len(events) == 6 and all(event["hidden"] == "api" for event in events)


def test_a_wire_that_was_started_again(script):
    script.reading.restart(50)
    assert script.kinds("client", "by") == [
        ("disconnected", "A", "wire"),
        ("disconnected", "B", "wire"),
    ]
    script.client(1, "A")
    assert script.last()["client"] == "A"


def test_what_comes_of_a_connection_that_is_not_known_is_left_out(script):
    script(99, "PUB", "a", payload=b"x")
    assert script.kinds() == []


def test_lame_duck_and_unread(script):
    script(1, "INFO", more={"ldm": True})
    script(1, "unread", more="no operation of NATS: b'GET'")
    assert script.kinds("client", "text") == [
        ("lame duck", "A", None),
        ("unread", "A", "no operation of NATS: b'GET'"),
    ]


def test_the_oldest_events_are_given_up_when_there_are_too_many_or_their_messages_are_too_large():
    script = Script()
    for number in range(10):
        script.reading.note(number, "published", payload="x" * 94, headers={"A": "12345"})
    assert script.reading.forget(most=10, most_bytes=1000) == 0
    assert script.reading.forget(most=9, most_bytes=1000) == 1
    assert script.reading.forget(most=9, most_bytes=500) == 4
    assert [event["number"] for event in script.reading.events] == [6, 7, 8, 9, 10]
    script.reading.clear()
    script.reading.note(11, "published", payload="x" * 500)
    assert script.reading.forget(most=9, most_bytes=500) == 0


def test_without_payloads_their_meaning_stays():
    script = Script()
    script.reading = Reading(0, lambda server: "n1", payloads=False)
    script.client(1, "A")
    headers = b"NATS/1.0\r\nA: secret\r\n\r\n"
    script(1, "PUB", "orders.new", "_INBOX.1", payload=b"secret", headers=headers)
    script(1, "MSG", "_INBOX.1", sid="9", payload=b'{"stream":"ORDERS","seq":1}')
    assert script.kinds() == [("published",), ("stored",)]
    assert "secret" not in str(script.reading.events)

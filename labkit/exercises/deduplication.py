"""Exercises of lesson 15: a retry that is harmless, a window that covers it, a write that
overwrites nobody."""

import asyncio
import contextlib
import re

from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, fresh_stream, wants_function
from labkit.waiting import end_tasks


@exercise(
    hints=[
        "Which errors leave it open whether the message is stored? "
        "After those, and only those, publish again.",
        "The same attempt again means the same header: `Nats-Msg-Id` is made from `key`, "
        "outside of the loop.",
        "A loop with `return await js.publish(…)` in a try; `except TimeoutError:` goes on, "
        "or raises after the last.",
    ]
)
async def survives_lost_answer(lab, answer):
    """A publish that survives a lost answer, a lost message and a late one, stored once."""
    wants_function(answer, "js, subject, body, key")
    try:
        await fresh_stream(lab, "ONCE", subjects=["once.*"])
        async with _relayed(lab, _LossyRelay(lab.nc.connected_url)) as (js, relay):
            for number, lost in enumerate(("answer", "message", "order"), 1):
                relay.begin(lost)
                ack = await _publish_order(answer, number, js, relay)
                await _stored_once(number, ack, js, relay)
            await _known_again(answer, js)
    finally:
        await delete(lab.js, "ONCE")


async def publish_once(js, subject, body, key):
    for attempt in range(1, 6):
        try:
            return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
        except TimeoutError:
            if attempt == 5:
                raise


survives_lost_answer.solved_by(publish_once)


async def _publish_order(answer, number, js, relay):
    """Raises NotYet unless the answer returns a PubAck."""
    try:
        ack = await answer(js, "once.paid", b"42 EUR", f"order-{number}")
    except TimeoutError:
        attempts = _counted(len(relay.ids), "attempt")
        raise NotYet(
            f"TimeoutError came out of your function, after {attempts}; wanted: a PubAck, from"
            " another attempt."
        ) from None
    saw = f"After {_counted(len(relay.ids), 'attempt')} your function returned {ack!r}"
    wanted = "the PubAck of an attempt that was answered"
    want(isinstance(ack, api.PubAck), saw, wanted)
    saw = f"When your function returned, no attempt for order-{number} had left on js's connection"
    want(relay.ids, saw, "it publishes there, and waits for the answer")
    return ack


async def _stored_once(number, ack, js, relay):
    """Raises NotYet unless the stream has stored each of so many orders once."""
    ids = relay.ids
    relay.begin(None)
    # On the same connection: what was sent before is stored by now.
    end = await js.publish("once.end", timeout=5)
    state = (await js.stream_info("ONCE", subjects_filter="once.paid")).state
    held = (state.subjects or {}).get("once.paid", 0)
    holds = f"the stream holds {_counted(held, 'message')}"
    if held < number and len(ids) < 2:
        raise NotYet(
            f"The first attempt for order-{number} got no answer, your function made no other one"
            f" on once.paid, and {holds}; wanted: {number}, for a TimeoutError does not say that it"
            " is stored."
        )
    wanted = f"{number}, one for each key"
    want(held >= number, f"{number} orders with equal bodies were published, and {holds}", wanted)
    happened = ("a lost answer", "a lost message", "a late message")[number - 1]
    kind = "no id" if None in ids else "different ids" if len(set(ids)) > 1 else "one id"
    saw = f"The attempts carried {kind}, and after {happened} {holds} of"
    want(held == number, f"{saw} {_counted(number, 'order')}", number)
    stored = end.seq - number  # without this end, and those before it
    saw = f"{_counted(number, 'order')} needed {_counted(stored, 'stored message')}"
    wanted = f"{number}: a reader may have had what was removed again"
    want(stored == number, f"After {happened} {saw}", wanted)
    last = await js.get_last_msg("ONCE", "once.paid")
    saw = f"The PubAck for order-{number} names sequence {ack.seq}, and it is stored at {last.seq}"
    want(ack.seq == last.seq, saw, "what an answer said")


async def _known_again(answer, js):
    """As a publisher that was restarted, and does not know how far it had come."""
    before = (await js.stream_info("ONCE")).state.last_seq
    await answer(js, "once.paid", b"42 EUR", _Unseen("order-1"))
    stored = (await js.stream_info("ONCE")).state.last_seq - before
    saw = f"order-1 was published by a second call, and the stream holds {stored} more"
    want(not stored, saw, "none: the id of an order is the same in each call and each process")


class _Unseen(str):
    """A key that no dict, set or cache finds: after a restart they are empty. Its text is the
    same, its hash() is not, as in another process."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def _counted(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


class _Relay:
    """A TCP relay to a node, which does not touch what it carries."""

    def __init__(self, node):
        self.node = node  # its address, a parsed URL

    async def link(self, reader, writer):
        there, back = await asyncio.open_connection(self.node.hostname, self.node.port)
        await asyncio.gather(
            self._carry(reader, back, self.to_node), self._carry(there, writer, self.to_client)
        )

    async def _carry(self, reader, writer, passes):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(await passes(data))
        writer.close()

    async def to_node(self, data):
        return data

    async def to_client(self, data):
        return data


class _LossyRelay(_Relay):
    """Something goes wrong with the first attempt for each order."""

    def __init__(self, node):
        super().__init__(node)
        self.begin(None)

    def begin(self, lost):
        """lost: "answer"; "message"; "order" (it arrives behind the second attempt); or None."""
        self.lost = lost
        self.ids = []  # of the attempts: what is published on once.paid; None where there is no id
        self.late = b""

    async def to_node(self, data):
        found = PUBLISH.search(data)
        if not found:
            return data
        end = found.end() + int(found[1]) + len(b"\r\n")
        its_id = re.search(rb"Nats-Msg-Id: ([^\r\n]*)", data[found.end() : end])
        self.ids.append(its_id and its_id[1])
        if self.lost == "message":
            self.lost = None
            return data[: found.start()] + data[end:]
        if self.lost == "order":
            self.lost = None
            self.late = data[found.start() : end]
            return data[: found.start()] + data[end:]
        late, self.late = self.late, b""
        return data + late

    async def to_client(self, data):
        if self.lost == "answer" and b'{"stream":"ONCE"' in data:
            self.lost = None
            return b""
        return data


PUBLISH = re.compile(rb"H?PUB once\.paid [^\r\n]*?(\d+)\r\n")  # its last number: bytes that follow


@contextlib.asynccontextmanager
async def _relayed(lab, relay):
    """(JetStream context of a client at the near end, the relay)."""
    async with await asyncio.start_server(relay.link, "127.0.0.1") as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await lab.connect(name="exercise", servers=[url])
        try:
            yield client.jetstream(timeout=0.5), relay
        finally:
            await client.close()


@exercise(
    hints=[
        "Three fields besides the name: which subjects, how old a reading may get, "
        "how long an id is remembered.",
        "All times of nats-py are in seconds. Left out, the window is 120 s.",
        "A retry may come 15 minutes after the first attempt, and it takes a moment to travel: "
        "a window a little over 15 minutes.",
    ],
    variable="readings",
)
async def window_for_retries(lab, answer):
    """A stream that recognises a retry 15 minutes later."""
    if isinstance(answer, dict):
        with contextlib.suppress(TypeError):  # a key that is no field: shown as it is
            answer = api.StreamConfig(**answer)
    is_readings = isinstance(answer, api.StreamConfig) and answer.name == "READINGS"
    want(is_readings, f"Your answer is {answer!r}", 'api.StreamConfig(name="READINGS", …)')
    await delete(lab.js, "READINGS")
    try:
        config = await _as_the_server_has_it(lab.js, answer)
        _keeps_readings_for_an_hour(config)
        saw = f"The stream remembers an id for {config.duplicate_window:g} s"
        covers_retries = config.duplicate_window > 900
        want(covers_retries, f"{saw}, and a retry may come after 900 s", "more than 900 s")
        want(config.duplicate_window <= 1800, saw, "at most 1800 s, since ids cost memory")
        await lab.settled("READINGS")
        await _recognises_a_retry(lab.js)
    finally:
        await delete(lab.js, "READINGS")


def readings_config():
    minute = 60  # seconds
    return api.StreamConfig(
        name="READINGS",
        subjects=["readings.*"],
        max_age=60 * minute,
        duplicate_window=16 * minute,
    )


window_for_retries.solved_by(readings_config)


async def _as_the_server_has_it(js, config):
    """Creates the stream; returns the config that the server made of this one."""
    try:
        return (await js.add_stream(config)).config
    except APIError as error:
        raise NotYet(
            f"The server refused it, error {error.err_code}: {error.description}; wanted: a config"
            " that it takes."
        ) from None


def _keeps_readings_for_an_hour(config):
    saw = f"The stream's subjects are {config.subjects}"
    want(config.subjects == ["readings.*"], saw, "['readings.*']")
    saw = f"The stream's max_age is {config.max_age or 0:g} s"
    want(config.max_age == 3600, saw, "3600 s, one hour")
    retention, storage = (
        getattr(value, "value", value) for value in (config.retention, config.storage)
    )
    wanted = "limits, so that no ack removes a reading before the hour is over"
    want(retention == "limits", f"The stream's retention is {retention}", wanted)
    saw = f"The stream's storage is {storage}, which a restart empties"
    want(storage == "file", saw, "file")
    mode = getattr(config.persist_mode, "value", config.persist_mode)
    saw = "With persist_mode=async the stream acks a reading before it is on disk"
    want(mode != "async", saw, "on disk first")
    for limit in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
        value = getattr(config, limit) or -1
        saw = f"With {limit}={value} a reading may go before the hour is over"
        want(value < 0, saw, "no limit but max_age")
    saw = "With no_ack the stream answers no publish, so a meter cannot know that a reading is kept"
    want(not config.no_ack, saw, "a stream that acks")


async def _recognises_a_retry(js):
    for _ in range(2):
        ack = await js.publish("readings.meter", b"7", headers={"Nats-Msg-Id": "meter:7"})
    held = (await js.stream_info("READINGS")).state.messages
    saw = f"A reading was sent twice with one id; the stream holds {held} of it"
    want(ack.duplicate and held == 1, saw, "1, and a duplicate")


@exercise(
    hints=[
        "Read the last message, and publish only if it is still the last one on its subject. "
        "The loser starts over.",
        'The header is "Nats-Expected-Last-Subject-Sequence", its value a string: the sequence '
        'you read, or "0" for no message.',
        "A `while True:` around read, publish, return. If `error.err_code` is 10071 or 10164, it "
        "goes round again; else it raises.",
    ]
)
async def counts_together(lab, answer):
    """A counter that many writers share, here and elsewhere."""
    wants_function(answer, "js, subject, amount")
    try:
        await fresh_stream(lab, "COUNTERS", subjects=["count.*"], num_replicas=3, max_msg_size=1000)
        async with _relayed(lab, _RivalRelay(lab)) as (impatient, relay):
            js = impatient._nc.jetstream(timeout=2)
            adds = [answer(js, "count.visits", 1) for _ in range(10)]
            _none_refused(await asyncio.gather(*adds, return_exceptions=True))
            saw = "No write to count.visits has left on js's connection"
            want(relay.rival, saw, "ten adds publish there")
            wanted = 10 + relay.rival
            stands_at = await _counter(lab.js)
            more = f", and {relay.rival} that somebody else added meanwhile,"
            saw = f"After 10 adds of 1 at once{more} the counter stands at {stands_at}"
            want(stands_at == wanted, saw, f"{wanted}, nothing overwritten")
            await answer(js, "count.visits", -3)
            stands_at = await _counter(lab.js)
            saw = f"The counter stood at {wanted}, and after an add of -3 at {stands_at}"
            want(stands_at == wanted - 3, saw, wanted - 3)
            await _adds_once(answer, impatient, lab.js, relay)
            await _says_what_is_refused(answer, js, relay)
            replicas = (await lab.js.stream_info("COUNTERS")).config.num_replicas
            want(replicas == 3, f"COUNTERS has {_counted(replicas, 'replica')} now", 3)
    finally:
        await delete(lab.js, "COUNTERS")


async def add(js, subject, amount):
    while True:
        try:
            last = await js.get_last_msg("COUNTERS", subject)
            value, sequence = int(last.data), last.seq
        except NotFoundError:
            value, sequence = 0, 0
        headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        try:
            return await js.publish(subject, str(value + amount).encode(), headers=headers)
        except BadRequestError as error:
            if error.err_code not in (10071, 10164):
                raise


counts_together.solved_by(add)


def _none_refused(ended):
    """ended: what each add returned or raised (list). Raises NotYet for a lost race, and any other
    error as it is."""
    errors = [end for end in ended if isinstance(end, Exception)]
    codes = sorted({error.err_code for error in errors if _is_overtaken(error)})
    refused = [error for error in errors if _is_overtaken(error)]
    saw = f"{len(refused)} of {len(ended)} adds ended in error {' or '.join(map(str, codes))}"
    want(not refused, saw, "the loser reads again and tries again")
    for error in errors:
        raise error


def _is_overtaken(error):
    """True for the server's "wrong last sequence", with the sequence or without."""
    return isinstance(error, BadRequestError) and error.err_code in (10071, 10164)


async def _counter(js):
    try:
        return int((await js.get_last_msg("COUNTERS", "count.visits")).data)
    except NotFoundError:
        raise NotYet("Nothing is stored on count.visits after 10 adds of 1; wanted: 10.") from None


async def _adds_once(answer, js, teller, relay):
    """The answer to a publish is lost: TimeoutError after 0.5 s, and the number is stored."""
    before = await _counter(teller)
    rise = 0

    async def has_risen():
        nonlocal rise
        rise = await _counter(teller) - before
        return rise > 0

    for _ in range(3):
        relay.begin(lost=True)
        async with _ended(answer(js, "count.visits", 1), within=3) as call:
            if not relay.writes:  # its read had no answer: nothing was published that could be lost
                continue
            await comes_true(has_risen, timeout=1)
            what = "An add of 1 lost the answer to its publish"
            want(rise == 1, f"{what}, and the counter rose by {rise}", "1, for it may be stored")
            swallowed = call.done() and not call.exception() and relay.writes == 1
            want(not swallowed, f"{what}, and nothing came out of your function", "TimeoutError")
            return


async def _says_what_is_refused(answer, js, relay):
    """The stream takes at most 1000 bytes: error 10054, which no further try mends."""
    wanted = "it comes out of your function at once"
    what = "The stream refused a number of 2001 digits (10054)"
    relay.begin()
    async with _ended(answer(js, "count.visits", 10**2000), within=2) as call:
        want(call.done(), f"{what}, and 2 s later your function had not ended", wanted)
        if not call.exception():
            raise NotYet(f"{what}, and your function returned {call.result()!r}; wanted: {wanted}.")
        saw = f"{what}, and your function tried {relay.writes} times"
        want(relay.writes <= 1, saw, "once: this is no lost race")


@contextlib.asynccontextmanager
async def _ended(coroutine, within):
    """The coroutine as a task that has had so many seconds; ends it afterwards."""
    call = asyncio.create_task(coroutine)
    try:
        await asyncio.wait([call], timeout=within)
        yield call
    finally:
        await end_tasks(call)


class _RivalRelay(_Relay):
    """Somebody else writes on another connection, between the read and the publish of whoever works
    at the near end: three times, to the same subject and to another one."""

    def __init__(self, lab):
        super().__init__(lab.nc.connected_url)
        self.js = lab.js
        self.rival = 0  # what the rival has added
        self.begin()

    def begin(self, lost=False):
        """lost: the answer to the first publish from now on is lost."""
        self.lost = lost
        self.writes = 0  # publishes to count.visits

    async def to_node(self, data):
        self.writes += data.count(b"PUB count.visits ")
        if b"PUB count.visits " in data and self.rival < 3:
            self.rival += 1
            await add(self.js, "count.visits", 1)
            await self.js.publish("count.other", b"0")
        return data

    async def to_client(self, data):
        is_lost = self.lost and self.writes < 2 and b'{"stream":"COUNTERS"' in data
        return b"" if is_lost else data

"""Exercises of lesson 15: a retry that is harmless, a window that covers it, a write that
overwrites nobody."""

import asyncio
import contextlib

from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function


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
    """A publish that survives a lost answer, stored once."""
    wants_function(answer, "js, subject, body, key")
    try:
        await fresh_stream(lab, "ONCE", subjects=["once.*"])
        async with _lossy_wire(lab) as (js, wire):
            ack = await _publish_order_1(answer, js, wire)
            await _stored_once(lab.js)
            saw = f"After {_counted(wire.attempts, 'attempt')} your function returned {ack!r}"
            wanted = "the PubAck of an attempt that was answered"
            want(isinstance(ack, api.PubAck), saw, wanted)
            await answer(js, "once.paid", b"42 EUR", "order-2")
        held = await _held(lab.js)
        saw = "Two orders with equal bodies were published, and the stream holds"
        want(held == 2, f"{saw} {_counted(held, 'message')}", "2, one for each key")
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


async def _publish_order_1(answer, js, wire):
    """Returns what the answer returns."""
    try:
        return await answer(js, "once.paid", b"42 EUR", "order-1")
    except TimeoutError:
        attempts = _counted(wire.attempts, "attempt")
        raise NotYet(
            f"TimeoutError came out of your function, after {attempts}; wanted: a PubAck, from"
            " another attempt."
        ) from None


async def _stored_once(js):
    held = await _held(js)
    if held < 2:
        return
    messages = [await js.get_msg("ONCE", sequence) for sequence in (1, 2)]
    have_ids = all("Nats-Msg-Id" in (message.headers or {}) for message in messages)
    ids = "different ids" if have_ids else "no id"
    raise NotYet(
        f"The attempts carried {ids}, and after a lost answer the stream holds {held} messages of"
        " order-1; wanted: 1."
    )


async def _held(js):
    """How many messages ONCE holds."""
    return (await js.stream_info("ONCE")).state.messages


def _counted(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


class _Wire:
    """A TCP relay to a node. It loses the first PubAck of ONCE that the node sends, and counts the
    attempts: what is published on once.*."""

    def __init__(self, node):
        self.node = node  # its address, a parsed URL
        self.lost = False
        self.attempts = 0

    async def link(self, reader, writer):
        there, back = await asyncio.open_connection(self.node.hostname, self.node.port)
        await asyncio.gather(self._to_node(reader, back), self._to_client(there, writer))

    async def _to_node(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.attempts += data.count(b"PUB once.")
                writer.write(data)
        writer.close()

    async def _to_client(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self.lost and b'{"stream":"ONCE"' in data:
                    self.lost = True
                else:
                    writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def _lossy_wire(lab):
    """(JetStream context of a client at the near end, _Wire)."""
    wire = _Wire(lab.nc.connected_url)
    async with await asyncio.start_server(wire.link, "127.0.0.1") as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await lab.connect(name="exercise", servers=[url])
        try:
            yield client.jetstream(timeout=0.5), wire
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
    config = await _as_the_server_has_it(lab.js, answer)
    saw = f"The stream's subjects are {config.subjects}"
    want(config.subjects == ["readings.*"], saw, "['readings.*']")
    saw = f"The stream's max_age is {config.max_age or 0:g} s"
    want(config.max_age == 3600, saw, "3600 s, one hour")
    saw = f"The stream remembers an id for {config.duplicate_window:g} s"
    covers_retries = config.duplicate_window > 900
    want(covers_retries, f"{saw}, and a retry may come after 900 s", "more than 900 s")
    want(config.duplicate_window <= 1800, saw, "at most 1800 s, since ids cost memory")


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
    """Creates the stream, and deletes it; returns the config that the server made of this one."""
    await delete(js, "READINGS")
    try:
        return (await js.add_stream(config)).config
    except APIError as error:
        raise NotYet(
            f"The server refused it, error {error.err_code}: {error.description}; wanted: a config"
            " that it takes."
        ) from None
    finally:
        await delete(js, "READINGS")


@exercise(
    hints=[
        "Read the last message, and publish only if it is still the last one on its subject. "
        "The loser starts over.",
        'The header is "Nats-Expected-Last-Subject-Sequence", its value a string: the sequence '
        'you read, or "0" for no message.',
        "A `while True:` around read, publish, return. If `error.err_code == 10071`, it goes "
        "round again; else it raises.",
    ]
)
async def counts_together(lab, answer):
    """A counter that ten writers share."""
    wants_function(answer, "js, subject, amount")
    js = _WithRival(lab.js)
    try:
        await fresh_stream(lab, "COUNTERS", subjects=["count.*"])
        await lab.js.publish("count.other", b"0")
        adds = [answer(js, "count.visits", 1) for _ in range(10)]
        _none_refused(await asyncio.gather(*adds, return_exceptions=True))
        wanted = 10 + js.rival
        stands_at = await _counter(lab.js)
        more = ", and 1 that somebody else added meanwhile," if js.rival else ""
        saw = f"After 10 adds of 1 at once{more} the counter stands at {stands_at}"
        want(stands_at == wanted, saw, f"{wanted}, nothing overwritten")
        await answer(js, "count.visits", -3)
        stands_at = await _counter(lab.js)
        saw = f"The counter stood at {wanted}, and after an add of -3 at {stands_at}"
        want(stands_at == wanted - 3, saw, wanted - 3)
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
            if error.err_code != 10071:
                raise


counts_together.solved_by(add)


def _none_refused(ended):
    """ended: what each add returned or raised (list). Raises NotYet for errors 10071, and any other
    error as it is."""
    errors = [end for end in ended if isinstance(end, Exception)]
    refused = [error for error in errors if _is_overtaken(error)]
    saw = f"{len(refused)} of {len(ended)} adds ended in error 10071"
    want(not refused, saw, "the loser reads again and tries again")
    for error in errors:
        raise error


def _is_overtaken(error):
    """True for the server's "wrong last sequence"."""
    return isinstance(error, BadRequestError) and error.err_code == 10071


async def _counter(js):
    try:
        return int((await js.get_last_msg("COUNTERS", "count.visits")).data)
    except NotFoundError:
        raise NotYet("Nothing is stored on count.visits after 10 adds of 1; wanted: 10.") from None


class _WithRival:
    """A JetStream context with a rival: behind the first read that finds a value, somebody else
    adds 1 to it."""

    def __init__(self, js):
        self.js = js
        self.rival = 0  # what the rival has added

    def __getattr__(self, name):
        return getattr(self.js, name)

    async def get_last_msg(self, stream_name, subject, *more, **named):
        found = await self.js.get_last_msg(stream_name, subject, *more, **named)
        if subject == "count.visits" and not self.rival:
            self.rival = 1
            await self.js.publish("count.other", b"0")
            await add(self.js, subject, 1)
        return found

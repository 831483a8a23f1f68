"""Exercises of lesson 06: a retry that is harmless, a window that covers it, a write that
overwrites nobody."""

import asyncio
import contextlib

from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise


class _Wire:
    """A TCP relay to a node. It loses the first PubAck that the node sends, and counts what is
    published on once.*."""

    async def open(self, node):
        self.node, self.lost, self.attempts = node, False, 0
        self.server = await asyncio.start_server(self._accept, "127.0.0.1")
        return f"nats://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection(self.node.hostname, self.node.port)
        await asyncio.gather(
            self._carry(reader, far_writer), self._carry(far_reader, writer, answers=True)
        )

    async def _carry(self, reader, writer, answers=False):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answers and not self.lost and b'{"stream":"ONCE"' in data:
                    self.lost = True
                    continue
                self.attempts += 0 if answers else data.count(b"PUB once.")
                writer.write(data)
        writer.close()


class _Overtaken:
    """A JetStream context with a rival: behind the first read that finds a value, somebody else
    adds 1 to it."""

    def __init__(self, js):
        self.js, self.rival = js, 0

    def __getattr__(self, name):
        return getattr(self.js, name)

    async def get_last_msg(self, stream_name, subject, *more, **named):
        found = last = await self.js.get_last_msg(stream_name, subject, *more, **named)
        if subject == "count.visits" and not self.rival:
            self.rival = 1
            await self.js.publish("count.other", b"0")
            while not await self._wrote(last):  # one of the ten may be faster
                last = await self.js.get_last_msg(stream_name, subject)
        return found

    async def _wrote(self, last):
        headers = {"Nats-Expected-Last-Subject-Sequence": str(last.seq)}
        try:
            return await self.js.publish(
                "count.visits", str(int(last.data) + 1).encode(), headers=headers
            )
        except BadRequestError as error:
            if error.err_code != 10071:
                raise


async def _fresh(lab, **config):
    """An empty stream, no id remembered."""
    await delete(lab.js, config["name"])
    await lab.js.add_stream(**config)
    await lab.settled(config["name"])


async def _stored(lab, name):
    return (await lab.js.stream_info(name)).state.messages


@exercise(
    hints=[
        (
            "Which errors leave it open whether the message is stored? After those, and only those,"
            " publish again."
        ),
        (
            "The same attempt again means the same header: `Nats-Msg-Id` is made from `key`,"
            " outside of the loop."
        ),
        (
            "A loop with `return await js.publish(…)` in a try; `except asyncio.TimeoutError:` goes"
            " on, or raises after the last."
        ),
    ],
    solution="""
        import asyncio

        async def publish_once(js, subject, body, key):
            for attempt in range(1, 6):
                try:
                    return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
                except asyncio.TimeoutError:
                    if attempt == 5:
                        raise
        """,
    wrong={
        "no id": (
            """
import asyncio
async def answer(js, subject, body, key):
    while True:
        try:
            return await js.publish(subject, body)
        except asyncio.TimeoutError:
            pass
""",
            (
                "The attempts carried no id, and after a lost answer the stream holds 2 messages of"
                " order-1"
            ),
        ),
        "an id for each attempt": (
            """
import asyncio, uuid
async def answer(js, subject, body, key):
    while True:
        try:
            return await js.publish(subject, body, headers={"Nats-Msg-Id": str(uuid.uuid4())})
        except asyncio.TimeoutError:
            pass
""",
            (
                "The attempts carried different ids, and after a lost answer the stream holds 2"
                " messages of order-1"
            ),
        ),
        "the body as id": (
            """
import asyncio, hashlib
async def answer(js, subject, body, key):
    while True:
        try:
            return await js.publish(subject, body, headers={"Nats-Msg-Id": hashlib.sha256(body).hexdigest()})
        except asyncio.TimeoutError:
            pass
""",
            (
                "Two orders with equal bodies were published, and the stream holds 1 message."
                " Wanted: 2"
            ),
        ),
        "no second attempt": (
            """
async def answer(js, subject, body, key):
    return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
""",
            "TimeoutError came out of your function, after 1 attempt. Wanted: a PubAck",
        ),
        "silence instead of an answer": (
            """
import asyncio
async def answer(js, subject, body, key):
    try:
        return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
    except asyncio.TimeoutError:
        pass
""",
            "After 1 attempt your function returned None",
        ),
    },
)
async def survives_lost_answer(lab, answer):
    """A publish that survives a lost answer, stored once."""
    await _fresh(lab, name="ONCE", subjects=["once.*"])
    wire = _Wire()
    client = await lab.connect(name="exercise", servers=[await wire.open(lab.nc.connected_url)])
    js = client.jetstream(timeout=0.5)
    try:
        try:
            ack = await answer(js, "once.paid", b"42 EUR", "order-1")
        except TimeoutError:
            raise NotYet(
                f"TimeoutError came out of your function, after {wire.attempts} attempt"
                f"{'s' if wire.attempts != 1 else ''}. Wanted: a PubAck, from another attempt."
            ) from None
        held = await _stored(lab, "ONCE")
        if held > 1:
            ids = [
                ((await lab.js.get_msg("ONCE", seq)).headers or {}).get("Nats-Msg-Id")
                for seq in (1, 2)
            ]
            said = "different ids" if all(ids) else "no id"
            raise NotYet(
                f"The attempts carried {said}, and after a lost answer the stream holds {held}"
                " messages of order-1. Wanted: 1."
            )
        if not isinstance(ack, api.PubAck):
            raise NotYet(
                f"After {wire.attempts} attempt{'s' if wire.attempts != 1 else ''} your function"
                f" returned {ack!r}. Wanted: the PubAck of an attempt that was answered."
            )
        await answer(js, "once.paid", b"42 EUR", "order-2")
        held = await _stored(lab, "ONCE")
        if held != 2:
            raise NotYet(
                f"Two orders with equal bodies were published, and the stream holds {held} "
                f"message{'s' if held != 1 else ''}. Wanted: 2, one for each key."
            )
    finally:
        await client.close()
        wire.server.close()


@exercise(
    hints=[
        (
            "Three fields besides the name: which subjects, how old a reading may get, how long an"
            " id is remembered."
        ),
        "All times of nats-py are in seconds. Left out, the window is 120 s.",
        (
            "A retry may come 15 minutes after the first attempt, and it takes a moment to travel:"
            " a window a little over 15 minutes."
        ),
    ],
    solution="""
        from nats.js import api

        readings = api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=60 * 60, duplicate_window=16 * 60)
        """,
    wrong={
        "the default": (
            """
from nats.js import api
answer = api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=3600)
""",
            "remembers an id for 120 s, and a retry may come after 900 s",
        ),
        "minutes": (
            """
from nats.js import api
answer = api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=3600, duplicate_window=16)
""",
            "remembers an id for 16 s",
        ),
        "a dict with the default": (
            """
answer = {"name": "READINGS", "subjects": ["readings.*"], "max_age": 3600}
""",
            "remembers an id for 120 s",
        ),
        "longer than the messages live": (
            """
from nats.js import api
answer = api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=3600, duplicate_window=86400)
""",
            "The server refused it, error 10052: duplicates window can not be larger then max age",
        ),
        "as long as the messages live": (
            """
from nats.js import api
answer = api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=3600, duplicate_window=3600)
""",
            "remembers an id for 3600 s. Wanted: at most 1800 s",
        ),
    },
)
async def window_for_retries(lab, answer):
    """A stream that recognises a retry 15 minutes later."""
    if isinstance(answer, dict):
        with contextlib.suppress(TypeError):  # a key that is no field: shown as it is
            answer = api.StreamConfig(**answer)
    if not isinstance(answer, api.StreamConfig) or answer.name != "READINGS":
        raise NotYet(f'Your answer is {answer!r}. Wanted: api.StreamConfig(name="READINGS", …).')
    await delete(lab.js, "READINGS")
    try:
        config = (await lab.js.add_stream(answer)).config
    except APIError as error:
        raise NotYet(
            f"The server refused it, error {error.err_code}: {error.description}."
        ) from None
    if config.subjects != ["readings.*"]:
        raise NotYet(f"The stream's subjects are {config.subjects}. Wanted: ['readings.*'].")
    if config.max_age != 3600:
        raise NotYet(f"The stream's max_age is {config.max_age:g} s. Wanted: 3600 s, one hour.")
    window = config.duplicate_window
    if window <= 900:
        raise NotYet(
            f"The stream remembers an id for {window:g} s, and a retry may come after 900 s."
            " Wanted: more than 900 s."
        )
    if window > 1800:
        raise NotYet(
            f"The stream remembers an id for {window:g} s. Wanted: at most 1800 s, ids cost memory."
        )


@exercise(
    hints=[
        (
            "Read the last message, and publish only if it is still the last one on its subject."
            " The loser starts over."
        ),
        (
            'The header is "Nats-Expected-Last-Subject-Sequence", its value a string: the sequence'
            ' you read, or "0" for no message.'
        ),
        (
            "A `while True:` around read, publish, return. If `error.err_code == 10071`, it goes"
            " round again; else it raises."
        ),
    ],
    solution="""
        from nats.js.errors import BadRequestError, NotFoundError

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
        """,
    wrong={
        "no expectation": (
            """
from nats.js.errors import NotFoundError
async def answer(js, subject, amount):
    try:
        value = int((await js.get_last_msg("COUNTERS", subject)).data)
    except NotFoundError:
        value = 0
    await js.publish(subject, str(value + amount).encode())
""",
            "nothing overwritten",
        ),
        "a lock of this process": (
            """
import asyncio
from nats.js.errors import NotFoundError
lock = asyncio.Lock()
async def answer(js, subject, amount):
    async with lock:
        try:
            value = int((await js.get_last_msg("COUNTERS", subject)).data)
        except NotFoundError:
            value = 0
        await js.publish(subject, str(value + amount).encode())
""",
            "and 1 that somebody else added meanwhile, the counter stands at 10. Wanted: 11",
        ),
        "the loser gives up": (
            """
from nats.js.errors import NotFoundError
async def answer(js, subject, amount):
    try:
        last = await js.get_last_msg("COUNTERS", subject)
        value, sequence = int(last.data), last.seq
    except NotFoundError:
        value, sequence = 0, 0
    await js.publish(subject, str(value + amount).encode(), headers={"Nats-Expected-Last-Subject-Sequence": str(sequence)})
""",
            "of 10 adds ended in error 10071",
        ),
        "the sequence of the whole stream": (
            """
from nats.js.errors import BadRequestError, NotFoundError
async def answer(js, subject, amount):
    for attempt in range(20):
        try:
            last = await js.get_last_msg("COUNTERS", subject)
            value, sequence = int(last.data), last.seq
        except NotFoundError:
            value, sequence = 0, 0
        try:
            return await js.publish(subject, str(value + amount).encode(), headers={"Nats-Expected-Last-Sequence": str(sequence)})
        except BadRequestError:
            pass
    raise RuntimeError("20 attempts in vain")
""",
            "20 attempts in vain",
        ),
    },
)
async def counts_together(lab, answer):
    """A counter that ten writers share."""
    await _fresh(lab, name="COUNTERS", subjects=["count.*"])
    await lab.js.publish("count.other", b"0")
    js = _Overtaken(lab.js)
    ended = await asyncio.gather(
        *(answer(js, "count.visits", 1) for _ in range(10)), return_exceptions=True
    )
    refused = [e for e in ended if isinstance(e, BadRequestError) and e.err_code == 10071]
    if refused:
        raise NotYet(
            f"{len(refused)} of 10 adds ended in error 10071. Wanted: the loser reads again and"
            " tries again."
        )
    for error in ended:
        if isinstance(error, Exception):
            raise error
    try:
        value = int((await lab.js.get_last_msg("COUNTERS", "count.visits")).data)
    except NotFoundError:
        raise NotYet("Nothing is stored on count.visits after 10 adds of 1. Wanted: 10.") from None
    wanted = 10 + js.rival
    if value != wanted:
        more = ", and 1 that somebody else added meanwhile," if js.rival else ""
        raise NotYet(
            f"After 10 adds of 1 at once{more} the counter stands at {value}. Wanted: {wanted},"
            " nothing overwritten."
        )
    await answer(js, "count.visits", -3)
    value = int((await lab.js.get_last_msg("COUNTERS", "count.visits")).data)
    if value != wanted - 3:
        raise NotYet(
            f"The counter stood at {wanted}, and after an add of -3 at {value}. Wanted:"
            f" {wanted - 3}."
        )

"""Exercises of lesson 02: answering errors, and retrying what is safe."""

import asyncio
import json
import time

from nats.errors import NoRespondersError

from labkit.exercises import NotYet, exercise


async def _server_knows(client):
    """Returns when the server has every subscription that this client made."""
    await asyncio.sleep(0)
    await client.flush()


@exercise(
    hints=[
        (
            "Nothing reaches the caller unless you respond. Which lines of your handler can raise,"
            " and for which requests?"
        ),
        (
            "Put all of it into one try. `except Exception as error:` covers an unknown item, no"
            " JSON, and no object."
        ),
        'In the except: `await msg.respond(json.dumps({"error": repr(error)}).encode())`.',
    ],
    solution="""
        import json
        PRICES = {"tea": 3, "coffee": 4}

        async def prices(msg):
            try:
                answer = {"price": PRICES[json.loads(msg.data)["item"]]}
            except Exception as error:
                answer = {"error": repr(error)}
            await msg.respond(json.dumps(answer).encode())
        """,
    wrong={
        "no except at all": (
            """
import json
async def answer(msg):
    await msg.respond(json.dumps({"price": {"tea": 3, "coffee": 4}[json.loads(msg.data)["item"]]}).encode())
""",
            "no answer within 2 s; in the handler: KeyError: 'gold'. Wanted: a reply",
        ),
        "only the error that one thought of": (
            """
import json
async def answer(msg):
    try:
        reply = {"price": {"tea": 3, "coffee": 4}[json.loads(msg.data)["item"]]}
    except KeyError as error:
        reply = {"error": repr(error)}
    await msg.respond(json.dumps(reply).encode())
""",
            "no answer within 2 s; in the handler: JSONDecodeError",
        ),
        "an error that looks like a price": (
            """
import json
async def answer(msg):
    try:
        price = {"tea": 3, "coffee": 4}.get(json.loads(msg.data)["item"])
    except Exception:
        price = None
    await msg.respond(json.dumps({"price": price}).encode())
""",
            '''was answered by b'{"price": null}'. Wanted: a JSON object with the key "error"''',
        ),
    },
)
async def answers_errors(lab, answer):
    """A handler that answers every request, errors included."""
    raised = []

    async def keep(error):
        raised.append(error)

    client = await lab.connect(name="exercise", error_cb=keep)
    try:
        await client.subscribe("exercise.prices", cb=answer)
        for body, wanted in [
            (b'{"item": "tea"}', 3),
            (b'{"item": "gold"}', "error"),
            (b"no JSON", "error"),
            (b"7", "error"),
            (b'{"item": "coffee"}', 4),
        ]:
            raised.clear()
            try:
                reply = await client.request("exercise.prices", body, timeout=2)
            except TimeoutError:
                why = (
                    f"in the handler: {type(raised[0]).__name__}: {raised[0]}"
                    if raised
                    else "it sent nothing"
                )
                want = (
                    'a reply with {"error": "…"}'
                    if wanted == "error"
                    else f'the reply {{"price": {wanted}}}'
                )
                raise NotYet(
                    f"The request {body!r} got no answer within 2 s; {why}. Wanted: {want}."
                ) from None
            try:
                said = json.loads(reply.data)
            except ValueError:
                said = None
            said = said if isinstance(said, dict) else {}
            if wanted == "error" and not said.get("error"):
                raise NotYet(
                    f"The request {body!r} was answered by {reply.data!r}. "
                    'Wanted: a JSON object with the key "error".'
                )
            if wanted != "error" and (said.get("price") != wanted or "error" in said):
                raise NotYet(
                    f'The request {body!r} was answered by {reply.data!r}. Wanted: {{"price":'
                    f" {wanted}}}."
                )
    finally:
        await client.close()


_GUIDE = """
import asyncio
import nats.errors
async def answer(nc, subject, data, deadline):
    for attempt in range(3):
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except asyncio.TimeoutError:
            await asyncio.sleep(0.1 * 2 ** attempt)
"""
_BOTH = """
import asyncio, nats.errors
async def answer(nc, subject, data, deadline):
    for attempt in range(30):
        try:
            return (await nc.request(subject, data, timeout=0.3)).data
        except (nats.errors.NoRespondersError, TimeoutError):
            await asyncio.sleep(0.1)
"""
_SHORT = """
import asyncio, nats.errors
async def answer(nc, subject, data, deadline):
    for attempt in range(30):
        try:
            return (await nc.request(subject, data)).data
        except nats.errors.NoRespondersError:
            await asyncio.sleep(0.1)
"""
_HOT = """
import time, nats.errors
async def answer(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except nats.errors.NoRespondersError:
            if time.monotonic() > end:
                raise
"""
_FOREVER = """
import asyncio, nats.errors
async def answer(nc, subject, data, deadline):
    while True:
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except nats.errors.NoRespondersError:
            await asyncio.sleep(0.1)
"""


@exercise(
    hints=[
        "Which of the two errors says that nobody got the request? Catch that one only.",
        (
            "Note the end of the call first: `end = time.monotonic() + deadline`. A request may"
            " wait for what is left."
        ),
        "After NoRespondersError: raise it if the next attempt would start after `end`; otherwise"
        " sleep for a growing, " + "random pause and go round again. Let TimeoutError pass.",
    ],
    solution="""
        import asyncio, random, time
        from nats.errors import NoRespondersError

        async def patient(nc, subject, data, deadline):
            end, pause = time.monotonic() + deadline, 0.05
            while True:
                try:
                    reply = await nc.request(subject, data, timeout=max(0.01, end - time.monotonic()))
                    return reply.data
                except NoRespondersError:
                    wait = pause * random.uniform(0.5, 1.5)
                    if time.monotonic() + wait > end - 0.1:  # an attempt needs time for its answer
                        raise
                    await asyncio.sleep(wait)
                    pause = min(2 * pause, 0.3)
        """,
    wrong={
        "the guide's helper": (_GUIDE, "gave up with NoRespondersError after 0."),
        "retries both errors": (_BOTH, "times for one call to a service that needs 1 s"),
        "nats-py's timeout of 0.5 s instead of the deadline": (
            _SHORT,
            "the call raised TimeoutError after 0.",
        ),
        "no pause": (_HOT, "pause between attempts"),
        "no end": (_FOREVER, "had not ended after"),
    },
)
async def patient_call(lab, answer):
    """A call that retries what is safe without a key, and ends by its deadline."""
    caller, service = await lab.connect(name="caller"), await lab.connect(name="service")
    runs, tasks = [], []

    async def try_it(subject, deadline, grace=2):
        start, sent = time.monotonic(), caller.stats["out_msgs"]
        try:
            said = await asyncio.wait_for(answer(caller, subject, b"?", deadline), deadline + grace)
        except Exception as error:
            said = error
        return said, time.monotonic() - start, caller.stats["out_msgs"] - sent

    async def quick(msg):
        runs.append(msg)
        await msg.respond(b"late, but here")

    async def slow(msg):
        runs.append(msg)
        tasks.append(asyncio.create_task(later(msg)))

    async def later(msg):
        await asyncio.sleep(1)
        await msg.respond(b"slow, but done")

    async def open_late():
        await asyncio.sleep(0.4)
        await service.subscribe("exercise.late", cb=quick)

    try:
        tasks.append(asyncio.create_task(open_late()))
        said, took, _ = await try_it("exercise.late", 3)
        if isinstance(said, NoRespondersError):
            raise NotYet(
                f"The call gave up with NoRespondersError after {took:.2f} s; its deadline was 3 s,"
                " and the service appeared after 0.4 s. Wanted: b'late, but here'."
            )
        _same(said, b"late, but here", "A service appeared after 0.4 s, the deadline was 3 s", took)
        runs.clear()
        await service.subscribe("exercise.slow", cb=slow)
        await _server_knows(service)
        said, took, _ = await try_it("exercise.slow", 3)
        if len(runs) > 1:
            raise NotYet(
                f"The handler ran {len(runs)} times for one call to a service that needs 1 s."
                " Wanted: once; after a timeout nobody knows whether it ran, so a call without a"
                " key must not repeat it."
            )
        _same(said, b"slow, but done", "The service needed 1 s, the deadline was 3 s", took)
        said, took, sent = await try_it("exercise.nobody", 0.8)
        if sent > 60:
            raise NotYet(
                f"Nobody was there, and the call sent {sent} requests in {took:.1f} s. "
                "Wanted: a pause between attempts, 60 requests at the most."
            )
        if type(said) is TimeoutError and took > 2.5:
            raise NotYet(
                "Nobody was there, the deadline was 0.8 s, and the call had not ended after"
                f" {took:.1f} s. Wanted: NoRespondersError by then."
            )
        if not isinstance(said, NoRespondersError):
            raise NotYet(
                f"Nobody was there until the deadline, and the call {_what(said)}. Wanted:"
                " NoRespondersError."
            )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, caller.close(), service.close(), return_exceptions=True)


def _same(said, wanted, situation, took):
    if said != wanted:
        raise NotYet(f"{situation}; the call {_what(said)} after {took:.1f} s. Wanted: {wanted!r}.")


def _what(said):
    return f"raised {type(said).__name__}" if isinstance(said, Exception) else f"returned {said!r}"

"""Exercises of lesson 03: answering errors, and retrying what is safe."""

import asyncio
import contextlib
import json
import random
import time
from typing import NamedTuple

from nats.errors import NoRespondersError

from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import wants_function

PRICES = {"tea": 3, "coffee": 4}
REQUESTS = [  # (what the check sends, the price that it wants; None: an error)
    (b'{"item": "tea"}', 3),
    (b'{"item": "gold"}', None),
    (b"no JSON", None),
    (b"7", None),
    (b'{"item": "coffee"}', 4),
]
GRACE = 2  # seconds after its deadline at which a call is cancelled


@exercise(
    hints=[
        "Nothing reaches the caller unless you respond. Which lines of your handler can raise, "
        "and for which requests?",
        "Put all of it into one try. `except Exception as error:` covers an unknown item, no JSON, "
        "and no object.",
        'In the except: `await msg.respond(json.dumps({"error": repr(error)}).encode())`.',
    ]
)
async def answers_errors(lab, answer):
    """A handler that answers every request, errors included."""
    wants_function(answer, "msg")
    raised = []

    async def keep(error):
        raised.append(error)

    async with await lab.connect(name="exercise", error_cb=keep) as client:
        await client.subscribe("exercise.prices", cb=answer)
        for request, price in REQUESTS:
            raised.clear()
            await _is_answered(client, request, price, raised)


async def prices(msg):
    try:
        answer = {"price": PRICES[json.loads(msg.data)["item"]]}
    except Exception as error:
        answer = {"error": repr(error)}
    await msg.respond(json.dumps(answer).encode())


answers_errors.solved_by(prices)


async def _is_answered(client, request, price, raised):
    """Raises NotYet unless the reply to this request is right. raised: errors of the handler."""
    wanted = f'the reply {{"price": {price}}}'
    if price is None:
        wanted = 'the reply {"error": "…"} with a text of yours'
    try:
        reply = await client.request("exercise.prices", request, timeout=2)
    except TimeoutError:
        why = "it sent nothing"
        if raised:
            why = f"in the handler: {type(raised[0]).__name__}: {raised[0]}"
        saw = f"The request {request!r} got no answer within 2 s ({why})"
        raise NotYet(f"{saw}; wanted: {wanted}.") from None
    saw = f"The request {request!r} was answered by {reply.data!r}"
    want(_tells(reply.data, price), saw, wanted)


def _tells(reply, price):
    """True if this reply (bytes) tells the price; for None, if it tells an error."""
    try:
        said = json.loads(reply)
    except ValueError:
        return False
    if not isinstance(said, dict):
        return False
    if price is None:
        return bool(said.get("error"))
    return said.get("price") == price and "error" not in said


@exercise(
    hints=[
        "Which of the two errors says that nobody got the request? Catch that one only.",
        "Note the end of the call first: `end = time.monotonic() + deadline`. A request may wait "
        "for what is left.",
        "After NoRespondersError: raise it if the next attempt would start after `end`; otherwise "
        "sleep for a growing, random pause and go round again. Let TimeoutError pass.",
    ]
)
async def patient_call(lab, answer):
    """A call that retries what is safe without a key, and ends by its deadline."""
    wants_function(answer, "nc, subject, data, deadline")
    async with (
        await lab.connect(name="caller") as caller,
        await lab.connect(name="service") as client,
    ):
        await _waits_for_a_late_service(answer, caller, client)
        await _asks_a_slow_service_once(answer, caller, client)
        await _gives_up_when_nobody_comes(answer, caller)


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


patient_call.solved_by(patient)


async def _waits_for_a_late_service(answer, caller, client):
    reply = b"late, but here"
    async with _service(client, "exercise.late", reply, appears_after=0.4):
        call = await _call(answer, caller, "exercise.late", deadline=3)
    saw = f"A service appeared after 0.4 s, the deadline was 3 s, and the call {call.outcome}"
    want(call.said == reply, f"{saw} after {call.took:.1f} s", f"it returns {reply!r}")


async def _asks_a_slow_service_once(answer, caller, client):
    reply = b"slow, but done"
    async with _service(client, "exercise.slow", reply, needs=1) as requests:
        call = await _call(answer, caller, "exercise.slow", deadline=3)
    want(
        len(requests) <= 1,
        f"The handler ran {len(requests)} times for one call to a service that needs 1 s",
        "once; after a timeout nobody knows whether it ran, so a call without a key must not"
        " repeat it",
    )
    saw = f"The service needed 1 s, the deadline was 3 s, and the call {call.outcome}"
    want(call.said == reply, f"{saw} after {call.took:.1f} s", f"it returns {reply!r}")


async def _gives_up_when_nobody_comes(answer, caller):
    call = await _call(answer, caller, "exercise.nobody", deadline=0.8)
    saw = f"Nobody was there, and the call sent {call.sent} requests in {call.took:.1f} s"
    want(call.sent <= 60, saw, "a pause between attempts, 60 requests at the most")
    cancelled = type(call.said) is TimeoutError and call.took > 2.5  # 0.8 and GRACE make 2.8
    saw = "Nobody was there, the deadline was 0.8 s, and the call had not ended after"
    want(not cancelled, f"{saw} {call.took:.1f} s", "NoRespondersError by then")
    saw = f"Nobody was there until the deadline, and the call {call.outcome}"
    want(isinstance(call.said, NoRespondersError), saw, "NoRespondersError")


class _Call(NamedTuple):
    """What became of a call."""

    said: object  # what it returned, or the exception that it raised
    took: float  # seconds
    sent: int  # messages that its client published meanwhile

    @property
    def outcome(self):
        if isinstance(self.said, Exception):
            return f"raised {type(self.said).__name__}"
        return f"returned {self.said!r}"


async def _call(answer, caller, subject, deadline):
    """Calls the answer with this subject and deadline (seconds)."""
    start, sent = time.monotonic(), caller.stats["out_msgs"]
    try:
        said = await asyncio.wait_for(answer(caller, subject, b"?", deadline), deadline + GRACE)
    except Exception as error:
        said = error
    return _Call(said, time.monotonic() - start, caller.stats["out_msgs"] - sent)


@contextlib.asynccontextmanager
async def _service(client, subject, reply, appears_after=0, needs=0):
    """A service that appears after some seconds and needs some seconds for each reply. Yields the
    requests that its handler has got (list)."""
    requests, tasks = [], []

    async def appear():
        await asyncio.sleep(appears_after)
        await client.subscribe(subject, cb=handler)
        await asyncio.sleep(0)  # flush() alone would overtake the SUB
        await client.flush()

    async def handler(msg):
        requests.append(msg)
        tasks.append(asyncio.create_task(respond(msg)))

    async def respond(msg):
        await asyncio.sleep(needs)
        await msg.respond(reply)

    tasks.append(asyncio.create_task(appear()))
    try:
        if not appears_after:
            await tasks[0]
        yield requests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

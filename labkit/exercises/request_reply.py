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
    (b"", None),
    (b"\xff", None),
    (b"7", None),
    (b"null", None),
    (b'"tea"', None),
    (b'["tea"]', None),
    (b'{"article": "tea"}', None),
    (b'{"item": null}', None),
    (b'{"item": ["tea"]}', None),
    (b'{"item": "5\\" nails"}', None),
    (b'{"count": 2, "item":"coffee"}', 4),
]
GRACE = 2  # seconds after its deadline at which a call is cancelled
LATE = 0.4  # seconds after its deadline that a call may take on a busy machine


@exercise(
    hints=[
        "Nothing reaches the caller unless you respond. Which lines of your handler can raise, "
        "and for which requests?",
        "Put all of it into one try. `except Exception as error:` covers an unknown item, no JSON, "
        "and JSON of another shape.",
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
        return isinstance(said.get("error"), str) and said["error"] != ""
    return said.get("price") == price and "error" not in said


@exercise(
    hints=[
        "Which of the two errors says that nobody got the request? Catch that one only.",
        "Note the end of the call first: `end = time.monotonic() + deadline`. A request may wait "
        "for what is left until then, and no longer.",
        "After NoRespondersError: raise it if too little is left for another attempt; otherwise "
        "sleep for a growing, random pause and go round again. Let TimeoutError pass.",
    ]
)
async def patient_call(lab, answer):
    """A call that retries what is safe without a key, and ends by its deadline."""
    wants_function(answer, "nc, subject, data, deadline")
    cases = [
        _asks_a_slow_service_once,
        _leaves_a_timeout_alone,
        _waits_for_a_late_service,
        _gives_up_when_nobody_comes,
    ]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            [await stack.enter_async_context(await lab.connect(name=name)) for name in names]
            for names in [("caller", "service")] * len(cases)
        ]
        # Side by side, since each waits; what is told first is the first mistake of this list.
        tried = [case(answer, *pair) for case, pair in zip(cases, clients, strict=True)]
        for outcome in await asyncio.gather(*tried, return_exceptions=True):
            if outcome:
                raise outcome


async def patient(nc, subject, data, deadline):
    end, pause = time.monotonic() + deadline, 0.05
    while True:
        left = end - time.monotonic()
        try:
            return (await nc.request(subject, data, timeout=max(0.1, left))).data
        except NoRespondersError:
            left = end - time.monotonic()
            if left < 0.2:  # an attempt needs time for its answer
                raise
        await asyncio.sleep(min(pause * random.uniform(0.5, 1.5), left - 0.1))
        pause = min(2 * pause, 0.3)


patient_call.solved_by(patient)


async def _asks_a_slow_service_once(answer, caller, client):
    async with _service(client, "exercise.slow", needs=1.2) as requests:
        call = await _call(answer, caller, "exercise.slow", deadline=2.5)
    _ran_once(requests, "a service that needs 1.2 s, with a deadline of 2.5 s")
    saw = f"The service needed 1.2 s, the deadline was 2.5 s, and the call {call.outcome}"
    want(call.said == b"got ?", f"{saw} after {call.took:.1f} s", "it returns b'got ?'")


async def _leaves_a_timeout_alone(answer, caller, client):
    """Nobody is there for half of the time; then a service gets the request and does not answer."""
    async with _service(client, "exercise.stuck", appears_after=0.6, needs=60) as requests:
        call = await _call(answer, caller, "exercise.stuck", deadline=1.2)
    _ran_once(requests, "a service that appears after 0.6 s and does not answer by the deadline")
    saw = "A service appeared after 0.6 s and did not answer, the deadline was 1.2 s, and the call"
    how = "had not ended after" if call.cancelled else f"{call.outcome} after"
    in_time = call.took < 1.2 + LATE and not call.cancelled
    want(in_time, f"{saw} {how} {call.took:.1f} s", "it ends by its deadline")
    want(isinstance(call.said, TimeoutError), f"{saw} {call.outcome}", "TimeoutError comes out")


async def _waits_for_a_late_service(answer, caller, client):
    async with _service(client, "exercise.late", appears_after=1.4) as requests:
        call = await _call(answer, caller, "exercise.late", deadline=2.5)
    saw = f"A service appeared after 1.4 s, the deadline was 2.5 s, and the call {call.outcome}"
    want(call.said == b"got ?", f"{saw} after {call.took:.1f} s", "it returns b'got ?'")
    _ran_once(requests, "a service that appears after 1.4 s and answers at once")


async def _gives_up_when_nobody_comes(answer, caller, client):
    call = await _call(answer, caller, "exercise.nobody", deadline=0.8)
    saw = f"Nobody was there, and the call sent {call.sent} requests in {call.took:.1f} s"
    want(call.sent <= 60, saw, "a pause between attempts, 60 requests at the most")
    saw = "Nobody was there, the deadline was 0.8 s, and the call had not ended after"
    want(not call.cancelled, f"{saw} {call.took:.1f} s", "NoRespondersError by then")
    saw = f"Nobody was there until the deadline, 0.8 s, and the call {call.outcome}"
    want(isinstance(call.said, NoRespondersError), saw, "NoRespondersError")
    want(call.took < 0.8 + LATE, f"{saw} after {call.took:.1f} s", "it ends by its deadline")


def _ran_once(requests, service):
    """Raises NotYet if one call made the handler of this service (text) run more than once."""
    want(
        len(requests) <= 1,
        f"The handler ran {len(requests)} times for one call to {service}",
        "once; after a timeout nobody knows whether it ran, so a call without a key must not"
        " repeat it",
    )


class _Call(NamedTuple):
    """What became of a call."""

    said: object  # what it returned, or the exception that it raised
    took: float  # seconds
    sent: int  # messages that its client published meanwhile
    cancelled: bool  # it had not ended GRACE seconds after its deadline

    @property
    def outcome(self):
        if isinstance(self.said, Exception):
            return f"raised {type(self.said).__name__}"
        return f"returned {self.said!r}"


async def _call(answer, caller, subject, deadline):
    """Calls the answer with this subject and deadline (seconds)."""
    start, sent = time.monotonic(), caller.stats["out_msgs"]
    call = asyncio.create_task(answer(caller, subject, b"?", deadline))
    ended, _ = await asyncio.wait([call], timeout=deadline + GRACE)
    took = time.monotonic() - start
    if ended:
        said = call.exception() or call.result()
    else:
        said = asyncio.CancelledError()
        call.cancel()
        await asyncio.wait([call], timeout=1)  # an answer may swallow it
    return _Call(said, took, caller.stats["out_msgs"] - sent, not ended)


@contextlib.asynccontextmanager
async def _service(client, subject, appears_after=0, needs=0):
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
        await client.publish(msg.reply, b"got " + msg.data)

    tasks.append(asyncio.create_task(appear()))
    try:
        if not appears_after:
            await tasks[0]
        yield requests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

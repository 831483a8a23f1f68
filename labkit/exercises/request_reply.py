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
from labkit.waiting import end_tasks

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
        outcomes = await asyncio.gather(*tried, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        for (caller, _), call in zip(clients, outcomes, strict=True):
            _leaves_nothing_behind(caller, call)


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
    async with _service(client, needs=1.2) as service:
        call = await _call(answer, caller, service.subject, deadline=2.5)
    _ran_once(service, "a service that needs 1.2 s, with a deadline of 2.5 s")
    saw = f"The service needed 1.2 s, the deadline was 2.5 s, and the call {call.outcome}"
    _returned(call, service, saw)
    return call


async def _leaves_a_timeout_alone(answer, caller, client):
    """Nobody is there for half of the time; then a service gets the request and does not answer."""
    async with _service(client, appears_after=0.6, needs=60) as service:
        call = await _call(answer, caller, service.subject, deadline=1.2)
    _ran_once(service, "a service that appears after 0.6 s and does not answer by the deadline")
    saw = "A service appeared after 0.6 s and did not answer, the deadline was 1.2 s, and the call"
    in_time = call.took < 1.2 + LATE
    want(in_time, f"{saw} {call.outcome} after {call.took:.1f} s", "it ends by its deadline")
    want(call.raised(TimeoutError), f"{saw} {call.outcome}", "TimeoutError comes out")
    return call


async def _waits_for_a_late_service(answer, caller, client):
    async with _service(client, appears_after=1.8) as service:
        call = await _call(answer, caller, service.subject, deadline=2.5)
    saw = f"A service appeared after 1.8 s, the deadline was 2.5 s, and the call {call.outcome}"
    _returned(call, service, saw)
    _ran_once(service, "a service that appears after 1.8 s and answers at once")
    return call


async def _gives_up_when_nobody_comes(answer, caller, client):
    call = await _call(answer, caller, _subject(), deadline=0.8)
    saw = f"Nobody was there, and the call sent {call.sent} requests in {call.took:.1f} s"
    want(call.sent <= 60, saw, "a pause between attempts, 60 requests at the most")
    saw = "Nobody was there, the deadline was 0.8 s, and the call had not ended after"
    want(not call.cancelled, f"{saw} {call.took:.1f} s", "NoRespondersError by then")
    saw = f"Nobody was there until the deadline, 0.8 s, and the call {call.outcome}"
    want(call.raised(NoRespondersError), saw, "NoRespondersError comes out")
    want(call.took < 0.8 + LATE, f"{saw} after {call.took:.1f} s", "it ends by its deadline")
    return call


def _leaves_nothing_behind(caller, call):
    """Raises NotYet if this client is closed, has gone on asking after its call had ended, or has
    more subscriptions than before."""
    want(not caller.is_closed, "Your call closed nc", "an open connection: others use it too")
    more = caller.stats["out_msgs"] - call.sent_in_all
    saw = f"After a call had ended, nc published {more} more message{'s' * (more != 1)}"
    want(more <= 0, saw, "nothing asks on in the background")
    left = len(caller._subs.keys() - call.subs)
    saw = f"A call had ended, and nc had {left} subscription{'s' * (left != 1)} more than before"
    want(left == 0, saw, "none is left")


def _returned(call, service, saw):
    """Raises NotYet unless the call returned the reply of this service. saw: what the call met."""
    right = not call.failed and call.said == service.reply
    want(right, f"{saw} after {call.took:.1f} s", f"it returns {service.reply!r}")


def _ran_once(service, which):
    """Raises NotYet if one call made the handler of this service run more than once. which: what
    service that is (text)."""
    want(
        len(service.requests) <= 1,
        f"The handler ran {len(service.requests)} times for one call to {which}",
        "once; after a timeout nobody knows whether it ran, so a call without a key must not"
        " repeat it",
    )


class _Call(NamedTuple):
    """What became of a call."""

    said: object  # what it returned, or the exception that it raised
    failed: bool  # it raised that
    took: float  # seconds
    sent: int  # messages that its client published meanwhile
    sent_in_all: int  # and since it was there
    subs: set  # ids of the subscriptions that its client had before
    cancelled: bool  # it had not ended GRACE seconds after its deadline

    @property
    def outcome(self):
        if self.cancelled:
            return "had not ended"
        if self.failed:
            return f"raised {type(self.said).__name__}"
        return f"returned {self.said!r}"

    def raised(self, kind):
        return self.failed and isinstance(self.said, kind)


def _subject():
    """A subject that nobody uses."""
    return f"exercise.{random.randrange(10**9)}"


async def _call(answer, caller, subject, deadline):
    """Calls the answer with this subject and deadline (seconds)."""
    with contextlib.suppress(NoRespondersError):
        await caller.request(_subject())  # from here on, nc.request has its inbox
    subs = set(caller._subs)
    start, sent = time.monotonic(), caller.stats["out_msgs"]
    call = asyncio.create_task(answer(caller, subject, b"?", deadline))
    ended, _ = await asyncio.wait([call], timeout=deadline + GRACE)
    took = time.monotonic() - start
    failed, said = False, None
    if ended:
        failed = call.exception() is not None
        said = call.exception() if failed else call.result()
    else:
        await end_tasks(call)
    in_all = caller.stats["out_msgs"]
    return _Call(said, failed, took, in_all - sent, in_all, subs, not ended)


class _Service:
    """What a service is asked on, what it replies, and the requests that its handler has got."""

    def __init__(self):
        self.subject, self.requests = _subject(), []
        self.reply = b"reply %d" % random.randrange(10**6)


@contextlib.asynccontextmanager
async def _service(client, appears_after=0, needs=0):
    """A service that appears after some seconds and needs some seconds for each reply."""
    service, tasks = _Service(), []

    async def appear():
        await asyncio.sleep(appears_after)
        await client.subscribe(service.subject, cb=handler)
        await asyncio.sleep(0)  # flush() alone would overtake the SUB
        await client.flush()

    async def handler(msg):
        service.requests.append(msg)
        tasks.append(asyncio.create_task(respond(msg)))

    async def respond(msg):
        await asyncio.sleep(needs)
        await client.publish(msg.reply, service.reply)

    tasks.append(asyncio.create_task(appear()))
    try:
        if not appears_after:
            await tasks[0]
        yield service
    finally:
        await end_tasks(*tasks)

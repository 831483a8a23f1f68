"""Answers to the exercises of request_reply."""

import asyncio
import json
import time

from nats.errors import NoRespondersError

from answers import answers_to

right, wrong = answers_to("request_reply")

PRICES = {"tea": 3, "coffee": 4}


@wrong(
    "answers_errors", "no answer within 2 s (in the handler: KeyError: 'gold'); wanted: the reply"
)
async def answers_no_errors(msg):
    price = PRICES[json.loads(msg.data)["item"]]
    await msg.respond(json.dumps({"price": price}).encode())


@wrong("answers_errors", "no answer within 2 s (in the handler: JSONDecodeError")
async def catches_only_the_error_that_it_expects(msg):
    try:
        reply = {"price": PRICES[json.loads(msg.data)["item"]]}
    except KeyError as error:
        reply = {"error": repr(error)}
    await msg.respond(json.dumps(reply).encode())


@wrong("answers_errors", """was answered by b'{"price": null}'; wanted: the reply {"error": "…"}""")
async def answers_an_error_with_a_price(msg):
    try:
        price = PRICES.get(json.loads(msg.data)["item"])
    except Exception:
        price = None
    await msg.respond(json.dumps({"price": price}).encode())


@right("answers_errors")
async def checks_the_request_first(msg):
    try:
        request = json.loads(msg.data)
    except ValueError:
        request = None
    item = request.get("item") if isinstance(request, dict) else None
    if item in PRICES:
        await msg.respond(json.dumps({"price": PRICES[item]}).encode())
    else:
        await msg.respond(b'{"error": "there is no price for this"}')


@wrong("patient_call", "the call raised NoRespondersError after 0.")
async def retries_only_after_a_timeout(nc, subject, data, deadline):
    for attempt in range(3):
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except TimeoutError:
            await asyncio.sleep(0.1 * 2**attempt)


@wrong("patient_call", "times for one call to a service that needs 1 s")
async def retries_both_errors(nc, subject, data, deadline):
    for _ in range(30):
        try:
            return (await nc.request(subject, data, timeout=0.3)).data
        except (NoRespondersError, TimeoutError):
            await asyncio.sleep(0.1)


@wrong("patient_call", "the call raised TimeoutError after 0.")
async def leaves_the_timeout_at_half_a_second(nc, subject, data, deadline):
    for _ in range(30):
        try:
            return (await nc.request(subject, data)).data
        except NoRespondersError:
            await asyncio.sleep(0.1)


@wrong("patient_call", "pause between attempts")
async def makes_no_pause(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except NoRespondersError:
            if time.monotonic() > end:
                raise


@wrong("patient_call", "had not ended after")
async def never_gives_up(nc, subject, data, deadline):
    while True:
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except NoRespondersError:
            await asyncio.sleep(0.1)


@right("patient_call")
async def pauses_evenly_and_keeps_the_last_error(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    error = None
    while (left := end - time.monotonic()) > 0.2:
        try:
            return (await nc.request(subject, data, timeout=left)).data
        except NoRespondersError as nobody:
            error = nobody
        await asyncio.sleep(0.1)
    raise error

"""Answers to the exercises of request_reply."""

import asyncio
import contextlib
import json
import time

from nats.errors import Error, NoRespondersError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random

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


@wrong("answers_errors", """The request b'"tea"' got no answer""")
async def knows_only_the_other_json_that_it_tried(msg):
    try:
        request = json.loads(msg.data)
        reply = {"price": PRICES[request["item"]]}
        await msg.respond(json.dumps(reply).encode())
    except (ValueError, KeyError):
        await msg.respond(b'{"error": "no price"}')
    except TypeError:
        if not isinstance(request, str):
            await msg.respond(b'{"error": "no object"}')


@wrong("answers_errors", """The request b'{"item": ["tea"]}' got no answer""")
async def expects_that_an_item_is_text(msg):
    try:
        request = json.loads(msg.data)
    except ValueError:
        request = None
    item = request.get("item") if isinstance(request, dict) else None
    reply = {"price": PRICES[item]} if item in PRICES else {"error": "no price"}
    await msg.respond(json.dumps(reply).encode())


@wrong("answers_errors", "nails")
async def writes_its_json_by_hand(msg):
    try:
        price = PRICES[json.loads(msg.data)["item"]]
        await msg.respond(b'{"price": %d}' % price)
    except Exception as error:
        await msg.respond(f'{{"error": "{error}"}}'.encode())


@wrong("answers_errors", """was answered by b'{"error": true}'""")
async def says_that_it_failed_but_not_why(msg):
    try:
        reply = {"price": PRICES[json.loads(msg.data)["item"]]}
    except Exception:
        reply = {"error": True}
    await msg.respond(json.dumps(reply).encode())


@wrong("answers_errors", """The request b'{"count": 2, "item":"coffee"}' was answered by""")
async def knows_the_bytes_of_the_examples(msg):
    known = {b'{"item": "tea"}': 3, b'{"item": "coffee"}': 4}
    if msg.data in known:
        await msg.respond(json.dumps({"price": known[msg.data]}).encode())
    else:
        await msg.respond(b'{"error": "unknown"}')


@right("answers_errors")
async def checks_the_request_first(msg):
    try:
        request = json.loads(msg.data)
    except ValueError:
        request = None
    item = request.get("item") if isinstance(request, dict) else None
    if isinstance(item, str) and item in PRICES:
        await msg.respond(json.dumps({"price": PRICES[item]}).encode())
    else:
        await msg.respond(b'{"error": "there is no price for this"}')


@right("answers_errors")
async def matches_the_shape(msg):
    reply = {"error": f"no price for {msg.data[:40]!r}"}
    with contextlib.suppress(ValueError):
        match json.loads(msg.data):
            case {"item": str(item)} if item in PRICES:
                reply = {"price": PRICES[item]}
    await msg._client.publish(msg.reply, json.dumps(reply).encode())


@wrong("patient_call", "the call raised NoRespondersError")
async def retries_only_after_a_timeout(nc, subject, data, deadline):
    for attempt in range(3):
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except TimeoutError:
            await asyncio.sleep(0.1 * 2**attempt)


@wrong("patient_call", "times for one call to a service that needs 1.2 s")
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


@wrong("patient_call", "times for one call to a service that appears after 0.6 s")
async def repeats_a_timeout_with_the_whole_deadline(nc, subject, data, deadline):
    for _ in range(30):
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except (NoRespondersError, TimeoutError):
            await asyncio.sleep(0.1)


@wrong("patient_call", "did not answer, the deadline was 1.2 s, and the call raised TimeoutError")
async def gives_each_attempt_the_whole_deadline(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            return (await nc.request(subject, data, timeout=deadline)).data
        except NoRespondersError:
            if time.monotonic() + 0.1 > end:
                raise
            await asyncio.sleep(0.1)


@wrong("patient_call", "raised NoRespondersError after 0.")
async def tries_five_times(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    for attempt in range(5):
        try:
            left = end - time.monotonic()
            return (await nc.request(subject, data, timeout=left)).data
        except NoRespondersError:
            if attempt == 4 or left < 0.3:
                raise
            await asyncio.sleep(0.15)


@wrong("patient_call", "did not answer, the deadline was 1.2 s, and the call raised NoResponders")
async def takes_a_timeout_for_nobody(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while (left := end - time.monotonic()) > 0.1:
        try:
            return (await nc.request(subject, data, timeout=left)).data
        except (NoRespondersError, TimeoutError):
            await asyncio.sleep(0.1)
    raise NoRespondersError


@wrong("patient_call", "pause between attempts")
async def makes_no_pause(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            left = max(0.1, end - time.monotonic())
            return (await nc.request(subject, data, timeout=left)).data
        except NoRespondersError:
            if time.monotonic() > end:
                raise


@wrong("patient_call", "had not ended after")
async def never_gives_up(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            left = max(0.1, end - time.monotonic())
            return (await nc.request(subject, data, timeout=left)).data
        except NoRespondersError:
            await asyncio.sleep(0.1)


@wrong("patient_call", "until the deadline, 0.8 s, and the call raised TimeoutError")
async def calls_it_a_timeout_when_nobody_comes(nc, subject, data, deadline):
    async with asyncio.timeout(deadline):
        while True:
            try:
                return (await nc.request(subject, data, timeout=deadline)).data
            except NoRespondersError:
                await asyncio.sleep(0.1)


@wrong("patient_call", "and the call returned b'got ?' after 0.0 s; wanted: it returns b'reply")
async def does_not_ask(nc, subject, data, deadline):
    return b"got ?"


@wrong(
    "patient_call", "did not answer, the deadline was 1.2 s, and the call returned TimeoutError()"
)
async def returns_the_error(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    while True:
        try:
            return (await nc.request(subject, data, timeout=end - time.monotonic())).data
        except (NoRespondersError, TimeoutError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() + 0.2 > end:
                return error
        await asyncio.sleep(0.05)


@wrong("patient_call", "After a call had ended, nc published ")
async def asks_on_in_the_background(nc, subject, data, deadline):
    nobody = None

    async def ask():
        nonlocal nobody
        while not nc.is_closed:
            nobody = None
            try:
                return (await nc.request(subject, data, timeout=deadline)).data
            except NoRespondersError as error:
                nobody = error
            except Error:
                return None
            await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask())
    ended, _ = await asyncio.wait([asking], timeout=deadline)
    if ended:
        return asking.result()
    raise nobody or TimeoutError


@wrong("patient_call", "A call had ended, and nc had 1 subscription more than before")
async def leaves_its_inbox(nc, subject, data, deadline):
    end, inbox = time.monotonic() + deadline, nc.new_inbox()
    replies = await nc.subscribe(inbox)
    while True:
        await nc.publish(subject, data, reply=inbox)
        reply = await replies.next_msg(timeout=max(0.1, end - time.monotonic()))
        if not reply.headers:
            return reply.data
        if time.monotonic() + 0.2 > end:
            raise NoRespondersError
        await asyncio.sleep(0.05)


@wrong("patient_call", "Your call closed nc")
async def tidies_up_too_much(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    try:
        while True:
            try:
                return (await nc.request(subject, data, timeout=end - time.monotonic())).data
            except NoRespondersError:
                if time.monotonic() + 0.2 > end:
                    raise
            await asyncio.sleep(0.1)
    finally:
        await nc.close()


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


@right("patient_call")
async def leaves_the_rounds_to_tenacity(nc, subject, data, deadline):
    end = time.monotonic() + deadline
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(NoRespondersError),
        stop=stop_after_delay(deadline - 0.3),
        wait=wait_random(0.02, 0.1),
        reraise=True,
    ):
        with attempt:
            return (await nc.request(subject, data, timeout=end - time.monotonic())).data


@right("patient_call")
async def limits_the_whole_call_and_tells_what_happened_last(nc, subject, data, deadline):
    nobody, when = None, 0
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    return (await nc.request(subject, data, timeout=deadline)).data
                except NoRespondersError as error:
                    nobody, when = error, time.monotonic()
                    await asyncio.sleep(0.05)
    except TimeoutError:
        if time.monotonic() - when < 0.15:
            raise nobody from None
        raise


@right("patient_call")
async def asks_with_an_inbox_of_its_own(nc, subject, data, deadline):
    end, inbox = time.monotonic() + deadline, nc.new_inbox()
    replies = await nc.subscribe(inbox)
    try:
        while True:
            await nc.publish(subject, data, reply=inbox)
            reply = await replies.next_msg(timeout=max(0.05, end - time.monotonic()))
            if (reply.headers or {}).get("Status") != "503":
                return reply.data
            if time.monotonic() + 0.2 > end:
                raise NoRespondersError
            await asyncio.sleep(0.05)
    finally:
        await replies.unsubscribe()

"""Answers to the exercises of production_settings."""

import asyncio
import contextlib
import logging

from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from answers import answers_to

right, wrong = answers_to("production_settings")

errors = []


async def keep(error):
    errors.append(error)


def good(*left_out, **changes):
    """Options that pass, with these changes and without those that are left out (dict)."""
    options = {
        "name": "order-service",
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.5,
        "ping_interval": 0.5,
        "max_outstanding_pings": 2,
        "error_cb": keep,
        **changes,
    }
    return {name: value for name, value in options.items() if name not in left_out}


@wrong("service_options", "has no name")
def nameless():
    return good("name")


@wrong("service_options", "gives a server up after 60 attempts")
def gives_up():
    return good("max_reconnect_attempts")


@wrong("service_options", "never reconnects")
def does_not_reconnect():
    return good("max_reconnect_attempts", allow_reconnect=False)


@wrong("service_options", "knocks every 5 s")
def knocks_seldom():
    return good(reconnect_time_wait=5)


@wrong("service_options", "up to 120 s")
def has_the_pings_of_the_guide():
    return good(ping_interval=30, max_outstanding_pings=3)


@wrong("service_options", "has no error_cb")
def hears_no_error():
    return good("error_cb")


@wrong("service_options", "no coroutine function")
def has_a_plain_function_as_error_cb():
    def plain(error):
        errors.append(error)

    return good(error_cb=plain)


@wrong("service_options", "raised AttributeError")
def has_an_error_cb_that_fails():
    async def fail(error):
        errors.add(error)

    return good(error_cb=fail)


@right("service_options")
def writes_errors_into_the_log():
    class Service:
        async def failed(self, error):
            logging.getLogger("orders").debug("NATS: %r", error)

    return {
        "name": "orders",
        "error_cb": Service().failed,
        "ping_interval": 1,
        "max_outstanding_pings": 1,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 1,
    }


async def fetched(sub, batch=5):
    """What comes within half a second (list). Raises NotFoundError once the consumer is deleted."""
    try:
        return await sub.fetch(batch, timeout=0.5)
    except TimeoutError:
        return []
    except ServiceUnavailableError:
        with contextlib.suppress(ServiceUnavailableError, ServerError, TimeoutError):
            await asyncio.wait_for(sub.consumer_info(), 1)
        await asyncio.sleep(0.1)
        return []


async def handled(msg, process):
    await process(msg)
    await msg.ack()


async def given_back(msg):
    await msg.nak()


async def until_stop(sub, stop, process, take=fetched, handle=handled, give_back=given_back):
    """Works off messages until stop is set."""
    while not stop.is_set():
        for msg in await take(sub):
            if stop.is_set():
                await give_back(msg)
            else:
                await handle(msg, process)


async def leave(client, sub):
    await sub.unsubscribe()
    await client.drain()


@wrong("goodbye", "began 2 more messages")
async def finishes_the_batch(client, sub, stop, process):
    async def go_on(msg):
        await handled(msg, process)

    try:
        await until_stop(sub, stop, process, give_back=go_on)
    finally:
        await leave(client, sub)


@wrong("goodbye", "only 7 of the 9")
async def drops_the_rest(client, sub, stop, process):
    async def drop(msg):
        pass

    try:
        await until_stop(sub, stop, process, give_back=drop)
    finally:
        await leave(client, sub)


@wrong("goodbye", "connection was still open")
async def leaves_the_connection_open(client, sub, stop, process):
    try:
        await until_stop(sub, stop, process)
    finally:
        await sub.unsubscribe()


@wrong("goodbye", "acked before process had returned")
async def acks_first(client, sub, stop, process):
    async def ack_first(msg, process):
        await msg.ack()
        await process(msg)

    try:
        await until_stop(sub, stop, process, handle=ack_first)
    finally:
        await leave(client, sub)


@wrong("goodbye", "acked 0 of the 3")
async def does_not_ack(client, sub, stop, process):
    async def process_only(msg, process):
        await process(msg)

    try:
        await until_stop(sub, stop, process, handle=process_only)
    finally:
        await leave(client, sub)


@wrong("goodbye", "only 7 of the 9")
async def terminates_the_rest(client, sub, stop, process):
    async def terminate(msg):
        await msg.term()

    try:
        await until_stop(sub, stop, process, give_back=terminate)
    finally:
        await leave(client, sub)


@wrong("goodbye", "still running 2 s after")
async def never_looks_at_stop(client, sub, stop, process):
    try:
        await until_stop(sub, asyncio.Event(), process)
    finally:
        await leave(client, sub)


@wrong("goodbye", "no messages for a while")
async def dies_when_nothing_comes(client, sub, stop, process):
    async def take(sub):
        return await sub.fetch(5, timeout=0.5)

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "nobody led it, work ended with ServiceUnavailableError")
async def dies_with_the_leader(client, sub, stop, process):
    async def take(sub):
        try:
            return await sub.fetch(5, timeout=0.5)
        except TimeoutError:
            return []

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "Its consumer was deleted 5 s ago, and work was still running")
async def fetches_for_ever(client, sub, stop, process):
    async def take(sub):
        try:
            return await sub.fetch(5, timeout=0.5)
        except (TimeoutError, ServiceUnavailableError):
            await asyncio.sleep(0.1)
            return []

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "NotFoundError, its connection still open")
async def ends_without_a_goodbye(client, sub, stop, process):
    await until_stop(sub, stop, process)
    await leave(client, sub)


@right("goodbye")
async def fetches_one_at_a_time(client, sub, stop, process):
    with contextlib.suppress(NotFoundError):
        while not stop.is_set():
            for msg in await fetched(sub, 1):
                await handled(msg, process)
    await leave(client, sub)

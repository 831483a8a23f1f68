"""Answers to the exercises of production_settings."""

import asyncio
import contextlib
import logging
import math

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


@wrong("service_options", "knocks every 0 s")
def knocks_without_a_pause():
    return good(reconnect_time_wait=0)


@wrong("service_options", "leaves a server that has not answered for 0 s")
def leaves_a_server_before_it_can_answer():
    return good(ping_interval=2, max_outstanding_pings=0)


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


@wrong("service_options", "name is 7; wanted: a text")
def has_a_number_for_a_name():
    return good(name=7)


@wrong("service_options", "ping_interval is '1'; wanted: a number")
def has_texts_for_numbers():
    return good(ping_interval="1")


@right("service_options")
def does_not_hear_itself():
    return good(no_echo=True, max_reconnect_attempts=math.inf, reconnect_time_wait=1)


@right("service_options")
def has_the_zero_that_means_for_ever():
    return {
        "name": "orders",
        "max_reconnect_attempts": 0,
        "reconnect_time_wait": 0.1,
        "ping_interval": 0.1,
        "max_outstanding_pings": 20,
        "error_cb": keep,
        "closed_cb": closed,
    }


async def closed():
    errors.append("closed")


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
    try:
        await process(msg)
    except Exception:
        await msg.nak(delay=1)
    else:
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


@wrong("goodbye", "began 1 more")
async def finishes_the_batch(client, sub, stop, process):
    async def go_on(msg):
        await handled(msg, process)

    try:
        await until_stop(sub, stop, process, give_back=go_on)
    finally:
        await leave(client, sub)


@wrong("goodbye", "only 7 of the 8")
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
        with contextlib.suppress(Exception):
            await process(msg)

    try:
        await until_stop(sub, stop, process, handle=ack_first)
    finally:
        await leave(client, sub)


@wrong("goodbye", "acked 0 of the 2")
async def does_not_ack(client, sub, stop, process):
    async def process_only(msg, process):
        with contextlib.suppress(Exception):
            await process(msg)

    try:
        await until_stop(sub, stop, process, handle=process_only)
    finally:
        await leave(client, sub)


@wrong("goodbye", "only 7 of the 8")
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


@wrong("goodbye", "Its consumer was deleted 5 s ago, and work was still running")
async def swallows_whatever_fetch_raises(client, sub, stop, process):
    async def take(sub):
        try:
            return await sub.fetch(5, timeout=0.5)
        except BaseException:
            return []

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "Its consumer was deleted 5 s ago, and work was still running")
async def makes_the_deleted_consumer_again(client, sub, stop, process):
    async def take(sub):
        try:
            return await fetched(sub)
        except NotFoundError:
            await client.jetstream().add_consumer(
                "EX_LEAD", durable_name="worker", ack_policy="explicit"
            )
            return []

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "nobody led it, work ended")
async def takes_silence_for_a_deleted_consumer(client, sub, stop, process):
    async def take(sub):
        try:
            return await sub.fetch(5, timeout=0.5)
        except TimeoutError:
            return []
        except ServiceUnavailableError:
            await asyncio.wait_for(sub.consumer_info(), 1)
            return []

    try:
        await until_stop(sub, stop, process, take)
    finally:
        await leave(client, sub)


@wrong("goodbye", "only 0 of the 8")
async def drops_a_batch_whose_first_message_fails(client, sub, stop, process):
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, ValueError):
                for msg in await sub.fetch(5, timeout=0.5):
                    if stop.is_set():
                        await msg.nak()
                        continue
                    await process(msg)
                    await msg.ack()
    finally:
        await leave(client, sub)


@wrong("goodbye", "process raised TimeoutError for a message, and work ended with TimeoutError")
async def dies_of_one_message(client, sub, stop, process):
    async def unguarded(msg, process):
        await process(msg)
        await msg.ack()

    try:
        await until_stop(sub, stop, process, handle=unguarded)
    finally:
        await leave(client, sub)


@wrong("goodbye", "process raised ValueError for a message, and work ended with ValueError")
async def knows_one_way_to_fail(client, sub, stop, process):
    async def expects_a_timeout(msg, process):
        try:
            await process(msg)
        except TimeoutError:
            await msg.nak(delay=1)
        else:
            await msg.ack()

    try:
        await until_stop(sub, stop, process, handle=expects_a_timeout)
    finally:
        await leave(client, sub)


@wrong("goodbye", "2 of them never come again")
async def acks_what_has_failed(client, sub, stop, process):
    async def ack_in_finally(msg, process):
        try:
            with contextlib.suppress(Exception):
                await process(msg)
        finally:
            await msg.ack()

    try:
        await until_stop(sub, stop, process, handle=ack_in_finally)
    finally:
        await leave(client, sub)


@wrong("goodbye", "process had ended for 1 of 2 messages")
async def breaks_off_what_is_in_hand(client, sub, stop, process):
    async def until_it_stops(msg, process):
        working = asyncio.ensure_future(handled(msg, process))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await msg.nak()
        stopping.cancel()

    try:
        await until_stop(sub, stop, process, handle=until_it_stops)
    finally:
        await leave(client, sub)


@wrong("goodbye", "in client.drain(), which waits for what nobody takes")
async def does_not_unsubscribe(client, sub, stop, process):
    try:
        await until_stop(sub, stop, process)
    finally:
        await client.drain()


@wrong("goodbye", "only 7 of the 8")
async def gives_back_with_a_delay(client, sub, stop, process):
    async def later(msg):
        await msg.nak(delay=20)

    try:
        await until_stop(sub, stop, process, give_back=later)
    finally:
        await leave(client, sub)


@wrong("goodbye", "its ack wait is 0.05 s")
async def shortens_ack_wait_instead(client, sub, stop, process):
    async def drop(msg):
        pass

    try:
        await until_stop(sub, stop, process, give_back=drop)
        info = await sub.consumer_info()
        info.config.ack_wait = 0.05
        await client.jetstream().add_consumer(info.stream_name, info.config)
    finally:
        await leave(client, sub)


@right("goodbye")
async def handles_a_batch_side_by_side(client, sub, stop, process):
    async def handle(msg):
        await process(msg)
        await msg.ack_sync()

    try:
        while not stop.is_set():
            batch = await fetched(sub)
            await asyncio.gather(*map(handle, batch), return_exceptions=True)
    finally:
        await leave(client, sub)


@right("goodbye")
async def asks_after_each_trouble_whether_the_consumer_is_there(client, sub, stop, process):
    async def is_there():
        try:
            await asyncio.wait_for(sub.consumer_info(), 1)
        except NotFoundError:
            return False
        except (ServiceUnavailableError, ServerError, TimeoutError):
            pass
        return True

    while not stop.is_set():
        try:
            batch = await sub.fetch(5, timeout=0.3)
        except TimeoutError:
            continue
        except ServiceUnavailableError:
            if not await is_there():
                break
            batch = []
        while batch and not stop.is_set():
            msg = batch.pop(0)
            try:
                await process(msg)
                await client.publish(msg.reply, b"+ACK")
            except Exception:
                await client.publish(msg.reply, b"-NAK")
        for msg in batch:
            await client.publish(msg.reply, b"-NAK")
    await leave(client, sub)


@right("goodbye")
async def fetches_one_at_a_time(client, sub, stop, process):
    with contextlib.suppress(NotFoundError):
        while not stop.is_set():
            for msg in await fetched(sub, 1):
                await handled(msg, process)
    await leave(client, sub)


@right("goodbye")
async def breaks_off_a_fetch(client, sub, stop, process):
    stopping = asyncio.ensure_future(stop.wait())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.drain)
        stack.push_async_callback(sub.unsubscribe)
        while not stop.is_set():
            fetching = asyncio.ensure_future(fetched(sub))
            await asyncio.wait([fetching, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                fetching.cancel()
                break
            msgs = fetching.result()
            while msgs and not stop.is_set():
                await handled(msgs.pop(0), process)
            await asyncio.gather(*(msg.nak() for msg in msgs))
    stopping.cancel()

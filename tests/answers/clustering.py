"""Answers to the exercises of clustering."""

import asyncio
import json
import time
import uuid
from urllib.parse import urlparse

import nats
from nats.errors import NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError

from answers import answers_to

right, wrong = answers_to("clustering")


@wrong("bounded", "had not ended after 4 s")
async def never_returns(servers, **options):
    return await nats.connect(servers, max_reconnect_attempts=-1, reconnect_time_wait=2, **options)


@wrong("bounded", "is_connected was still True")
async def default_pings(servers, **options):
    connecting = nats.connect(servers, max_reconnect_attempts=-1, **options)
    return await asyncio.wait_for(connecting, 2.5)


async def notices_in_time(servers, max_reconnect_attempts=-1, **options):
    """Connects within 2.5 s, or raises."""
    options["max_reconnect_attempts"] = max_reconnect_attempts
    connecting = nats.connect(servers, ping_interval=0.8, max_outstanding_pings=2, **options)
    return await asyncio.wait_for(connecting, 2.5)


@wrong("bounded", "max_reconnect_attempts is 2; wanted: -1")
async def gives_up(servers, **options):
    return await notices_in_time(servers, max_reconnect_attempts=2, **options)


@wrong("bounded", "returned None; wanted: an exception")
async def swallows_the_timeout(servers, **options):
    try:
        return await notices_in_time(servers, **options)
    except TimeoutError:
        return None


@right("bounded")
async def a_deadline_around_it_and_one_ping(servers, **options):
    options |= {"ping_interval": 1, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}
    async with asyncio.timeout(3):
        return await nats.connect(servers, **options)


@wrong("bounded", "still trying to connect; wanted: nothing left behind")
async def raises_and_goes_on_trying(servers, **options):
    options |= {"ping_interval": 1, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}
    connecting = asyncio.ensure_future(nats.connect(servers, **options))
    await asyncio.wait([connecting], timeout=2)
    if not connecting.done():
        raise RuntimeError("no server answered within 2 s")
    return connecting.result()


@wrong("bounded", "it was closed; wanted: connected to one of them")
async def one_connection_and_no_other(servers, **options):
    options |= {"ping_interval": 1, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}
    return await asyncio.wait_for(nats.connect(servers, allow_reconnect=False, **options), 2)


@wrong("bounded", "had not ended after 4 s")
async def asks_only_whether_the_port_is_open(servers, **options):
    for server in servers:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", urlparse(server).port)
        except OSError:
            continue
        writer.close()
        options |= {"ping_interval": 1, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}
        return await nats.connect(servers, **options)
    raise RuntimeError("no server listens")


@wrong("bounded", "The client's name is None; wanted: 'ex-bounded'")
async def drops_the_options(servers, **options):
    return await notices_in_time(servers)


@wrong("bounded", "NameError")
async def raises_for_another_reason(servers, **options):
    try:
        return await notices_in_time(servers, **options)
    except TimeoutError:
        raise no_such_error from None  # noqa: F821


@wrong("bounded", "The other two answered, and it was not connected")
async def waits_for_the_same_server(servers, **options):
    options |= {"ping_interval": 1, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}

    def home(pool, info):
        return next(each for each in pool if each.uri.port == info["port"]), 0.1

    options["reconnect_to_server_handler"] = home
    return await asyncio.wait_for(nats.connect(servers, **options), 2)


@wrong("bounded", "the client left it within 2.5 s; wanted: given up only when it hangs")
async def connects_anew_every_two_seconds(servers, **options):
    client = await asyncio.wait_for(nats.connect(servers, max_reconnect_attempts=-1, **options), 2)

    async def again():
        while not client.is_closed:
            await asyncio.sleep(2)
            await client.force_reconnect()

    client.again = asyncio.create_task(again())
    return client


@right("bounded")
async def an_error_of_its_own(servers, **options):
    try:
        return await notices_in_time(servers, **options)
    except TimeoutError:
        raise RuntimeError(f"no server answered: {servers}") from None


@right("bounded")
async def a_few_tries_first_and_for_ever_later(servers, **options):
    client = await nats.connect(
        servers,
        connect_timeout=0.4,
        reconnect_time_wait=0.2,
        max_reconnect_attempts=2,
        ping_interval=1.4,
        max_outstanding_pings=1,
        **options,
    )
    client.options["max_reconnect_attempts"] = 0
    return client


@right("bounded")
async def a_watch_that_forces_it_to_reconnect(servers, **options):
    client = await asyncio.wait_for(nats.connect(servers, max_reconnect_attempts=-1, **options), 2)

    async def watch():
        while not client.is_closed:
            await asyncio.sleep(0.5)
            try:
                await client.flush(timeout=1)
            except nats.errors.FlushTimeoutError:
                await client.force_reconnect()

    client.watching = asyncio.create_task(watch())
    return client


@wrong("survive", "publish_all raised TimeoutError")
async def one_try(js, subject, orders):
    for order, body in orders.items():
        await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})


@wrong("survive", "publish_all raised")
async def one_try_all_at_once(js, subject, orders):
    publishing = [
        js.publish(subject, body, timeout=5, headers={"Nats-Msg-Id": order})
        for order, body in orders.items()
    ]
    await asyncio.gather(*publishing)


async def publish_until_acked(js, subject, body, order, patience=30):
    """Tries again for so many seconds; then raises what the last try met."""
    end = time.monotonic() + patience
    while True:
        try:
            await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})
            return
        except (TimeoutError, NoStreamResponseError, APIError) as error:
            means_again = getattr(error, "err_code", 10158) == 10158
            if not means_again or time.monotonic() > end:
                raise
        await asyncio.sleep(0.05)


@wrong("survive", "publish_all raised NoStreamResponseError")
async def again_after_a_timeout_alone(js, subject, orders):
    for order, body in orders.items():
        while True:
            try:
                await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})
                break
            except TimeoutError:
                await asyncio.sleep(0.05)
            except APIError as error:
                if error.err_code != 10158:
                    raise
                await asyncio.sleep(0.05)


@wrong("survive", "wanted: again, until the order is acked")
async def gives_up_after_two_seconds(js, subject, orders):
    for order, body in orders.items():
        await publish_until_acked(js, subject, body, order, patience=2)


async def again_without_the_order_id(js, subject, orders, headers):
    """Publishes with what headers() returns at each try."""
    for body in orders.values():
        end = time.monotonic() + 30
        while True:
            try:
                await js.publish(subject, body, timeout=0.5, headers=headers())
                break
            except (TimeoutError, NoStreamResponseError, APIError):
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)


@wrong("survive", "has no Nats-Msg-Id; wanted")
async def without_an_id(js, subject, orders):
    await again_without_the_order_id(js, subject, orders, lambda: None)


@wrong("survive", "wanted: ")  # stored twice in the first call, or in the second one
async def a_new_id_at_each_try(js, subject, orders):
    await again_without_the_order_id(
        js, subject, orders, lambda: {"Nats-Msg-Id": str(time.monotonic())}
    )


@wrong("survive", "orders are stored; wanted")
async def drops_what_fails(js, subject, orders):
    for order, body in orders.items():
        try:
            await publish_until_acked(js, subject, body, order, patience=0)
        except (TimeoutError, NoStreamResponseError, APIError):
            continue


@right("survive")
async def ten_at_a_time(js, subject, orders):
    slots = asyncio.Semaphore(10)

    async def one(order, body):
        async with slots:
            await publish_until_acked(js, subject, body, order)

    async with asyncio.TaskGroup() as tasks:
        for order, body in orders.items():
            tasks.create_task(one(order, body))


@wrong("survive", "stored 20 of the 20 a second time")
async def an_id_of_this_call(js, subject, orders):
    for body in orders.values():
        await publish_until_acked(js, subject, body, str(uuid.uuid4()))


@wrong("survive", "had published nothing for 3 s")
async def waits_until_it_is_over(js, subject, orders):
    await asyncio.sleep(20)
    for order, body in orders.items():
        await publish_until_acked(js, subject, body, order)


@wrong("survive", "that was in the stream before publish_all is gone")
async def begins_anew_with_an_empty_stream(js, subject, orders):
    stream = await js.find_stream_name_by_subject(subject)
    await js.purge_stream(stream)
    for order, body in orders.items():
        await publish_until_acked(js, subject, body, order)


@wrong("survive", "orders are stored; wanted: all")
async def sends_and_does_not_listen(js, subject, orders):
    for order, body in orders.items():
        await js._nc.publish(subject, body, headers={"Nats-Msg-Id": order})
        await asyncio.sleep(0.001)  # or all are stored before anything fails


@wrong("survive", "was still at work")
async def waits_long_for_each(js, subject, orders):
    for order, body in orders.items():
        await js.publish(subject, body, timeout=90, headers={"Nats-Msg-Id": order})


@wrong("survive", "got an ack for the new one, and it is not stored")
async def its_place_as_an_id(js, subject, orders):
    for number, body in enumerate(orders.values()):
        await publish_until_acked(js, subject, body, str(number))


@wrong("survive", "fewer messages in the stream; wanted: what was there stays")
async def makes_room_first(js, subject, orders):
    stream = await js.find_stream_name_by_subject(subject)
    config = (await js.stream_info(stream)).config
    config.max_msgs_per_subject = len(orders)
    await js.update_stream(config)
    for order, body in orders.items():
        await publish_until_acked(js, subject, body, order)


@wrong("survive", "a task of it was still at work; wanted: that it returns when all are acked")
async def goes_on_in_the_background(js, subject, orders):
    async def publish():
        for order, body in orders.items():
            await publish_until_acked(js, subject, body, order)

    js.task = asyncio.create_task(publish())
    await asyncio.sleep(0.1)


@right("survive")
async def ids_with_a_prefix(js, subject, orders):
    for order, body in orders.items():
        await publish_until_acked(js, subject, body, f"orders:{order}")


@right("survive")
async def rounds_of_what_is_not_acked_yet(js, subject, orders):
    async def attempt(order):
        headers = {"Nats-Msg-Id": order}
        try:
            await js.publish(subject, orders[order], timeout=1, headers=headers)
        except (TimeoutError, APIError, NoStreamResponseError):
            return order
        return None

    left = list(orders)
    while left:
        tried = [
            await asyncio.gather(*map(attempt, left[i : i + 100])) for i in range(0, len(left), 100)
        ]
        left = [order for some in tried for order in some if order]
        await asyncio.sleep(0.05)


@right("survive")
async def by_hand(js, subject, orders):
    client = js._nc
    for order, body in orders.items():
        headers = {"Nats-Msg-Id": order}
        while True:
            try:
                reply = await client.request(subject, body, timeout=0.5, headers=headers)
            except (TimeoutError, NoRespondersError):
                await asyncio.sleep(0.1)
                continue
            if "error" not in json.loads(reply.data):
                break
            await asyncio.sleep(0.1)

"""Answers to the exercises of clustering."""

import asyncio
import time

import nats
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


@wrong("survive", "which is no id of an order")
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

"""Publishes orders to JetStream. An order is done when JetStream has confirmed it; until then it is sent again, same id.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab python producer.py

All settings: service.py, and RATE (orders a second) and GRACE (seconds). One order is in flight at a time, so the
ceiling is one order per round trip to the stream's leader and its followers; several producers may run side by side.

Prints "acked ID" for each confirmed order. Exit code: 0 after SIGTERM or Ctrl-C. 1, and a line that says why, if no time
mends what is wrong (a refused login, a missing permission, a configuration that the server refuses), or if the order in
hand was not confirmed within GRACE after the signal.
"""
import asyncio
import itertools
import json
import logging
import random
import sys
import time
import uuid

from nats.errors import BadSubjectError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NoStreamResponseError
from service import CannotGoOn, have_stream, number, permanent, serve

RATE = number("RATE", "20", least=0.001)
# An order that is sent again within the hour is stored once; after a longer outage the consumer knows its id.
STREAM = {"name": "ORDERS", "subjects": ["orders.>"], "duplicate_window": 3600,
          "max_age": 30 * 86400}              # seconds; no disk is endless
GRACE = number("GRACE", "20")                 # seconds for the order in hand after a signal: an election takes 4 to 9
TOO_LARGE, HEADERS_TOO_LARGE = 10054, 10097   # the stream refuses this message, and takes the next
HEADERS = 1000                                # bytes; ours are shorter
log = logging.getLogger("order-producer")


class Refused(Exception):
    """JetStream will never take this order."""


async def orders(end):
    """Stands for your source of orders (a table, a request). The id belongs to the order, not to the attempt."""
    run = uuid.uuid4().hex[:8]
    for count in itertools.count(1):
        yield {"id": f"{run}-{count:05}", "amount": count}
        await end.within(1 / RATE)
        if end.code is not None:
            return


async def persist(what, ask, end):
    """Asks until JetStream answers, with growing pauses; after the end is called for, for GRACE seconds more. Raises
    Refused if this order will never be taken, CannotGoOn if none will."""
    pause = 0.05
    while True:
        try:
            return await ask()
        except (BadSubjectError, MaxPayloadError) as error:
            raise Refused(error) from error
        except (NatsError, TimeoutError) as error:
            if isinstance(error, APIError) and error.err_code in (TOO_LARGE, HEADERS_TOO_LARGE):
                raise Refused(error) from error
            if permanent(error):
                raise CannotGoOn(f"{what}: {error}") from error
            if end.code or time.monotonic() > end.at + GRACE:
                raise CannotGoOn(f"{what}: not confirmed (after a timeout it may be stored all the same)") from error
            log.warning("%s: %s %s; again in %.2f s at most", what, type(error).__name__, error, pause)
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 2)


async def publish(nc, js, body, headers):
    if len(body) > nc.max_payload - HEADERS:                 # the server counts headers too, and would close the connection
        raise MaxPayloadError
    try:
        return await js.publish("orders.created", body, timeout=2, headers=headers)
    except NoStreamResponseError:                            # no leader at the moment, or somebody has deleted the stream
        await have_stream(js, "orders.created", **STREAM)
        raise


async def produce(nc, end):
    js = nc.jetstream(timeout=2)
    await persist("stream", lambda: have_stream(js, "orders.created", **STREAM), end)
    async for order in orders(end):
        body = json.dumps(order).encode()
        headers = {"Nats-Msg-Id": order["id"]}
        try:
            await persist(order["id"], lambda: publish(nc, js, body, headers), end)
            print("acked", order["id"], flush=True)
        except Refused as error:                             # this order, not the next
            log.error("refused %s: %s: a person must look at it", order["id"], error)


if __name__ == "__main__":
    sys.exit(asyncio.run(serve("order-producer", produce)))

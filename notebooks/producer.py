"""Publishes orders to JetStream. An order is done when JetStream has confirmed it; until then it is sent again, same id.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab python producer.py

Prints "acked ID" for each confirmed order. Ends with 0 after SIGTERM or Ctrl-C, with 1 and a reason if it cannot go on.
"""
import asyncio, itertools, json, logging, os, random, sys, time, uuid
from nats.errors import BadSubjectError, ConnectionClosedError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.js.errors import BadRequestError
from service import have_stream, serve

RATE = float(os.environ.get("RATE", "20"))    # orders a second
# An order that is sent again within the hour is stored once; after a longer outage the consumer knows its id.
STREAM = {"name": "ORDERS", "subjects": ["orders.>"], "duplicate_window": 3600,
          "max_age": 30 * 86400}              # seconds; no disk is endless
GRACE = 20                                    # seconds for the order in hand after a signal: an election takes 4 to 9
# No retry mends these. (But for 10005, too few nodes for a new stream: there the supervisor's restart is the retry.)
HOPELESS = (BadRequestError, BadSubjectError, ConnectionClosedError, MaxPayloadError)
log = logging.getLogger("order-producer")

async def orders(ended):
    """Stands for your source of orders (a table, a request). The id belongs to the order, not to the attempt."""
    run = uuid.uuid4().hex[:8]
    for number in itertools.count(1):
        yield {"id": f"{run}-{number:05}", "amount": number}
        await asyncio.wait([ended], timeout=1 / RATE)
        if ended.done():
            return

async def persist(what, ask, ended):
    """Asks until JetStream answers, with growing pauses; after the end is called for, for GRACE seconds more."""
    pause, deadline = 0.05, float("inf")
    while True:
        try:
            return await ask()
        except (NatsError, asyncio.TimeoutError) as error:
            deadline = min(deadline, time.monotonic() + GRACE) if ended.done() else deadline
            if isinstance(error, HOPELESS) or time.monotonic() > deadline:
                log.error("%s: given up (after a timeout it may be stored all the same)", what)
                raise
            log.warning("%s: %s %s; again in %.2f s at most", what, type(error).__name__, error, pause)
        await asyncio.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 2)

async def produce(nc, ended):
    js = nc.jetstream()
    await persist("stream", lambda: have_stream(js, "orders.created", **STREAM), ended)
    async for order in orders(ended):
        body, headers = json.dumps(order).encode(), {"Nats-Msg-Id": order["id"]}
        try:
            await persist(order["id"], lambda: js.publish("orders.created", body, timeout=2, headers=headers), ended)
            print("acked", order["id"], flush=True)
        except (BadRequestError, BadSubjectError, MaxPayloadError) as error:                    # this order, not the next
            log.error("refused %s: %s: a person must look at it", order["id"], error)

if __name__ == "__main__":
    sys.exit(asyncio.run(serve("order-producer", produce)))                # a text goes to stderr and is exit code 1

"""Publishes orders to JetStream. An order is done when JetStream has confirmed it; until then it is sent again, same id.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab python producer.py

Prints "acked ID" for each confirmed order. Ends with 0 after SIGTERM or Ctrl-C, with 1 and a reason if it cannot go on.
"""
import asyncio, contextlib, itertools, json, logging, os, random, signal, sys, time, uuid
import nats
from nats.errors import BadSubjectError, ConnectionClosedError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.js.errors import BadRequestError

SERVERS = os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(",")
LOGIN = {"user": os.environ.get("NATS_USER"), "password": os.environ.get("NATS_PASSWORD"),
         "user_credentials": os.environ.get("NATS_CREDS")}   # a file; all three empty where the server asks for none
REPLICAS, RATE = int(os.environ.get("REPLICAS", "3")), float(os.environ.get("RATE", "20"))      # RATE: orders a second
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

async def produce(js, ended):
    await persist("stream", lambda: js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=REPLICAS), ended)
    async for order in orders(ended):
        body, headers = json.dumps(order).encode(), {"Nats-Msg-Id": order["id"]}
        try:
            await persist(order["id"], lambda: js.publish("orders.created", body, timeout=2, headers=headers), ended)
            print("acked", order["id"], flush=True)
        except (BadRequestError, BadSubjectError, MaxPayloadError) as error:                    # this order, not the next
            log.error("refused %s: %s: a person must look at it", order["id"], error)

async def main():
    loop = asyncio.get_running_loop()
    ended = loop.create_future()                             # 0 after a signal, a text if it cannot go on
    def end(why):
        ended.done() or ended.set_result(why)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: loop.call_soon_threadsafe(end, 0))
    async def on_error(error):
        log.warning("nats: %r", error)
        if "authorization" in str(error).lower():            # left alone, nats-py tries a wrong password for ever
            end(f"order-producer: {SERVERS} refuse user {LOGIN.get('user')!r}: {error}")
    async def on_closed():                                   # closed is for good, also with max_reconnect_attempts=-1
        end("order-producer: the connection was closed for good")
    async def on_disconnect():
        log.warning("disconnected")
    async def on_reconnect():
        log.warning("reconnected")
    connecting = asyncio.ensure_future(nats.connect(
        SERVERS, name="order-producer", max_reconnect_attempts=-1, reconnect_time_wait=0.5, ping_interval=10,
        max_outstanding_pings=2, error_cb=on_error, closed_cb=on_closed, disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect, **LOGIN))
    await asyncio.wait([connecting, ended], return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        while not connecting.done():                         # once may not do: Python 3.11 can swallow a cancel
            connecting.cancel()
            await asyncio.sleep(0.01)
        return ended.result()
    nc = connecting.result()
    try:
        await produce(nc.jetstream(), ended)
    except (NatsError, asyncio.TimeoutError) as error:
        return f"order-producer: stopped by {type(error).__name__}: {error}"
    with contextlib.suppress(NatsError, OSError):
        await nc.drain()                                     # sends what is buffered, then closes
    return ended.result()

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(main()))                            # a text goes to stderr and is exit code 1

"""Charges orders out of JetStream, each one once in its effect, however often it is delivered.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab DATABASE=charges.db python consumer.py

Start as many as you like. Ends with 0 after SIGTERM or Ctrl-C, with 1 and a reason if it cannot go on.
"""
import asyncio, contextlib, json, logging, os, signal, sqlite3, sys
import nats
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import BadRequestError

SERVERS = os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(",")
LOGIN = {"user": os.environ.get("NATS_USER"), "password": os.environ.get("NATS_PASSWORD"),
         "user_credentials": os.environ.get("NATS_CREDS")}   # a file; all three empty where the server asks for none
DATABASE, REPLICAS = os.environ.get("DATABASE", "charges.db"), int(os.environ.get("REPLICAS", "3"))
ACK_WAIT, BATCH = float(os.environ.get("ACK_WAIT", "30")), 20
CONSUMER = ConsumerConfig(durable_name="charging", filter_subject="orders.created", ack_policy=AckPolicy.EXPLICIT,
                          ack_wait=ACK_WAIT, max_deliver=10, max_ack_pending=10 * BATCH)
log = logging.getLogger("order-consumer")

def charge(order):
    """The effect and its marker in one transaction: a second delivery changes nothing. It runs in a thread of its own."""
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=5)) as db, db:
        db.execute("INSERT INTO charges VALUES (?, ?) ON CONFLICT DO NOTHING", (order["id"], order["amount"]))

async def answer(js, msg):
    """Every message gets an answer; what goes wrong on the way to it brings the message back after ack wait."""
    seq, tries = msg.metadata.sequence.stream, msg.metadata.num_delivered
    try:
        await asyncio.to_thread(charge, json.loads(msg.data))
        await msg.ack()
    except (ValueError, KeyError, TypeError) as error:       # bad today, bad tomorrow: keep it for a person, and end it
        log.error("message %s is no order: %r", seq, error)
        await js.publish(f"dead.{msg.subject}", msg.data, headers={"Nats-Msg-Id": f"ORDERS:{seq}", "Reason": repr(error)})
        await msg.term()
    except NatsError:
        raise
    except Exception as error:                               # a database that is away comes back; a bug must not end the loop
        log.warning("message %s, delivery %s: %r", seq, tries, error)
        await msg.nak(delay=min(30, 2 ** tries))             # after max_deliver: silence and an advisory (lesson 05)

async def heartbeat(msgs):
    """Starts ack wait afresh for all that we hold; not for ever, so that work that hangs goes to somebody else."""
    for _ in range(20):
        await asyncio.sleep(ACK_WAIT / 3)
        for msg in msgs:
            if not msg.is_acked:
                with contextlib.suppress(NatsError):
                    await msg.in_progress()

async def consume(js, ended):
    sub, ready = await js.pull_subscribe_bind("charging", "ORDERS"), False
    while not ended.done():
        try:
            if not ready:                                    # at the start, and again after trouble
                await js.add_stream(name="DEAD", subjects=["dead.>"], num_replicas=REPLICAS)
                await js.add_consumer("ORDERS", CONSUMER)    # makes it, or brings an old one up to date
                ready = True
            msgs = await sub.fetch(BATCH, timeout=1)
            beating = asyncio.ensure_future(heartbeat(msgs))
            try:
                for msg in msgs:                             # after a signal the rest goes to another worker at once
                    await (msg.nak() if ended.done() else answer(js, msg))
            finally:
                beating.cancel()
        except BadRequestError:                              # a configuration that the server refuses: no retry mends it
            raise
        except asyncio.TimeoutError:
            pass                                             # a quiet second
        except NatsError as error:
            ready = False
            log.warning("%s %s; again in 0.5 s", type(error).__name__, error)
            await asyncio.wait([ended], timeout=0.5)
    with contextlib.suppress(NatsError):
        await sub.unsubscribe()

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
            end(f"order-consumer: {SERVERS} refuse user {LOGIN.get('user')!r}: {error}")
    async def on_closed():                                   # closed is for good, also with max_reconnect_attempts=-1
        end("order-consumer: the connection was closed for good")
    async def on_disconnect():
        log.warning("disconnected")
    async def on_reconnect():
        log.warning("reconnected")
    connecting = asyncio.ensure_future(nats.connect(
        SERVERS, name="order-consumer", max_reconnect_attempts=-1, reconnect_time_wait=0.5, ping_interval=10,
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
        with contextlib.closing(sqlite3.connect(DATABASE)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, amount INTEGER NOT NULL)")
        await consume(nc.jetstream(), ended)
    except (BadRequestError, sqlite3.Error) as error:
        return f"order-consumer: stopped by {type(error).__name__}: {error}"
    with contextlib.suppress(NatsError, OSError):
        await nc.drain()                                     # sends the last acks, then closes
    return ended.result()

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(main()))                            # a text goes to stderr and is exit code 1

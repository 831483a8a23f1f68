"""Charges orders out of JetStream, each one once in its effect, however often it is delivered.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab DATABASE=charges.db python consumer.py

Start as many as you like. What it cannot charge goes into the stream DEAD, for a person. Exit code: as producer.py.
"""
import asyncio, contextlib, json, logging, os, sqlite3, sys
from nats.errors import Error as NatsError
from nats.js.errors import BadRequestError
from service import have_stream, serve

DATABASE, BATCH = os.environ.get("DATABASE", "charges.db"), 20
ACK_WAIT, TRIES = float(os.environ.get("ACK_WAIT", "30")), int(os.environ.get("TRIES", "10"))
CONSUMER = {"durable_name": "charging", "filter_subject": "orders.created", "ack_policy": "explicit",
            "ack_wait": ACK_WAIT, "max_ack_pending": 10 * BATCH, "max_deliver": -1}  # answer() gives up, not the server
log = logging.getLogger("order-consumer")

def brief(error):                                            # str: the repr of a UnicodeDecodeError holds the whole body
    return f"{type(error).__name__} {ascii(str(error))[:200]}"

def charge(body):
    """The effect and its marker in one transaction: a second delivery changes nothing. It runs in a thread of its own."""
    order = json.loads(body)
    number, amount = (order.get("id"), order.get("amount")) if isinstance(order, dict) else (None, None)
    if not (number and isinstance(number, str) and type(amount) is int):
        raise ValueError("wanted: an id, a text, and an amount, a whole number")
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=5)) as db, db:
        db.execute("INSERT INTO charges VALUES (?, ?) ON CONFLICT DO NOTHING", (number, amount))

async def answer(nc, msg):
    """Every message gets an answer. Returns False if something is wrong that may be right later."""
    seq, tries = msg.metadata.sequence.stream, msg.metadata.num_delivered
    try:
        try:
            if tries > TRIES:                                # before it is tried: it may be what kills the workers
                raise ValueError(f"not charged in {TRIES} deliveries")
            await asyncio.to_thread(charge, msg.data)
            await msg.ack()
        except (ValueError, OverflowError, RecursionError) as error:       # bad today, bad tomorrow
            log.error("message %s goes to DEAD: %s", seq, brief(error))
            headers = {"Nats-Msg-Id": f"ORDERS:{seq}", "Reason": brief(error), "Size": str(len(msg.data))}
            await nc.jetstream().publish(f"dead.{msg.subject}", msg.data[:nc.max_payload - 1024], headers=headers)
            await msg.term()                                 # only now: DEAD has it (its start, if it is huge)
        return True
    except Exception as error:                               # a database that is away comes back; a bug must not end the loop
        log.warning("message %s, delivery %s: %s", seq, tries, brief(error))
        with contextlib.suppress(NatsError):                 # without an answer it comes back after ack wait
            await msg.nak(delay=min(30, 2 ** tries))
        return False

async def heartbeat(msgs):
    """Starts ack wait afresh for all that we hold; not for ever, so that work that hangs goes to somebody else."""
    for _ in range(20):
        await asyncio.sleep(ACK_WAIT / 3)
        for msg in [msg for msg in msgs if not msg.is_acked]:
            with contextlib.suppress(NatsError):
                await msg.in_progress()

def prepare_database():                                      # fails while nobody can write
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=5)) as db, db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY NOT NULL, amount INTEGER NOT NULL)")

async def prepare(js):
    await asyncio.to_thread(prepare_database)
    await have_stream(js, "dead.orders.created", name="DEAD", subjects=["dead.>"])
    await js.add_consumer("ORDERS", **CONSUMER)              # makes it, or brings an old one up to date

async def consume(nc, ended):
    js, ready = nc.jetstream(), False
    sub = await js.pull_subscribe_bind("charging", "ORDERS")
    while not ended.done():
        try:
            if not ready:                                    # at the start and after trouble: nothing is fetched,
                await prepare(js)                            # so that an outage does not use up the tries
                ready = True
            msgs = []
            with contextlib.suppress(asyncio.TimeoutError):  # a quiet second
                msgs = await sub.fetch(BATCH, timeout=1)
            beating = asyncio.ensure_future(heartbeat(msgs))
            try:
                for msg in msgs:
                    if ended.done():
                        await msg.nak()                      # to another worker, at once
                    else:
                        ready = await answer(nc, msg) and ready
            finally:
                beating.cancel()
        except BadRequestError:                              # a configuration that the server refuses: no retry mends it
            raise
        except (NatsError, asyncio.TimeoutError, sqlite3.Error) as error:
            ready = False
            log.warning("%s; again in 1 s", brief(error))
            await asyncio.wait([ended], timeout=1)
    with contextlib.suppress(NatsError):
        await sub.unsubscribe()

if __name__ == "__main__":
    sys.exit(asyncio.run(serve("order-consumer", consume)))                # a text goes to stderr and is exit code 1

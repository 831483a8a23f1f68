"""Charges orders out of JetStream, each one once in its effect, however often it is delivered.

    NATS_URL=nats://127.0.0.1:4222 NATS_USER=mine NATS_PASSWORD=lab DATABASE=charges.db python consumer.py

All settings: service.py, and DATABASE (a file), ACK_WAIT (seconds, of a consumer that is made here), TRIES, and HANGS
(seconds; if the database takes longer for one order, the program ends, with exit code 1).
Start as many as you like on one host: the database is a file of SQLite, which lets one write at a time, and that is
the ceiling. With a database server they may run on several hosts.

What is no order, and a second order under the id of another, goes into the stream DEAD at once, for a person; so does
an order that has failed TRIES times by its own fault, or has killed TRIES workers, or made them hang. A database that
is away and a full disk are no fault of an order: nothing is fetched until they are over. Exit code: as producer.py.
"""
import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import sqlite3
import sys

import charges
from charges import NoOrder
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NoStreamResponseError, NotFoundError
from service import CannotGoOn, have_stream, number, permanent, serve

BATCH = 20
CONSUMER = {"durable_name": "charging", "filter_subject": "orders.created", "ack_policy": "explicit",
            "ack_wait": number("ACK_WAIT", "30", least=0.1), "max_ack_pending": 10 * BATCH,
            "max_deliver": -1}                               # this program gives up, not the server
# No letter is dropped because of its age or to make room: what has no room is refused, and waits in ORDERS.
DEAD = {"name": "DEAD", "subjects": ["dead.>"], "max_bytes": 64 * 2**20, "discard": "new", "duplicate_window": 3600}
NO_CONSUMER = 10014
MAX_HEADERS = 60_000                                         # bytes; JetStream takes 65,535
OUR_HEADERS = 1024                                           # bytes; they are shorter
MAX_ID = 200                                                 # characters
HANGS = number("HANGS", "60", least=1)                       # longer than SQLite waits for locks
OUTAGE = (sqlite3.Error, OSError, MemoryError, NatsError, TimeoutError)
log = logging.getLogger("order-consumer")


def status(msg):
    """The server's own words in a pull (404: no messages) come with a header `Status`. nats-py 2.16 takes an order with
    a header of that name for one, and drops it, or stops. But only a message has a reply to ack."""
    if msg is None or msg.reply.startswith("$JS.ACK."):
        return None
    headers = msg.headers or {}
    if headers.get("Description", "").startswith("Exceeded MaxRequest"):  # nats-py would take it for a quiet second
        raise CannotGoOn(f"the consumer does not allow what is asked for: {headers['Description']}")
    return headers.get("Status")


JetStreamContext.is_status_msg = staticmethod(status)


def brief(error):                                            # str: the repr of a UnicodeDecodeError holds the whole body
    return f"{type(error).__name__} {ascii(str(error))[:200]}"


def key(msg):
    """The same for every delivery of a message, another for any other. (A sequence alone is not: it starts again when
    somebody makes the stream anew.)"""
    parts = msg.subject, sorted((msg.headers or {}).items()), msg.data, msg.metadata.timestamp
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read(body):
    """(id, amount) of an order. Raises NoOrder."""
    try:
        order = json.loads(body)
        json.dumps(order, ensure_ascii=False).encode()       # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise NoOrder(brief(error)) from error
    name, amount = (order.get("id"), order.get("amount")) if isinstance(order, dict) else (None, None)
    if not (name and isinstance(name, str) and len(name) <= MAX_ID and type(amount) is int and abs(amount) < 2**63):
        raise NoOrder(f"wanted: an id, a text of at most {MAX_ID} characters, and an amount, a whole number")
    return name, amount


def is_outage(error):
    """True for what is no fault of an order. A database that refuses this row, or this value, may be right."""
    return isinstance(error, OUTAGE) and not isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError))


async def in_thread(function, *args):
    """Calls it in a thread. One that hangs cannot be ended, only its process; what that held goes to somebody else."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args))
    await asyncio.wait([running], timeout=HANGS)
    if not running.done():
        log.critical("%s() takes more than %g s", function.__name__, HANGS)
        os._exit(1)
    return running.result()


async def answer(nc, msg):
    """Charges one order, or puts it aside. Raises what is no fault of the order."""
    try:
        name, amount = read(msg.data)
        if msg.metadata.num_delivered > 1:
            await in_thread(charges.begin, key(msg))
        await in_thread(charges.charge, key(msg), name, amount)
        await msg.ack()
    except NoOrder as reason:
        await bury(nc, msg, reason)
    except Exception as error:
        await again(msg, error)
        if is_outage(error):
            with contextlib.suppress(sqlite3.Error):         # it is an outage, after all
                await in_thread(charges.came_back, key(msg))
            raise
        await in_thread(charges.prove)                       # raises if others would fail as well
        await in_thread(charges.failed, key(msg))


async def again(msg, error):
    """Gives it back, for later. If that fails too, it comes back after ack wait."""
    seq, tries = msg.metadata.sequence.stream, msg.metadata.num_delivered
    log.warning("message %s, delivery %s: %s", seq, tries, brief(error))
    with contextlib.suppress(NatsError):
        await msg.nak(delay=min(30, 2 ** min(tries, 5)))


def letter(msg, reason, most):
    """(body, headers) of the copy for DEAD, no larger than `most` bytes. The message's own headers go along. Those
    that a server obeys, such as a TTL, or nats-py, must not act again: they get other names."""
    source = f"{msg.metadata.stream}:{msg.metadata.sequence.stream}"
    ours = {"Nats-Msg-Id": key(msg), "Dead-Reason": str(reason), "Dead-Source": source, "Dead-Size": str(len(msg.data))}
    theirs = {re.sub("(?i)^(?=nats-|status$)", "Original-", name): str(value) for name, value in (msg.headers or {}).items()
              if re.fullmatch("[!-9;-~]+", name)}
    size = sum(len(f"{name}: {value}\r\n".encode()) for name, value in [*theirs.items(), *ours.items()])
    if size > min(MAX_HEADERS, most - OUR_HEADERS):
        theirs = {"Dead-Headers": f"{size} bytes are too many: look into the source"}
        size = OUR_HEADERS
    return msg.data[:most - size - 100], {**theirs, **ours}  # 100: the line that begins the headers, and some


async def bury(nc, msg, reason):
    """Ends a message, but not before DEAD has it, or its start, if it is huge."""
    log.error("message %s goes to DEAD: %s", msg.metadata.sequence.stream, reason)
    try:
        body, headers = letter(msg, reason, nc.max_payload)
        await nc.jetstream().publish(f"dead.{msg.subject}", body, headers=headers)
        await msg.term()
    except NoStreamResponseError as error:                   # somebody has deleted DEAD: prepare() makes it anew
        await again(msg, error)
        raise
    except (NatsError, TimeoutError) as error:               # the next one may be a good one
        await again(msg, error)
    else:
        await in_thread(charges.forget, key(msg))


async def heartbeat(msgs, ack_wait):
    """Starts ack wait afresh for all that we hold. It need not stop: in_thread() ends what hangs."""
    while True:
        await asyncio.sleep(ack_wait / 3)
        for msg in [msg for msg in msgs if not msg.is_acked]:
            with contextlib.suppress(NatsError):
                await msg.in_progress()


async def work_off(nc, msgs, ack_wait, end):
    """Answers one message after the other. What it does not begin goes to another worker at once."""
    beating = asyncio.ensure_future(heartbeat(msgs, ack_wait))
    try:
        for msg in msgs:
            if end.code is not None:
                break
            await answer(nc, msg)
    finally:
        beating.cancel()
        await give_back(msgs)


async def give_back(msgs):
    for msg in msgs:
        if not msg.is_acked:
            with contextlib.suppress(NatsError):
                await msg.nak()


async def prepare(js):
    """Returns when there is all that an order needs: a database that can charge, DEAD, a consumer. Returns the
    consumer's settings. One that is there stays as it is: they may be an operator's."""
    await in_thread(charges.prove)
    await have_stream(js, "dead.orders.created", **DEAD)
    try:
        config = (await js.consumer_info("ORDERS", "charging")).config
    except NotFoundError as error:
        if error.err_code != NO_CONSUMER:
            raise                                            # no stream: its producer makes it
        config = (await js.add_consumer("ORDERS", **CONSUMER)).config
    own = {name: getattr(config, name) for name, value in CONSUMER.items() if getattr(config, name) != value}
    if own:
        log.warning("the consumer has settings of its own: %s", own)
    if config.headers_only or config.deliver_subject:
        raise CannotGoOn("the consumer is set to push, or to deliver headers only; wanted: one that is pulled, with bodies")
    if config.ack_policy != "explicit" or (config.max_deliver or -1) > 0:
        raise CannotGoOn("the consumer would lose orders; wanted: ack policy explicit, and no limit of deliveries")
    return config


async def fetch(sub, batch):
    try:
        return await sub.fetch(batch, timeout=1)
    except TimeoutError:                                     # a quiet second
        return []


async def consume(nc, end):
    js = nc.jetstream()
    sub = await js.pull_subscribe_bind("charging", "ORDERS")
    try:
        await take_orders(nc, js, sub, end)
    finally:
        with contextlib.suppress(NatsError):
            await sub.unsubscribe()                          # first: else drain() waits for what nobody takes
            while sub.pending_msgs:                          # came late, or all at once after an outage
                await give_back(await fetch(sub, 1))


async def take_orders(nc, js, sub, end):
    config = None                                            # at the start and after trouble: prepare first
    alone = False
    while end.code is None:
        try:
            if config is None:
                config = await prepare(js)
            most = min(BATCH, config.max_ack_pending) if config.max_ack_pending > 0 else BATCH
            msgs = await fetch(sub, 1 if alone else most)
            # What was delivered before may be what kills the workers. So one of these is tried at a time, after all
            # others are answered: if this worker dies of it, it has nothing else in its hands.
            fresh = [msg for msg in msgs if msg.metadata.num_delivered == 1]
            old = [msg for msg in msgs if msg.metadata.num_delivered > 1]
            await give_back(old[1:])
            alone = bool(old)
            await work_off(nc, fresh + old[:1], config.ack_wait, end)
        except OUTAGE as error:
            if permanent(error):
                raise CannotGoOn(error) from error
            config = None
            log.warning("%s; again in 1 s", brief(error))
            await end.within(1)


if __name__ == "__main__":
    sys.exit(asyncio.run(serve("order-consumer", consume)))

"""Exercises of lesson 30: a start that ends and a hang that is noticed; a publisher that survives
the death of a leader."""

import asyncio
import collections
import contextlib
import inspect
import secrets
import time
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from labkit.cluster import raft
from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import comes_true, tasks_since, wants_function
from labkit.waiting import end_tasks, until

NATS_PY = str(Path(nats.__file__).parent)
NOBODY = ["nats://127.0.0.1:1", "nats://127.0.0.1:2"]  # no server listens there
# What a mistake in the code raises: no word about a server.
MISTAKES = NameError, TypeError, AttributeError, LookupError, ImportError, AssertionError
BEFORE = b"a message of another publisher"


@exercise(
    limit=60,
    hints=[
        "Two limits, two places: the first connect needs one around it, a hang needs options of"
        " nats.connect.",
        "asyncio.wait_for(nats.connect(…), 2.5) ends the first connect, whatever its options say.",
        "A hang is noticed after ping_interval × (max_outstanding_pings + 1); -1 in"
        " max_reconnect_attempts means for ever.",
    ],
)
async def bounded(lab, answer):
    """Connect within about 3 s or raise; notice a server that hangs within about 3 s; never give up
    a connection once made."""
    is_async = inspect.iscoroutinefunction(answer)
    want(is_async, f"{answer!r} is not an async function", "async def …(servers, **options)")
    await _raises_where_no_server_is(answer)
    login = lab.cluster.login(lab.topic)
    client = await answer(login.pop("servers"), error_cb=_ignore, name="ex-bounded", **login)
    try:
        _is_connected_with_its_options(client)
        _never_gives_up(client)
        await _stays_connected(client)
        await _notices_a_hang(lab, client)
    finally:
        await lab.faults.heal()
        if isinstance(client, Client):
            # The last write may meet a dead connection.
            with contextlib.suppress(OSError, TypeError):
                await client.close()


async def connect(servers, **options):
    connecting = nats.connect(
        servers,
        ping_interval=0.8,
        max_outstanding_pings=2,
        max_reconnect_attempts=-1,
        **options,
    )
    return await asyncio.wait_for(connecting, 2.5)


bounded.solved_by(connect)


async def _raises_where_no_server_is(answer):
    """Raises NotYet unless a connect to nobody ends soon, with an exception, and leaves nothing
    behind. Two addresses refuse; at the third, a connection is accepted and nothing is said."""
    accepted = []

    async def says_nothing(reader, writer):
        accepted.append(writer)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    mute = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
    servers = [*NOBODY, f"nats://127.0.0.1:{mute.sockets[0].getsockname()[1]}"]
    others = asyncio.all_tasks()
    attempt = asyncio.ensure_future(answer(servers, error_cb=_ignore))
    try:
        await asyncio.wait([attempt], timeout=4)
        saw = "Two of three addresses refuse, the other one says nothing, and your connect"
        wanted = "an exception within about 3 s"
        want(attempt.done(), f"{saw} had not ended after 4 s", wanted)
        want(not attempt.cancelled(), f"{saw} was cancelled", "an exception that says why")
        error = attempt.exception()
        client = None if error else attempt.result()
        want(error, f"{saw} returned {client!r}", "an exception")
        if isinstance(error, MISTAKES):
            raise error
        says_why = str(error) or isinstance(error, (TimeoutError, OSError, Error))
        want(says_why, f"{saw} raised {error!r}", "an exception that says why")
        await _leaves_nothing_running(others | {attempt})
    finally:
        await end_tasks(attempt, *tasks_since(others, NATS_PY))
        mute.close()
        for writer in accepted:  # nats-py leaves a connection open when its connect is cancelled
            writer.close()


async def _leaves_nothing_running(others):
    is_alone = await comes_true(lambda: not tasks_since(others, NATS_PY), timeout=0.5)
    saw = "No server answered and your connect raised, but a task of it is still trying to connect"
    want(is_alone, saw, "nothing left behind: cancel it")


async def _ignore(error):
    """For error_cb."""


def _is_connected_with_its_options(client):
    connected = isinstance(client, Client) and client.is_connected
    saw = f"Three servers are up, and your connect returned {client!r}"
    want(connected, saw, "a connected client")
    name = client.options["name"]
    wanted = "'ex-bounded', as in the options that it was called with"
    want(name == "ex-bounded", f"The client's name is {name!r}", wanted)


def _never_gives_up(client):
    attempts = client.options["max_reconnect_attempts"]
    wanted = "-1, so that a connection that was made is never given up"
    # 0 and below are endless, and nobody lives to see the end of a million.
    want(not 0 < attempts < 1e6, f"max_reconnect_attempts is {attempts}", wanted)


async def _stays_connected(client):
    """Raises NotYet if the client leaves its server, which is well."""

    def has_left():
        return client.stats["reconnects"] or not client.is_connected

    left = await comes_true(has_left, timeout=2.5)
    saw = "Its server answered, and the client left it within 2.5 s"
    want(not left, saw, "given up only when it hangs")


async def _notices_a_hang(lab, client):
    """Lets the client's server hang. Raises NotYet unless the client leaves it soon, and is
    connected to another one."""
    port = client.connected_url.port
    await lab.faults.pause(lab.node_of(client))

    def noticed():
        return not client.is_connected or client.connected_url.port != port

    is_noticed = await comes_true(noticed, timeout=4)
    interval = client.options["ping_interval"]
    pings = client.options["max_outstanding_pings"]
    saw = (
        "4 s after its server hung, is_connected was still True"
        f" (ping_interval {interval} s, max_outstanding_pings {pings})"
    )
    want(is_noticed, saw, "noticed within about 3 s")

    def is_elsewhere():
        return client.is_connected and client.connected_url.port != port

    # It may try the hung one first, for its connect_timeout.
    is_back = await comes_true(is_elsewhere, timeout=6)
    state = "closed" if client.is_closed else "not connected"
    saw = f"The client noticed that its server hung. The other two answered, and it was {state}"
    want(is_back, saw, "connected to one of them: a connection is never given up")


@exercise(
    limit=100,
    hints=[
        "Three exceptions mean 'again': TimeoutError (unknown), NoStreamResponseError (nobody"
        " leads) and APIError with err_code 10158 (taken, not yet stored).",
        "Again with the same Nats-Msg-Id, the order's id, so that a message which was stored"
        " unseen is not stored twice.",
        "An election takes 4 to 9 s: try for 30 s before you give up an order, with a short pause"
        " in between.",
    ],
)
async def survive(lab, answer):
    """Publish all orders, each stored once, although the stream's leader hangs and is then
    killed; once as well if it is called again, with a new order among them."""
    wants_function(answer, "js, subject, orders")
    for count in (1500, 15000, 15000):
        if await _survives(lab, answer, count):
            return
        # All were acked before the leader was dead: that proves nothing.
    saw = f"publish_all had stored {count} orders before the leader was dead"
    want(False, saw, "at work at that moment. Run the check again")


async def publish_all(js, subject, orders):
    for order, body in orders.items():
        end = time.monotonic() + 30
        while True:
            try:
                await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})
                break
            except (TimeoutError, NoStreamResponseError, APIError) as error:
                means_again = getattr(error, "err_code", 10158) == 10158
                if not means_again or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.05)


survive.solved_by(publish_all)


async def _survives(lab, answer, count):
    """Looks at one run, with so many orders. True if the leader was killed while the answer was at
    work."""
    # A new name each time: one that was in use a moment ago could be refused.
    stream = f"EX_{secrets.token_hex(3).upper()}"
    orders = {f"order-{number}": str(number).encode() for number in range(count)}
    await lab.faults.heal()
    try:
        far = await _new_stream(lab, stream)
        client = await lab.connect(node=far, name="publish_all")
        others = asyncio.all_tasks()
        publishing = answer(client.jetstream(), f"{stream.lower()}.new", orders)
        running = asyncio.ensure_future(publishing)
        try:
            hit = await _strike(lab, client, running, stream, count)
            _has_published(running)
            await _is_done(others)
            await lab.wait_for_leader(stream, timeout=30)
            _each_once(await _stored_messages(client, stream), orders)
            if hit:
                await _nothing_twice(answer, client, stream, orders)
            return hit
        finally:
            await end_tasks(running, *tasks_since(others))
            await client.close()
    finally:
        await lab.faults.heal()
        await delete(lab.js, stream)


async def _new_stream(lab, stream):
    """Name of a node that does not lead the stream, and leads the meta group: only the stream shall
    suffer. It holds one message of another publisher."""
    await lab.js.add_stream(name=stream, subjects=[f"{stream.lower()}.*"], num_replicas=3)
    await lab.settled(stream)
    leader = await lab.wait_for_current(stream)
    far = next(node.name for node in lab.cluster.nodes if node.name != leader)
    await lab.faults.step_down(to=far)
    await lab.js.publish(f"{stream.lower()}.old", BEFORE, timeout=5)
    return far


async def _strike(lab, client, running, stream, count):
    """Lets the stream's leader hang, then kills it, and waits for the answer. True if it was at
    work until then, the stream stood still meanwhile, and not all of its orders were stored."""
    sent = client.stats["out_msgs"]

    async def is_publishing():
        return running.done() or client.stats["out_msgs"] > sent + 5

    async def has_read_all():
        before = client.stats["in_msgs"]
        await asyncio.sleep(0.1)
        return client.stats["in_msgs"] == before

    is_at_work = await comes_true(is_publishing, timeout=3)
    want(is_at_work, "publish_all had published nothing for 3 s", "orders published at once")
    leader = await lab.wait_for_leader(stream)
    await lab.faults.pause(leader)
    held = await _held_by_the_others(lab, stream)
    await asyncio.wait([running], timeout=0.3)  # what is in flight now stays without an answer
    # On a busy machine another node may just have been elected: then nothing stood still.
    stood_still = held == await _held_by_the_others(lab, stream)
    await lab.faults.kill(leader)
    await comes_true(has_read_all, timeout=2)  # what was acked before may not be read yet
    in_the_middle = not running.done() and held < count  # one message more, see _new_stream()
    await asyncio.wait([running], timeout=35)
    return stood_still and in_the_middle


async def _held_by_the_others(lab, stream):
    """How many messages of the stream the nodes hold that do not hang."""
    views = await raft.seen(lab.cluster, lab.topic)
    return max(view["streams"][stream]["state"]["messages"] for view in views.values())


def _has_published(running):
    saw = "35 s after the leader was killed, publish_all was still at work"
    want(running.done(), saw, "done soon after the election")
    error = running.exception()
    code = f" {error.err_code}" if getattr(error, "err_code", None) else ""
    saw = f"publish_all raised {type(error).__name__}{code}"
    want(error is None, saw, "again, until the order is acked")


async def _is_done(others):
    """Raises NotYet if the answer has returned, but goes on in the background."""
    is_alone = await comes_true(lambda: not tasks_since(others), timeout=0.5)
    saw = "publish_all returned, and a task of it was still at work"
    want(is_alone, saw, "that it returns when all are acked")


def _each_once(messages, orders):
    """Raises NotYet unless these are all orders, each once, and what was there before. messages:
    [(Nats-Msg-Id or None, body)] of what the stream holds."""
    found = collections.Counter(body for _, body in messages)
    saw = "A message that was in the stream before publish_all is gone"
    want(found.pop(BEFORE, None), saw, "what was there stays")
    ids = [name for name, body in messages if body != BEFORE]
    wanted = "an id for each order in this header, or a second try stores it twice"
    want(None not in ids, "A stored message has no Nats-Msg-Id", wanted)
    strange = next((body for body in found if body not in orders.values()), None)
    saw = f"A stored message has the body {strange!r}, which is that of no order"
    want(strange is None, saw, "the body as it was given")
    saw = f"{len(found)} of {len(orders)} orders are stored"
    want(len(found) == len(orders), saw, "all, so try again what was not acked")
    twice = len(ids) - len(found)
    saw = f"{twice} of {len(orders)} orders are stored twice"
    want(not twice, saw, "once, so the same id at each try")


async def _nothing_twice(answer, client, stream, orders):
    """Lets the answer publish a new order and some orders again, as after a crash of the publisher.
    Raises NotYet unless the new one alone is stored."""
    some = {"one-more": b"one more", **dict(list(orders.items())[:20])}
    before = await _stored(client, stream)
    publishing = asyncio.ensure_future(answer(client.jetstream(), f"{stream.lower()}.new", some))
    try:
        await asyncio.wait([publishing], timeout=10)
        saw = "Called again with 20 of the orders and a new one, publish_all"
        want(publishing.done(), f"{saw} had not ended after 10 s", "an answer for each at once")
        publishing.result()
    finally:
        await end_tasks(publishing)
    more = await _stored(client, stream) - before
    want(more >= 0, f"{saw} left {-more} fewer messages in the stream", "what was there stays")
    wanted = "none: the same id for an order at each try, and at each call"
    want(more <= 1, f"{saw} stored {more - 1} of the 20 a second time", wanted)
    saw += " got an ack for the new one, and it is not stored"
    want(more == 1, saw, "an id that no other order has")


async def _stored_messages(client, stream):
    """[(its Nats-Msg-Id, its body)] of each message of the stream; None where there is no id.

    By a pull consumer: nats-py makes an ordered one anew in the background, and that may outlive
    the connection."""
    count = await _stored(client, stream)
    sub = await _reader(client.jetstream(timeout=2), stream)
    found = []

    async def all_are_found():
        left = count - len(found)
        if left:
            # The consumer's leader may be as new as the stream's.
            with contextlib.suppress(TimeoutError, ServiceUnavailableError):
                msgs = await sub.fetch(min(500, left), timeout=2)
                found.extend(((msg.headers or {}).get("Nats-Msg-Id"), msg.data) for msg in msgs)
        return len(found) == count

    await comes_true(all_are_found, timeout=20)
    await sub.unsubscribe()
    return found


async def _reader(js, stream):
    """A pull consumer of all messages. It has one replica, and that may fall to the node that has
    just died; then nobody answers, and another try finds another node."""
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)

    async def created():
        with contextlib.suppress(TimeoutError, ServiceUnavailableError):
            return await js.pull_subscribe(f"{stream.lower()}.*", stream=stream, config=config)

    return await until(created, 20)


async def _stored(client, stream):
    """How many messages the stream has. A leader that was elected just now may not answer yet."""
    js = client.jetstream(timeout=1)
    states = []

    async def answered():
        with contextlib.suppress(TimeoutError):
            states.append((await js.stream_info(stream)).state)
        return states

    is_known = await comes_true(answered, timeout=20)
    saw = "The stream did not answer for 20 s after the fault"
    want(is_known, saw, "a cluster that is whole. Run the check again")
    return states[0].messages

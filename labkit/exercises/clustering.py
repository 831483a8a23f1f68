"""Exercises of lesson 09: a start that ends and a hang that is noticed; a publisher that survives
the death of a leader."""

import asyncio
import contextlib
import inspect
import secrets
import time

from nats.errors import NoServersError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import ServiceUnavailableError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

CONNECT = """
import asyncio, nats

async def answer(servers, **options):
    return await asyncio.wait_for(
        nats.connect(servers, ping_interval=0.8, max_outstanding_pings=2, max_reconnect_attempts=-1, **options), 2.5)"""

SURVIVE = """
import asyncio, time
from nats.js.errors import APIError, NoStreamResponseError

async def answer(js, subject, orders):
    for order, body in orders.items():
        end = time.monotonic() + 30
        while True:
            try:
                await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})
                break
            except (asyncio.TimeoutError, NoStreamResponseError, APIError) as error:
                if getattr(error, "err_code", 10158) != 10158:
                    raise
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)"""
AT_ONCE = """
import asyncio

async def answer(js, subject, orders):
    await asyncio.gather(*(js.publish(subject, body, timeout=5, headers={"Nats-Msg-Id": order})
                           for order, body in orders.items()))"""
ONE_TRY = """
async def answer(js, subject, orders):
    for order, body in orders.items():
        await js.publish(subject, body, timeout=0.5, headers={"Nats-Msg-Id": order})"""


@exercise(
    hints=[
        (
            "Two limits, two places: the first connect needs one around it, a hang needs options of"
            " nats.connect."
        ),
        "asyncio.wait_for(nats.connect(…), 2.5) ends the first connect, whatever its options say.",
        (
            "A hang is noticed after ping_interval × (max_outstanding_pings + 1); -1 in"
            " max_reconnect_attempts means for ever."
        ),
    ],
    solution=CONNECT.replace("answer", "connect"),
    wrong={
        "never returns": (
            (
                "import nats\nasync def answer(servers, **options):\n    return await"
                " nats.connect(servers, max_reconnect_attempts=-1, reconnect_time_wait=2,"
                " **options)"
            ),
            "had not ended after 4 s",
        ),
        "default pings": (
            CONNECT.replace("ping_interval=0.8, max_outstanding_pings=2, ", ""),
            "is_connected was still True",
        ),
        "gives up": (
            CONNECT.replace("max_reconnect_attempts=-1", "max_reconnect_attempts=2"),
            "max_reconnect_attempts is 2; wanted: -1",
        ),
        "swallows": (
            CONNECT.replace("    return await", "    try:\n        return await")
            + "\n    except asyncio.TimeoutError:\n        return None",
            "returned None; wanted: an exception",
        ),
    },
    limit=60,
)
async def bounded(lab, answer):
    """Connect within about 3 s or raise; notice a server that hangs within about 3 s; never give up
    a connection once made."""
    _wants(answer, "servers, **options")
    heard = []

    async def hear(error):
        heard.append(error)

    attempt = asyncio.ensure_future(answer(["nats://127.0.0.1:1"], error_cb=hear))
    done, _ = await asyncio.wait([attempt], timeout=4)
    if not done:
        await _ended(attempt)
        raise NotYet(
            "No server answers at the address, and your connect had not ended after 4 s; wanted: an"
            " exception within about 3 s."
        )
    if not attempt.exception():
        raise NotYet(
            f"No server answers at the address, and your connect returned {attempt.result()!r};"
            " wanted: an exception."
        )
    if not isinstance(attempt.exception(), (asyncio.TimeoutError, NoServersError, OSError)):
        raise attempt.exception()

    login = lab.cluster.login(lab.topic)
    client = await answer(login.pop("servers"), error_cb=hear, **login)
    node = None
    try:
        if not getattr(client, "is_connected", False):
            raise NotYet(
                f"Three servers are up, and your connect returned {client!r}; wanted: a connected"
                " client."
            )
        forever = client.options["max_reconnect_attempts"]
        if forever != -1:
            raise NotYet(
                f"max_reconnect_attempts is {forever}; wanted: -1, so that a connection that was"
                " made is never given up."
            )
        node = next(
            node.name for node in lab.cluster.nodes if node.port == client.connected_url.port
        )
        await lab.faults.pause(node)
        start = time.monotonic()
        while client.is_connected and client.connected_url.port == lab.node(node).port:
            if time.monotonic() > start + 4:
                raise NotYet(
                    "4 s after its server hung, is_connected was still True (ping_interval"
                    f" {client.options['ping_interval']} s, max_outstanding_pings"
                    f" {client.options['max_outstanding_pings']}); wanted: noticed within about"
                    " 3 s."
                )
            await asyncio.sleep(0.02)
    finally:
        if node:
            await lab.faults.resume(node)
            await lab.faults.heal()
        if client:
            with contextlib.suppress(
                OSError, TypeError
            ):  # the last write may meet a dead connection
                await client.close()


@exercise(
    hints=[
        (
            "Three exceptions mean 'again': asyncio.TimeoutError (unknown), NoStreamResponseError"
            " (nobody leads) and APIError with err_code 10158 (taken, not yet stored)."
        ),
        (
            "Again with the same Nats-Msg-Id, the order's id, so that a message which was stored"
            " unseen is not stored twice."
        ),
        (
            "An election takes 4 to 9 s: try for 30 s before you give an order up, with a short"
            " pause in between."
        ),
    ],
    solution=SURVIVE.replace("answer", "publish_all"),
    wrong={
        "one try": (ONE_TRY, "publish_all raised TimeoutError"),
        "one try, all at once": (AT_ONCE, "publish_all raised"),
        "only timeouts": (
            SURVIVE.replace("NoStreamResponseError, APIError) as", "APIError) as"),
            "publish_all raised NoStreamResponseError",
        ),
        "gives up after 2 s": (
            SURVIVE.replace("+ 30", "+ 2"),
            "wanted: again, until the order is acked",
        ),
        "without an id": (
            SURVIVE.replace(', headers={"Nats-Msg-Id": order}', ""),
            "has no Nats-Msg-Id; wanted",
        ),
        "an id a try": (
            SURVIVE.replace('"Nats-Msg-Id": order', '"Nats-Msg-Id": str(time.monotonic())'),
            "which is no id of an order",
        ),
        "drops what fails": (
            SURVIVE.replace("+ 30", "+ 0").replace(
                "end:\n                    raise", "end:\n                    break"
            ),
            "orders are stored; wanted",
        ),
    },
    limit=100,
)
async def survive(lab, answer):
    """Publish all orders, each stored once, although the stream's leader hangs and is then
    killed."""
    _wants(answer, "js, subject, orders")
    stream = (  # a name that was in use just now could be refused
        f"EX_{secrets.token_hex(3).upper()}"
    )
    orders = {f"order-{number}": str(number).encode() for number in range(1500)}
    if not await _survived(
        lab, answer, stream, orders
    ):  # all were acked before the leader was dead: it proves nothing
        more = {f"order-{number}": str(number).encode() for number in range(10 * len(orders))}
        if not await _survived(lab, answer, f"{stream}_10", more):
            raise NotYet(
                f"publish_all was done with {len(more)} orders before the leader was dead. Run the"
                " check again."
            )


async def _survived(lab, answer, stream, orders):
    """Looks at one run; True if the leader was killed while the answer was at work."""
    await lab.faults.heal()
    await lab.js.add_stream(name=stream, subjects=[f"{stream.lower()}.*"], num_replicas=3)
    await lab.settled(stream)
    leader = await lab.wait_for_current(stream)
    far = next(node.name for node in lab.cluster.nodes if node.name != leader)
    await lab.faults.step_down(to=far)  # the meta group: only the stream shall suffer
    client = await lab.connect(node=far, name="publish_all")
    js, running = client.jetstream(), None

    async def stored():
        for _ in range(20):  # a leader that was elected just now may not answer yet
            with contextlib.suppress(asyncio.TimeoutError):
                return (await client.jetstream(timeout=1).stream_info(stream)).state.messages
        raise NotYet(
            "The stream did not answer for 20 s after the fault; wanted: a cluster that is whole."
            " Run the check again."
        )

    try:
        running = asyncio.ensure_future(answer(js, f"{stream.lower()}.new", orders))
        await asyncio.wait([running], timeout=0.02)
        await lab.faults.pause(leader)
        await asyncio.wait(
            [running], timeout=0.7
        )  # whatever is in flight now stays without an answer
        hit = not running.done()
        await lab.faults.kill(leader)
        await asyncio.wait([running], timeout=35)
        if not running.done():
            raise NotYet(
                "35 s after the leader was killed, publish_all was still at work; wanted: done soon"
                " after the election."
            )
        if error := running.exception():
            code = f" {error.err_code}" if getattr(error, "err_code", None) else ""
            raise NotYet(
                f"publish_all raised {type(error).__name__}{code}; wanted: again, until the order"
                " is acked."
            )
        await lab.wait_for_leader(stream, timeout=30)
        ids = await _ids(js, stream, await stored())
        _look_at(ids, orders)
        if len(ids) != len(orders):
            raise NotYet(
                f"{len(ids)} of {len(orders)} orders are stored; wanted: all, so try again what was"
                " not acked."
            )
        return hit
    finally:
        if running:
            await _ended(running)
        await lab.faults.heal()
        await client.close()
        await delete(lab.js, stream)


def _look_at(ids, orders):
    if None in ids:
        raise NotYet(
            "A stored message has no Nats-Msg-Id; wanted: the order's id in this header, or a"
            " second try stores it twice."
        )
    if strange := set(ids) - set(orders):
        raise NotYet(
            f"A stored message has the id {strange.pop()!r}, which is no id of an order; wanted:"
            " the same id at each try."
        )


async def _ids(js, stream, number):
    """The Nats-Msg-Id of the first so many messages (None where there is none).

    By a pull consumer: nats-py makes an ordered one anew in the background, and that may outlive
        the connection.
    """
    unacked = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)
    found, sub = [], await js.pull_subscribe(f"{stream.lower()}.*", stream=stream, config=unacked)
    end = time.monotonic() + 20
    while len(found) < number and time.monotonic() < end:
        with contextlib.suppress(
            asyncio.TimeoutError, ServiceUnavailableError
        ):  # its leader may be as new as the stream's
            messages = await sub.fetch(min(500, number - len(found)), timeout=2)
            found += [(message.headers or {}).get("Nats-Msg-Id") for message in messages]
    await sub.unsubscribe()
    return found


async def _ended(task):
    task.add_done_callback(
        lambda task: task.cancelled() or task.exception()
    )  # looked at: nobody else will
    for _ in range(50):  # once may not do: Python 3.11 can swallow a cancel that meets an answer
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        if task.done():
            return


def _wants(answer, arguments):
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(f"{answer!r} is no coroutine function; wanted: async def …({arguments}).")

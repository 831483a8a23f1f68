"""Exercises of lesson 13: connect options for a service, a worker that outlives a leader and leaves
nothing behind at its end."""

import asyncio
import contextlib
import inspect

import nats
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError, ServiceUnavailableError

from labkit.cluster.standalone import start_server
from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

OPTIONS = """
errors = []

async def error_cb(error):
    errors.append(error)

answer = dict(name="order-service", max_reconnect_attempts=-1, reconnect_time_wait=0.5,
              ping_interval=0.5, max_outstanding_pings=2, error_cb=error_cb)"""

WORK = """
import asyncio, contextlib
from nats.js.errors import ServerError, ServiceUnavailableError

async def take(sub):
    try:
        return await sub.fetch(5, timeout=0.5)
    except asyncio.TimeoutError:                             # nothing came
        return []
    except ServiceUnavailableError:                          # 503: for now or for good?
        with contextlib.suppress(ServiceUnavailableError, ServerError,
                                 asyncio.TimeoutError):
            await asyncio.wait_for(sub.consumer_info(), 1)   # for good: NotFoundError
        await asyncio.sleep(0.1)
        return []

async def answer(client, sub, stop, process):
    try:
        while not stop.is_set():
            for msg in await take(sub):
                if stop.is_set():
                    await msg.nak()
                    continue
                try:
                    await process(msg)
                except asyncio.TimeoutError:                 # its own: it comes again
                    await msg.nak(delay=1)
                else:
                    await msg.ack()
    finally:                                                 # also when the consumer is gone
        await sub.unsubscribe()
        await client.drain()"""
SKIP = """\
                    await msg.nak()
                    continue
"""
ACK = """\
                else:
                    await msg.ack()
"""
ASK = """\
        with contextlib.suppress(ServiceUnavailableError, ServerError,
                                 asyncio.TimeoutError):
            await asyncio.wait_for(sub.consumer_info(), 1)   # for good: NotFoundError
"""


@exercise(
    hints=[
        (
            "Six options: name, max_reconnect_attempts, reconnect_time_wait, ping_interval,"
            " max_outstanding_pings, error_cb."
        ),
        (
            "A silent server is noticed after ping_interval × (max_outstanding_pings + 1) at the"
            " latest."
        ),
        "error_cb is a coroutine function with one argument: async def error_cb(error).",
    ],
    solution=OPTIONS.replace("answer", "options"),
    wrong={
        "nameless": (OPTIONS.replace('name="order-service", ', ""), "has no name"),
        "gives up": (
            OPTIONS.replace("max_reconnect_attempts=-1, ", ""),
            "gives a server up after 60 attempts",
        ),
        "does not reconnect": (
            OPTIONS.replace("max_reconnect_attempts=-1", "allow_reconnect=False"),
            "never reconnects",
        ),
        "knocks seldom": (
            OPTIONS.replace("reconnect_time_wait=0.5", "reconnect_time_wait=5"),
            "knocks every 5 s",
        ),
        "the guide's pings": (
            OPTIONS.replace(
                "ping_interval=0.5, max_outstanding_pings=2",
                "ping_interval=30, max_outstanding_pings=3",
            ),
            "up to 120 s",
        ),
        "mute": (OPTIONS.replace(", error_cb=error_cb", ""), "has no error_cb"),
        "a plain function": (OPTIONS.replace("async def", "def"), "no coroutine function"),
        "an error_cb that fails": (
            OPTIONS.replace("errors.append(error)", "errors.add(error)"),
            "raised AttributeError",
        ),
    },
    limit=30,
)
async def service_options(lab, answer):
    """Options of nats.connect: a name, no giving up, a knock each second, a frozen server noticed
    in 3 s, an error_cb."""
    if not isinstance(answer, dict):
        raise NotYet(f"options is {answer!r}; wanted: a dict of options for nats.connect.")
    options = dict(answer)
    error_cb, raised, heard = options.pop("error_cb", None), [], []
    if error_cb is None:
        raise NotYet("options has no error_cb; wanted: a coroutine function that takes the error.")
    for name, callback in {**options, "error_cb": error_cb}.items():
        if name.endswith("_cb") and not inspect.iscoroutinefunction(callback):
            raise NotYet(f"{name} is no coroutine function; wanted: async def {name}(…).")

    async def listen(error):
        heard.append(error)
        try:
            await error_cb(error)
        except Exception as problem:
            raised.append(problem)

    client = await nats.connect(**{**lab.cluster.login(lab.topic), **options}, error_cb=listen)
    try:
        name = client.options["name"]

        async def listed():
            return name in set((await lab.connections())["name"])

        if name:  # a node that is busy is left out of the table
            await lab.until(listed)
        _look(client.options, {name})

        async def fail(msg):
            raise ValueError("provoked by the check")

        await client.subscribe("ex.fail", cb=fail)
        await client.publish("ex.fail")
        await _until(
            lambda: heard, 3, "A handler raised, and error_cb had heard nothing 3 s later."
        )
    finally:
        await client.close()
    server = await start_server(lab)
    client = await nats.connect(server.url, **options, error_cb=listen)
    try:
        server.pause()
        await _until(
            lambda: not client.is_connected,
            4,
            "A server stood still for 4 s, and the client had not noticed; wanted: 3 s.",
        )
        server.resume()
        await _until(
            lambda: client.is_connected,
            4,
            "The server was back for 4 s, and the client was not; wanted: connected.",
        )
    finally:
        server.resume()
        await client.close()
        server.stop()
    if raised:
        raise NotYet(
            f"error_cb raised {type(raised[0]).__name__}: {raised[0]}; wanted: it keeps the error"
            " and returns."
        )


def _look(options, known):
    if not options["name"] or options["name"] not in known:
        raise NotYet(
            "In the server's list of connections yours has no name; wanted: one that an operator"
            " knows, such as order-service."
        )
    if not options["allow_reconnect"]:
        raise NotYet("The client never reconnects (allow_reconnect=False); wanted: for ever.")
    attempts, pause = options["max_reconnect_attempts"], options["reconnect_time_wait"]
    if attempts > 0:
        raise NotYet(
            f"The client gives a server up after {attempts} attempts, {pause:g} s apart; wanted:"
            " never."
        )
    if pause > 1:
        raise NotYet(f"The client knocks every {pause:g} s; wanted: every second or sooner.")
    worst = options["ping_interval"] * (options["max_outstanding_pings"] + 1)
    if worst > 3:
        raise NotYet(
            f"A server that stands still may go unnoticed for up to {worst:g} s (ping_interval × "
            "(max_outstanding_pings + 1)); wanted: 3 s at most."
        )


@exercise(
    hints=[
        (
            "The loop ends when stop.is_set(); fetch waits only a short time, and raises"
            " asyncio.TimeoutError when nothing came."
        ),
        (
            "Between two messages of a batch, look at stop again: what you have not begun goes back"
            " with msg.nak()."
        ),
        (
            "At the end: await sub.unsubscribe(), then await client.drain(), which sends the last"
            " acks and closes; in a finally, so that they run whatever ends the loop."
        ),
        (
            "fetch raises ServiceUnavailableError while nobody leads the consumer, and once it is"
            " deleted. sub.consumer_info() tells which: only a deleted one raises NotFoundError."
            " Without a leader no answer may come: give it a second, and fetch again."
        ),
    ],
    solution=WORK.replace("answer", "work") + "\nanswer = work",
    wrong={
        "finishes the batch": (
            WORK.replace("if stop.is_set():", "if False:"),
            "began 2 more messages",
        ),
        "drops the rest": (WORK.replace(SKIP, "                    return\n"), "only 7 of the 9"),
        "leaves the connection": (
            WORK.replace("        await client.drain()", ""),
            "connection was still open",
        ),
        "acks first": (
            WORK.replace(
                "                    await process(msg)",
                "                    await msg.ack()\n                    await process(msg)",
            ).replace(ACK, ""),
            "acked before process had returned",
        ),
        "does not ack": (WORK.replace(ACK, ""), "acked 0 of the 3"),
        "terminates the rest": (WORK.replace("msg.nak()", "msg.term()"), "only 7 of the 9"),
        "never looks": (
            WORK.replace("while not stop.is_set()", "while True").replace(
                "if stop.is_set():", "if False:"
            ),
            "still running 2 s after",
        ),
        "dies when idle": (
            WORK.replace("except asyncio.TimeoutError:", "except ValueError:"),
            "no messages for a while",
        ),
        "dies with the leader": (
            WORK.replace("except ServiceUnavailableError:", "except ValueError:"),
            "nobody led it, work ended with ServiceUnavailableError",
        ),
        "fetches for ever": (
            WORK.replace(ASK, ""),
            "Its consumer was deleted 5 s ago, and work was still running",
        ),
        "ends without a goodbye": (
            WORK.replace("    try:\n        while", "    if True:\n        while").replace(
                "    finally:    ", "    if True:    "
            ),
            "NotFoundError, its connection still open",
        ),
    },
    limit=60,
)  # an election
async def goodbye(lab, answer):
    """Work off messages, also after the death of a leader, until `stop` is set or the consumer is
    deleted; then finish the one in hand, give the rest back at once, drain, end."""
    if not inspect.iscoroutinefunction(answer) or len(inspect.signature(answer).parameters) != 4:
        raise NotYet(
            f"{answer!r} does not fit; wanted: async def work(client, sub, stop, process)."
        )
    await _idle(lab, answer)
    client, other, stop, begun, early = (
        await lab.connect(name="worker"),
        await _stream(lab, "EX_LEAVE", 12),
        asyncio.Event(),
        [],
        [],
    )
    sub = await client.jetstream().pull_subscribe_bind("worker", "EX_LEAVE")

    async def process(msg):
        begun.append(msg)
        await asyncio.sleep(0.05)
        if len(begun) == 3:
            stop.set()
        await asyncio.sleep(0.05)
        early.extend([msg] * msg.is_acked)

    running = asyncio.ensure_future(answer(client, sub, stop, process))
    try:
        await _until(
            lambda: stop.is_set() or running.done(),
            6,
            f"After 6 s {len(begun)} of 12 messages had been begun; wanted: fetch, process, ack.",
        )
        await _until(
            running.done, 2, "work was still running 2 s after stop was set; wanted: it returns."
        )
        await _returned(running)
        if len(begun) < 3:
            raise NotYet(
                f"work returned after {len(begun)} messages, before stop was set; wanted: on and on"
                " until then."
            )
        if len(begun) > 3:
            raise NotYet(
                f"After stop was set, work began {len(begun) - 3} more messages; wanted: the one in"
                " hand is finished, no other begun."
            )
        if early:
            raise NotYet(
                "A message was acked before process had returned; wanted: the ack after it, or a"
                " crash in between loses it."
            )
        if not client.is_closed:
            raise NotYet(
                "When work had returned, its connection was still open; wanted: drained, and so"
                " closed."
            )
        rest, info = [], None
        while msgs := await _fetch(other):
            rest += msgs
        twice = [msg for msg in rest if msg.data in [done.data for done in begun]]
        acked = (
            3
            - len(twice)
            - sum(
                not msg.is_acked
                for msg in begun
                if msg not in twice and msg.data not in [t.data for t in twice]
            )
        )
        if acked < 3:
            raise NotYet(
                f"work acked {acked} of the 3 messages that it had processed; wanted: all, after"
                " process."
            )
        if len(rest) < 9:
            info = await lab.js.consumer_info("EX_LEAVE", "worker")
            raise NotYet(
                f"Another worker got only {len(rest)} of the 9 others at once"
                f" ({info.num_ack_pending - len(rest)} wait for ack wait, 30 s); wanted: all, so"
                " nak what is not begun."
            )
    finally:
        await _end(lab, running, client, "EX_LEAVE")
    await _lives_on(lab, answer)


async def _idle(lab, answer):
    """Nothing to do for a second, then stop: the loop outlives an empty fetch, and ends."""
    client, _, stop = (
        await lab.connect(name="worker"),
        await _stream(lab, "EX_IDLE", 0),
        asyncio.Event(),
    )
    sub = await client.jetstream().pull_subscribe_bind("worker", "EX_IDLE")
    running = asyncio.ensure_future(answer(client, sub, stop, None))
    try:
        await asyncio.wait([running], timeout=1.3)
        if running.done():
            error = running.exception()
            raise NotYet(
                "There were no messages for a while, and work ended"
                + (f" with {type(error).__name__}" if error else "")
                + "; wanted: it goes on asking until stop is set."
            )
        stop.set()
        await _until(
            running.done, 2, "work was still running 2 s after stop was set; wanted: it returns."
        )
        await _returned(running)
    finally:
        await _end(lab, running, client, "EX_IDLE")


async def _lives_on(lab, answer):
    """The node that leads the consumer dies, and a message comes; then the consumer is deleted,
    while nothing comes."""
    await lab.faults.heal()
    await _stream(lab, "EX_LEAD", 0, num_replicas=3)
    near = next(node.name for node in lab.cluster.nodes if node.port == lab.nc.connected_url.port)
    far = next(node.name for node in lab.cluster.nodes if node.name != near)
    await lab.faults.step_down(
        to=near
    )  # the meta group: only the stream and its consumer shall suffer
    await lab.faults.step_down("EX_LEAD", "worker", to=far)
    client, begun = await lab.connect(node=near, name="worker"), []
    sub = await client.jetstream().pull_subscribe_bind("worker", "EX_LEAD")

    async def process(msg):
        begun.append(msg)

    running = asyncio.ensure_future(answer(client, sub, asyncio.Event(), process))
    try:
        await _asks(lab, running)
        await lab.faults.kill(far)

        async def published():
            with contextlib.suppress(NatsError, asyncio.TimeoutError):
                return running.done() or await lab.js.publish("ex_lead.new", timeout=1)

        await lab.until(published, timeout=30)
        # Nobody answers a consumer_info that was asked while there was no leader: nats-py waits 5
        # s.
        await _until(
            lambda: begun or running.done(),
            20,
            "The node that led the consumer died, and another one leads it. A message came, and "
            "20 s later process had not been called; wanted: fetch again, until somebody answers.",
        )
        if running.done():
            raise NotYet(
                "The node that led the consumer died. While nobody led it, work"
                f" ended{_error(running)}; wanted: it goes on asking, since another node leads"
                " soon."
            )
        await _asks(lab, running)
        with contextlib.suppress(NotFoundError):  # the answer to a first request may have been lost
            await _answered(lambda: lab.js.delete_consumer("EX_LEAD", "worker"))
        await _until(
            running.done,
            5,
            "Its consumer was deleted 5 s ago, and work was still running; wanted: it ends. A 503"
            " is for good if sub.consumer_info() raises NotFoundError.",
        )
        if not client.is_closed:
            raise NotYet(
                f"Its consumer was deleted, and work ended{_error(running)}, its connection still"
                " open; wanted: unsubscribed and drained, whatever ends it."
            )
        if not isinstance(running.exception(), (NotFoundError, type(None))):
            raise NotYet(
                f"Its consumer was deleted, and work ended{_error(running)}; wanted: NotFoundError,"
                " or no exception."
            )
    finally:
        await lab.faults.heal()
        await _end(lab, running, client, "EX_LEAD")


async def _asks(lab, running):
    """Waits until a request of this worker waits at the server, or it has ended."""

    async def so():
        return (
            running.done()
            or (await _answered(lambda: lab.js.consumer_info("EX_LEAD", "worker"))).num_waiting
        )

    await lab.until(so, timeout=20)


async def _answered(ask, tries=3):
    """Asks again if nobody answers. A request that meets a change of leaders is not answered by any
    of them; on a busy machine they change once more just after an election. Raises TimeoutError in
    the end."""
    for _ in range(tries - 1):
        with contextlib.suppress(asyncio.TimeoutError, ServiceUnavailableError):
            return await ask()
    return await ask()


async def _returned(running):
    """Raises what work raised. A TimeoutError would look like one of the check itself."""
    if isinstance(running.exception(), TimeoutError):
        raise NotYet(
            "work ended with TimeoutError, which fetch raises when nothing comes; wanted: it goes"
            " on asking until stop is set."
        )
    await running


def _error(task):
    return f" with {type(task.exception()).__name__}" if task.exception() else ""


async def _end(lab, running, client, stream):
    for _ in range(
        3
        # once may not do: Python 3.11 can swallow a cancel that meets an answer; an answer may
        # swallow all
    ):
        running.cancel()
        await asyncio.wait([running], timeout=1)
    if running.done():
        await asyncio.gather(running, return_exceptions=True)
    if not client.is_closed:
        await client.close()
    await delete(lab.js, stream)


async def _stream(lab, name, messages, **config):
    """A stream with so many messages and a consumer `worker`, and a subscription of another worker
    to it."""
    await delete(lab.js, name)
    await _answered(lambda: lab.js.add_stream(name=name, subjects=[f"{name.lower()}.*"], **config))
    await _answered(
        lambda: lab.js.add_consumer(name, durable_name="worker", ack_policy="explicit", ack_wait=30)
    )
    await lab.settled(name)
    for number in range(messages):
        await lab.js.publish(f"{name.lower()}.new", str(number).encode())
    return await lab.js.pull_subscribe_bind("worker", name)


async def _fetch(sub):
    try:
        return await sub.fetch(12, timeout=1)
    except TimeoutError:
        return []


async def _until(condition, timeout, words):
    end = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise NotYet(words)
        await asyncio.sleep(0.01)

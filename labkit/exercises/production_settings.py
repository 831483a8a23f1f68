"""Exercises of lesson 43: connect options for a service, a worker that outlives a leader and leaves
nothing behind at its end."""

import asyncio
import contextlib
import inspect

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from labkit.cluster.readiness import until_answered
from labkit.cluster.standalone import start_server
from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import comes_true, fetch, queue, wants_function

ASKS_ON = "it goes on asking until stop is set"  # what is wanted where nothing comes


@exercise(
    hints=[
        "Six options: name, max_reconnect_attempts, reconnect_time_wait, ping_interval, "
        "max_outstanding_pings, error_cb.",
        "A silent server is noticed after ping_interval × (max_outstanding_pings + 1) "
        "at the latest.",
        "error_cb is a coroutine function with one argument: async def error_cb(error).",
    ],
    limit=30,
    variable="options",
)
async def service_options(lab, answer):
    """Options of nats.connect: a name, no giving up, a knock each second, a frozen server noticed
    in 3 s, an error_cb."""
    want(isinstance(answer, dict), f"options is {answer!r}", "a dict of options for nats.connect")
    _has_callbacks(answer)
    saw = "options has no name, so yours is without one in the server's list of connections"
    want(answer.get("name"), saw, "one that an operator knows, such as order-service")
    ear = _Ear(answer["error_cb"])
    options = {**answer, "error_cb": ear.listen}
    await _with_the_cluster(lab, options, ear)
    await _with_a_server_that_freezes(lab, options)
    saw = f"error_cb raised {type(ear.problem).__name__}: {ear.problem}"
    want(ear.problem is None, saw, "it keeps the error and returns")


errors = []


async def error_cb(error):
    errors.append(error)


@service_options.solved_by
def service_options():
    return {
        "name": "order-service",
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.5,
        "ping_interval": 0.5,
        "max_outstanding_pings": 2,
        "error_cb": error_cb,
    }


def _has_callbacks(options):
    saw = "options has no error_cb"
    want(options.get("error_cb"), saw, "a coroutine function that takes the error")
    for name, callback in options.items():
        is_right = inspect.iscoroutinefunction(callback) or not name.endswith("_cb")
        want(is_right, f"{name} is no coroutine function", f"async def {name}(…)")


class _Ear:
    """An error_cb that calls the learner's, and keeps what it has heard and what that one raised
    last."""

    def __init__(self, error_cb):
        self.error_cb = error_cb
        self.heard = []
        self.problem = None

    async def listen(self, error):
        self.heard.append(error)
        try:
            await self.error_cb(error)
        except Exception as problem:
            self.problem = problem


@contextlib.asynccontextmanager
async def _connected(lab, options):
    client = await lab.connect(**options)
    try:
        yield client
    finally:
        await client.close()


async def _with_the_cluster(lab, options, ear):
    """Raises NotYet if a setting is not as wanted, or error_cb does not hear of a handler's
    error."""

    async def is_listed():
        return options["name"] in set((await lab.connections())["name"])

    async def fail(msg):
        raise ValueError("provoked by the check")

    async with _connected(lab, options) as client:
        await lab.until(is_listed)
        _look(client.options)
        await client.subscribe("ex.fail", cb=fail)
        await client.publish("ex.fail")
        saw = "A handler raised, and error_cb had heard nothing 3 s later"
        want(await comes_true(lambda: ear.heard, 3), saw, "it hears of it")


def _look(options):
    """Raises NotYet if one of these options of a client (dict) is not as wanted."""
    saw = "The client never reconnects (allow_reconnect=False)"
    want(options["allow_reconnect"], saw, "for ever")
    attempts, pause = options["max_reconnect_attempts"], options["reconnect_time_wait"]
    saw = f"The client gives a server up after {attempts} attempts, {pause:g} s apart"
    want(attempts <= 0, saw, "never")
    want(pause <= 1, f"The client knocks every {pause:g} s", "every second or sooner")
    worst = options["ping_interval"] * (options["max_outstanding_pings"] + 1)
    saw = (
        f"A server that stands still may go unnoticed for up to {worst:g} s "
        "(ping_interval × (max_outstanding_pings + 1))"
    )
    want(worst <= 3, saw, "3 s at most")


async def _with_a_server_that_freezes(lab, options):
    """Raises NotYet if the client does not notice it in time, or does not come back after it."""
    server = await start_server(lab)
    try:
        async with _connected(lab, {**options, "servers": [server.url]}) as client:
            server.pause()
            saw = "A server stood still for 4 s, and the client had not noticed"
            want(await comes_true(lambda: not client.is_connected, 4), saw, "3 s at most")
            server.resume()
            saw = "The server was back for 4 s, and the client was not"
            want(await comes_true(lambda: client.is_connected, 4), saw, "connected again")
    finally:
        server.stop()


@exercise(
    hints=[
        "The loop ends when stop.is_set(); fetch waits only a short time, "
        "and raises TimeoutError when nothing came.",
        "Between two messages of a batch, look at stop again: "
        "what you have not begun goes back with msg.nak().",
        "At the end: await sub.unsubscribe(), then await client.drain(), "
        "which sends the last acks and closes; "
        "in a finally, so that they run whatever ends the loop.",
        "fetch raises ServiceUnavailableError while nobody leads the consumer, "
        "and once it is deleted. "
        "sub.consumer_info() tells which: only a deleted one raises NotFoundError. "
        "Without a leader no answer may come: give it a second, and fetch again.",
    ],
    limit=60,  # there is an election in it
)
async def goodbye(lab, answer):
    """Process messages, also after the death of a leader, until `stop` is set or the consumer is
    deleted; then finish the one in hand, give the rest back at once, drain, end."""
    wants_function(answer, "client, sub, stop, process")
    try:
        await _with_nothing_to_do(lab, answer)
        await _with_a_batch_in_hand(lab, answer)
        await _without_a_leader(lab, answer)
    finally:
        await lab.faults.heal()
        for stream in ("EX_IDLE", "EX_LEAVE", "EX_LEAD"):
            await delete(lab.js, stream)


async def take(sub):
    try:
        return await sub.fetch(5, timeout=0.5)
    except TimeoutError:  # nothing came
        return []
    except ServiceUnavailableError:  # 503: for now or for good?
        with contextlib.suppress(ServiceUnavailableError, ServerError, TimeoutError):
            await asyncio.wait_for(sub.consumer_info(), 1)  # for good: NotFoundError
        await asyncio.sleep(0.1)
        return []


async def work(client, sub, stop, process):
    try:
        while not stop.is_set():
            for msg in await take(sub):
                if stop.is_set():
                    await msg.nak()
                    continue
                try:
                    await process(msg)
                except TimeoutError:  # its own: it comes again
                    await msg.nak(delay=1)
                else:
                    await msg.ack()
    finally:  # also when the consumer is gone
        await sub.unsubscribe()
        await client.drain()


goodbye.solved_by(work)


class _Run:
    """One run of the learner's `work`."""

    def __init__(self, client, task, stop):
        self.client = client
        self.task = task
        self.stop = stop

    @property
    def is_over(self):
        return self.task.done()

    @property
    def how(self):
        """' with ValueError' if that ended it; empty if it returned, or runs."""
        error = self.task.exception() if self.is_over else None
        return f" with {type(error).__name__}" if error else ""

    async def returns(self):
        """Waits until it returns. Raises NotYet if it takes longer than 2 s (stop is set now), and
        what `work` itself raised."""
        saw = "work was still running 2 s after stop was set"
        want(await comes_true(self.task.done, 2), saw, "it returns")
        saw = "work ended with TimeoutError, which fetch raises when nothing comes"
        # If it were raised here, it would look like a TimeoutError of the check itself.
        want(not isinstance(self.task.exception(), TimeoutError), saw, ASKS_ON)
        await self.task

    async def end(self):
        """Cancels it. Once may not do: Python 3.11 can swallow a cancel that meets an answer. And
        an answer may swallow them all."""
        for _ in range(3):
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1)
        if self.is_over:
            await asyncio.gather(self.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _running(lab, work, stream, stop, process, node=None):
    """Runs the learner's `work` on this stream, with a client of its own (_Run)."""
    async with _worker_client(lab, node) as client:
        sub = await client.jetstream().pull_subscribe_bind("worker", stream)
        run = _Run(client, asyncio.ensure_future(work(client, sub, stop, process)), stop)
        try:
            yield run
        finally:
            await run.end()


@contextlib.asynccontextmanager
async def _worker_client(lab, node):
    client = await lab.connect(node=node, name="worker")
    try:
        yield client
    finally:
        if not client.is_closed:
            await client.close()


async def _stream(lab, name, messages, **config):
    """A stream with so many messages, the consumer `worker`, and a subscription of another worker
    to it. On a busy machine leaders change once more just after an election, and a request that
    meets a change is not answered: then all of it is made anew."""
    bodies = [b"%d" % number for number in range(messages)]
    [sub] = await until_answered(
        lambda: queue(lab, name, bodies, stream=config, ack_wait=30), 30, f"stream {name}"
    )
    return sub


async def _with_nothing_to_do(lab, work):
    """Raises NotYet if the loop does not outlive an empty fetch, or does not end after it."""
    await _stream(lab, "EX_IDLE", 0)
    async with _running(lab, work, "EX_IDLE", asyncio.Event(), None) as run:
        await asyncio.wait([run.task], timeout=1.3)
        saw = f"There were no messages for a while, and work ended{run.how}"
        want(not run.is_over, saw, ASKS_ON)
        run.stop.set()
        await run.returns()


async def _with_a_batch_in_hand(lab, work):
    """Sets stop while `work` has the third of 12 messages in hand. Raises NotYet unless it finishes
    that one, and gives back what else it has fetched."""
    other = await _stream(lab, "EX_LEAVE", 12)
    begun, acked_early, stop = [], [], asyncio.Event()

    async def process(msg):
        begun.append(msg)
        await asyncio.sleep(0.05)
        if len(begun) == 3:
            stop.set()
        await asyncio.sleep(0.05)
        if msg.is_acked:
            acked_early.append(msg)

    async with _running(lab, work, "EX_LEAVE", stop, process) as run:
        is_so_far = await comes_true(lambda: stop.is_set() or run.is_over, 6)
        saw = f"After 6 s {len(begun)} of 12 messages had been begun"
        want(is_so_far, saw, "fetch, process, ack")
        await run.returns()
        saw = f"work returned after {len(begun)} messages, before stop was set"
        want(len(begun) >= 3, saw, "on and on until then")
        saw = f"After stop was set, work began {len(begun) - 3} more messages"
        want(len(begun) == 3, saw, "the one in hand is finished, no other begun")
        saw = "A message was acked before process had returned"
        want(not acked_early, saw, "the ack after it, or a crash in between loses it")
        saw = "When work had returned, its connection was still open"
        want(run.client.is_closed, saw, "drained, and so closed")
        await _gave_back(lab, other, begun)


async def _gave_back(lab, other, begun):
    """Raises NotYet unless another worker gets all messages at once but those that were begun."""
    rest = []
    while msgs := await fetch(other, 12):
        rest += msgs
    come_again = {msg.data for msg in rest}
    acked = [msg for msg in begun if msg.is_acked and msg.data not in come_again]
    saw = f"work acked {len(acked)} of the 3 messages that it had processed"
    want(len(acked) == 3, saw, "all, after process")
    info = await lab.js.consumer_info("EX_LEAVE", "worker")
    saw = (
        f"Another worker got only {len(rest)} of the 9 others at once "
        f"({info.num_ack_pending - len(rest)} wait for ack wait, 30 s)"
    )
    want(len(rest) == 9, saw, "all, so nak what is not begun")


async def _without_a_leader(lab, work):
    """The node that leads the consumer dies, and a message comes; then the consumer is deleted,
    while nothing comes. Raises NotYet unless `work` lives through the one and ends after the
    other."""
    await lab.faults.heal()
    await _stream(lab, "EX_LEAD", 0, num_replicas=3)
    near = next(node.name for node in lab.cluster.nodes if node.port == lab.nc.connected_url.port)
    far = next(node.name for node in lab.cluster.nodes if node.name != near)
    await lab.faults.step_down(to=near)  # the meta group: only the stream and its consumer suffer
    await lab.faults.step_down("EX_LEAD", "worker", to=far)
    begun = []

    async def process(msg):
        begun.append(msg)

    async with _running(lab, work, "EX_LEAD", asyncio.Event(), process, near) as run:
        await _asks(lab, run)
        await lab.faults.kill(far)
        await _publish(lab, run)
        await _goes_on(run, begun)
        await _asks(lab, run)
        with contextlib.suppress(NotFoundError):  # the answer to a first request may have been lost
            await until_answered(
                lambda: lab.js.delete_consumer("EX_LEAD", "worker"), 20, "stream EX_LEAD"
            )
        await _ends(run)


async def _asks(lab, run):
    """Waits until a fetch of this worker waits at the server, or it has ended."""

    async def is_waiting():
        if run.is_over:
            return True
        info = await until_answered(
            lambda: lab.js.consumer_info("EX_LEAD", "worker"), 20, "consumer worker"
        )
        return info.num_waiting

    await lab.until(is_waiting, timeout=20)


async def _publish(lab, run):
    """Publishes a message, again until it is stored, or the worker has ended."""

    async def is_stored():
        if run.is_over:
            return True
        with contextlib.suppress(NatsError, TimeoutError):
            return await lab.js.publish("ex_lead.new", timeout=1)

    await lab.until(is_stored, timeout=30)


async def _goes_on(run, begun):
    # 20 s, since nobody answers a consumer_info that was asked while there was no leader: nats-py
    # waits 5 s.
    heard = await comes_true(lambda: begun or run.is_over, 20)
    saw = (
        "The node that led the consumer died, and another one leads it. "
        "A message came, and 20 s later process had not been called"
    )
    want(heard, saw, "fetch again, until somebody answers")
    saw = f"The node that led the consumer died. While nobody led it, work ended{run.how}"
    want(not run.is_over, saw, "it goes on asking, since another node leads soon")


async def _ends(run):
    saw = "Its consumer was deleted 5 s ago, and work was still running"
    wanted = "it ends. A 503 is for good if sub.consumer_info() raises NotFoundError"
    want(await comes_true(run.task.done, 5), saw, wanted)
    saw = f"Its consumer was deleted, and work ended{run.how}"
    wanted = "unsubscribed and drained, whatever ends it"
    want(run.client.is_closed, f"{saw}, its connection still open", wanted)
    is_fine = isinstance(run.task.exception(), (NotFoundError, type(None)))
    want(is_fine, saw, "NotFoundError, or no exception")

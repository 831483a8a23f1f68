"""Exercises of lesson 43: connect options for a service, a worker that outlives a leader and leaves
nothing behind at its end."""

import asyncio
import contextlib
import inspect
import math

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from labkit.cluster.readiness import until_answered
from labkit.cluster.standalone import start_server
from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import comes_true, fetch, queue, wants_function

NUMBERS = (
    "max_reconnect_attempts",
    "reconnect_time_wait",
    "ping_interval",
    "max_outstanding_pings",
)
DRAINING = 3  # s; longer than work may take to return
ASKS_ON = "it goes on asking until stop is set"  # what is wanted where nothing comes


@exercise(
    hints=[
        "Six options: name, max_reconnect_attempts, reconnect_time_wait, ping_interval, "
        "max_outstanding_pings, error_cb.",
        "A silent server is noticed after ping_interval × max_outstanding_pings at the soonest, "
        "and after ping_interval × (max_outstanding_pings + 1) at the latest.",
        "error_cb is a coroutine function with one argument: async def error_cb(error).",
    ],
    limit=30,
    variable="options",
)
async def service_options(lab, answer):
    """Options of nats.connect: a name, no giving up, a knock at least once a second, a frozen
    server noticed within 3 s, one that answers in 0.2 s kept, an error_cb."""
    want(isinstance(answer, dict), f"options is {answer!r}", "a dict of options for nats.connect")
    _has_callbacks(answer)
    for name in NUMBERS:
        value = answer.get(name, 1)
        want(isinstance(value, (int, float)), f"{name} is {value!r}", "a number")
    saw = "options has no name, so yours is without one in the server's list of connections"
    name = answer.get("name")
    want(name, saw, "one that an operator knows, such as order-service")
    want(isinstance(name, str) and name.strip(), f"name is {name!r}", "a text that can be read")
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
        await client.flush()

        async def is_heard():
            # Not from the client itself, which may have no_echo. Again, since it may take a moment
            # until the other's node knows of the subscription.
            await lab.nc.publish("ex.fail")
            return ear.heard

        saw = "A handler raised, and error_cb had heard nothing 3 s later"
        want(await comes_true(is_heard, 3), saw, "it hears of it")


def _look(options):
    """Raises NotYet if one of these options of a client (dict) is not as wanted."""
    saw = "The client never reconnects (allow_reconnect=False)"
    want(options["allow_reconnect"], saw, "for ever")
    attempts, pause = options["max_reconnect_attempts"], options["reconnect_time_wait"]
    saw = f"The client gives a server up after {attempts} attempts, {pause:g} s apart"
    want(attempts <= 0 or attempts == math.inf, saw, "never")
    want(0.1 <= pause <= 1, f"The client knocks every {pause:g} s", "every 0.1 to 1 s")
    soonest = options["ping_interval"] * options["max_outstanding_pings"]
    saw = (
        f"The client leaves a server that has not answered for {soonest:g} s "
        "(ping_interval × max_outstanding_pings)"
    )
    want(soonest >= 0.2, saw, "0.2 s or more: a busy server needs a moment")
    worst = soonest + options["ping_interval"]
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
    deleted; then finish what is begun, give the rest back at once, drain, end."""
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
                except Exception:  # whatever it is, this message comes again
                    await msg.nak(delay=1)
                else:
                    await msg.ack()
    finally:  # also when the consumer is gone
        await sub.unsubscribe()
        await client.drain()


goodbye.solved_by(work)


class _Run:
    """One run of the learner's `work`."""

    def __init__(self, client, sub, task, stop):
        self.client = client
        self.sub = sub
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
        is_over = await comes_true(self.task.done, 2)
        saw = "work was still running 2 s after stop was set"
        if self.client.is_draining:
            saw += ", in client.drain(), which waits for what nobody takes from sub any more"
            want(is_over, saw, "await sub.unsubscribe() before it")
        want(is_over, saw, "it returns")
        saw = "work ended with TimeoutError, which fetch raises when nothing comes"
        # If it were raised here, it would look like a TimeoutError of the check itself.
        want(not isinstance(self.task.exception(), TimeoutError), saw, ASKS_ON)
        await self.task

    async def end(self):
        """Cancels it. Once may not do: Python 3.11 can swallow a cancel that meets an answer. And
        an answer may swallow them all (`except BaseException`): the last way to its end is `stop`.
        """
        if self.client.is_draining:
            await asyncio.wait([self.task], timeout=2 * DRAINING)
        for _ in range(3):
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1)
            self.stop.set()
        if self.is_over:
            await asyncio.gather(self.task, return_exceptions=True)
        else:  # on a closed connection it would turn for ever, and never let go of the kernel
            self.sub.fetch = _never


async def _never(*_, **__):
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _running(lab, work, stream, stop, process, node=None):
    """Runs the learner's `work` on this stream, with a client of its own (_Run)."""
    async with _worker_client(lab, node) as client:
        sub = await client.jetstream().pull_subscribe_bind("worker", stream)
        run = _Run(client, sub, asyncio.ensure_future(work(client, sub, stop, process)), stop)
        try:
            yield run
        finally:
            await run.end()


@contextlib.asynccontextmanager
async def _worker_client(lab, node):
    client = await lab.connect(
        node=node, name="worker", drain_timeout=DRAINING, error_cb=_nobody_hears
    )
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


async def _nobody_hears(error):
    """The worker's node may die, and its drain() may take too long: the verdict tells."""


class _Twelve:
    """What becomes of twelve messages: process fails for the first two that it gets; stop is set
    while the fourth is in hand."""

    errors = (TimeoutError, ValueError)

    def __init__(self):
        self.stop = asyncio.Event()
        self.begun = []
        self.done = []
        self.acked_early = []
        self.begun_before_stop = 0
        self.failed = set()

    async def process(self, msg):
        number = len(self.begun)
        self.begun.append(msg)
        if number < len(self.errors):
            self.failed.add(msg.data)
            raise self.errors[number]("provoked by the check")
        if len(self.begun) == 4:
            asyncio.get_running_loop().call_later(0.05, self._set_stop)
        await asyncio.sleep(0.1)
        if msg.is_acked:
            self.acked_early.append(msg)
        self.done.append(msg)

    def _set_stop(self):
        self.begun_before_stop = len(self.begun)
        self.stop.set()


async def _with_a_batch_in_hand(lab, work):
    """Sets stop while `work` has one of 12 messages in hand. Raises NotYet unless it finishes what
    it has begun, and gives back what else it has fetched."""
    other = await _stream(lab, "EX_LEAVE", 12)
    twelve = _Twelve()
    async with _running(lab, work, "EX_LEAVE", twelve.stop, twelve.process) as run:
        is_so_far = await comes_true(lambda: twelve.stop.is_set() or run.is_over, 6)
        begun = len(twelve.begun)
        if run.is_over and 1 <= begun <= len(_Twelve.errors):
            raised = _Twelve.errors[begun - 1].__name__
            saw = f"process raised {raised} for a message, and work ended{run.how}"
            want(False, saw, "it goes on with the next one")
        saw = f"After 6 s process had been called {begun} times, for 12 messages"
        want(is_so_far, saw, "fetch, process, ack, and the next one")
        await run.returns()
        saw = f"work returned after {begun} messages, before stop was set"
        want(twelve.begun_before_stop, saw, "on and on until then")
        more = len(twelve.begun) - twelve.begun_before_stop
        wanted = "what is begun is finished, nothing else begun"
        want(more == 0, f"After stop was set, work began {more} more", wanted)
        begun = twelve.begun_before_stop - len(_Twelve.errors)
        finished = len(twelve.done)
        saw = f"work returned when process had ended for {finished} of {begun} messages"
        want(finished == begun, saw, "what is begun is finished first")
        saw = "A message was acked before process had returned"
        want(not twelve.acked_early, saw, "the ack after it, or a crash in between loses it")
        saw = "When work had returned, its connection was still open"
        want(run.client.is_closed, saw, "drained, and so closed")
        await _gave_back(lab, other, twelve)


async def _gave_back(lab, other, twelve):
    """Raises NotYet unless another worker gets all messages at once but those that were begun."""
    rest = set()
    while new := {msg.data for msg in await fetch(other, 12)} - rest:
        rest |= new
    done = {msg.data for msg in twelve.done}
    others = 12 - len(done | twelve.failed)
    at_once = len(rest - done - twelve.failed)
    saw = f"Another worker got only {at_once} of the {others} others at once"
    wanted = (
        "all: nak what is not begun, and let an exception of process end nothing but its message"
    )
    want(at_once == others, saw, wanted)
    # The server knows who is acked: an answer may publish its acks itself.
    info = await lab.js.consumer_info("EX_LEAVE", "worker")
    saw = f"work has changed the consumer: its ack wait is {info.config.ack_wait:g} s"
    want(info.config.ack_wait == 30, saw, "30 s, as before: others rely on it")
    not_acked = info.num_ack_pending + info.num_pending - (12 - len(done))
    saw = f"work acked {len(done) - not_acked} of the {len(done)} messages that it had processed"
    want(not_acked <= 0, saw, "all, after process")
    saw = (
        f"process raised an exception for {len(twelve.failed)} messages, and {-not_acked} of them "
        "never come again"
    )
    want(not_acked == 0, saw, "an ack after process has returned, no other")


async def _without_a_leader(lab, work):
    """The node that leads the consumer dies, and a message comes; then the consumer is deleted,
    while nothing comes. Raises NotYet unless `work` lives through the one and ends after the
    other."""
    await lab.faults.heal()
    await _stream(lab, "EX_LEAD", 0, num_replicas=3)
    near = lab.node_of(lab.nc)
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

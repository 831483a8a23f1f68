"""What a lesson opens and closes: a cluster that is ready, a client on the lesson's own account, no
streams of an earlier run."""

import asyncio
import contextlib
import functools
import importlib
import inspect
import shutil
import sys

from labkit.cluster import faults, lifecycle, nodes, private, raft, readiness, tables
from labkit.cluster.connection import OUR_NAME, close_client, connect
from labkit.cockpit import panel
from labkit.errors import ErrorNet, LabError, check_timeout, describe, explained
from labkit.exercises.engine import book
from labkit.lesson import banner, cells, cleanup, expectations, lock, progress, wiring
from labkit.processes import workers
from labkit.system import interrupts
from labkit.system.launching import new_folder
from labkit.waiting import until

_open = {}  # topic -> Lab of this process: running the setup cell again closes the earlier one


class Lab:
    """A lesson's lab. `nc` is a plain nats.aio.client.Client, `js` its JetStream context."""

    def __init__(self, topic=None):
        """A lab that is not open yet: use Lab.open."""
        self.topic = topic
        self.cluster = None  # the Cluster that this lesson runs on
        self.nc = None  # the lesson's first client
        self.js = None
        self.clients = []  # all clients of the lesson, see connect()
        self.workers = []  # those that run, see worker()
        self.faults = faults.Faults(self)
        self._cleanup = None  # AccountStreams or CreatedStreams
        self._net = ErrorNet()
        self._lock = None
        self._closing = False
        self._at_end = contextlib.AsyncExitStack()  # see on_close()
        self._left = []  # what could not be removed at the end (list of texts)
        self._attempts = set()  # connections that are being made (tasks)
        self._cockpit = None  # the one that is shown, see labkit.cockpit
        self._wire = None  # see wire
        self.why_no_wire = ""  # in words, where there is none

    @classmethod
    async def open(cls, topic, private=False, wire=True):
        """Opens the lab of a lesson: finds or starts the cluster, connects, removes what an earlier
        run left behind, and prints one line. Returns a Lab.

        topic: name of the lesson's account, such as "core_nats" (or "mine", for notebooks of your
            own).
        private: three fresh nodes for this lesson alone, to break (`lab.faults`); gone with the
                 lesson. Where the lab runs in containers, those are used, and healed at the end.
        wire: False if clients shall connect directly, as for a measurement. See Lab.wire.
        Raises LabError if the topic is unknown, the lesson is open in another kernel, or no cluster
        can be had.
        """
        if topic not in nodes.accounts():
            raise LabError(
                f"There is no lesson {topic!r}; wanted: one of {', '.join(nodes.accounts())}."
            )
        if topic in _open:
            await _open[topic]._end()
        lab = cls(topic)
        lab._lock = lock.take(topic)
        try:
            await lab._start(private, wire)
        except BaseException as error:
            await lab._end()
            if isinstance(error, OSError):  # a full disk, say
                raise explained(error) from error
            raise
        return lab

    async def _start(self, is_private, on_the_wire):
        _open[self.topic] = self
        loop = asyncio.get_running_loop()
        interrupts.wake_on_signals(loop)
        find = private.start_or_containers if is_private else lifecycle.find_or_start
        self.cluster = await find(print)
        if on_the_wire:
            self._wire, self.why_no_wire = await wiring.open_wire(self)
        else:
            self.why_no_wire = "the lesson was opened with wire=False"
        self.nc = await self.connect(name=self.topic)
        self.js = self.nc.jetstream()
        banner.refuse_other_version(self)
        kind = cleanup.CreatedStreams if self.attached else cleanup.AccountStreams
        self._cleanup = kind(self)
        removed = await self._cleanup.clean()
        workers.offer_magic(self.topic)
        self._net.watch(loop)
        cells.watch(self)
        print(banner.summary(self, removed))

    @property
    def attached(self):
        """True on a cluster of the user's own (NATS_URL): nothing of it is broken or wiped."""
        return self.cluster.backend == "attached"

    @property
    def about(self):
        """Facts to print beside a measurement: backend, number of nodes, versions of server and
        client (dict)."""
        return banner.about(self)

    @property
    def exercises(self):
        """The exercises of this lesson, by name: `await lab.exercises.NAME(answer)`, `.hint()`,
        `.solution()`."""
        module = importlib.import_module(f"labkit.exercises.{self.topic}")
        return book(module, self, functools.partial(progress.note, self.topic))

    def progress(self):
        """The exercises of the whole course, and which of them are passed (DataFrame): lesson,
        exercise, state ("passed", "not yet" or "not attempted"), tries (until it passed), hints.
        """
        return progress.table()

    # --- connections and waiting

    @property
    def wire(self):
        """The record of what passes between the lesson's clients, workers and programs and the
        nodes: see labkit.wire.Wire. Raises LabError if there is none."""
        if not self._wire:
            raise LabError(f"There is no record of this lesson's connections: {self.why_no_wire}.")
        return self._wire

    def mark(self, text, at=None):
        """Notes in the record, if there is one, that something happened now, or at this time of
        time.perf_counter()."""
        if self._wire:
            self._wire.mark(text, at)

    async def look_at_nodes(self):
        """Makes the wire, if there is one, refuse where a node does, at once."""
        if self._wire:
            await asyncio.to_thread(self._wire.look)

    def login(self, node=None, wire=True):
        """Options for nats.connect that lead to the lesson's account (dict): on the wire, if there
        is one and `wire` is true. node: name of the node that they lead to."""
        login = self.cluster.login(self.topic)
        if node:
            login["servers"] = [self.node(node).url]
        if wire:
            login["servers"] = self.addresses(login["servers"])
        return login

    def addresses(self, servers):
        """Addresses that lead to these servers (lists of URLs): on the wire, if there is one."""
        if not self._wire:
            return servers
        return [wiring.on_the_wire(self._wire, server.strip()) for server in servers]

    def node_of(self, client):
        """The name of the node that this client is connected to, such as "n1"; None if it is not
        connected. (The port in client.connected_url may be one of the wire.)"""
        if not client.is_connected:
            return None
        port = client.connected_url.port
        names = {node.port: node.name for node in self.cluster.nodes}
        named = self._wire.name_at(port) if self._wire else None
        return named or names.get(port)

    @contextlib.asynccontextmanager
    async def beside(self, node=None):
        """A client for what labkit asks by itself: one that is not in the record, for the length of
        the block. Without a wire it is the lesson's own. node: name of the node to ask (default:
        that of the lesson's client, which is known to live)."""
        if not self._wire:
            yield self.nc
            return
        login = self.login(node, wire=False)
        alive = {one.name: one.url for one in self.cluster.nodes}.get(self.node_of(self.nc))
        login["servers"] = sorted(login["servers"], key=lambda server: server != alive)
        client = await connect(**login, dont_randomize=True, name=OUR_NAME)
        try:
            yield client
        finally:
            await close_client(client, drain=False)

    async def connect(self, node=None, name=None, wire=True, **options):
        """One more plain client on the lesson's account. `close()` closes it.

        node: "n1", "n2" or "n3" to connect to that node; without it, to the first that answers.
        wire: False if it shall connect directly, as for a measurement. One with `servers` of its
            own always does.
        options: any of nats.connect's. Without an error_cb of yours, errors are collected for
            raise_errors().
        """
        self.refuse_closed()
        login = self.login(node, wire)
        defaults = {
            "dont_randomize": True,
            "name": name or self.topic,
            "error_cb": self._net.error_cb,
            "timeout": 3 if self.attached else 10,  # the lab's own nodes are up, but may be slow
        }
        if "servers" not in options:
            defaults["shown"] = self.login(node, wire=False)["servers"]
        client = await self._attempt(connect(**{**defaults, **login, **options}))
        try:
            self.refuse_closed()  # if it was closed meanwhile, nobody would close this client
        except LabError:
            await close_client(client, drain=False)
            raise
        self.clients.append(client)
        if self._cleanup:
            self._cleanup.watch(client)
        return client

    async def _attempt(self, connecting):
        """Awaits this coroutine. If the lesson ends meanwhile, _end_attempts() cancels it: else the
        client would see the end of the wire, or of the nodes, and report it as an error."""
        attempt = asyncio.ensure_future(connecting)
        self._attempts.add(attempt)
        try:
            return await attempt
        except asyncio.CancelledError:
            await asyncio.shield(_undo(attempt))
            if not asyncio.current_task().cancelling():
                self.refuse_closed()
            raise
        finally:
            self._attempts.discard(attempt)

    def refuse_closed(self):
        """Raises LabError once the lab is being closed: what is started now would outlive it."""
        if self._closing or _open.get(self.topic) is not self:
            raise LabError("This lab is closed. Run the setup cell again.")

    def node(self, name):
        """The Node of this name ("n1", "n2" or "n3"): its ports, its process. Raises LabError if
        there is none."""
        for node in self.cluster.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.cluster.nodes)
        if not known:
            known = "none: this cluster is not the lab's own"
        raise LabError(f"There is no node {name!r}; known: {known}.")

    @functools.cached_property
    def scratch(self):
        """A folder for the lesson's files (a SQLite database, say). It goes with the lesson, and
        with the kernel."""
        path = new_folder(self.topic)
        self.on_close(lambda: shutil.rmtree(path, ignore_errors=True))
        return path

    def on_close(self, undo):
        """Calls undo() when the lesson ends, whatever happens; the latest first. It may return an
        awaitable."""

        async def call():
            value = undo()
            if inspect.isawaitable(value):
                await value

        self._at_end.push_async_callback(call)

    async def worker(
        self, module, name, log=None, kill_at=None, pause_at=None, timeout=30, **options
    ):
        """Starts a worker as a process of its own, and returns a Worker once it is connected.

        module: file that a `%%worker` cell wrote. name: what the log calls it. log: Recorder for
            its points.
        kill_at: "point" or ("point", n): SIGKILL when it gets there, or gets there for the n-th
            time. pause_at: the same, but it stands still there until `.resume()`.
        timeout: seconds to connect in. options: passed on to its `work` (what JSON can carry).
        Raises LabError if it does not get ready.
        """
        check_timeout(timeout)
        return await workers.start(self, module, name, log, kill_at, pause_at, timeout, options)

    async def until(self, condition, timeout=15):
        """Waits until `condition()` (a function, or one that returns an awaitable) is true; returns
        what it returned.

        timeout: seconds. When it is over, raises LabError that shows the condition and what its
            names held.
        """
        return await until(condition, timeout)

    def expect(self, text, condition, **values):
        """Checks what the text below the cell claims. Put it at the end of the cell.

        If the condition is true, nothing happens. If not, it prints one line that says so: the
        reader may have changed something. Under the tests (LABKIT_STRICT=1) it raises LabError.
        Both show what the condition's names held; values: more to show, by name."""
        expectations.expect(text, condition, values, sys._getframe(1))

    async def wait_for_leader(self, stream=None, consumer=None, other_than=None, timeout=30):
        """Waits until the stream, its consumer, or (without arguments) the meta group has a leader,
        and so a quorum; not `other_than`. Returns its name. timeout: seconds. Raises LabError when
        they are over."""
        check_timeout(timeout)
        return await raft.wait_for_leader(self, stream, consumer, other_than, timeout)

    async def wait_for_current(self, stream=None, timeout=30):
        """Waits until all replicas of the stream (or of the meta group) are current; returns the
        leader's name."""
        check_timeout(timeout)
        return await raft.wait_for_current(self, stream, timeout)

    async def settled(self, stream):
        """Waits until the nodes of all clients of this lesson know the leaders of the stream and of
        its pull consumers. Just after their creation a node may answer 503 for some milliseconds:
        see readiness.py."""
        if not self._wire:
            for client in self.clients:
                if client.is_connected:
                    await readiness.settled(client, stream)
            return
        for node in sorted({self.node_of(client) for client in self.clients} - {None}):
            async with self.beside(node if self.cluster.nodes else None) as client:
                await readiness.settled(client, stream)

    def raise_errors(self):
        """Raises LabError if callbacks or background tasks of this lesson failed since the last
        call; says which."""
        found = [
            error
            for error in self._net.take()
            if not (self.faults.used and faults.is_consequence(error))
        ]
        if not found:
            return
        lines = [f"  - {describe(error)}" for error in found[:10]]
        if len(found) > 10:
            lines.append(f"  … and {len(found) - 10} more")
        errors = "1 error" if len(found) == 1 else f"{len(found)} errors"
        raise LabError(
            "\n".join([f"{errors} in callbacks or background tasks:", *lines])
        ) from found[0]

    def forgive(self, kind):
        """Forgets the errors of this kind that callbacks and background tasks have met so far:
        raise_errors() does not raise them. For errors that are meant to happen."""
        self._net.caught = [error for error in self._net.take() if not isinstance(error, kind)]

    # --- state as tables (see tables.py for the columns)

    async def nodes(self):
        """One row a node: state, version, who leads the meta group, connections, memory (MiB),
        uptime (seconds)."""
        return await tables.nodes(self.cluster, self.faults.isolated)

    async def replicas(self):
        """One row a replica of a stream: role, state, lag, messages; also while JetStream does not
        answer."""
        return await tables.replicas(self.cluster, self.topic)

    cockpit = panel.show  # lab.cockpit(): a live map of the nodes, with a button for each fault

    async def streams(self):
        """One row a stream of this account."""
        async with self.beside() as client:
            return await tables.streams(client.jetstream())

    async def consumers(self, stream):
        """One row a consumer of the stream."""
        async with self.beside() as client:
            return await tables.consumers(client.jetstream(), stream)

    async def connections(self):
        """One row a connection to this lesson's account, on any node; labkit's own are left out."""
        return await tables.connections(self.cluster, self.topic)

    # --- the end

    async def close(self):
        """Ends the lesson: drains and closes its clients, deletes its streams, checks that nothing
        is left, and raises what callbacks and background tasks swallowed. May be called twice.
        Raises LabError if something is left, or something failed."""
        if _open.get(self.topic) is not self:
            print("already closed")
            return
        await asyncio.sleep(0)  # a task that failed just now gets to say so
        left = await self._end()
        self.raise_errors()
        if left:
            raise LabError(f"Left behind by this lesson: {', '.join(left)}.")
        if self._cleanup.kept:
            kept = ", ".join(self._cleanup.kept)
            print(f"closed. Streams that are not known to be the lesson's were kept: {kept}")
        else:
            print("closed: nothing left behind")

    async def _end(self):
        """Ends and deletes all that belongs to the lesson. Returns what could not be removed (list
        of texts)."""
        self._closing = True
        self._left = []
        cells.unwatch(self)
        self._net.unwatch()
        steps = [
            self._end_workers,
            self._at_end.aclose,
            self._heal_and_delete_streams,
            self._end_attempts,
            self._disconnect,
            self._release,
        ]
        async with contextlib.AsyncExitStack() as stack:
            for step in reversed(steps):
                # A stack runs its last entry first, and runs each one whatever the others raise.
                stack.push_async_callback(step)
        return self._left

    async def _end_workers(self):
        self._net.caught += await workers.end_all(self.workers)

    async def _heal_and_delete_streams(self):
        if self._is_private:
            return  # the cluster goes as a whole, in whatever state it is
        await self.faults.heal()
        if self._cleanup:
            self._left += await self._cleanup.wipe()

    async def _end_attempts(self):
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        await asyncio.gather(*map(_undo, attempts))

    async def _disconnect(self):
        drain = not self._is_private  # its nodes may be dead, and they end now
        await asyncio.gather(*(close_client(client, drain=drain) for client in self.clients))
        if self._wire:
            await asyncio.to_thread(self._wire.close)
        if self._is_private:
            self._left += [f"node {name}" for name in await asyncio.to_thread(self.cluster.end)]
        elif self._cleanup and not self.attached:
            self._left += await cleanup.connections_left(self.cluster, self.topic)

    async def _release(self):
        if _open.get(self.topic) is self:
            del _open[self.topic]
        if self._lock:
            self._lock.release()

    @property
    def _is_private(self):
        """True if the cluster is this lesson's alone, and ends with it."""
        return isinstance(self.cluster, private.PrivateCluster)

    def __repr__(self):
        return f"<Lab {self.topic} on {self.cluster and self.cluster.backend}>"


async def _undo(attempt):
    """Closes the client of this attempt to connect (a task that has ended), if it was made."""
    if not attempt.cancelled() and not attempt.exception():
        await close_client(attempt.result(), drain=False)

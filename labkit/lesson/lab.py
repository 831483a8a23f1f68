"""What a lesson opens and closes: a cluster that is ready, a client on the lesson's own account, a
clean slate."""

import asyncio
import contextlib
import functools
import importlib
import inspect
import shutil

from labkit.cluster import faults, lifecycle, nodes, private, raft, readiness, tables
from labkit.cluster.connection import close_client, connect
from labkit.cockpit import panel
from labkit.errors import ErrorNet, LabError, check_timeout, describe, explained
from labkit.exercises.engine import book
from labkit.lesson import banner, cleanup
from labkit.lesson.lock import claim
from labkit.processes import workers
from labkit.system import interrupts
from labkit.system.launching import new_folder
from labkit.waiting import until

_open = {}  # topic -> Lab of this process: running the setup cell again closes the earlier one


class Lab:
    """A lesson's lab. `nc` is a plain nats.aio.client.Client, `js` its JetStream context."""

    @classmethod
    async def open(cls, topic, private=False):
        """Opens the lab of a lesson: finds or starts the cluster, connects, removes what an earlier
        run left behind, and prints one line. Returns a Lab.

        topic: name of the lesson's account, such as "core_nats" (or "mine", for notebooks of your
            own).
        private: three fresh nodes for this lesson alone, to break (`lab.faults`); gone with the
                 lesson. Where the lab runs in containers, those are used, and healed at the end.
        Raises LabError if the topic is unknown, the lesson is open in another kernel, or no cluster
        can be had.
        """
        if topic not in nodes.accounts():
            raise LabError(
                f"There is no lesson {topic!r}; wanted: one of {', '.join(nodes.accounts())}."
            )
        if topic in _open:
            await _open[topic]._leave()
        lab = cls()
        lab.topic, lab.cluster, lab.clients, lab.workers = topic, None, [], []
        lab._net, lab._cleanup, lab._closing = ErrorNet(), None, False
        lab._lock, lab.faults, lab._undo = (
            claim(topic),
            faults.Faults(lab),
            contextlib.AsyncExitStack(),
        )
        try:
            await lab._enter(private)
        except BaseException as error:
            await lab._leave()
            if isinstance(error, OSError):  # a full disk, say
                raise explained(error) from error
            raise
        return lab

    async def _enter(self, alone):
        _open[self.topic] = self
        interrupts.wake_on_signals(asyncio.get_running_loop())
        self.cluster = await (private.start_or_containers if alone else lifecycle.find_or_start)(
            print
        )
        self.nc = await self.connect(name=self.topic)
        self.js = self.nc.jetstream()
        banner.refuse_other_version(self)
        self._cleanup = (
            cleanup.CreatedStreams(self) if self.attached else cleanup.AccountStreams(self)
        )
        removed = await self._cleanup.clean()
        workers.offer_magic(self.topic)
        self._net.watch(asyncio.get_running_loop())
        print(banner.summary(self, removed))

    @property
    def attached(self):
        """True on a cluster of the user's own (NATS_URL): nothing of it is broken or wiped."""
        return self.cluster.backend == "attached"

    @property
    def about(self):
        """What a measurement should be read with: backend, number of nodes, versions of server and
        client (dict)."""
        return banner.about(self)

    @property
    def exercises(self):
        """The exercises of this lesson, by name: `await lab.exercises.NAME(answer)`, `.hint()`,
        `.solution()`."""
        return book(importlib.import_module(f"labkit.exercises.{self.topic}"), self)

    # --- connections and waiting

    async def connect(self, node=None, name=None, **options):
        """One more plain client on the lesson's account. `close()` closes it.

        node: "n1", "n2" or "n3" to connect to that node; without it, to the first that answers.
        options: any of nats.connect's. Without an error_cb of yours, errors are collected for
            raise_errors().
        """
        self.refuse_closed()
        login = self.cluster.login(self.topic)
        if node:
            login["servers"] = [self.node(node).url]
        client = await connect(
            timeout=3 if self.attached else 10,
            **{  # its own nodes are there, if slow at times
                "dont_randomize": True,
                "name": name or self.topic,
                "error_cb": self._net.error_cb,
                **login,
                **options,
            },
        )
        try:
            self.refuse_closed()  # meanwhile: nobody would close this one
        except LabError:
            await close_client(client, drain=False)
            raise
        self.clients.append(client)
        if self._cleanup:
            self._cleanup.watch(client)
        return client

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
        known = (
            ", ".join(node.name for node in self.cluster.nodes)
            or "none: this cluster is not the lab's own"
        )
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
            if inspect.isawaitable(value := undo()):
                await value

        self._undo.push_async_callback(call)

    async def worker(
        self, module, name, log=None, kill_at=None, pause_at=None, timeout=30, **options
    ):
        """Starts a worker as a process of its own, and returns a Worker once it is connected.

        module: file that a `%%worker` cell wrote; name: what it is called in the log; log: Recorder
            for its points;
        kill_at: "point" or ("point", n): SIGKILL the n-th time it gets there; pause_at: the same,
        and it stands still there until `.resume()`; timeout: seconds to connect in; options: passed
        on to its `work` (what JSON can carry). Raises LabError if it does not get ready.
        """
        check_timeout(timeout)
        return await workers.start(self, module, name, log, kill_at, pause_at, timeout, options)

    async def until(self, condition, timeout=15):
        """Waits until `condition()` (a function, or one that returns an awaitable) is true; returns
        what it returned.

        timeout: seconds. Raises LabError that shows the condition and what its names held when time
            ran out.
        """
        return await until(condition, timeout)

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
        for client in self.clients:
            if client.is_connected:
                await readiness.settled(client, stream)

    def raise_errors(self):
        """Raises LabError if callbacks or background tasks of this lesson failed since the last
        call; says which."""
        found = [
            error
            for error in self._net.take()
            if not (self.faults.used and faults.is_consequence(error))
        ]
        if found:
            lines = "\n".join(f"  - {describe(error)}" for error in found[:10])
            more = f"\n  … and {len(found) - 10} more" if len(found) > 10 else ""
            raise LabError(
                f"{len(found)} error{'s' * (len(found) > 1)} in callbacks or background tasks:"
                f"\n{lines}{more}"
            ) from found[0]

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
        return await tables.streams(self.js)

    async def consumers(self, stream):
        """One row a consumer of the stream."""
        return await tables.consumers(self.js, stream)

    async def connections(self):
        """One row a connection to this lesson's account, on any node."""
        return await tables.connections(self.cluster, self.topic)

    # --- the end

    async def close(self):
        """Ends the lesson: drains and closes its clients, deletes its streams, proves that nothing
        is left, and raises what callbacks and background tasks swallowed. Safe to run twice."""
        if _open.get(self.topic) is not self:
            return print("already closed")
        await asyncio.sleep(0)  # a task that failed just now gets to say so
        left = await self._leave()
        self.raise_errors()
        if left:
            raise LabError(f"Left behind by this lesson: {', '.join(left)}.")
        if stays := ", ".join(self._cleanup.stays):
            print(f"closed. Streams that are not known to be the lesson's stay: {stays}")
        else:
            print("closed: nothing left behind")

    async def _leave(self):
        """Closes and deletes what is the lesson's own; returns what could not be removed (list of
        words)."""
        self._net.unwatch()
        left, self._closing = [], True
        async with (
            contextlib.AsyncExitStack() as ends
        ):  # the last one first, each whatever became of those before
            ends.callback(self._let_go)
            ends.push_async_callback(self._say_goodbye, left)
            ends.push_async_callback(self._tidy, left)
            ends.push_async_callback(self._undo.aclose)
            ends.push_async_callback(self._end_workers)
        return left

    async def _end_workers(self):
        self._net.caught += await workers.end_all(self.workers)

    async def _tidy(self, left):
        if isinstance(self.cluster, private.Private):
            return  # the cluster goes as a whole, in whatever state it is
        await self.faults.heal()
        if self._cleanup:
            left += await self._cleanup.wipe()

    async def _say_goodbye(self, left):
        alone = isinstance(self.cluster, private.Private)
        await asyncio.gather(*(close_client(client, drain=not alone) for client in self.clients))
        if alone:
            left += [f"node {name}" for name in await asyncio.to_thread(self.cluster.end)]
        elif self._cleanup and not self.attached:
            left += await cleanup.connections_left(self.cluster, self.topic)

    def _let_go(self):
        _open.pop(self.topic, None)
        self._lock.release()

    def __repr__(self):
        return f"<Lab {self.topic} on {self.cluster and self.cluster.backend}>"

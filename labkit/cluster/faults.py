"""Faults, made on purpose: each is in place when its call returns, and `heal()` undoes them all.

They work on a lesson's private cluster (processes) and on the compose cluster (containers), never
on the cluster of NATS_URL.
"""

import asyncio
import contextlib
import functools
import json
import signal
import sys
import time

import nats
import psutil

from labkit.cluster import containers, raft
from labkit.cluster.connection import close_client, connect
from labkit.cluster.private import PrivateCluster
from labkit.cluster.readiness import can_create
from labkit.errors import LabError, check_timeout, own_frames
from labkit.system import launching, ports
from labkit.waiting import until

CONSEQUENCES = (
    OSError,
    nats.errors.StaleConnectionError,
    nats.errors.UnexpectedEOF,
    nats.errors.ConnectionClosedError,
    nats.errors.NoServersError,
)
STOP_PATIENCE = 30  # seconds that a node may take to end in good order
ANSWER_PATIENCE = 2  # seconds to wait for the answer to one request to step down
UNAVAILABLE = 503  # code of "JetStream system temporarily unavailable": no leader at this moment


def is_consequence(error):
    """True if this error is what a client reports when a node goes away. After a fault that is
    expected. An error of the reader's own code never is, whatever its type: FileNotFoundError is an
    OSError too."""
    if own_frames(error):
        return False
    if "empty response from server" in str(error):  # of docker's proxy before a dead node
        return True
    return isinstance(error, CONSEQUENCES)


def marked(what):
    """Makes a fault note itself in the record of the lesson's connections, at the time at which it
    began. what: what happens to the nodes, in words."""

    def decorate(fault):
        @functools.wraps(fault)
        async def noted(self, *names, **options):
            begin = time.perf_counter()
            await fault(self, *names, **options)
            await self.lab.look_at_nodes()
            self.lab.mark(f"{' and '.join(names)} {what}", begin)

        return noted

    return decorate


class Faults:
    """`lab.faults`: kill, stop, lame_duck, pause, resume, start, isolate, rejoin, step_down, heal.

    `name` is that of a node: "n1", "n2" or "n3". Each raises LabError on a cluster that other
    lessons, or other people, use."""

    def __init__(self, lab):
        self.lab = lab
        self.isolated = set()  # names of nodes that are cut off
        self.lame_ducks = set()  # names of nodes in lame duck mode
        self.used = False  # True after the first fault

    @marked("killed")
    async def kill(self, name):
        """SIGKILL: the node is gone at once, with everything that it had not handed to the
        operating system."""
        node = self._node(name)
        if self._has_containers:
            await asyncio.to_thread(containers.kill, name)
        else:
            await asyncio.to_thread(node.end)
        self.lame_ducks.discard(name)

    @marked("stopped")
    async def stop(self, name):
        """SIGTERM: the node hands over what it leads, and ends in good order. On Windows it is a
        kill, and that is printed."""
        node = self._node(name)
        if self._has_containers:
            await asyncio.to_thread(containers.stop, name)
            return
        launching.say_that_it_is_a_kill(name)
        await asyncio.to_thread(launching.end_processes, [node.process()], STOP_PATIENCE)

    @marked("told to go")
    async def lame_duck(self, name):
        """SIGUSR2: the node hands over what it leads, keeps its clients for ten seconds, then sends
        them away one by one and ends. Returns when it accepts no new clients (a container: when the
        signal is sent). Raises LabError for processes on Windows, which has no such signal."""
        node = self._node(name)
        if self._has_containers:
            self.lame_ducks.add(name)
            await asyncio.to_thread(containers.kill, name, "SIGUSR2")
            return
        if sys.platform == "win32":
            raise LabError(
                "Windows has no signal for lame duck mode. Use stop() here, or the compose cluster."
            )
        # It still answers for minutes but is no longer a cluster member, so heal() kills it.
        self.lame_ducks.add(name)
        self._alive(node).send_signal(signal.SIGUSR2)
        await until(lambda: ports.is_free(node.port), 10, f"{name} to accept no new clients")

    @marked("paused")
    async def pause(self, name):
        """SIGSTOP: the node stands still and its connections stay open (psutil's suspend on
        Windows; docker pause)."""
        node = self._node(name)
        if self._has_containers:
            await asyncio.to_thread(containers.pause, name)
            return
        process = self._alive(node)
        process.suspend()
        # One of its threads takes the signal. On a busy machine, the others go on answering until
        # that one runs.
        await until(lambda: process.status() == psutil.STATUS_STOPPED, 15, f"{name} to stand still")

    @marked("resumed")
    async def resume(self, name):
        """SIGCONT: the node goes on after pause()."""
        node = self._node(name)
        if self._has_containers:
            await asyncio.to_thread(containers.resume, name)
        else:
            self._alive(node).resume()

    @marked("started")
    async def start(self, name, timeout=30):
        """Starts a node that was killed or stopped, on the data that it left. Returns when clients
        can connect to it (its monitoring answers a moment earlier). timeout: seconds, for each of
        the two; raises LabError."""
        check_timeout(timeout)
        node = self._node(name)
        if self._has_containers:
            await asyncio.to_thread(containers.start, name)
        else:
            await self._start_process(node)
        await until(node.ask, timeout, f"{name} to answer on its monitoring port {node.monitor}")
        await until(lambda: ports.listens(node.port), timeout, f"{name} to accept clients")
        answer = await node.ask(timeout=5) or {}
        node.server_id = answer.get("server_id", "")

    async def _start_process(self, node):
        process = node.process()
        if not process:
            await node.ports_are_let_go()
            self.lab.cluster.spawn(node)
        elif process.status() == psutil.STATUS_STOPPED:
            raise LabError(
                f"{node.name} is paused, not dead. Let it go on:"
                f" await lab.faults.resume({node.name!r})"
            )

    @marked("cut off")
    async def isolate(self, *names):
        """A network partition: these nodes and the others can no longer reach each other. Clients
        still reach all of them.

        Processes: the proxies on their routes forward nothing (see partition.py); two isolated
        nodes do not reach each other either. Containers: they leave the network of the routes
        (docker network disconnect)."""
        members = [self._node(name) for name in names]  # an unknown name is refused before any cut
        for node in members:
            if node.name not in self.isolated and self._has_containers:
                await asyncio.to_thread(containers.cut_off, node.name)
            self.isolated.add(node.name)
        await self._silence_proxies()

    @marked("linked again")
    async def rejoin(self, *names):
        """Ends the partition of these nodes."""
        members = [self._node(name) for name in names]
        for node in members:
            if node.name in self.isolated and self._has_containers:
                await asyncio.to_thread(containers.rejoin, node.name)
            self.isolated.discard(node.name)
        await self._silence_proxies()

    async def _silence_proxies(self):
        if isinstance(self.lab.cluster, PrivateCluster):
            # In a thread: the event loop serves the lesson's clients until the cut is made.
            await asyncio.to_thread(self.lab.cluster.route_proxies.silence, self.isolated)

    async def step_down(self, stream=None, consumer=None, to=None, timeout=30):
        """Asks a leader to hand over: that of a stream, of a consumer of it, or, without either, of
        the meta group (by the system account). Returns the new leader's name.

        to: the node that shall lead (default: any other; nothing happens if it leads already).
        timeout: seconds. Raises LabError when they are over, or if the server refuses.

        A request sent during an election gets no answer, so it is repeated. Under load, other nodes
        may win the election before `to` does; then they are asked as well.
        """
        self._refuse_attached()
        check_timeout(timeout)
        first = None  # who led at the beginning
        asked = None  # who has promised to step down, and has not done so yet

        async def new_leader():
            nonlocal first, asked
            leader = await raft.leader(self.lab.cluster, self.lab.topic, stream, consumer)
            if not leader:
                # An election is running; ask its winner again, since only the old leader had agreed
                # to step down.
                asked = None
                return None
            first = first or leader
            if leader == to or (not to and leader != first):
                return leader
            if leader != asked and await self._ask_to_step_down(stream, consumer, to):
                asked = leader
            return None

        what = raft.name_of(stream, consumer)
        wanted = f"{to} to lead {what}" if to else f"another leader of {what}"
        begin = time.perf_counter()
        leader = await raft.wait(self.lab, new_leader, wanted, timeout)
        self.lab.mark(f"{what}: told to step down, then {leader} leads", begin)
        return leader

    async def _ask_to_step_down(self, stream, consumer, to):
        """Sends one request. Returns True if the leader will step down, False if there is nobody to
        answer now. Raises LabError if the server refuses."""
        kind = "META"
        if stream:
            kind = "CONSUMER" if consumer else "STREAM"
        parts = ["$JS.API", kind, "LEADER.STEPDOWN", stream, consumer]
        subject = ".".join(part for part in parts if part)
        wish = json.dumps({"placement": {"preferred": to}}).encode() if to else b""
        try:
            async with self._client_for(stream) as client:
                message = await client.request(subject, wish, timeout=ANSWER_PATIENCE)
        except (TimeoutError, nats.errors.NoRespondersError):
            return False
        error = json.loads(message.data).get("error")
        if error and error.get("code") != UNAVAILABLE:
            raise LabError(f"The server refused {subject}: {error}")
        return not error

    @contextlib.asynccontextmanager
    async def _client_for(self, stream):
        """A client of the lesson's account, or, for the meta group, one of the system account."""
        if stream:
            async with self.lab.beside() as client:
                yield client
            return
        client = await connect(**self.lab.cluster.login("sys"))
        try:
            yield client
        finally:
            await close_client(client, drain=False)

    async def heal(self, timeout=60):
        """Undoes everything: resumes paused nodes, starts dead ones, ends partitions. Returns when
        the three nodes agree on a leader that sees the others, and an R3 stream can be created
        again. timeout: seconds, for each of the two; raises LabError that shows what was seen
        last."""
        check_timeout(timeout)
        if not self.used:
            return
        for name in list(self.lame_ducks):
            with contextlib.suppress(LabError):  # its container may have ended by itself
                await self.kill(name)
        self.lame_ducks.clear()
        for node in self.lab.cluster.nodes:
            await self._revive(node)
        if self.isolated:
            await self.rejoin(*self.isolated)
        await raft.wait_for_whole(self.lab, timeout)
        await can_create(self.lab.cluster, timeout)

    async def _revive(self, node):
        if self._has_containers:
            await asyncio.to_thread(containers.heal, node.name)
            return
        process = node.process()
        if not process:
            await node.ports_are_let_go()
            self.lab.cluster.spawn(node)
        elif process.status() == psutil.STATUS_STOPPED:
            process.resume()

    # --- where a fault may happen

    @property
    def _has_containers(self):
        """True if the nodes are containers; else they are processes of a PrivateCluster."""
        return self.lab.cluster.backend == "compose"

    def _refuse_attached(self):
        cluster = self.lab.cluster
        if cluster.backend == "attached":
            raise LabError(
                "This cluster is your own (NATS_URL): the lab never breaks it. Open the lesson"
                f" with Lab.open({self.lab.topic!r}, private=True) for one of its own, or unset"
                " NATS_URL."
            )
        if cluster.backend == "embedded" and not isinstance(cluster, PrivateCluster):
            raise LabError(
                "Other lessons use this cluster too. For faults, open a private cluster: "
                f"Lab.open({self.lab.topic!r}, private=True)"
            )

    def _node(self, name):
        """Returns the Node of this name, to break. Raises LabError if it may not be broken."""
        self._refuse_attached()
        self.used = True
        return self.lab.node(name)

    def _alive(self, node):
        """Returns the process of this node. Raises LabError if the node is down."""
        process = node.process()
        if not process:
            raise LabError(
                f"{node.name} is down. Start it first: await lab.faults.start({node.name!r})"
            )
        return process

"""Faults, made on purpose: each returns when it is in place, and `heal()` undoes them all.

They work on a lesson's private cluster (processes) and on the compose cluster (containers), never
on one of your own.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time

import nats
import psutil

from labkit.cluster import containers, raft
from labkit.cluster.connection import close_client, connect
from labkit.cluster.private import Private
from labkit.cluster.readiness import can_create
from labkit.errors import LabError, check_timeout, own_frames
from labkit.system import launching, ports
from labkit.system.launching import say_that_it_is_a_kill

CONSEQUENCES = (
    OSError,
    nats.errors.StaleConnectionError,
    nats.errors.UnexpectedEOF,
    nats.errors.ConnectionClosedError,
    nats.errors.NoServersError,
)


def is_consequence(error):
    """True if this is what error_cb hears when a node goes away: no news after a fault. An error of
    the reader's own code is always news, whatever its type: a FileNotFoundError is an OSError too.
    """
    if own_frames(error):
        return False
    return isinstance(error, CONSEQUENCES) or "empty response from server" in str(
        error
    )  # docker's proxy, the node behind it dead


class Faults:
    """`lab.faults`: kill, stop, lame_duck, pause, resume, start, isolate, rejoin, step_down,
    heal."""

    def __init__(self, lab):
        self.lab, self.isolated, self.lame_ducks, self.used = lab, set(), set(), False

    async def kill(self, name):
        """SIGKILL: the node is gone at once, with everything it had not handed to the operating
        system."""
        node = self._node(name)
        await self._container("kill", node) or await asyncio.to_thread(node.end)
        self.lame_ducks.discard(name)

    async def stop(self, name):
        """SIGTERM: the node hands its leaderships over and ends in good order. On Windows it is a
        kill, and that is said."""
        node = self._node(name)
        if await self._container("stop", node):
            return
        say_that_it_is_a_kill(name)
        await asyncio.to_thread(launching.end_processes, [node.process()], 30)

    async def lame_duck(self, name):
        """SIGUSR2: the node hands its leaderships over at once, keeps its clients for ten seconds,
        then sends them away one by one and ends. Returns when no new client can come (of a
        container: when the signal is sent). Raises LabError for processes of Windows, which has no
            such signal."""
        node = self._node(name)
        if sys.platform == "win32" and self.lab.cluster.backend != "compose":
            raise LabError(
                "Windows has no signal for lame duck mode. Use stop() here, or the compose cluster."
            )
        self.lame_ducks.add(
            name
        )  # it answers for minutes to come, but takes no part any more: heal() ends it
        if await self._container("kill", node, "--signal", "SIGUSR2"):
            return
        if sys.platform != "win32":
            self._alive(node).send_signal(signal.SIGUSR2)
        await self.lab.until(lambda: ports.is_free(node.port), timeout=10)

    async def pause(self, name):
        """SIGSTOP: the node stands still, its connections stay open (psutil's suspend on Windows;
        docker pause)."""
        node = self._node(name)
        if not await self._container("pause", node):
            process = self._alive(node)
            process.suspend()
            # A signal is taken by one of its threads; on a busy machine the others go on answering
            # until that one runs.
            await self.lab.until(lambda: process.status() == psutil.STATUS_STOPPED)

    async def resume(self, name):
        """SIGCONT: it goes on after pause()."""
        node = self._node(name)
        await self._container("resume", node) or self._alive(node).resume()

    async def start(self, name, timeout=30):
        """Starts a node that was killed or stopped, on the data that it left. Returns when clients
        can connect to it (its monitoring answers a moment earlier). timeout: seconds."""
        check_timeout(timeout)
        node = self._node(name)
        if not await self._container("start", node):
            if (process := node.process()) and process.status() == psutil.STATUS_STOPPED:
                raise LabError(
                    f"{name} is paused, not dead. Let it go on: await lab.faults.resume({name!r})"
                )
            if not process:
                self.lab.cluster.spawn(node)
        await self.lab.until(node.ask, timeout)
        await self.lab.until(lambda: ports.listens(node.port), timeout)
        node.server_id = (await node.ask(timeout=5) or {}).get("server_id", "")

    async def isolate(self, *names):
        """A network partition: these nodes and the others no longer hear each other; clients still
        reach all.

        Processes: the proxies on their routes forward nothing (partition.py); two nodes that are
            isolated are each alone.
        Containers: they leave the network of the routes (docker network disconnect)."""
        for node in [
            self._node(name) for name in names
        ]:  # all are known before the first is cut off
            if node.name not in self.isolated:
                await self._container("cut off", node)
                self.isolated.add(node.name)
        if isinstance(self.lab.cluster, Private):
            await asyncio.to_thread(
                self.lab.cluster.route_proxies.silence, self.isolated
            )  # traffic goes on until it is cut

    async def rejoin(self, *names):
        """Ends the partition of these nodes."""
        for node in [self._node(name) for name in names]:
            if node.name in self.isolated:
                await self._container("rejoin", node)
                self.isolated.remove(node.name)
        if isinstance(self.lab.cluster, Private):
            await asyncio.to_thread(self.lab.cluster.route_proxies.silence, self.isolated)

    async def step_down(self, stream=None, consumer=None, to=None, timeout=30):
        """Asks a leader to hand over: of a stream, of a consumer of it, or, without either, of the
        meta group (by the system account). to: the node that shall lead (default: any other;
        nothing happens if it leads already). Returns the new leader's name. Raises LabError if
        there is none, or not that one, after `timeout` seconds.
        """
        self._refuse_attached()
        check_timeout(timeout)
        end = time.monotonic() + timeout
        leader = await raft.wait_for_leader(self.lab, stream, consumer, timeout=timeout)
        if leader == to:
            return to
        while True:
            left = end - time.monotonic()
            if left < 0:  # asked again and again, the others may take turns for ever
                raise LabError(
                    f"{to} did not take over within {timeout} s: {leader} leads. Is {to} up, and"
                    " has it everything that the leader has? Look with: await lab.replicas()"
                )
            await self._ask_to_step_down(stream, consumer, to, timeout=min(5, max(0.5, left)))
            left = max(0, end - time.monotonic())
            leader = await raft.wait_for_leader(
                self.lab, stream, consumer, other_than=leader, timeout=left
            )
            if to in (None, leader):
                return leader

    async def _ask_to_step_down(self, stream, consumer, to, timeout):
        wish = json.dumps({"placement": {"preferred": to}}).encode() if to else b""
        what = ".".join(
            filter(
                None,
                [
                    "CONSUMER" if consumer else "STREAM" if stream else "META",
                    "LEADER.STEPDOWN",
                    stream,
                    consumer,
                ],
            )
        )
        client = self.lab.nc if stream else await connect(**self.lab.cluster.login("sys"))
        try:
            answer = json.loads(
                (await client.request(f"$JS.API.{what}", wish, timeout=timeout)).data
            )
        except TimeoutError:
            raise LabError(
                f"No answer within {timeout:.3g} s to the request {what}. Look with: await"
                " lab.replicas()"
            ) from None
        finally:
            if not stream:
                await close_client(client, drain=False)
        if "error" in answer:
            raise LabError(f"The server refused: {answer['error']}")

    async def heal(self, timeout=60):
        """Undoes everything: resumes what is paused, starts what is dead, ends partitions. Returns
        when the three nodes agree on a leader that sees the others, and an R3 stream can be created
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
        await self.rejoin(*self.isolated)
        await raft.wait_for_whole(self.lab, timeout)
        await can_create(self.lab.cluster, timeout)

    async def _revive(self, node):
        if isinstance(self.lab.cluster, Private):
            process = node.process()
            if process and process.status() == psutil.STATUS_STOPPED:
                process.resume()
            if not process:
                self.lab.cluster.spawn(node)
            return
        await asyncio.to_thread(containers.mend, node.name)

    # --- where a fault may happen

    def _refuse_attached(self):
        cluster = self.lab.cluster
        if cluster.backend == "attached":
            raise LabError(
                "This cluster is your own (NATS_URL): the lab never breaks it. Open the lesson"
                f" with Lab.open({self.lab.topic!r}, private=True) for one of its own, or unset"
                " NATS_URL."
            )
        if cluster.backend == "embedded" and not isinstance(cluster, Private):
            raise LabError(
                "Other lessons use this cluster too. For faults, open one of your own: "
                f"Lab.open({self.lab.topic!r}, private=True)"
            )

    def _node(self, name):
        self._refuse_attached()
        self.used = True
        return self.lab.node(name)

    def _alive(self, node):
        process = node.process()
        if not process:
            raise LabError(
                f"{node.name} is down. Start it first: await lab.faults.start({node.name!r})"
            )
        return process

    async def _container(self, verb, node, *words):
        """Does it with docker where the nodes are containers, and returns True; else returns
        False."""
        if self.lab.cluster.backend != "compose":
            return False
        own = {
            "cut off": containers.cut_off,
            "rejoin": containers.mend,
            "resume": containers.resume,
        }.get(verb)
        await (
            asyncio.to_thread(own, node.name)
            if own
            else asyncio.to_thread(containers.docker, verb, *words, f"labkit-{node.name}")
        )
        return True

"""Cases of core NATS: a client that drops, a cluster that tells wrong addresses."""

import asyncio
import contextlib
import subprocess
import time

import nats

from labkit.clinic.case import Case, Unwell
from labkit.cluster import nodes
from labkit.cluster.connection import close_client, connect
from labkit.system import ports
from labkit.system.launching import launch


class gaps_in_the_chart(Case):
    cause, level = "slow consumer on the client", 2
    report = (
        "The price chart has gaps, mostly when the market opens and ticks come in bursts. The"
        " servers are idle and report no slow consumer. The log of the chart is long."
    )
    hints = [
        (
            "Who drops? The server's /varz counts its slow_consumers: 0. The chart's own log has"
            " another name."
        ),
        (
            "SlowConsumerError in error_cb: nats-py's queue for this subscription was full, and it"
            " threw the message away."
        ),
        (
            "pending_msgs_limit is 16, a burst has 200 ticks, and the chart draws one at a time."
            " The queue must hold a burst."
        ),
    ]
    repair = """
        await case.redeploy(pending_msgs_limit=10_000)"""
    wrong = {
        "a little more": ("await case.redeploy(pending_msgs_limit=64)", "SlowConsumerError"),
        "a faster chart": ("await case.redeploy(draw_seconds=0)", "SlowConsumerError"),
    }

    def defaults(self):
        return {"subject": "ticks.*", "pending_msgs_limit": 16, "draw_seconds": 0.001}

    def apps(self):
        return {"market": self.market, "chart": self.chart}

    async def setup(self):
        self.drawn, self.sent, self.listening = set(), 0, asyncio.Event()

    async def market(self):
        nc = await self.connect("market")
        try:
            # The first burst waits for the chart: what comes before it listens is not its fault.
            await self.until(lambda: self.listening.is_set() or self._stopping.is_set(), 10)
            while not self._stopping.is_set():
                first = self.sent
                for self.sent in range(first + 1, first + 201):
                    await nc.publish("ticks.nats", str(self.sent).encode())
                await self.until(self._stopping.is_set, 0.5)
        finally:
            await asyncio.shield(close_client(nc))

    async def chart(self):
        async def draw(msg):
            await asyncio.sleep(self.settings["draw_seconds"])
            self.drawn.add(int(msg.data))

        nc = await self.connect("chart")
        try:
            await nc.subscribe(
                self.settings["subject"],
                cb=draw,
                pending_msgs_limit=self.settings["pending_msgs_limit"],
            )
            await nc.flush()
            self.listening.set()
            await self._stopping.wait()
        finally:
            self.listening.clear()
            await asyncio.shield(close_client(nc, drain=False))

    def symptom(self):
        return self.sent > 200 and self.log()["message"].str.contains("SlowConsumer").any()

    def well(self):
        return "A burst of 200 ticks was drawn without a gap."

    async def healthy(self):
        start = self.sent
        await self.until(
            lambda: self.sent > start, 10
        )  # a burst begins that the chart sees from its first tick on
        burst = set(range(start + 1, start + 201))
        await self.until(lambda: burst <= self.drawn, self.patience)
        if missing := burst - self.drawn:
            raise Unwell(
                f"{len(missing)} of a burst of 200 ticks never reached the chart. Its log says: "
                f"{self.last('chart')}"
            )


class drill_gone_wrong(Case):
    cause, level = "unreachable addresses gossiped", 3
    report = (
        "We killed one of the two containers as a drill. The shop, which runs on the host, has been"
        " down since. The other container is fine, and programs inside the container network did"
        " not even blink."
    )
    hints = [
        (
            "After a lost connection a client tries the servers of its own list, and those that a"
            " server has told it about."
        ),
        (
            "nc = await nats.connect(case.settings['nodes'][1]); nc.discovered_servers: can the"
            " host reach these addresses?"
        ),
        (
            "Each node tells its container address. client_advertise, here"
            " case.settings['advertise'], says what to tell instead."
        ),
    ]
    repair = """
        reachable = [url.removeprefix("nats://") for url in case.settings["nodes"]]
        await case.redeploy(advertise=reachable)"""
    wrong = {
        "start it again": ("await case.redeploy()", "when its node was killed again"),
        "never give up": (
            "await case.redeploy(max_reconnect_attempts=1000)",
            "when its node was killed again",
        ),
    }

    def defaults(self):
        self.ports = [ports.free_port() for _ in range(4)]  # two for clients, two for routes
        urls = [f"nats://127.0.0.1:{port}" for port in self.ports[:2]]
        return {
            "nodes": urls,
            "servers": urls[:1],
            "advertise": ["192.0.2.1:4222", "192.0.2.2:4222"],
            "max_reconnect_attempts": -1,
        }

    def apps(self):
        return {"shop": self.shop}

    async def setup(self):
        self.processes, self.shop_client, self.answers = {}, None, 0
        self.undo(self._end)

    async def _end(self):
        for process in self.processes.values():
            process.kill()
            await asyncio.to_thread(process.wait)
        self.processes.clear()

    async def _start(self):
        await self._end()
        for i in (0, 1):
            await self._node(i)
        await super()._start()

    async def _node(self, i):
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in self.ports[2:])
        self.processes[i] = launch(
            [
                nodes.server_binary(),
                "-a",
                "127.0.0.1",
                "-p",
                str(self.ports[i]),
                "-n",
                f"container{i + 1}",
                "--cluster_name",
                "drill",
                "--cluster",
                f"nats://127.0.0.1:{self.ports[2 + i]}",
                "--routes",
                routes,
                "--client_advertise",
                self.settings["advertise"][i],
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await self.until(lambda: ports.listens(self.ports[i]), 5)

    async def shop(self):
        """Asks itself, through the server: an answer says that messages flow."""

        async def error_cb(error):
            self.note("shop", error)

        nc = await connect(
            timeout=None,
            servers=self.settings["servers"],
            error_cb=error_cb,
            dont_randomize=True,
            connect_timeout=0.5,
            reconnect_time_wait=0.1,
            max_reconnect_attempts=self.settings["max_reconnect_attempts"],
        )

        async def answer(msg):
            await msg.respond(b"")

        try:
            self.shop_client = self.clients["shop"] = nc
            await nc.subscribe("echo", cb=answer)
            while not self._stopping.is_set() and not nc.is_closed:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await nc.request("echo", timeout=0.3)
                    self.answers += 1
                await asyncio.sleep(0.05)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    async def drill(self):
        """Kills the node that the shop is on, once it knows of the other one."""
        await self.until(
            lambda: self.answers > 0 and len(self.shop_client.discovered_servers) > 0, 8
        )
        i = self.ports.index(self.shop_client.connected_url.port)
        self.processes[i].kill()
        await asyncio.to_thread(self.processes[i].wait)
        self.lost, self.before = time.monotonic(), self.answers
        return i

    async def strike(self):
        await self.drill()

    def symptom(self):
        return self.answers <= self.before + 1 and time.monotonic() - self.lost > 1.5

    def well(self):
        return "The node of the shop was killed once more, and the shop went on with the other one."

    async def healthy(self):
        start = self.answers
        if not await self.until(lambda: self.answers > start + 2, self.patience):
            raise Unwell(
                f"the shop is not connected. It knows these servers: {self._pool()}. Its log says: "
                f"{self.last('shop')}"
            )
        killed = await self.drill()
        back = await self.until(lambda: self.answers > self.before + 3, 1.6 * self.patience)
        pool = self._pool()
        await self._node(killed)
        if not back:
            raise Unwell(
                "when its node was killed again, the shop did not come back within some seconds."
                f" It knew these servers: {pool}."
            )

    def _pool(self):
        return ", ".join(f"{url.hostname}:{url.port}" for url in self.shop_client.servers)

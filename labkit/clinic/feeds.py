"""Cases of core NATS: a client that drops, a cluster that tells wrong addresses."""

import asyncio
import contextlib
import math
import subprocess
import time

import nats

from labkit.clinic.case import Case, Unwell
from labkit.cluster import nodes
from labkit.cluster.connection import close_client, connect
from labkit.exercises.helpers import comes_true
from labkit.system import ports
from labkit.system.launching import launch
from labkit.waiting import until


class gaps_in_the_chart(Case):
    cause = "slow consumer on the client"
    level = 2
    report = (
        "The price chart has gaps, mostly when the market opens and ticks come in bursts. "
        "The servers are idle and report no slow consumer. "
        "The log of the chart is long."
    )
    hints = [
        "Who drops? The server's /varz counts its slow_consumers: 0. "
        "The chart's own log has another name.",
        "SlowConsumerError in error_cb: nats-py's queue for this subscription was full, "
        "and it threw the message away.",
        "pending_msgs_limit is 16, a burst has 200 ticks, and the chart draws one at a time. "
        "The queue must hold a burst.",
    ]

    @staticmethod
    async def repair(case):
        await case.redeploy(pending_msgs_limit=10_000)

    def __init__(self, lab):
        super().__init__(lab)
        self.sent = 0  # number of the latest tick
        self.drawn = set()  # numbers
        self.listening = asyncio.Event()

    def defaults(self):
        return {"subject": "ticks.*", "pending_msgs_limit": 16, "draw_seconds": 0.001}

    def apps(self):
        return {"market": self.market, "chart": self.chart}

    async def market(self):
        nc = await self.connect("market")
        try:
            # The chart cannot draw what comes before it listens, so the first burst waits for it.
            await until(lambda: self.listening.is_set() or self.stopping.is_set(), math.inf)
            while not self.stopping.is_set():
                for _ in range(200):
                    self.sent += 1
                    await nc.publish("ticks.nats", str(self.sent).encode())
                await comes_true(self.stopping.is_set, 0.5)
        finally:
            await asyncio.shield(close_client(nc))

    async def chart(self):
        async def draw(msg):
            await asyncio.sleep(self.settings["draw_seconds"])
            self.drawn.add(int(msg.data))

        nc = await self.connect("chart")
        try:
            limit = self.settings["pending_msgs_limit"]
            await nc.subscribe(self.settings["subject"], cb=draw, pending_msgs_limit=limit)
            await nc.flush()
            self.listening.set()
            await self.stopping.wait()
        finally:
            self.listening.clear()
            await asyncio.shield(close_client(nc, drain=False))

    def symptom(self):
        has_dropped = any("SlowConsumer" in text for _, text in self.lines)
        return self.sent > 200 and has_dropped

    def well(self):
        return "A burst of 200 ticks was drawn without a gap."

    async def healthy(self):
        start = self.sent
        # A burst begins that the chart sees from its first tick on.
        await comes_true(lambda: self.sent > start, 10)
        burst = set(range(start + 1, start + 201))
        if not await comes_true(lambda: burst <= self.drawn, self.patience):
            raise Unwell(
                f"{len(burst - self.drawn)} of a burst of 200 ticks never reached the chart. "
                f"Its log says: {self.last('chart')}"
            )


class drill_gone_wrong(Case):
    cause = "unreachable addresses gossiped"
    level = 3
    report = (
        "We killed one of the two containers as a drill. "
        "The shop, which runs on the host, has been down since. "
        "The other container is fine, "
        "and programs inside the container network did not even blink."
    )
    hints = [
        "After a lost connection a client tries the servers of its own list, "
        "and those that a server has told it about.",
        "nc = await nats.connect(case.settings['nodes'][1]); nc.discovered_servers: "
        "can the host reach these addresses?",
        "Each node tells its container address. "
        "client_advertise, here case.settings['advertise'], says what to tell instead.",
    ]

    @staticmethod
    async def repair(case):
        reachable = [url.removeprefix("nats://") for url in case.settings["nodes"]]
        await case.redeploy(advertise=reachable)

    def __init__(self, lab):
        super().__init__(lab)
        self.ports = []  # two for clients, two for routes
        self.processes = {}  # 0, 1 -> the server
        self.shop_client = None
        self.answers = 0  # that the shop has had
        self.answers_at_loss = 0
        self.lost_at = 0  # when the shop lost its node, of time.monotonic()

    def defaults(self):
        self.ports = [ports.free_port() for _ in range(4)]
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
        self.undo(self._end)

    async def _end(self):
        for i in list(self.processes):
            await self._kill(i)

    async def _kill(self, i):
        process = self.processes.pop(i)
        process.kill()
        await asyncio.to_thread(process.wait)

    async def _start(self):
        await self._end()
        for i in (0, 1):
            await self._node(i)
        await super()._start()

    async def _node(self, i):
        """Starts this server, and returns when it listens."""
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in self.ports[2:])
        options = f"""
            -a 127.0.0.1 -p {self.ports[i]} -n container{i + 1} --cluster_name drill
            --cluster nats://127.0.0.1:{self.ports[2 + i]} --routes {routes}
            --client_advertise {self.settings["advertise"][i]}
            """
        self.processes[i] = launch(
            [nodes.server_binary(), *options.split()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await self.lab.until(lambda: ports.listens(self.ports[i]))

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
            while not self.stopping.is_set() and not nc.is_closed:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await nc.request("echo", timeout=0.3)
                    self.answers += 1
                await asyncio.sleep(0.05)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    async def drill(self):
        """Kills the node that the shop is on, and returns which one it was. It first waits until a
        server has told the shop of the other one; not for ever, since a server that is in the
        shop's own list counts as known."""
        await comes_true(lambda: self.answers and self.shop_client.discovered_servers, 8)
        killed = self.ports.index(self.shop_client.connected_url.port)
        await self._kill(killed)
        self.lost_at = time.monotonic()
        self.answers_at_loss = self.answers
        return killed

    async def strike(self):
        await self.drill()

    def symptom(self):
        is_silent = self.answers <= self.answers_at_loss + 1
        return is_silent and time.monotonic() - self.lost_at > 1.5

    def well(self):
        return "The node of the shop was killed once more, and the shop went on with the other one."

    async def healthy(self):
        start = self.answers
        if not await comes_true(lambda: self.answers > start + 2, self.patience):
            raise Unwell(
                f"the shop is not connected. It knows these servers: {self._known()}. "
                f"Its log says: {self.last('shop')}"
            )
        killed = await self.drill()
        goes_on = await comes_true(
            lambda: self.answers > self.answers_at_loss + 3, 1.6 * self.patience
        )
        known = self._known()
        await self._node(killed)
        if not goes_on:
            raise Unwell(
                "when its node was killed again, the shop did not come back within some seconds. "
                f"It knew these servers: {known}."
            )

    def _known(self):
        return ", ".join(f"{url.hostname}:{url.port}" for url in self.shop_client.servers)

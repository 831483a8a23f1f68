"""Cases in which a program does not reach whom it wants to reach."""

import asyncio

import nats.errors
from nats.errors import NoRespondersError

from labkit.clinic.case import Case, Unwell
from labkit.clinic.shop import Shop
from labkit.cluster.connection import close_client
from labkit.exercises.helpers import comes_true
from labkit.system import ports


class new_password(Shop):
    cause = "wrong credentials"
    report = (
        "After the passwords were changed on Monday the shop takes no orders. "
        "It logs connection errors; the servers are up, and billing works."
    )
    hints = [
        "The log of the shop says who refused it, and why. The server is there: it answered.",
        "Authorization Violation: compare user and password of case.settings "
        "with the accounts of the server's configuration.",
        "labkit/cluster/nats.conf has the password. "
        "A client without a user gets in too, and lands in the account of no_auth_user.",
    ]

    @staticmethod
    async def repair(case, lab):
        await case.redeploy(user=lab.topic, password="lab")

    def defaults(self):
        return {**super().defaults(), "password": "Lab"}

    def symptom(self):
        return "Authorization" in self.last("shop")


class new_firewall(Shop):
    cause = "wrong port"
    report = (
        "The shop's new configuration went live at 9:00, and it has not sent one order since. "
        "It logs connection errors. "
        "The monitoring page of the cluster is green."
    )
    hints = [
        "Two kinds of failed connections: refused at once, or silence until a time-out. "
        "What does the log say?",
        "Refused: the machine is there, nobody listens on that port. "
        "Compare case.settings['servers'] with await lab.nodes().",
        "Clients and monitoring have ports of their own; "
        "what a browser shows is not what a client may use.",
    ]

    @staticmethod
    async def repair(case, lab):
        await case.redeploy(servers=lab.cluster.servers)

    def defaults(self):
        return {**super().defaults(), "servers": [f"nats://127.0.0.1:{ports.free_port()}"]}

    def symptom(self):
        return "No connection" in self.last("shop")


class connected_but_silent(Shop):
    cause = "node frozen"
    level = 3
    report = (
        "The shop hangs. "
        "It has a connection, says its own status page: is_connected is True. "
        "No order goes out, each ends after a time-out. "
        "Billing is fine."
    )
    hints = [
        "is_connected tells what the client believes. Ask the nodes themselves: await lab.nodes().",
        "One node answers nothing, and its connections are still open: its process is frozen. "
        "Which node is the shop on?",
        "Bring the node back (lab.faults.resume stands for your operator), "
        "and give the shop all three servers and short pings: case.settings['ping_interval'] "
        "is 120 s.",
    ]

    @staticmethod
    async def repair(case, lab):
        for name, node in (await lab.nodes()).iterrows():
            if node["state"] != "up":
                await lab.faults.resume(name)
        await case.redeploy(servers=lab.cluster.servers, ping_interval=1, max_outstanding_pings=2)

    def __init__(self, lab):
        super().__init__(lab)
        self.frozen = None  # a Node

    def defaults(self):
        # Those of nats-py.
        return {**super().defaults(), "ping_interval": 120, "max_outstanding_pings": 2}

    def well(self):
        return (
            f"{super().well()} A client with the shop's settings, on a node that was frozen once "
            "more, went on with another one."
        )

    async def setup(self):
        self.frozen = await self.victim()
        self.settings["servers"] = [self.frozen.url]
        await self.place(lambda leader: leader != self.frozen.name)

    async def strike(self):
        self.undo(self.lab.faults.heal)
        await self.lab.until(lambda: len(self.handled) > 3)
        await self.lab.faults.pause(self.frozen.name)

    def symptom(self):
        return len(self.refused) >= 1

    async def also_healthy(self):
        if not await self.frozen.ask(timeout=3):
            raise Unwell(
                f"orders flow, and node {self.frozen.name} does not answer: "
                "one more fault and the cluster stands still."
            )
        await self._freeze_again(2 * self.patience)

    async def _freeze_again(self, patience):
        """Freezes the node once more, under a client with the shop's settings. Raises Unwell if
        that has no answer for so many seconds."""
        servers = [url for url in self.settings["servers"][1:] if url != self.frozen.url]
        client = await self.connect(
            "drill", **{**self.login(), "servers": [self.frozen.url, *servers]}
        )
        if client.connected_url.port != self.frozen.port:
            await close_client(client, drain=False)
            raise Unwell(f"orders flow, and {self.frozen.name} took no new client. Check again.")
        await self.lab.faults.pause(self.frozen.name)
        try:
            goes_on = await comes_true(lambda: answers(client), patience)
        finally:
            await self.lab.faults.resume(self.frozen.name)
            await asyncio.shield(close_client(client, drain=False))
        if not goes_on:
            raise Unwell(
                f"orders flow, and when {self.frozen.name} was frozen once more, a client with "
                f"the shop's settings that was on it had no answer for {patience:g} s."
            )


class one_node_fewer(Shop):
    cause = "only replica on a dead node"
    level = 3
    repeats = True  # the consumer's last acks died with the node
    report = (
        "A node died at 3:10, 'no problem, there are two more'. "
        "Since then every order is refused. "
        "Other streams of this cluster work."
    )
    hints = [
        "NoStreamResponseError again: nobody who owns this subject is there. "
        "Is the stream still known? nats stream report.",
        "ORDERS has one replica. "
        "await lab.nodes() says which node is down; the two others cannot stand in for it.",
        "Start the node again (lab.faults.start stands for your operator): it still has its data. "
        "Then give ORDERS three replicas.",
    ]

    @staticmethod
    async def repair(js, lab):
        for name, node in (await lab.nodes()).iterrows():
            if node["state"] != "up":
                await lab.faults.start(name)
        await lab.wait_for_leader("ORDERS")
        await lab.settled("ORDERS")
        config = (await js.stream_info("ORDERS")).config
        config.num_replicas = 3
        await js.update_stream(config)
        await lab.wait_for_current("ORDERS")

    def __init__(self, lab):
        super().__init__(lab)
        self.dead = None  # a Node

    async def setup(self):
        self.dead = await self.victim()
        await self.place(lambda leader: leader == self.dead.name)

    async def strike(self):
        self.undo(self.lab.faults.heal)
        await self.lab.until(lambda: len(self.handled) > 3)
        await self.lab.faults.kill(self.dead.name)

    def symptom(self):
        return len(self.refused) > 5

    async def also_healthy(self):
        replicas = (await self.js.stream_info("ORDERS")).config.num_replicas
        if replicas < 3:
            count = {1: "one replica", 2: "two replicas"}[replicas]
            raise Unwell(
                f"orders flow, and ORDERS has {count}: the next node that dies may stop them again."
            )
        if not await comes_true(self._is_current, self.patience):
            raise Unwell("orders flow, and a replica of ORDERS is not up to date yet.")

    async def _is_current(self):
        replicas = (await self.js.stream_info("ORDERS")).cluster.replicas or []
        return len(replicas) == 2 and all(peer.current for peer in replicas)


async def answers(client):
    """True if a server answers this client's request within half a second."""
    try:
        await client.request("$JS.API.INFO", timeout=0.5)
        return True
    except (nats.errors.Error, OSError):
        return False


class Ask(Case):
    """A shop that asks a price service."""

    def __init__(self, lab):
        super().__init__(lab)
        self.answered = 0  # requests
        self.served = 0  # requests that the price service has answered
        self.failed = 0

    def defaults(self):
        return {
            **self.lab.cluster.login(self.lab.topic),
            "request_subject": "prices.get",
            "timeout": 0.5,
            "service_subject": "prices.get",
        }

    def apps(self):
        return {"prices": self.prices, "shop": self.shop}

    async def prices(self):
        async def answer(msg):
            self.served += 1
            await msg.respond(b"20")

        nc = await self.connect("prices")
        try:
            await nc.subscribe(self.settings["service_subject"], "prices", cb=answer)
            await self.stopping.wait()
        finally:
            await asyncio.shield(close_client(nc))

    async def shop(self):
        login = {key: self.settings[key] for key in ("servers", "user", "password")}
        nc = await self.connect("shop", **login)
        try:
            while not self.stopping.is_set():
                await self._ask(nc)
                await asyncio.sleep(0.03)
        finally:
            await asyncio.shield(close_client(nc))

    async def _ask(self, nc):
        try:
            await nc.request(self.settings["request_subject"], timeout=self.settings["timeout"])
            self.answered += 1
        except (TimeoutError, NoRespondersError) as error:
            self.failed += 1
            self.note("shop", error)

    def symptom(self):
        return self.failed > 8 and not self.answered

    def well(self):
        return "The price service answered ten requests of the shop in a row."

    async def healthy(self):
        start = self.answered
        await comes_true(lambda: self.answered > start, self.patience)
        answered, failed, served = self.answered, self.failed, self.served
        await comes_true(lambda: self.answered >= answered + 10 or self.failed > failed + 3, 10)
        answered, failed = self.answered - answered, self.failed - failed
        if failed or answered < 10:
            raise Unwell(
                f"{failed} of the shop's last requests failed, {answered} were answered. "
                f"Its log says: {self.last('shop')}"
            )
        served = self.served - served
        if served < answered - 1:  # one was perhaps under way
            raise Unwell(
                f"{answered} requests were answered, and {served} of them by the price service: "
                "who answers the others, and for how long?"
            )


class nobody_knows_the_price(Ask):
    cause = "nobody listens on the subject"
    report = (
        "Since the release the shop shows no prices. "
        "The price service is up, and its team swears that nobody asks it anything."
    )
    hints = [
        "NoRespondersError comes at once: "
        "the server knows of no subscription that the request matches.",
        "Which subjects are there? await lab.node('n1').ask('subsz?subs=1'), "
        "or nats server request subscriptions --detail.",
        "Compare service_subject and request_subject. "
        "In a subject, upper and lower case are different letters.",
    ]

    @staticmethod
    async def repair(case):
        await case.redeploy(request_subject="prices.get")

    def defaults(self):
        return {**super().defaults(), "request_subject": "Prices.get"}


class works_for_me(Ask):
    cause = "client in another account"
    level = 2
    report = (
        "The shop shows no prices. "
        "The price team asks its own service from a laptop, same cluster, same subject, "
        "and gets an answer. "
        "The shop connects without an error."
    )
    hints = [
        "NoRespondersError on a subject that somebody serves: do both see the same subjects?",
        "await lab.connections() lists the connections of this account. Is the shop among them?",
        "Without a user a client becomes the server's no_auth_user: "
        "connected, and in an account of its own.",
    ]

    @staticmethod
    async def repair(case, lab):
        await case.redeploy(user=lab.topic, password="lab")

    def defaults(self):
        return {**super().defaults(), "user": None, "password": None}

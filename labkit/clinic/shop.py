"""The system that most cases break: a shop that publishes orders, the stream ORDERS, and billing
that handles them."""

import asyncio
import collections
import json
from collections.abc import Sequence

from nats.js.errors import NotFoundError

from labkit.clinic.case import Case, Unwell
from labkit.cluster.connection import close_client
from labkit.exercises.helpers import comes_true, fetch


async def handle(msg, process):
    await process(json.loads(msg.data))
    await msg.ack()


class Shop(Case):
    """A shop and its billing. A case breaks a setting of the stream, the consumer or the programs,
    and has a symptom() and a repair()."""

    stream: dict = {"name": "ORDERS", "subjects": ["orders.>"]}
    consumer: dict | None = {}  # settings of `billing`; None: billing creates it by itself
    kinds: Sequence[str] = ("created",)  # last part of the subject, in turn
    wants = {"created": "billing"}  # kind -> the app that handles it
    new_only = False  # True: what was lost before the repair cannot come back
    repeats = False  # True: the repair makes old orders come twice

    def __init__(self, lab):
        super().__init__(lab)
        self.number = 0  # of the latest order
        self.accepted = set()  # numbers of the orders that the shop takes for stored
        self.refused = {}  # number -> error
        self.handled = []  # numbers, in the order in which they were handled
        self.tried = []  # the same with those that failed
        self.busy = False  # True: customers come in a rush
        self.sells = asyncio.Event()
        self.sells.set()

    def defaults(self):
        return {
            **self.lab.cluster.login(self.lab.topic),
            "subject": "orders.{kind}",
            "msg_id": "order-{order}",
            "durable": "billing",
            "filter_subject": "",
            "handler": handle,
        }

    def apps(self):
        return {"shop": self.shop, "billing": self.billing}

    async def setup(self):
        await self.js.add_stream(**self.stream)
        if self.consumer is not None:
            await self.js.add_consumer("ORDERS", durable_name="billing", **self.consumer)
        await self.lab.settled("ORDERS")

    # --- the two programs

    async def shop(self):
        login = {key: self.settings[key] for key in ("servers", "user", "password")}
        nc = await self.connect("shop", **login)
        try:
            while not self.stopping.is_set():
                if self.sells.is_set():
                    await self._sell(nc)
                await asyncio.sleep(0.002 if self.busy else 0.04)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    async def _sell(self, nc):
        self.number += 1
        order = self.order(self.number)
        try:
            await self.send(nc, self.settings["subject"].format(**order), order)
        except Exception as error:
            self.refused[order["order"]] = error
            self.note("shop", error)
        else:
            self.accepted.add(order["order"])

    def order(self, number):
        """What customers order: a dict."""
        return {
            "order": number,
            "customer": "ABCDE"[number % 5],
            "kind": self.kinds[number // 2 % len(self.kinds)],
            "amount": 20,
            "gift": number % 3 == 0,
        }

    async def send(self, nc, subject, order):
        headers = None
        if self.settings["msg_id"]:
            headers = {"Nats-Msg-Id": self.settings["msg_id"].format(**order)}
        await nc.jetstream(timeout=1).publish(subject, json.dumps(order).encode(), headers=headers)

    async def billing(self):
        await self.worker("billing", self.settings["durable"], self.settings["filter_subject"])

    async def worker(self, app, durable, filter_subject):
        """An app that handles orders."""

        async def process(order):
            self.tried.append(order["order"])
            await asyncio.sleep(0.002)
            if "amount" not in order:
                raise ValueError("an order without an amount")
            if self.wants.get(order["kind"], app) == app:
                self.handled.append(order["order"])
            else:
                self.note(app, f"this order is {order['kind']}: not for {app}, acked")

        nc = await self.connect(app)
        try:
            js = nc.jetstream(timeout=1)
            sub = await js.pull_subscribe(filter_subject, durable, stream="ORDERS")
            while not self.stopping.is_set():
                for msg in await fetch(sub, timeout=0.3):
                    await self.settings["handler"](msg, process)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    # --- is it well?

    async def healthy(self, orders=24):
        self.sells.set()
        start = self.number
        if not await comes_true(lambda: max(self.handled, default=0) > start, self.patience):
            raise Unwell(await self._why_nothing_comes(start))
        start = self.number
        try:
            self.busy = True
            await comes_true(lambda: self.number >= start + orders, 4)
            self.busy = False
            self.sells.clear()  # so that the backlog can be worked off
            await self._at_rest(start)
            await self.also_healthy()
        finally:
            self.busy = False
            self.sells.set()

    async def also_healthy(self):
        """Raises Unwell if something else of this case is still wrong, while orders flow."""

    def well(self):
        return "New orders reach their app once each, nothing waits."

    async def _why_nothing_comes(self, start):
        """Why no order after this number came through (text)."""
        sent = self.number - start
        if not sent:
            return f"the shop sends no orders. Its log says: {self.last('shop')}"
        if max(self.accepted, default=0) <= start:
            return f"all {sent} new orders failed. The shop's log says: {self.last('shop')}"
        return f"of {sent} new orders none came through to billing. {await self.numbers()}"

    async def numbers(self):
        """The numbers of the stream and of its consumers, as text."""
        try:
            info = await self.js.stream_info("ORDERS")
            consumers = await self.js.consumers_info("ORDERS")
        except NotFoundError:
            return "There is no stream ORDERS."
        texts = [
            f"Stream ORDERS takes {', '.join(info.config.subjects)} "
            f"and holds {info.state.messages} messages."
        ]
        texts += [
            f"Consumer {one.name}: {one.num_pending} pending, {one.num_ack_pending} out without an"
            f" answer (limit {one.config.max_ack_pending}), {one.num_waiting} waiting."
            for one in consumers
        ]
        return " ".join(texts)

    async def _at_rest(self, start):
        """Waits until all that the shop sent has been handled and answered. Raises Unwell if it is
        not, or if an order was handled twice. start: number of the last order before the rush."""
        due = {number for number in self.accepted if self._is_due(number, start)}
        unanswered = None  # not looked at while orders are still to be handled

        async def all_done():
            nonlocal unanswered
            if due <= set(self.handled):
                unanswered = await self._unanswered()
            return unanswered == 0

        # What counts is what was seen when it came to rest: an order that was just being sold when
        # the shop stopped may come through a moment later.
        await comes_true(all_done, self.patience)
        failed = [error for number, error in self.refused.items() if number > start]
        missing = sorted(due - set(self.handled))
        twice = self._handled_twice(start)
        again = [n for n, times in collections.Counter(self.tried).items() if times > 20]
        found = []
        if failed:
            found.append(f"{len(failed)} of {self.number - start} new orders failed: {failed[0]}")
        if again and unanswered != 0:
            found.append(
                f"order {again[-1]} was handed out {self.tried.count(again[-1])} times, "
                "and others wait behind it"
            )
        if missing:
            found.append(
                f"the shop sent {len(missing)} orders without an error that were never handled: "
                f"{_some(missing)}"
            )
        if unanswered and not missing and not again:
            found.append(f"all orders are handled, and {unanswered} of them are not answered")
        if twice:
            found.append(f"{len(twice)} orders were handled twice: {_some(twice)}")
        if found:
            raise Unwell(f"{'; '.join(found)}. {await self.numbers()}")

    def _is_due(self, number, start):
        """True if this order must have been handled."""
        return "amount" in self.order(number) and (number > start or not self.new_only)

    def _handled_twice(self, start):
        """Numbers of the orders that were handled more than once and should not be (list)."""
        times = collections.Counter(self.handled)
        again = sorted(number for number in times if times[number] > 1)
        return [number for number in again if number > start or not self.repeats]

    async def _unanswered(self):
        """How many messages wait, or are out, on the consumers that the apps use."""
        used = {value for key, value in self.settings.items() if key.endswith("durable")}
        infos = [info for info in await self.js.consumers_info("ORDERS") if info.name in used]
        return sum(info.num_pending + info.num_ack_pending for info in infos)

    # --- nodes

    async def victim(self):
        """A node that may be broken without breaking the rest: not the one of the notebook, nor the
        meta leader's."""
        port = self.lab.nc.connected_url.port
        leader = await self.lab.wait_for_leader()
        nodes = self.lab.cluster.nodes
        return [node for node in nodes if node.port != port and node.name != leader][-1]

    async def place(self, wanted):
        """Makes ORDERS with one replica, on a node for which wanted(name) is true. It starts with
        three: the replica that leads stays when the others go."""
        await self.lab.wait_for_current()
        info = await self.js.add_stream(**self.stream, num_replicas=3)
        leader = info.cluster.leader
        while not wanted(leader):
            leader = await self.lab.faults.step_down("ORDERS")
        await self.js.update_stream(info.config, num_replicas=1)
        await self.lab.until(self._has_one_replica, timeout=15)
        await self.js.add_consumer("ORDERS", durable_name="billing", ack_wait=1)
        await self.lab.settled("ORDERS")

    async def _has_one_replica(self):
        return not (await self.js.stream_info("ORDERS")).cluster.replicas


def _some(numbers):
    return ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")

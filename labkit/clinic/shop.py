"""The system that most cases break: a shop that publishes orders, the stream ORDERS, and billing
that handles them."""

import asyncio
import collections
import json

from nats.js.errors import NotFoundError

from labkit.clinic.case import Case, Unwell
from labkit.cluster.connection import close_client


async def handle(msg, process):
    await process(json.loads(msg.data))
    await msg.ack()


def _some(numbers):
    return ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")


class Shop(Case):
    """`accepted`: numbers of the orders that the shop holds for stored; `refused`: {number: error};
    `handled`: numbers in the order in which they were handled; `tried`: the same with those that
    failed."""

    stream = {"name": "ORDERS", "subjects": ["orders.>"]}
    consumer = {}  # settings of the consumer `billing`; None: billing creates it by itself
    kinds = ("created",)  # last part of the subject, in turn
    wants = {"created": "billing"}
    new_only = False  # True: what was lost before the repair cannot come back
    repeats = False  # True: the repair makes old orders come twice

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

    def __init__(self, lab):
        super().__init__(lab)
        self.number, self.accepted, self.refused, self.handled, self.tried = 0, set(), {}, [], []
        self.busy, self.open = False, asyncio.Event()
        self.open.set()

    async def setup(self):
        await self.js.add_stream(**self.stream)
        if self.consumer is not None:
            await self.js.add_consumer("ORDERS", durable_name="billing", **self.consumer)
        await self.lab.settled("ORDERS")

    # --- the two programs

    async def shop(self):
        nc = await self.connect(
            "shop", **{key: self.settings[key] for key in ("servers", "user", "password")}
        )
        try:
            while not self._stopping.is_set():
                if self.open.is_set():
                    await self._sell(nc)
                await asyncio.sleep(0.002 if self.busy else 0.04)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    async def _sell(self, nc):
        self.number += 1
        number, order = self.number, self.order(self.number)
        try:
            await self.send(nc, self.settings["subject"].format(**order), order)
        except Exception as error:
            self.refused[number] = error
            self.note("shop", error)
        else:
            self.accepted.add(number)

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
        headers = (
            {"Nats-Msg-Id": self.settings["msg_id"].format(**order)}
            if self.settings["msg_id"]
            else None
        )
        await nc.jetstream(timeout=1).publish(subject, json.dumps(order).encode(), headers=headers)

    async def billing(self):
        await self.worker("billing", self.settings["durable"], self.settings["filter_subject"])

    async def worker(self, app, durable, filter_subject):
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
            sub = await nc.jetstream(timeout=1).pull_subscribe(
                filter_subject, durable, stream="ORDERS"
            )
            while not self._stopping.is_set():
                try:
                    msgs = await sub.fetch(1, timeout=0.3)
                except TimeoutError:
                    continue
                for msg in msgs:
                    await self.settings["handler"](msg, process)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    # --- is it well?

    async def healthy(self, orders=24):
        self.open.set()
        start, old = self.number, len(self.handled)
        if not await self.until(
            lambda: any(number > start for number in self.handled[old:]), self.patience
        ):
            raise Unwell(await self._silent(start))
        self.busy, start = True, self.number
        await self.until(lambda: self.number >= start + orders, 4)
        self.busy = False
        self.open.clear()  # the shop holds its breath, so that a backlog can come to nothing
        try:
            await self._settled(start)
            await self.well_too()
        finally:
            self.open.set()

    async def well_too(self): ...

    def well(self):
        return "New orders reach their app once each, nothing waits."

    async def _silent(self, start):
        """Why no new order came through (text)."""
        sent = self.number - start
        failed = [error for number, error in self.refused.items() if number > start]
        if not sent:
            return f"the shop sends no orders. Its log says: {self.last('shop')}"
        if len(failed) == sent or not any(number > start for number in self.accepted):
            return f"all {sent} new orders failed. The shop's log says: {self.last('shop')}"
        return f"of {sent} new orders none came through to billing. {await self.numbers()}"

    async def numbers(self):
        """The numbers of the stream and of its consumers, as text."""
        try:
            info = await self.js.stream_info("ORDERS")
            found = [
                f"Stream ORDERS takes {', '.join(info.config.subjects)} and holds"
                f" {info.state.messages} messages."
            ]
            for one in await self.js.consumers_info("ORDERS"):
                found.append(
                    f"Consumer {one.name}: {one.num_pending} pending, {one.num_ack_pending} out"
                    f" without an answer (limit {one.config.max_ack_pending}), {one.num_waiting}"
                    " waiting."
                )
        except NotFoundError:
            return "There is no stream ORDERS."
        return " ".join(found)

    async def _settled(self, start):
        """Waits until all that the shop sent has been handled and answered. Raises Unwell."""
        due = {
            n
            for n in self.accepted
            if "amount" in self.order(n) and (n > start or not self.new_only)
        }
        out = 1
        for _ in range(int(self.patience / 0.05)):
            if due <= set(self.handled) and not (out := await self._unanswered()):
                break
            await asyncio.sleep(0.05)
        failed = [error for number, error in self.refused.items() if number > start]
        tries = collections.Counter(self.tried)
        hot, missing = (
            [number for number, times in tries.items() if times > 20],
            sorted(due - set(self.handled)),
        )
        times = collections.Counter(self.handled)
        twice = sorted(
            number for number in times if times[number] > 1 and (number > start or not self.repeats)
        )
        wrong = [
            words
            for true, words in [
                (
                    failed,
                    (
                        f"{len(failed)} of {self.number - start} new orders failed:"
                        f" {failed and failed[0]}"
                    ),
                ),
                (
                    hot and out,
                    (
                        f"order {hot and hot[-1]} was handed out {hot and tries[hot[-1]]} times,"
                        " and others wait behind it"
                    ),
                ),
                (
                    missing,
                    (
                        f"the shop sent {len(missing)} orders without an error that were never"
                        f" handled: {_some(missing)}"
                    ),
                ),
                (
                    out and not missing and not hot,
                    f"all orders are handled, and {out} of them are not answered",
                ),
                (twice, f"{len(twice)} orders were handled twice: {_some(twice)}"),
            ]
            if true
        ]
        if wrong:
            raise Unwell(f"{'; '.join(wrong)}. {await self.numbers()}")

    async def _unanswered(self):
        """How many messages wait, or are out, on the consumers that the apps use."""
        used = {value for key, value in self.settings.items() if key.endswith("durable")}
        infos = [info for info in await self.js.consumers_info("ORDERS") if info.name in used]
        return sum(info.num_pending + info.num_ack_pending for info in infos)

    # --- nodes

    async def victim(self):
        """A node that may be broken without breaking the rest: not the one of the notebook, nor the
        meta leader's."""
        port, leader = self.lab.nc.connected_url.port, await self.lab.wait_for_leader()
        return [
            node for node in self.lab.cluster.nodes if node.port != port and node.name != leader
        ][-1]

    async def _alone(self):
        return not (await self.js.stream_info("ORDERS")).cluster.replicas

    async def place(self, wanted):
        """ORDERS with one replica on a node for which wanted(name) is true: where its leader is
        when the others go."""
        await self.lab.wait_for_current()
        info = await self.js.add_stream(**self.stream, num_replicas=3)
        leader = info.cluster.leader
        while not wanted(leader):
            leader = await self.lab.faults.step_down("ORDERS")
        await self.js.update_stream(info.config, num_replicas=1)
        await self.lab.until(self._alone, timeout=15)
        await self.js.add_consumer("ORDERS", durable_name="billing", ack_wait=1)
        await self.lab.settled("ORDERS")

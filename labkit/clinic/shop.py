"""The system that most cases break: a shop that publishes orders, the stream ORDERS, and billing
that handles them."""

import asyncio
import collections
import contextlib
import functools
import json
from collections.abc import Sequence

from nats.js.errors import APIError, NotFoundError

from labkit.clinic.case import Case, Unwell
from labkit.cluster.connection import close_client
from labkit.errors import LabError
from labkit.exercises.helpers import comes_true, fetch

PACE = 25  # orders a second that the shop sends at most, outside a rush
NIGHT = 8 * 3600  # seconds for which billing may stand still without an order being lost
LOGIN = ("servers", "user", "password", "ping_interval", "max_outstanding_pings")


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
    repeats = False  # True: the repair makes old orders come twice

    def __init__(self, lab):
        super().__init__(lab)
        self.number = 0  # of the latest order
        self.accepted = set()  # numbers of the orders that the shop takes for stored
        self.refused = {}  # number -> error
        self.handled = []  # numbers, in the order in which they were handled
        self.tried = []  # the same with those that failed
        self.answered_early = []  # numbers of those that were acked before they were handled
        self.given_up = 0  # messages that the server gave up: advisories of ORDERS' consumers
        self.made = None  # when ORDERS was created, as the server says
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

    async def begin(self):
        async def note(msg):
            self.given_up += 1

        advisories = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.*"
        heard = await self.lab.nc.subscribe(advisories, cb=note)
        self.undo(heard.unsubscribe)
        await super().begin()

    async def setup(self):
        await self.js.add_stream(**self.stream)
        if self.consumer is not None:
            await self.js.add_consumer("ORDERS", durable_name="billing", **self.consumer)
        await self.lab.settled("ORDERS")
        self.made = (await self.js.stream_info("ORDERS")).created

    # --- the books of the two programs

    async def orders(self):
        """The book of the shop beside those of its apps: a DataFrame with a row for each order that
        the shop takes for stored: order, subject, handled (how many times). It first waits for a
        second, so that the latest of them can get through."""
        import pandas as pd

        numbers = sorted(self.accepted)
        await asyncio.sleep(1)
        times = collections.Counter(self.handled)
        rows = [
            (number, self.settings["subject"].format(**self.order(number)), times[number])
            for number in numbers
        ]
        return pd.DataFrame(rows, columns=["order", "subject", "handled"]).set_index("order")

    async def send_again(self, numbers):
        """The shop sends these orders (their numbers) once more, in the way of its new ones."""
        numbers = [int(number) for number in numbers]
        if unknown := [number for number in numbers if number not in self.accepted]:
            raise LabError(f"The shop has not sent order {unknown[0]}: see case.orders().")
        nc = await self.connect("shop, again", **self.login())
        try:
            for number in numbers:
                order = self.order(number)
                await self.send(nc, self.settings["subject"].format(**order), order)
        finally:
            await close_client(nc)

    # --- the two programs

    def login(self):
        """The shop's options for a connection (dict)."""
        return {key: self.settings[key] for key in LOGIN if key in self.settings}

    async def shop(self):
        nc = await self.connect("shop", **self.login())
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
        nc = await self.connect(app)
        try:
            js = nc.jetstream(timeout=1)
            sub = await js.pull_subscribe(filter_subject, durable, stream="ORDERS")
            while not self.stopping.is_set():
                for msg in await fetch(sub, timeout=0.3):
                    process = functools.partial(self._process, app, msg)
                    await self.settings["handler"](msg, process)
        finally:
            await asyncio.shield(close_client(nc, drain=False))

    async def _process(self, app, msg, order):
        """What this app does with an order: the handler gets it as process(order)."""
        self.tried.append(order["order"])
        await asyncio.sleep(0.002)
        if "amount" not in order:
            raise ValueError("an order without an amount")
        if self.wants.get(order["kind"], app) == app:
            self.handled.append(order["order"])
            if msg.is_acked:
                self.answered_early.append(order["order"])
        else:
            self.note(app, f"this order is {order['kind']}: not for {app}, acked")

    # --- is it well?

    async def healthy(self, orders=24):
        self.sells.set()
        start, tried = self.number, len(self.tried)
        if not await comes_true(lambda: max(self.handled, default=0) > start, self.patience):
            raise Unwell(await self._why_nothing_comes(start, tried))
        start = self.number
        try:
            self.busy = True
            await comes_true(lambda: self.number >= start + orders, 4)
            self.busy = False
            self.sells.clear()  # so that the backlog can be worked off
            await self._at_rest(start)
            await self._nothing_is_left()
            await self._is_safe(start)
            await self.also_healthy()
        finally:
            self.busy = False
            self.sells.set()

    async def also_healthy(self):
        """Raises Unwell if something else of this case is still wrong, while orders flow."""

    def well(self):
        return (
            "New orders reach their app once each, the old ones are accounted for, nothing waits."
        )

    async def _why_nothing_comes(self, start, tried):
        """Why no order after this number came through (text). tried: how many tries there were
        before."""
        sent = self.number - start
        if not sent:
            return f"the shop sends no orders. Its log says: {self.last('shop')}"
        if max(self.accepted, default=0) <= start:
            return f"all {sent} new orders failed. The shop's log says: {self.last('shop')}"
        found = [f"of {sent} new orders none came through to billing"]
        if again := self._again_and_again(tried):
            found.append(again)
        return f"{'; '.join(found)}. {await self.numbers()}"

    def _again_and_again(self, tried):
        """Which order came back all the time after so many tries (text; '': none)."""
        most = collections.Counter(self.tried[tried:]).most_common(1)
        if most and most[0][1] > 20:
            return f"order {most[0][0]} was handed out {most[0][1]} times just now"
        return ""

    async def numbers(self):
        """The numbers of the stream and of its consumers, as text."""
        try:
            info = await self.js.stream_info("ORDERS")
        except NotFoundError:
            return "There is no stream ORDERS."
        texts = [
            f"Stream ORDERS takes {', '.join(info.config.subjects)} "
            f"and holds {info.state.messages} messages."
        ]
        for name in await self._consumer_names():
            one = await self._consumer(name)
            if one is None:
                texts.append(f"Consumer {name} does not answer.")
                continue
            texts.append(
                f"Consumer {name}: {one.num_pending} pending, {one.num_ack_pending} out without an"
                f" answer (limit {one.config.max_ack_pending}), {one.num_waiting} waiting."
            )
        return " ".join(texts)

    async def _at_rest(self, start):
        """Waits until all that the shop sent has been handled and answered. Raises Unwell if it is
        not, or if an order was handled twice. start: number of the last order before the rush."""
        due = {number for number in self.accepted if "amount" in self.order(number)}
        tried, given_up = len(self.tried), self.given_up
        infos = []  # of the consumers; not looked at while orders are still to be handled

        async def all_done():
            nonlocal infos
            if due <= set(self.handled):
                infos = [await self._consumer(name) for name in self._used()]
            return infos and all(infos) and not any(map(_unanswered, infos))

        # What counts is what was seen when it came to rest: an order that was just being sold when
        # the shop stopped may come through a moment later.
        await comes_true(all_done, self.patience)
        failed = [error for number, error in self.refused.items() if number > start]
        missing = sorted(due - set(self.handled))
        twice = self._handled_twice(start)
        found = []
        if failed:
            found.append(f"{len(failed)} of {self.number - start} new orders failed: {failed[0]}")
        if again := self._again_and_again(tried):
            found.append(again)
        if missing:
            found.append(
                f"the shop sent {len(missing)} orders without an error that were never handled: "
                f"{some(missing)}"
            )
        elif not all(infos):
            found.append("all orders are handled, and a consumer does not answer")
        elif unanswered := sum(map(_unanswered, infos)):
            found.append(f"all orders are handled, and {unanswered} messages are not answered")
        elif lost := max(sum(info.num_redelivered for info in infos), self.given_up - given_up):
            found.append(
                f"all orders are handled, and {lost} messages were given up without an answer: "
                "max_deliver is used up, and they are in no backlog"
            )
        if twice:
            found.append(f"{len(twice)} orders were handled twice: {some(twice)}")
        if not found and (early := [n for n in self.answered_early if n > start]):
            found.append(
                f"all orders are handled, and {len(early)} were answered before that: "
                "a billing that dies in between loses them"
            )
        if found:
            raise Unwell(f"{'; '.join(found)}. {await self.numbers()}")

    def _handled_twice(self, start):
        """Numbers of the orders that were handled more than once and should not be (list)."""
        times = collections.Counter(self.handled)
        again = sorted(number for number in times if times[number] > 1)
        return [number for number in again if number > start or not self.repeats]

    async def _nothing_is_left(self):
        """Raises Unwell if there is a durable that no app reads from: its backlog grows for
        ever."""
        for name in set(await self._consumer_names()) - set(self._used()):
            info = await self._consumer(name)
            if info and info.config.durable_name:
                raise Unwell(
                    f"orders flow, and no app reads from consumer {name} any more: "
                    f"{info.num_pending} are pending there, and nobody has deleted it."
                )

    # --- is it well tomorrow?

    async def _is_safe(self, start):
        """Raises Unwell if settings of the stream or of a consumer lose orders later on. start:
        number of the last order before the rush."""
        info = await self.js.stream_info("ORDERS")
        if self.made and info.created != self.made:
            raise Unwell("orders flow, and ORDERS is another stream: what the old one held is gone")
        config = info.config
        if config.storage != "file":
            raise Unwell("orders flow, and ORDERS is kept in memory: it does not outlive its node")
        if config.max_age and config.max_age < NIGHT:
            raise Unwell(
                f"orders flow, and each is dropped after {config.max_age:g} s, handled or not: "
                f"billing may stand still for a night ({NIGHT // 3600} hours)"
            )
        self._has_room(info, start)
        for name in self._used():
            info = await self._consumer(name)
            if info is None:
                raise Unwell(f"orders flow, and consumer {name} does not answer")
            consumer = info.config
            if consumer.ack_policy != "explicit":
                raise Unwell(
                    f"orders flow, and consumer {name} has ack_policy={consumer.ack_policy}: "
                    "an order counts as done although no app has answered for it"
                )
            if consumer.inactive_threshold:
                raise Unwell(
                    f"orders flow, and consumer {name} is deleted when nobody asks for "
                    f"{consumer.inactive_threshold:g} s, and its position with it"
                )
            if consumer.mem_storage:
                raise Unwell(f"orders flow, and the position of consumer {name} is in memory only")

    def _has_room(self, info, start):
        """Raises Unwell if a limit of the stream is reached within a night."""
        config, state = info.config, info.state
        limits = {"max_msgs": config.max_msgs, "max_msgs_per_subject": config.max_msgs_per_subject}
        if state.messages:
            each = state.bytes / state.messages
            limits["max_bytes"] = int((config.max_bytes or 0) / each)
        limits = {name: count for name, count in limits.items() if count and count > 0}
        if not limits:
            return
        name = min(limits, key=limits.get)
        full = limits[name] / PACE  # seconds
        # A stream that keeps what is acked has to hold all orders of max_age.
        keeps = config.retention == "limits" and state.messages >= self.number - start
        if full >= max(NIGHT, config.max_age or 0 if keeps else 0):
            return
        what = "drops its oldest orders" if config.discard == "old" else "refuses new orders"
        age = f"after {config.max_age:g} s" if config.max_age else "never"
        leaves = f"by age, {age}" if keeps else "when it is acked"
        raise Unwell(
            f"orders flow, and ORDERS {what} at {limits[name]} messages ({name}), handled or not: "
            f"at {PACE} orders a second that is {full:.3g} s. A message leaves it {leaves}"
        )

    # --- its consumers

    def _used(self):
        """Names of the consumers that the apps use (list)."""
        return [name for key, name in self.settings.items() if key.endswith("durable")]

    async def _consumer(self, name):
        """What the server says of this consumer (ConsumerInfo); None if nobody answers."""
        with contextlib.suppress(TimeoutError, APIError):
            return await self.js.consumer_info("ORDERS", name)

    async def _consumer_names(self):
        """Names of all consumers of ORDERS (list). The meta leader knows them; a list with their
        numbers (consumers_info) leaves out those whose leader is silent."""
        answer = await self.lab.nc.request("$JS.API.CONSUMER.NAMES.ORDERS", b"", timeout=5)
        answer = json.loads(answer.data)
        if "error" in answer:
            raise APIError.from_error(answer["error"])
        return sorted(answer["consumers"] or [])

    # --- nodes

    async def victim(self):
        """A node that may be broken without breaking the rest: not the one of the notebook, nor the
        meta leader's."""
        mine = self.lab.node_of(self.lab.nc)
        leader = await self.lab.wait_for_leader()
        nodes = self.lab.cluster.nodes
        return [node for node in nodes if node.name not in (mine, leader)][-1]

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
        self.made = (await self.js.stream_info("ORDERS")).created

    async def _has_one_replica(self):
        return not (await self.js.stream_info("ORDERS")).cluster.replicas


def some(numbers):
    return ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")


def _unanswered(info):
    """How many messages of this consumer wait, or are out."""
    return info.num_pending + info.num_ack_pending

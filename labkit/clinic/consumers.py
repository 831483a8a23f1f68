"""Cases in which messages are stored and do not get through to the work, or get there too often."""

import asyncio
import contextlib
import json
import re

from nats.js.errors import NotFoundError

from labkit.clinic.case import Unwell
from labkit.clinic.shop import NIGHT, PACE, Shop, some
from labkit.cluster.streams import stream_names


class orders_stopped(Shop):
    cause = "filter matches nothing"
    consumer = {"filter_subject": "order.*"}
    repeats = True
    report = (
        "Orders stopped at 14:03, when operations rebuilt the consumer of billing. "
        "The shop takes orders as before, billing runs and logs nothing. "
        "Its lag is 0, says the dashboard."
    )
    hints = [
        "Which messages are in the stream, and which does the consumer count as its own?",
        "Pending 0 and delivered 0 while the stream grows: "
        "for this consumer none of the messages exists.",
        "Compare the consumer's filter_subject with the subject of a message, letter by letter. "
        "Once the filter is right, think of the orders that the consumer has passed by: "
        "await js.reset_consumer(stream, consumer, seq).",
    ]

    @staticmethod
    async def repair(js):
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.filter_subject = "orders.*"
        await js.add_consumer("ORDERS", config)  # updates the one that is there
        await js.reset_consumer("ORDERS", "billing", 1)  # back to the first order

    def symptom(self):
        return len(self.accepted) > 8 and not self.handled


async def handle_gifts(msg, process):
    order = json.loads(msg.data)
    if order["gift"]:
        return await process(order)  # gifts are wrapped by hand: nothing else to do
    await process(order)
    await msg.ack()


class queue_stands_still(Shop):
    cause = "ack pending limit reached"
    level = 2
    consumer = {"max_ack_pending": 5, "ack_wait": 3600}
    repeats = True
    report = (
        "Billing worked for a moment after last night's release, then it fell silent. "
        "Orders pile up. "
        "Its process lives, uses no CPU and logs nothing. "
        "More copies of it did not help."
    )
    hints = [
        "nats consumer info shows four numbers. One of them stands at its limit.",
        "Outstanding Acks 5 out of 5: five messages are in the hands of billing, "
        "which takes them for done. "
        "Read its handler: inspect.getsource(case.settings['handler']).",
        "One branch never acks. After the redeploy the five are still out "
        "until ack wait (an hour) is over: shorten it.",
    ]

    @staticmethod
    async def repair(case, lab, js):
        async def handle(msg, process):
            await process(json.loads(msg.data))
            await msg.ack()

        await case.redeploy(handler=handle)
        before = await js.consumer_info("ORDERS", "billing")
        config = before.config.evolve(ack_wait=1)  # what is out for longer comes back now
        await js.add_consumer("ORDERS", config)

        async def answered():
            floor = (await js.consumer_info("ORDERS", "billing")).ack_floor
            return floor.stream_seq >= before.delivered.stream_seq

        await lab.until(answered)
        await js.add_consumer("ORDERS", before.config)

    def defaults(self):
        return {**super().defaults(), "handler": handle_gifts}

    def symptom(self):
        gifts = [number for number in set(self.handled) if self.order(number)["gift"]]
        return len(self.accepted) > len(self.handled) + 8 and len(gifts) >= 5


class after_the_maintenance(Shop):
    cause = "consumer paused"
    report = (
        "Billing handles nothing since the maintenance on Sunday. "
        "The change log says: 'orders held back for an hour'. "
        "It is Tuesday."
    )
    hints = [
        "The backlog grows, nothing is out, and billing waits: "
        "the server has what billing asks for, and does not hand it out.",
        "Look at the whole of await js.consumer_info('ORDERS', 'billing'), "
        "not at its numbers only.",
        "pause_until lies in the year 2099. nats consumer resume ORDERS billing.",
    ]

    @staticmethod
    async def repair(js):
        await js.resume_consumer("ORDERS", "billing")

    async def strike(self):
        await self.lab.until(lambda: len(self.handled) >= 5)
        await self.js.pause_consumer("ORDERS", "billing", "2099-01-01T00:00:00Z")

    def symptom(self):
        return len(self.accepted) > len(self.handled) + 8


BAD = 16  # one order in so many has no amount


async def handle_again(msg, process):
    try:
        await process(json.loads(msg.data))
    except ValueError:
        await msg.nak()  # did not work: once more
    else:
        await msg.ack()


class one_order_for_ever(Shop):
    cause = "poison message"
    level = 2
    stream = {**Shop.stream, "retention": "workqueue"}
    report = (
        "Billing is at 100 % CPU and bills hardly anybody. "
        "The queue grows. "
        "Up to order 3 all was well."
    )
    hints = [
        "billing is busy: with what? Fetch nothing; "
        "look at the consumer's redelivered, and at the first message that is not acked.",
        "await js.get_msg('ORDERS', seq): order 4 has no amount. "
        "The handler naks it, and a nak brings it back at once, before all others.",
        "Deleting it, or acking it, loses an order, and helps until the next one. "
        "A message that can never work is kept in another stream, and then terminated.",
    ]

    @staticmethod
    async def repair(case, js):
        await js.add_stream(name="DEAD", subjects=["dead.orders"])

        async def handle(msg, process):
            try:
                await process(json.loads(msg.data))
            except ValueError:
                await js.publish("dead.orders", msg.data)  # kept, for somebody to look at
                await msg.term()
            else:
                await msg.ack()

        await case.redeploy(handler=handle)

    def defaults(self):
        return {**super().defaults(), "handler": handle_again}

    def order(self, number):
        order = super().order(number)
        if number == 4 or number % BAD == 0:
            del order["amount"]
        return order

    def symptom(self):
        return self.tried.count(4) > 50 and len(self.accepted) > len(self.handled) + 10

    async def also_healthy(self):
        left = (await self.js.stream_info("ORDERS")).state.messages
        if left:
            raise Unwell(
                f"{left} messages lie in the work queue, and no consumer will hand them out again"
            )
        bad = {number for number in self.accepted if "amount" not in self.order(number)}
        if billed := sorted(bad & set(self.handled)):
            raise Unwell(
                f"orders flow, and orders without an amount were billed ({some(billed)}): "
                "with one that nobody has agreed to"
            )
        kept = await self._kept()
        if lost := sorted(bad - kept):
            raise Unwell(
                f"orders flow, and {len(lost)} orders that could not be billed are in no stream "
                f"any more: {some(lost)}. Nobody can look at them"
            )

    async def _kept(self):
        """Numbers of the orders that some other stream keeps (set). Raises Unwell if it keeps them
        for a while only."""
        kept = set()
        for name in await stream_names(self.lab.nc) - {"ORDERS"}:
            info = await self.js.stream_info(name)
            for seq in range(info.state.first_seq, info.state.last_seq + 1):
                with contextlib.suppress(NotFoundError):  # it was deleted
                    data = (await self.js.get_msg(name, seq)).data or b""
                    kept |= {int(number) for number in re.findall(rb"order\W+(\d+)", data)}
            if kept and info.config.storage != "file":
                raise Unwell(f"orders flow, and stream {name}, which keeps the bad ones, is memory")
            if kept and info.config.max_age and info.config.max_age < NIGHT:
                raise Unwell(
                    f"orders flow, and stream {name} keeps the bad ones for "
                    f"{info.config.max_age:g} s: who looks at them as soon?"
                )
            room = info.config.max_msgs or -1
            if kept and 0 < room < NIGHT * PACE / BAD:
                raise Unwell(
                    f"orders flow, and stream {name}, which keeps the bad ones, has room for "
                    f"{room}: at {PACE} orders a second, of which 1 in {BAD} is bad, that is "
                    f"{room * BAD / PACE:.3g} s"
                )
        return kept


class every_second_invoice(Shop):
    cause = "two apps on one durable"
    level = 2
    consumer = None
    kinds = ("created", "shipped")
    wants = {"created": "billing", "shipped": "shipping"}
    repeats = True
    report = (
        "Since shipping went live, about half of the new orders get no invoice, "
        "and shipping has not sent one parcel. "
        "Both programs are up, both start without an error."
    )
    hints = [
        "How many consumers has ORDERS, and how many apps read from it? nats consumer ls ORDERS.",
        "Both apps bind to one durable. It keeps the filter of the app that came first, "
        "and each message goes to one of the two.",
        "Two apps that both need their messages need two consumers: a durable each. "
        "Shipping has acked orders that billing never saw. They are still in the stream: "
        "await js.reset_consumer(stream, consumer, seq).",
    ]

    @staticmethod
    async def repair(case, js):
        await case.redeploy(shipping_durable="shipping")
        await js.reset_consumer("ORDERS", "worker", 1)  # billing sees all its orders again

    def defaults(self):
        return {
            **super().defaults(),
            "durable": "worker",
            "filter_subject": "orders.created",
            "shipping_durable": "worker",
            "shipping_filter": "orders.shipped",
        }

    def apps(self):
        return {**super().apps(), "shipping": self.shipping}

    async def shipping(self):
        if not await self._consumer_names():  # billing is the older one
            await asyncio.sleep(0.05)
            return
        durable, subject = self.settings["shipping_durable"], self.settings["shipping_filter"]
        await self.worker("shipping", durable, subject)

    def symptom(self):
        billed = {n for n in self.handled if self.order(n)["kind"] == "created"}
        return len(billed) > 3 and len(self.accepted) > 25 and billed == set(self.handled)

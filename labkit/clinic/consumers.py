"""Cases in which messages are stored and do not get through to the work, or get there too often."""

import asyncio
import json

from labkit.clinic.case import Unwell
from labkit.clinic.shop import Shop


class orders_stopped(Shop):
    cause = "filter matches nothing"
    consumer = {"filter_subject": "order.*"}
    repeats = True
    report = (
        "Orders stopped at 14:03, when operations rebuilt the consumer of billing. The shop takes"
        " orders as before, billing runs and logs nothing. Its lag is 0, says the dashboard."
    )
    hints = [
        "Which messages are in the stream, and which does the consumer count as its own?",
        (
            "Pending 0 and delivered 0 while the stream grows: for this consumer none of the"
            " messages exists."
        ),
        (
            "Compare the consumer's filter_subject with the subject of a message, letter by letter."
            " With the filter mended, mind the orders that it has passed by: await"
            " js.reset_consumer(stream, consumer, seq)."
        ),
    ]
    repair = """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.filter_subject = "orders.*"
        await js.add_consumer("ORDERS", config)  # updates the one that is there
        await js.reset_consumer("ORDERS", "billing", 1)  # back to the first order"""
    wrong = {
        "only the app's setting": (
            'await case.redeploy(filter_subject="orders.*")',
            "billing: 0 pending",
        ),
        "still a letter off": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.filter_subject = "Orders.*"
        await js.add_consumer("ORDERS", config)""",
            "billing: 0 pending",
        ),
        "only from now on": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.filter_subject = "orders.*"
        await js.add_consumer("ORDERS", config)""",
            "without an error that were never handled",
        ),
    }

    def symptom(self):
        return len(self.accepted) > 8 and not self.handled


async def handle_gifts(msg, process):
    order = json.loads(msg.data)
    if order["gift"]:
        return await process(order)  # gifts are wrapped by hand: nothing else to do
    await process(order)
    await msg.ack()


class queue_stands_still(Shop):
    cause, level = "ack pending limit reached", 2
    consumer = {"max_ack_pending": 5, "ack_wait": 3600}
    repeats = True
    report = (
        "Billing worked for a moment after last night's release, then it fell silent. Orders pile"
        " up. Its process lives, uses no CPU and logs nothing. More copies of it did not help."
    )
    hints = [
        "nats consumer info shows four numbers. One of them stands at its limit.",
        (
            "Outstanding Acks 5 out of 5: five messages are in the hands of billing, which holds"
            " them for done. Read its handler: inspect.getsource(case.settings['handler'])."
        ),
        (
            "One branch never acks. After the redeploy the five are still out until ack wait (an"
            " hour) is over: shorten it."
        ),
    ]
    repair = """
        import json

        async def handle(msg, process):
            await process(json.loads(msg.data))
            await msg.ack()

        await case.redeploy(handler=handle)
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.ack_wait = 1                              # what is out for longer comes back now
        await js.add_consumer("ORDERS", config)"""
    wrong = {
        "restart": ("await case.redeploy()", "5 out without an answer (limit 5)"),
        "a higher limit": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.max_ack_pending = 1000
        await js.add_consumer("ORDERS", config)""",
            "are not answered",
        ),
    }

    def defaults(self):
        return {**super().defaults(), "handler": handle_gifts}

    def symptom(self):
        gifts = sum(self.order(number)["gift"] for number in set(self.handled))
        return len(self.accepted) > len(self.handled) + 8 and gifts >= 5


class after_the_maintenance(Shop):
    cause = "consumer paused"
    report = (
        "Billing handles nothing since the maintenance on Sunday. The change log says: 'orders held"
        " back for an hour'. It is Tuesday."
    )
    hints = [
        (
            "The backlog grows, nothing is out, and billing waits: the server has what is wanted"
            " and does not hand it out."
        ),
        (
            "Look at the whole of await js.consumer_info('ORDERS', 'billing'), not at its numbers"
            " only."
        ),
        "pause_until lies in the year 2099. nats consumer resume ORDERS billing.",
    ]
    repair = """
        await js.resume_consumer("ORDERS", "billing")"""
    wrong = {
        "restart": ("await case.redeploy()", "0 out without an answer"),
        "another consumer": (
            'await case.redeploy(durable="billing-2")',
            "orders were handled twice",
        ),
    }
    spoils = ("another consumer",)

    async def strike(self):
        await self.until(lambda: len(self.handled) >= 5, 5)
        await self.js.pause_consumer("ORDERS", "billing", "2099-01-01T00:00:00Z")

    def symptom(self):
        return len(self.accepted) > len(self.handled) + 8


async def handle_again(msg, process):
    try:
        await process(json.loads(msg.data))
    except ValueError:
        await msg.nak()  # did not work: once more
    else:
        await msg.ack()


class one_order_for_ever(Shop):
    cause, level = "poison message", 2
    stream = {**Shop.stream, "retention": "workqueue"}
    report = (
        "Billing is at 100 % CPU and bills hardly anybody. The queue grows. Up to order 3 all was"
        " well."
    )
    hints = [
        (
            "billing is busy: with what? Fetch nothing; look at the consumer's redelivered, and at"
            " the first message that is not acked."
        ),
        (
            "await js.get_msg('ORDERS', seq): order 4 has no amount. The handler naks it, and a nak"
            " brings it back at once, before all others."
        ),
        (
            "Deleting it helps until the next one. A message that can never work is put aside and"
            " terminated."
        ),
    ]
    repair = """
        import json

        await js.add_stream(name="DEAD", subjects=["dead.orders"])

        async def handle(msg, process):
            try:
                await process(json.loads(msg.data))
            except ValueError:
                await js.publish("dead.orders", msg.data)     # kept, for somebody to look at
                await msg.term()
            else:
                await msg.ack()

        await case.redeploy(handler=handle)"""
    wrong = {
        "delete the message": (
            """
        info = await js.consumer_info("ORDERS", "billing")
        await js.delete_msg("ORDERS", info.ack_floor.stream_seq + 1)""",
            "was handed out",
        ),
        "max_deliver": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.max_deliver = 5
        await js.add_consumer("ORDERS", config)""",
            "no consumer will hand",
        ),
        "purge": ('await js.purge_stream("ORDERS")', "never handled"),
    }
    spoils = ("max_deliver", "purge")

    async def well_too(self):
        if left := (await self.js.stream_info("ORDERS")).state.messages:
            raise Unwell(
                f"{left} messages lie in the work queue, and no consumer will hand them out again"
            )

    def defaults(self):
        return {**super().defaults(), "handler": handle_again}

    def order(self, number):
        order = super().order(number)
        if number == 4 or number % 16 == 0:
            del order["amount"]
        return order

    def symptom(self):
        return self.tried.count(4) > 50 and len(self.accepted) > len(self.handled) + 10


class every_second_invoice(Shop):
    cause, level = "two apps on one durable", 2
    consumer, new_only, repeats = None, True, True
    kinds, wants = ("created", "shipped"), {"created": "billing", "shipped": "shipping"}
    report = (
        "Since shipping went live, about half of the new orders get no invoice, and shipping has"
        " not sent one parcel. Both programs are up, both start without an error."
    )
    hints = [
        "How many consumers has ORDERS, and how many apps read from it? nats consumer ls ORDERS.",
        (
            "Both apps bind to one durable; it keeps the filter of whoever came first, and shares"
            " its messages out among the two."
        ),
        "Two apps that both need their messages need two consumers: a durable each.",
    ]
    repair = """
        await case.redeploy(shipping_durable="shipping")"""
    wrong = {
        "one filter for both": (
            """
        config = (await js.consumer_info("ORDERS", "worker")).config
        config.filter_subject = "orders.*"
        await js.add_consumer("ORDERS", config)""",
            "never handled",
        ),
        "another filter at its start": (
            'await case.redeploy(shipping_filter="orders.*")',
            "never handled",
        ),
    }

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
        consumers = await self.js.consumers_info("ORDERS")
        if not consumers:  # billing is the older one
            return await asyncio.sleep(0.05)
        await self.worker(
            "shipping", self.settings["shipping_durable"], self.settings["shipping_filter"]
        )

    def symptom(self):
        billed = {n for n in self.handled if self.order(n)["kind"] == "created"}
        return len(billed) > 3 and len(self.accepted) > 25 and len(billed) == len(set(self.handled))

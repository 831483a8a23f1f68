"""Cases in which messages are not stored as somebody thinks they are."""

import json

from labkit.clinic.case import Unwell
from labkit.clinic.shop import Shop


class nothing_is_stored(Shop):
    cause = "no stream"
    report = (
        "The shop has moved to a new cluster. Since then every order ends in an error page. "
        "The same code worked on the old cluster."
    )
    hints = [
        "The log of the shop names an error, and nats-py's words for it are those of a request: "
        "nobody answered.",
        "js.publish is answered by a stream. "
        "Which streams are there? nats stream ls, or await lab.streams().",
        "There is none. Which subjects must it take, so that the shop's subject is one of them?",
    ]

    @staticmethod
    async def repair(js):
        await js.add_stream(name="ORDERS", subjects=["orders.>"])

    async def setup(self):
        """There is no stream."""

    def symptom(self):
        return len(self.refused) > 5 and not self.accepted


class europe_is_missing(Shop):
    cause = "stream subjects too narrow"
    stream = {"name": "ORDERS", "subjects": ["orders.*"]}
    kinds = ("created", "created.eu")
    wants = {}
    new_only = True
    report = (
        "Orders from Europe have never been billed since we opened there in spring. "
        "All others are fine. "
        "No log holds an error; the shop sends its orders with nc.publish."
    )
    hints = [
        "nc.publish asks for no answer, so nobody tells the shop that nothing stored its message.",
        "Compare the subject of a European order, token by token, "
        "with the subjects of the stream: nats stream info ORDERS.",
        "* stands for exactly one token; orders.created.eu has one more. > stands for one or more.",
    ]

    @staticmethod
    async def repair(js):
        config = (await js.stream_info("ORDERS")).config
        config.subjects = ["orders.>"]
        await js.update_stream(config)

    async def send(self, nc, subject, order):
        await nc.publish(subject, json.dumps(order).encode())

    def symptom(self):
        kinds = {self.order(number)["kind"] for number in self.handled}
        return len(self.handled) > 5 and kinds == {"created"}


class second_order_vanishes(Shop):
    cause = "new messages taken for duplicates"
    level = 2
    new_only = True
    repeats = True
    report = (
        "Customers who order a second time never get it. "
        "Their first orders arrive. "
        "The shop's log is clean: each order was stored, it says. "
        "It sends each order twice, a second time for safety."
    )
    hints = [
        "The shop does not look at the answer. What does js.publish return? "
        "Publish something yourself and look at all of it.",
        "duplicate=True: the stream has seen this Nats-Msg-Id within its duplicate window, "
        "and stores nothing.",
        "case.settings['msg_id'] is made of what an order shares with others. "
        "What does one order alone have?",
    ]

    @staticmethod
    async def repair(case):
        await case.redeploy(msg_id="order-{order}")

    def defaults(self):
        return {**super().defaults(), "msg_id": "{customer}"}

    async def send(self, nc, subject, order):
        await super().send(nc, subject, order)
        await super().send(nc, subject, order)

    def symptom(self):
        return len(self.accepted) > 15 and len(self.handled) == 5


class shop_is_closed(Shop):
    cause = "stream full, discard new"
    stream = {**Shop.stream, "max_msgs": 20, "discard": "new"}
    report = (
        "The shop opened this morning and refused all orders half an hour later. "
        "Billing is idle and up to date; restarting it changes nothing."
    )
    hints = [
        "The log of the shop holds the words of the server, not of the client.",
        "A limits stream keeps messages after they are acked. "
        "How many does ORDERS hold, and how many may it hold? nats stream info ORDERS.",
        "max_msgs is 20 and discard is new: the 21st message is refused. "
        "Emptying it helps for 20 messages.",
    ]

    @staticmethod
    async def repair(js):
        config = (await js.stream_info("ORDERS")).config
        config.max_msgs = 1_000_000
        config.max_age = 7 * 24 * 3600
        await js.update_stream(config)

    async def _at_rest(self, start):
        config = (await self.js.stream_info("ORDERS")).config
        if config.discard == "old":
            raise Unwell(
                f"the stream drops its oldest orders at {config.max_msgs} messages, handled or not"
            )
        await super()._at_rest(start)

    def symptom(self):
        return len(self.refused) > 5 and len(self.handled) == 20

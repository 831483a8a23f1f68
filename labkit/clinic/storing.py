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
        (
            "The log of the shop names an error, and nats-py's words for it are those of a request:"
            " nobody answered."
        ),
        (
            "js.publish is answered by a stream. Which streams are there? nats stream ls, or await"
            " lab.streams()."
        ),
        "There is none. Which subjects must it take, so that the shop's subject is one of them?",
    ]
    repair = """
        await js.add_stream(name="ORDERS", subjects=["orders.>"])"""
    wrong = {
        "without subjects": ('await js.add_stream(name="ORDERS")', "NoStreamResponseError"),
        "restart": ("await case.redeploy()", "NoStreamResponseError"),
    }
    spoils = ("without subjects",)

    async def setup(self): ...

    def symptom(self):
        return len(self.refused) > 5 and not self.accepted


class europe_is_missing(Shop):
    cause = "stream subjects too narrow"
    stream = {"name": "ORDERS", "subjects": ["orders.*"]}
    kinds, wants, new_only = ("created", "created.eu"), {}, True
    report = (
        "Orders from Europe have never been billed since we opened there in spring. All others are"
        " fine. No log holds an error; the shop sends its orders with nc.publish."
    )
    hints = [
        "nc.publish asks for no answer, so nobody tells the shop that nothing stored its message.",
        (
            "Compare the subject of a European order, token by token, with the subjects of the"
            " stream: nats stream info ORDERS."
        ),
        "* stands for exactly one token; orders.created.eu has one more. > stands for one or more.",
    ]
    repair = """
        config = (await js.stream_info("ORDERS")).config
        config.subjects = ["orders.>"]
        await js.update_stream(config)"""
    wrong = {
        "wider consumer": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.filter_subject = "orders.>"
        await js.add_consumer("ORDERS", config)""",
            "Stream ORDERS takes orders.*",
        ),
        "Europe only": (
            """
        config = (await js.stream_info("ORDERS")).config
        config.subjects = ["orders.created.*"]
        await js.update_stream(config)""",
            "never handled",
        ),
    }

    async def send(self, nc, subject, order):
        await nc.publish(subject, json.dumps(order).encode())

    def symptom(self):
        return len(self.handled) > 5 and all(
            self.order(number)["kind"] == "created" for number in self.handled
        )


class second_order_vanishes(Shop):
    cause, level = "new messages taken for duplicates", 2
    new_only = repeats = True
    report = (
        "Customers who order a second time never get it. Their first orders arrive. The shop's log"
        " is clean: each order was stored, it says. It sends each order twice, a second time for"
        " safety."
    )
    hints = [
        (
            "The shop looks at no answer. What does js.publish return? Publish something yourself"
            " and look at all of it."
        ),
        (
            "duplicate=True: the stream has seen this Nats-Msg-Id within its duplicate window, and"
            " stores nothing."
        ),
        (
            "case.settings['msg_id'] is made of what an order shares with others. What is an"
            " order's alone?"
        ),
    ]
    repair = """
        await case.redeploy(msg_id="order-{order}")"""
    wrong = {
        "no id at all": ('await case.redeploy(msg_id="")', "orders were handled twice"),
        "still shared": ('await case.redeploy(msg_id="{customer}-{kind}")', "never handled"),
    }

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
        "The shop opened this morning and refused all orders half an hour later. Billing is idle"
        " and up to date; restarting it changes nothing."
    )
    hints = [
        "The log of the shop holds the words of the server, not of the client.",
        (
            "A limits stream keeps messages after they are acked. How many does ORDERS hold, and"
            " how many may it? nats stream info ORDERS."
        ),
        (
            "max_msgs is 20 and discard is new: the 21st message is refused. Emptying it helps for"
            " 20 messages."
        ),
    ]
    repair = """
        config = (await js.stream_info("ORDERS")).config
        config.max_msgs, config.max_age = 1_000_000, 7 * 24 * 3600
        await js.update_stream(config)"""
    wrong = {
        "purge": ('await js.purge_stream("ORDERS")', "maximum messages exceeded"),
        "discard old": (
            """
        config = (await js.stream_info("ORDERS")).config
        config.discard = "old"
        await js.update_stream(config)""",
            "drops its oldest orders",
        ),
    }
    spoils = ("discard old",)

    async def _settled(self, start):
        config = (await self.js.stream_info("ORDERS")).config
        if config.discard == "old":
            raise Unwell(
                f"the stream drops its oldest orders at {config.max_msgs} messages, handled or not"
            )
        await super()._settled(start)

    def symptom(self):
        return len(self.refused) > 5 and len(self.handled) == 20

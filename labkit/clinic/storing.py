"""Cases in which messages are not stored as somebody thinks they are."""

import json

from labkit.clinic.case import Unwell
from labkit.clinic.shop import Shop
from labkit.exercises.helpers import comes_true


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
    report = (
        "Orders from Europe have never been billed since we opened there in spring. "
        "All others are fine. "
        "No log holds an error; the shop sends its orders with nc.publish."
    )
    hints = [
        "nc.publish asks for no answer, so nobody tells the shop that nothing stored its message.",
        "Compare the subject of a European order, token by token, "
        "with the subjects of the stream: nats stream info ORDERS.",
        "* stands for exactly one token; orders.created.eu has one more. > stands for one or more. "
        "What came before is nowhere but in the shop's own book: await case.orders(). "
        "await case.send_again(numbers) sends it once more.",
    ]

    @staticmethod
    async def repair(case, js):
        config = (await js.stream_info("ORDERS")).config
        config.subjects = ["orders.>"]
        await js.update_stream(config)
        book = await case.orders()
        await case.send_again(book.index[book["handled"] == 0])

    async def send(self, nc, subject, order):
        await nc.publish(subject, json.dumps(order).encode())

    def symptom(self):
        kinds = {self.order(number)["kind"] for number in self.handled}
        return len(self.handled) > 5 and kinds == {"created"}


class second_order_vanishes(Shop):
    cause = "new messages taken for duplicates"
    level = 2
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
        "What does one order alone have? "
        "The orders that vanished are nowhere but in the shop's own book: await case.orders(), "
        "await case.send_again(numbers).",
    ]

    @staticmethod
    async def repair(case):
        await case.redeploy(msg_id="order-{order}")
        book = await case.orders()
        await case.send_again(book.index[book["handled"] == 0])

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
        "Billing is idle and up to date; restarting it changes nothing. "
        "It may stand still for a night (8 hours), and no order may be lost or refused then; "
        "the shop sends up to 25 orders a second."
    )
    hints = [
        "The log of the shop holds the words of the server, not of the client.",
        "A limits stream keeps messages after they are acked. "
        "How many does ORDERS hold, and how many may it hold? nats stream info ORDERS.",
        "max_msgs is 20 and discard is new: the 21st message is refused. "
        "Emptying it helps for 20 messages, a larger max_msgs for some more. "
        "What lets messages leave the stream, and how many are in it by then?",
    ]

    @staticmethod
    async def repair(js):
        config = (await js.stream_info("ORDERS")).config
        config.max_age = 24 * 3600  # what lets orders go: a day, or 2.2 million orders
        config.max_msgs = 10_000_000
        await js.update_stream(config)

    async def also_healthy(self):
        info = await self.js.stream_info("ORDERS")
        if info.config.retention != "limits" or info.config.max_age:
            return
        # An app that deletes what it has acked does so a moment later.
        if not await comes_true(self._is_empty, self.patience):
            info = await self.js.stream_info("ORDERS")
            raise Unwell(
                f"orders flow, and none of the {info.state.messages} in ORDERS ever leaves it: "
                "acks do not remove them (retention=limits), and there is no max_age"
            )

    async def _is_empty(self):
        return not (await self.js.stream_info("ORDERS")).state.messages

    def symptom(self):
        return len(self.refused) > 5 and len(self.handled) == 20

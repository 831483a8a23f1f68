"""A case that needs real processes: their event loops stand still, and nobody else's."""

import asyncio
import json
import math
import time

from nats.errors import NoRespondersError

from labkit.clinic.case import Unwell
from labkit.clinic.shop import Shop
from labkit.exercises.helpers import comes_true
from labkit.processes import workers
from labkit.waiting import until
from labkit.wire.record import Recorder

WORKER = """
import asyncio
import json
import time

def charge(order):                       # the bank's own library
    time.sleep(1.2)

async def beat(msg):                     # keeps ack wait from running out
    while True:
        await asyncio.sleep(0.15)
        await msg.in_progress()

async def work(nc, js, point, me):
    async def fine(msg):
        await msg.respond(b"fine")
    await nc.subscribe(f"billing.health.{me}", cb=fine)
    sub = await js.pull_subscribe_bind("billing", "ORDERS")
    while True:
        try:
            msg = (await sub.fetch(1, timeout=1))[0]
        except TimeoutError:
            continue
        order = json.loads(msg.data)["order"]
        beating = asyncio.create_task(beat(msg))
        charge(order)
        await point("charged", order=order)
        beating.cancel()
        await msg.ack()
""".lstrip()


class charged_twice(Shop):
    cause = "blocked event loop"
    level = 3
    consumer = {"ack_wait": 0.8}
    report = (
        "Customers are charged twice since billing uses the bank's own library. "
        "The health probe of billing fails every now and then. "
        "Its heartbeat keeps each message for as long as the bank needs, says its author."
    )
    hints = [
        "Two workers, one order: the message came back. "
        "Was the first worker's heartbeat on the wire? Read print(case.settings['worker']).",
        "billing.health.A does not answer either while a charge runs: "
        "everything in that process stands still, the heartbeat too.",
        "charge() blocks the event loop for 1.2 s. "
        "A thread may wait for the bank instead: asyncio.to_thread.",
    ]

    @staticmethod
    async def repair(case):
        fixed = case.settings["worker"].replace(
            "    charge(order)", "    await asyncio.to_thread(charge, order)"
        )
        await case.redeploy(worker=fixed)

    def __init__(self, lab):
        super().__init__(lab)
        self.charges = Recorder()

    def defaults(self):
        return {"worker": WORKER}

    def apps(self):
        return {"billing A": lambda: self.process("A"), "billing B": lambda: self.process("B")}

    def well(self):
        return (
            "Four new orders were charged once each, and both workers answered their probes "
            "meanwhile."
        )

    async def setup(self):
        await super().setup()
        await self._publish(3)

    async def _publish(self, count):
        """Publishes so many new orders. Returns their numbers (range)."""
        new = range(self.number + 1, self.number + 1 + count)
        for number in new:
            await self.js.publish("orders.created", json.dumps({"order": number}).encode())
        self.number = new[-1]
        return new

    async def process(self, me):
        workers.write(self.lab.topic, "billing.py", self.settings["worker"])
        worker = await self.lab.worker("billing.py", f"billing {me}", self.charges, me=me)
        try:
            await until(lambda: self.stopping.is_set() or not worker.alive, timeout=math.inf)
        finally:
            worker.kill()
            await worker.ended()
            if worker in self.lab.workers:  # else the lesson's own end has come first
                self.lab.workers.remove(worker)

    def symptom(self):
        return self._charged_twice(range(1, self.number + 1))

    def _charged_twice(self, orders):
        return [number for number in orders if self.charges.count("charged", order=number) > 1]

    async def healthy(self):
        sent = time.perf_counter() - self.charges.start
        new = await self._publish(4)

        async def all_charged():
            # Both at once: one after the other they can fall into step with charges half a charge
            # apart.
            answered = await asyncio.gather(self._probe("A"), self._probe("B"))
            await self._none_is_lost()
            return all(answered) and len(self._charged(new)) == len(new)

        if not await comes_true(all_charged, 20):
            raise Unwell(await self._what_is_missing(new))
        if twice := self._charged_twice(new):
            raise Unwell(f"orders {twice} were charged twice.")
        took = min(self._charged(new).values()) - sent
        if took < 1.2:
            raise Unwell(
                f"an order was charged {took:.1f} s after it was sent, and the bank takes 1.2 s: "
                "did the bank hear of it?"
            )
        if not await comes_true(self._nothing_is_out, self.patience):
            raise Unwell(
                f"all new orders are charged, not all are answered. {await self.numbers()}"
            )

    def _charged(self, orders):
        """{number: when it was charged} of those that were."""
        events = [event for event in self.charges.events if event["event"] == "charged"]
        return {event["order"]: event["at"] for event in events if event["order"] in orders}

    async def _none_is_lost(self):
        """Raises Unwell if the server no longer holds an order that is not charged."""
        info = await self._consumer("billing")
        await asyncio.sleep(0.2)  # what is charged is heard of a moment later
        orders = range(1, self.number + 1)
        uncharged = len(orders) - len(self._charged(orders))
        if info and info.num_pending + info.num_ack_pending < uncharged:
            raise Unwell(
                f"{uncharged} orders were not charged yet, and the server held "
                f"{info.num_pending + info.num_ack_pending} of them: the others were answered too "
                "soon, or given up, and a worker that dies loses them."
            )

    async def _nothing_is_out(self):
        info = await self._consumer("billing")
        return info and info.num_pending + info.num_ack_pending + info.num_redelivered == 0

    async def _probe(self, me):
        """True if this worker answers, False if nobody listens (a process takes a moment to start).
        Raises Unwell if it listens and does not answer."""
        try:
            await self.lab.nc.request(f"billing.health.{me}", timeout=0.7)
            return True
        except NoRespondersError:
            return False
        except TimeoutError:
            raise Unwell(f"worker {me} did not answer its health probe within 0.7 s.") from None

    async def _what_is_missing(self, new):
        """What is not as it should be 20 s after these orders (text)."""
        for me in "AB":
            if not await self._probe(me):
                return f"worker {me} is not there: nobody listens on billing.health.{me}."
        return (
            f"not all of orders {new[0]} to {new[-1]} were charged within 20 s. "
            f"{await self.numbers()}"
        )

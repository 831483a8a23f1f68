"""A case that needs real processes: their event loops stand still, and nobody else's."""

import asyncio
import json

from nats.errors import NoRespondersError

from labkit.clinic.case import Unwell
from labkit.clinic.shop import Shop
from labkit.processes import workers
from labkit.wire.record import Recorder

WORKER = """
import asyncio, json, time

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
        except asyncio.TimeoutError:
            continue
        order, beating = json.loads(msg.data)["order"], asyncio.create_task(beat(msg))
        charge(order)
        await point("charged", order=order)
        beating.cancel()
        await msg.ack()
""".lstrip()


class charged_twice(Shop):
    cause, level = "blocked event loop", 3
    consumer = {"ack_wait": 0.8}
    report = (
        "Customers are charged twice since billing uses the bank's own library. The health probe of"
        " billing fails every now and then. Its heartbeat keeps each message for as long as the"
        " bank needs, says its author."
    )
    hints = [
        (
            "Two workers, one order: the message came back. Was the first worker's heartbeat on the"
            " wire? Read print(case.settings['worker'])."
        ),
        (
            "billing.health.A does not answer either while a charge runs: everything in that"
            " process stands still, the heartbeat too."
        ),
        (
            "charge() blocks the event loop for 1.2 s. A thread may wait for the bank instead:"
            " asyncio.to_thread."
        ),
    ]
    repair = """
        fixed = case.settings["worker"].replace(
            "    charge(order)", "    await asyncio.to_thread(charge, order)")
        await case.redeploy(worker=fixed)"""
    wrong = {
        "longer ack wait": (
            """
        config = (await js.consumer_info("ORDERS", "billing")).config
        config.ack_wait = 30
        await js.add_consumer("ORDERS", config)""",
            "did not answer its health probe",
        )
    }

    def defaults(self):
        return {"worker": WORKER}

    def apps(self):
        return {"billing A": lambda: self.process("A"), "billing B": lambda: self.process("B")}

    def well(self):
        return (
            "Four new orders were charged once each, and both workers answered their probes"
            " meanwhile."
        )

    async def setup(self):
        await super().setup()
        self.charges = Recorder()
        for number in range(1, 4):
            await self.js.publish("orders.created", json.dumps({"order": number}).encode())
            self.number = number

    async def process(self, me):
        workers.write(self.lab.topic, "billing.py", self.settings["worker"])
        worker = await self.lab.worker("billing.py", f"billing {me}", self.charges, me=me)
        try:
            while worker.alive and not self._stopping.is_set():
                await asyncio.sleep(0.02)
        finally:
            worker.kill()
            await worker.ended()
            if worker in self.lab.workers:  # else the lesson's own end has come first
                self.lab.workers.remove(worker)

    def symptom(self):
        return any(
            self.charges.count("charged", order=number) > 1 for number in range(1, self.number + 1)
        )

    async def _probe(self, me, begun):
        try:
            await self.lab.nc.request(f"billing.health.{me}", timeout=0.7)
        except NoRespondersError:
            if asyncio.get_running_loop().time() - begun > 10:  # a process needs a moment to start
                raise Unwell(
                    f"worker {me} is not there: nobody listens on billing.health.{me}."
                ) from None
        except TimeoutError:
            raise Unwell(f"worker {me} did not answer its health probe within 0.7 s.") from None

    async def healthy(self):
        new = range(self.number + 1, self.number + 5)
        for number in new:
            await self.js.publish("orders.created", json.dumps({"order": number}).encode())
        self.number = new[-1]
        begun = asyncio.get_running_loop().time()
        while not all(self.charges.count("charged", order=number) for number in new):
            # Both at once: one after the other they can fall into step with charges half a charge
            # apart.
            await asyncio.gather(*(self._probe(me, begun) for me in "AB"))
            if asyncio.get_running_loop().time() - begun > 20:
                raise Unwell(
                    f"not all of orders {new[0]} to {new[-1]} were charged within 20 s. "
                    f"{await self.numbers()}"
                )
            await asyncio.sleep(0.1)
        if twice := [number for number in new if self.charges.count("charged", order=number) > 1]:
            raise Unwell(f"orders {twice} were charged twice.")

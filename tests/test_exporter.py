"""The two programs of the lesson "monitoring" while nodes die: no alert clears because nobody
answers, and no trouble that passes ends a program. What is deleted goes, and a program says so."""

import ast
import asyncio
import contextlib

import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lessons
from labkit.cluster import nodes
from labkit.errors import LabError
from labkit.processes import workers
from labkit.wire.record import Recorder
from labkit.wire.samplers import regularly

BOOK = lessons.sources("monitoring")
SHOP = ("billing", "mail", "packer", "shipping")
FACTS = [
    f"lesson_consumer_{fact}"
    for fact in ("pending", "ack_pending", "waiting", "redelivered", "max_ack_pending")
]


def rules():
    """RULES of the lesson, as they stand in its cell."""
    [found] = [
        node.value
        for node in ast.parse(BOOK["metrics"]).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RULES"
    ]
    return ast.literal_eval(found)


async def stream(lab, name="SHOP", replicas=1, consumers=SHOP):
    """The stream, with these consumers, and one message for `billing` that nobody takes."""
    await lab.js.add_stream(name=name, subjects=[f"{name.lower()}.*"], num_replicas=replicas)
    for durable in consumers:
        await lab.js.add_consumer(
            name,
            durable_name=durable,
            filter_subject=f"{name.lower()}.{durable}",
            ack_policy="explicit",
        )
    await lab.settled(name)
    await lab.js.publish(f"{name.lower()}.billing")


async def start(lab, name, around=None, **options):
    """Starts `processor` or `exporter`, as the notebook has them; around: source of a module that
    runs it instead. Returns the Worker, and the port on which it serves."""
    for file in ("processor", "exporter"):
        magic, _, body = BOOK[file].partition("\n")
        assert magic == f"%%worker {file}.py"
        workers.write(lab.topic, f"{file}.py", body)
    if around:
        workers.write(lab.topic, "around.py", around)
    log = Recorder()
    worker = await lab.worker("around.py" if around else f"{name}.py", name, log, **options)
    await lab.until(lambda: log.count("serving"), timeout=20)
    return worker, log.last("serving")["port"]


def scrape(port):
    """What /metrics says: a row a consumer, a column a metric. None if nobody answers there."""
    try:
        with nodes.DIRECT.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return None
    found = {}
    for family in families:
        if family.name.startswith("lesson_"):
            for sample in family.samples:
                found.setdefault(sample.labels["consumer"], {})[sample.name] = sample.value
    return pd.DataFrame.from_dict(found, orient="index").sort_index()


class Watch:
    """Scrapes the exporter all the time; each scrape must show all of the shop, and NoWorker at
    `billing`."""

    def __init__(self, port):
        self.port = port
        self.last = None
        self.count = 0
        self.wrong = None  # what was wrong first

    async def look(self):
        self.last = await asyncio.to_thread(scrape, self.port)
        self.count += 1
        wrong = self.what_is_wrong()
        if wrong and not self.wrong:
            self.wrong = f"scrape {self.count}: {wrong}"

    def what_is_wrong(self):
        """What is wrong with the last scrape (text), or None."""
        if self.last is None:
            return "the exporter does not answer"
        if list(self.last.index) != list(SHOP):
            return f"there are series of {list(self.last.index)}"
        if self.last[FACTS].isna().any(axis=None):
            return f"numbers are missing: {self.last}"
        if "billing" not in self.last.query(rules()["NoWorker"]).index:
            return f"NoWorker has cleared at billing: {self.last}"
        return None

    def old(self):
        """The consumers whose numbers are marked as old."""
        assert not self.wrong, self.wrong
        return list(self.last.query(rules()["NoAnswer"]).index)


@contextlib.asynccontextmanager
async def watching(port):
    watch = Watch(port)
    async with regularly(watch.look, every=0.02):
        yield watch
    assert not watch.wrong, watch.wrong


async def pack(lab, processor, number):
    """Publishes so many parcels and waits until the processor has done them."""
    worker, port = processor

    def done():
        assert worker.alive, "the processor has ended"
        return scrape(port).loc["packer", "lesson_messages_done_total"]

    before = done()
    await lab.wait_for_leader("SHOP")
    await lab.settled("SHOP")
    for _ in range(number):
        await lab.js.publish("shop.packer")
    await lab.until(lambda: done() >= before + number)


async def sent(lab):
    """How many messages the processor has sent on its connection."""
    table = await lab.connections()
    return table[table["name"] == "processor"]["in_msgs"].sum()


async def test_while_a_leader_is_dead_alerts_hold_and_the_worker_goes_on(lab):
    await stream(lab, replicas=3)
    for name, node in zip(SHOP, ("n3", "n1", "n3", "n2")):
        await lab.faults.step_down("SHOP", name, to=node)
    await lab.faults.step_down(to="n2")  # the API itself goes on
    processor = await start(lab, "processor", stream="SHOP", durable="packer")
    _, port = await start(lab, "exporter", stream="SHOP")
    await pack(lab, processor, 3)
    async with watching(port) as watch:
        await lab.until(lambda: watch.count > 3)
        assert watch.old() == []
        await lab.faults.kill("n3")
        led = {"billing", "packer"}  # by n3
        await lab.until(lambda: "billing" in watch.old() and set(watch.old()) <= led)
        await lab.until(lambda: not watch.old(), timeout=30)
        await pack(lab, processor, 3)
        await lab.faults.heal()
        await lab.until(lambda: not watch.old(), timeout=30)
    await lab.js.delete_consumer("SHOP", "mail")
    await lab.until(lambda: list(scrape(port).index) == ["billing", "packer", "shipping"])


async def test_without_a_quorum_numbers_stay_and_are_marked_as_old(lab):
    await stream(lab, replicas=3)
    await lab.faults.step_down(to="n2")
    _, port = await start(lab, "exporter", stream="SHOP")
    async with watching(port) as watch:
        await lab.until(lambda: watch.count > 3)
        # The node that the exporter is connected to, and the leader of the meta group.
        await asyncio.gather(lab.faults.kill("n1"), lab.faults.kill("n2"))
        await lab.until(lambda: watch.old() == list(SHOP), timeout=30)
        await lab.faults.heal()
        await lab.until(lambda: not watch.old(), timeout=30)


async def test_a_node_that_was_stopped_leaves_no_zeros_behind(lab):
    """In the list, the consumers of such a node have no name, and only zeros, if nobody else has
    them."""
    await stream(lab)
    node = await lab.wait_for_leader("SHOP")
    processor = await start(lab, "processor", stream="SHOP", durable="packer")
    _, port = await start(lab, "exporter", stream="SHOP")
    async with watching(port) as watch:
        await lab.until(lambda: watch.count > 3)
        await lab.faults.stop(node)
        await lab.until(lambda: watch.old() == list(SHOP), timeout=30)
        before = await sent(lab)

        async def asked_again():
            assert processor[0].alive, "the processor has ended"
            return await sent(lab) >= before + 4

        await lab.until(asked_again, timeout=30)
        await lab.faults.heal()
        await lab.until(lambda: not watch.old(), timeout=30)
    await pack(lab, processor, 3)


async def test_what_is_deleted_goes_and_ends_its_worker(calm):
    await stream(calm)
    worker, _ = await start(calm, "processor", stream="SHOP", durable="packer")
    exporter, port = await start(calm, "exporter", stream="SHOP")
    await calm.js.delete_consumer("SHOP", "packer")
    with pytest.raises(LabError, match="NotFoundError.*consumer not found"):
        await worker.ended()
    await calm.until(lambda: list(scrape(port).index) == ["billing", "mail", "shipping"])
    await calm.js.delete_stream("SHOP")
    await calm.until(lambda: scrape(port).empty)
    assert exporter.alive


CLOSING = """
import exporter
async def work(nc, js, point, stream):
    async def close(event, **fields):
        await point(event, **fields)
        await nc.close()
    await exporter.work(nc, js, close, stream)
"""


async def test_a_connection_that_is_closed_for_good_ends_the_exporter(calm):
    await stream(calm)
    worker, _ = await start(calm, "exporter", CLOSING, stream="SHOP")
    with pytest.raises(LabError, match="ConnectionClosedError"):
        await worker.ended()


IMPATIENT = """
import asyncio, processor
async def handle(msg):
    if msg.data == b"3" and msg.metadata.num_delivered == 1:
        await asyncio.wait_for(asyncio.sleep(60), 0.05)
processor.handle = handle
async def work(nc, js, point, **options):
    await processor.work(nc, js, point, **options)
"""


async def test_a_message_whose_handler_times_out_comes_again_and_the_rest_of_its_batch_is_done(
    calm,
):
    await stream(calm)
    for number in range(10):
        await calm.js.publish("shop.packer", b"%d" % number)
    _, port = await start(calm, "processor", IMPATIENT, stream="SHOP", durable="packer")
    await calm.until(lambda: scrape(port).loc["packer", "lesson_messages_done_total"] == 10)

    async def acked():
        info = await calm.js.consumer_info("SHOP", "packer")
        return info.num_ack_pending == info.num_pending == 0 and info.delivered.consumer_seq == 11

    await calm.until(acked)


async def test_all_consumers_are_served_where_a_list_has_two_pages(calm):
    names = [f"c{number}" for number in range(300)]
    await calm.js.add_stream(name="MANY", subjects=["many"])
    for name in names:
        await calm.js.add_consumer(
            "MANY", durable_name=name, ack_policy="explicit", inactive_threshold=60
        )
    _, port = await start(calm, "exporter", stream="MANY")
    assert sorted(scrape(port).index) == sorted(names)
    await calm.js.delete_consumer("MANY", "c7")
    await calm.until(lambda: set(scrape(port).index) == set(names) - {"c7"})

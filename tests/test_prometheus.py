"""A real Prometheus (Debian's package) scrapes what the lesson "monitoring" serves, and says what
the broker says. It also reads the rules of the compose profile and answers its dashboard."""

import asyncio
import json
import re
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from labkit import Lab, LabError
from labkit.processes import workers
from labkit.processes.prometheus_server import prometheus
from labkit.wire.record import Recorder
from labkit.wire.samplers import regularly
from test_dashboard import ALERTS, DASHBOARD, HEALTHZ, MONITORING, expressions, flattened
from test_exporter import BOOK, rules

pytestmark = pytest.mark.prometheus
FAST = """
global: {scrape_interval: 100ms, evaluation_interval: 100ms}
rule_files: [rules.yml]
"""


def scraping(job, targets, base=FAST):
    """A prometheus.yml that scrapes these (list of {"targets": addresses, "labels": dict})."""
    jobs = [{"job_name": job, "static_configs": targets}]
    return f"{base}scrape_configs: {json.dumps(jobs)}\n"


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("monitoring", private=True)
    yield lab
    await lab.close()


async def value(server, expression):
    """The one value of a query; None while it has none."""
    found = (await server.api("query", query=expression))["result"]
    return float(found[0]["value"][1]) if len(found) == 1 else None


async def test_one_that_does_not_start_is_said(lab):
    with pytest.raises(
        LabError, match=r"(?s)Prometheus ended \(\d\) before it was ready.*nonsense"
    ):
        await prometheus(lab, "nonsense: 7\n")


async def firing(server):
    """Labels of the alerts that fire now (list of dicts)."""
    alerts = (await server.api("alerts"))["alerts"]
    return [alert["labels"] for alert in alerts if alert["state"] == "firing"]


async def take_one(lab, stream, durable):
    """The next message of this consumer."""
    sub = await lab.js.pull_subscribe_bind(durable, stream)
    [msg] = await sub.fetch(1, timeout=5)
    return msg


async def test_a_real_prometheus_reads_the_lessons_workers_and_says_what_the_broker_says(lab):
    for name in ("processor", "exporter"):  # as they stand in the notebook
        magic, _, body = BOOK[name].partition("\n")
        assert magic == f"%%worker {name}.py"
        workers.write("monitoring", f"{name}.py", body)
    await lab.js.add_stream(name="SHOP", subjects=["shop.*"])
    for name, more in {"packer": {}, "billing": {}, "shipping": {"max_ack_pending": 2}}.items():
        await lab.js.add_consumer(
            "SHOP", durable_name=name, filter_subject=f"shop.{name}", ack_policy="explicit", **more
        )
    await lab.settled("SHOP")
    log = Recorder()
    await lab.worker("processor.py", "processor", log, stream="SHOP", durable="packer")
    await lab.worker("exporter.py", "exporter", log, stream="SHOP")
    await lab.until(lambda: log.count("serving") == 2, timeout=20)
    targets = [f"127.0.0.1:{event['port']}" for event in log.all("serving")]
    alerts = [{"alert": name, "expr": expression} for name, expression in rules().items()]
    groups = {"groups": [{"name": "lesson", "rules": alerts}]}
    server = await prometheus(lab, scraping("lesson", [{"targets": targets}]), json.dumps(groups))
    assert server, "the program prometheus is not installed"

    for _ in range(7):
        await lab.js.publish("shop.packer")
    for _ in range(5):
        await lab.js.publish("shop.billing")
    held = []
    for _ in range(2):
        await lab.js.publish("shop.shipping")
        held.append(await take_one(lab, "SHOP", "shipping"))

    async def agrees():
        for info in await lab.js.consumers_info("SHOP"):
            for fact in ("pending", "ack_pending", "waiting", "redelivered"):
                seen = await value(server, f'lesson_consumer_{fact}{{consumer="{info.name}"}}')
                if seen != getattr(info, f"num_{fact}"):
                    return False
        if await value(server, "sum(up)") != 2:
            return False
        return await value(server, "lesson_messages_done_total") == 7

    await lab.until(agrees, timeout=30)
    assert await value(server, 'lesson_consumer_pending{consumer="billing"}') == 5
    assert await value(server, 'lesson_consumer_ack_pending{consumer="shipping"}') == len(held) == 2

    async def acked():  # the worker does not wait for its acks
        return (await lab.js.consumer_info("SHOP", "packer")).ack_floor.consumer_seq == 7

    await lab.until(acked)

    async def both():
        alerts = {(found["alertname"], found["consumer"]) for found in await firing(server)}
        return alerts == {("NoWorker", "billing"), ("WorkerStuck", "shipping")}

    await lab.until(both, timeout=30)


def test_promtool_finds_no_fault_in_what_compose_mounts():
    done = subprocess.run(
        ["promtool", "check", "config", MONITORING / "prometheus.yml"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0 and "6 rules found" in done.stdout, done.stdout + done.stderr


def as_the_exporter_would(name, answers):
    """/metrics of a node in the names and labels of the NATS exporter v0.20.1 (collector/jsz.go,
    healthz.go, collector.go): a stand-in, since its image cannot be pulled here."""
    varz, jsz, health = answers
    if not varz:  # the exporter lives on while its node is dead
        return f'gnatsd_healthz_status_value{{server_id="{name}",value="unreachable"}} 0\n'
    health = health or {"status": "unavailable"}  # it answers 503 then
    lines = [
        f'gnatsd_healthz_status_value{{server_id="{name}",value="{health["status"]}"}}'
        f" {int(health['status'] == 'ok')}"
    ]
    assert "gnatsd_healthz_status_value" in HEALTHZ
    for metric in set(flattened(varz)) & {
        "gnatsd_varz_connections",
        "gnatsd_varz_mem",
        "gnatsd_varz_slow_consumers",
        "gnatsd_varz_in_msgs",
        "gnatsd_varz_out_msgs",
    }:
        lines.append(f'{metric}{{server_id="{name}"}} {varz[metric.removeprefix("gnatsd_varz_")]}')
    lines += [
        f'jetstream_server_{key}{{server_name="{name}"}} {number}'
        for key, number in [
            ("total_message_bytes", jsz["bytes"]),
            ("max_storage", jsz["config"]["max_storage"]),
        ]
    ]
    for account in jsz["account_details"]:
        for stream in account.get("stream_detail") or []:
            labels = (
                f'account="{account["name"]}",stream_name="{stream["name"]}",'
                f'is_stream_leader="{word(stream, name)}"'
            )
            lines += [
                f"jetstream_stream_{key}{{{labels}}} {stream['state'][field]}"
                for key, field in [("total_messages", "messages"), ("last_seq", "last_seq")]
            ]
            for consumer in stream.get("consumer_detail") or []:
                own = (
                    f'{labels},consumer_name="{consumer["name"]}",'
                    f'is_consumer_leader="{word(consumer, name)}"'
                )
                lines += [
                    f"jetstream_consumer_{key}{{{own}}} {consumer[key]}"
                    for key in ("num_pending", "num_ack_pending", "num_waiting", "num_redelivered")
                ]
                lines.append(
                    f"jetstream_consumer_ack_floor_stream_seq{{{own}}}"
                    f" {consumer['ack_floor']['stream_seq']}"
                )
    return "\n".join(lines) + "\n"


def word(group, name):
    return str(group["cluster"].get("leader") == name).lower()


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Prometheus was ended while it waited for an answer."""


@pytest.fixture
async def stand_ins(lab):
    """One stand-in of the exporter for each node; yields their addresses."""
    loop, servers = asyncio.get_running_loop(), []

    def serve(node):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                async def ask():
                    return [
                        await node.ask(path, timeout=2)
                        for path in ("varz", "jsz?consumers=true&config=true&raft=true", "healthz")
                    ]

                text = as_the_exporter_would(
                    node.name, asyncio.run_coroutine_threadsafe(ask(), loop).result(10)
                )
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        servers.append(Quiet(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield [serve(node) for node in lab.cluster.nodes]
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_every_panel_of_the_dashboard_is_answered_and_counts_once(lab, stand_ins):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit", max_deliver=2)
    await lab.settled("ORDERS")
    for number in range(10):
        await lab.js.publish("orders.new", b"%d" % number)
    sub = await lab.js.pull_subscribe_bind("worker", "ORDERS")
    with pytest.raises(asyncio.TimeoutError):
        while True:
            [msg] = await sub.fetch(1, timeout=2)
            if msg.data == b"1":  # twice, which is all it may have
                await msg.nak()
            else:
                await msg.ack_sync()
    for _ in range(3):
        await lab.js.publish("orders.new")
    server = await prometheus(lab, scraping("nats", [{"targets": stand_ins}]))
    assert server, "the program prometheus is not installed"

    async def counted():
        metric = "jetstream_stream_total_messages"
        once = await value(server, f'sum({metric}{{is_stream_leader="true"}})')
        by_each_replica = await value(server, f"sum({metric})")
        return (once, by_each_replica) == (13, 39)

    await lab.until(counted, timeout=30)
    panels = {
        (panel["title"], target["expr"].replace("$account", ".*"))
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    for title, expression in panels:

        async def answered():
            return (await server.api("query", query=expression))["result"]

        assert await lab.until(answered, timeout=30), title  # a rate needs two scrapes
    info = await lab.js.consumer_info("ORDERS", "worker")
    for title, wanted in {
        "Pending: not yet delivered": info.num_pending,
        "Ack pending: delivered, no answer yet": info.num_ack_pending,
        "Messages that were given up": 1,
        "Messages stored, counted once": 13,
        "Replicas behind their stream": 0,
    }.items():
        [expression] = [expression for name, expression in panels if name == title]

        async def so():
            return await value(server, expression) == wanted

        await lab.until(so, timeout=30)
    for _, expression in expressions():  # those of the alerts too
        await server.api("query", query=expression.replace("$account", ".*"))
    gave_up = (await server.api("query", query=dict(expressions())["GaveUp"]))["result"]
    assert gave_up[0]["metric"]["consumer_name"] == "worker"


async def slow_client(lab):
    """A client of n1 that does not read, while 100 MiB are sent to it: more than a server keeps for
    one (64 MiB)."""
    login, node = lab.cluster.login(lab.topic), lab.node("n1")
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    connect = json.dumps({"verbose": False, "user": login["user"], "pass": login["password"]})
    writer.write(f"CONNECT {connect}\r\nSUB slow 1\r\nPING\r\n".encode())
    while await reader.readline() != b"PONG\r\n":
        pass
    publisher = await lab.connect(node="n1")
    for _ in range(100):
        await publisher.publish("slow", b"x" * publisher.max_payload)
        await publisher.flush()
    writer.close()


async def watched(lab, stand_ins, keep):
    """A Prometheus on the stand-ins, with the alerts of the compose profile; they fire at once, and
    for `keep` longer than true."""
    targets = [
        {"targets": [address], "labels": {"node": node.name}}
        for address, node in zip(stand_ins, lab.cluster.nodes)
    ]
    alerts = re.sub(r"keep_firing_for: \w+", f"keep_firing_for: {keep}", ALERTS)
    alerts = re.sub(r"\bfor: \w+", "for: 0s", alerts)
    base = FAST.replace("evaluation_interval: 100ms", "evaluation_interval: 500ms")
    server = await prometheus(lab, scraping("nats", targets, base), alerts)
    assert server, "the program prometheus is not installed"
    return server


async def test_an_alert_holds_while_its_consumer_has_no_leader_and_clears_once_a_leader_says_so(
    lab, stand_ins
):
    await lab.js.add_stream(name="IDLE", subjects=["idle"], num_replicas=3)
    await lab.js.add_consumer("IDLE", durable_name="worker", ack_policy="explicit")
    await lab.settled("IDLE")
    await lab.faults.step_down("IDLE", "worker", to="n3")
    server = await watched(lab, stand_ins, keep="30s")
    seen = []

    async def look():
        alerts = await firing(server)
        seen.append(
            [labels["stream_name"] for labels in alerts if labels["alertname"] == "NoWorker"]
        )

    async def led_by():
        """The nodes that tell of the consumer as its leader, as Prometheus sees it."""
        query = 'jetstream_consumer_num_pending{is_consumer_leader="true"}'
        found = (await server.api("query", query=query))["result"]
        return [series["metric"]["node"] for series in found]

    async def nobody():
        return await led_by() == []

    async def another():
        return await led_by() in (["n1"], ["n2"])

    await lab.js.publish("idle")
    async with regularly(look, every=0.1):
        await lab.until(lambda: seen[-1], timeout=30)
        fired = len(seen)
        await lab.faults.kill("n3")
        await lab.until(nobody, timeout=30)
        await lab.until(another, timeout=30)
        await lab.faults.heal()
        await lab.until(another, timeout=30)
    assert all(firing == ["IDLE"] for firing in seen[fired:]), (
        f"it has cleared, or is another one: {seen[fired:]}"
    )
    msg = await take_one(lab, "IDLE", "worker")
    await msg.ack_sync()

    async def clear():
        await look()
        return seen[-1] == []

    await lab.until(clear, timeout=60)


async def test_each_alert_of_the_compose_profile_fires_when_that_is_broken(lab, stand_ins):
    js = lab.js
    for name, more in {"IDLE": {}, "STUCK": {}, "LOST": {"max_deliver": 2}}.items():
        await js.add_stream(name=name, subjects=[name.lower()], num_replicas=3)
        await js.add_consumer(name, durable_name="worker", ack_policy="explicit", **more)
        await lab.settled(name)
    server = await watched(lab, stand_ins, keep="0s")

    async def fires(*wanted):
        """Waits until just these fire: (alert, its stream or node), …"""

        async def so():
            labels = await firing(server)
            where = [found.get("stream_name") or found["node"] for found in labels]
            return set(zip([found["alertname"] for found in labels], where)) == set(wanted)

        await lab.until(so, timeout=60)

    async def scraped():
        return await value(server, "count(gnatsd_varz_slow_consumers)") == 3

    await lab.until(scraped, timeout=30)
    await fires()
    await js.publish("idle")
    await fires(("NoWorker", "IDLE"))
    msg = await take_one(lab, "IDLE", "worker")
    await msg.ack_sync()
    await fires()
    for _ in range(1000):
        await lab.nc.publish("stuck")
    stuck = await js.pull_subscribe_bind("worker", "STUCK")
    held = []
    while len(held) < 1000:
        held += await stuck.fetch(1000 - len(held), timeout=10)
    await fires(("WorkerStuck", "STUCK"))
    for msg in held:
        await msg.ack()
    await fires()
    await js.publish("lost")
    lost = await js.pull_subscribe_bind("worker", "LOST")
    with pytest.raises(asyncio.TimeoutError):
        while True:  # twice is all it may have; the third request learns that
            [msg] = await lost.fetch(1, timeout=2)
            await msg.nak()
    await slow_client(lab)
    always = {("GaveUp", "LOST"), ("SlowConsumer", "n1")}  # these look back some minutes
    await fires(*always)
    await lab.faults.kill("n3")
    await fires(*always, ("NodeDown", "n3"))
    await lab.faults.kill("n2")
    await fires(
        *always,
        ("NodeDown", "n2"),
        ("NodeDown", "n3"),
        ("NodeDown", "n1"),  # which misses its leaders
        *(("StreamWithoutLeader", name) for name in ("IDLE", "STUCK", "LOST")),
    )
    await lab.faults.heal()
    await fires(*always)

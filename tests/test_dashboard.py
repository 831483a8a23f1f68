"""What the compose profile `monitoring` provisions: every metric that a panel or an alert asks for
is one that the exporter serves, every panel has its data source, and compose reads the file.

No image registry is asked here. The names stand in the exporter's source, which this list was read
from: https://github.com/nats-io/prometheus-nats-exporter at v0.20.1, collector/jsz.go,
    collector/healthz.go, collector/collector.go
"""

import json
import re
import shutil
import subprocess

import pytest

from labkit import Lab, paths
from labkit.cluster import nodes

MONITORING = paths.PROJECT / "labkit" / "monitoring"
COMPOSE = (paths.PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads(
    (MONITORING / "grafana" / "dashboards" / "nats-lab.json").read_text(encoding="utf-8")
)
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
EXPORTER = "0.20.1"

JSZ = {
    "jetstream_" + name
    for name in [
        "server_jetstream_disabled",
        "server_total_streams",
        "server_total_consumers",
        "server_total_messages",
        "server_total_message_bytes",
        "server_max_memory",
        "server_max_storage",
        "account_max_memory",
        "account_max_storage",
        "account_storage_used",
        "account_memory_used",
        "stream_total_messages",
        "stream_limit_messages",
        "stream_total_bytes",
        "stream_limit_bytes",
        "stream_first_seq",
        "stream_last_seq",
        "stream_consumer_count",
        "stream_subject_count",
        "stream_source_lag",
        "stream_source_active_duration_ns",
        "stream_mirror_lag",
        "stream_mirror_active_duration_ns",
        "consumer_delivered_consumer_seq",
        "consumer_delivered_stream_seq",
        "consumer_last_delivery_seconds",
        "consumer_last_ack_seconds",
        "consumer_num_ack_pending",
        "consumer_num_redelivered",
        "consumer_num_waiting",
        "consumer_num_pending",
        "consumer_ack_floor_stream_seq",
        "consumer_ack_floor_consumer_seq",
    ]
}
HEALTHZ = {"gnatsd_healthz_status", "gnatsd_healthz_status_value"}
LABELS = {
    "server_id",
    "server_name",
    "cluster",
    "domain",
    "meta_leader",
    "is_meta_leader",
    "account",
    "account_name",
    "account_id",
    "stream_name",
    "stream_leader",
    "is_stream_leader",
    "stream_raft_group",
    "consumer_name",
    "consumer_leader",
    "is_consumer_leader",
    "consumer_desc",
    "value",
    "job",
    "node",
}  # the last two are of labkit/monitoring/prometheus.yml
WORDS = {"and", "or", "unless", "by", "on", "ignoring", "without", "bool", "up"}


def flattened(facts, *path):
    """Names of the numbers in a server's /varz as collector.go makes them: keys joined by _, below
    gnatsd_varz_."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from flattened(value, *path, key)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield "gnatsd_varz_" + re.sub(
                "_+", "_", "_".join([*path, key]).replace("/", "_")
            ).strip("_")


def expressions():
    """(where, PromQL) of all panels and alerts."""
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for name, rest in re.findall(r"- alert: (\w+)(.*?)(?=- alert:|\Z)", ALERTS, re.S):
        block = re.search(r"expr: (?:>\n)?(.*?)\n +(?:for|annotations):", rest, re.S)
        yield name, " ".join(block[1].split())


def asked(expression):
    """(metric names, label names) in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", bare))
    for group in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", bare):
        labels |= set(re.findall(r"\w+", group))
    bare = re.sub(r"\b(?:by|on|ignoring|without)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\]", " ", bare)
    return {
        name for name in re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare) if name not in WORDS
    }, labels


async def test_every_metric_that_is_asked_for_is_one_that_the_exporter_serves(shared):
    lab = await Lab.open("checks")
    known = JSZ | HEALTHZ | set(flattened(await lab.node("n1").ask(timeout=5)))
    await lab.close()
    found = set()
    for where, expression in expressions():
        metrics, labels = asked(expression)
        assert metrics <= known, f"{where}: {metrics - known}"
        assert labels <= LABELS, f"{where}: {labels - LABELS}"
        found |= metrics
    assert {
        "gnatsd_varz_connections",
        "gnatsd_healthz_status_value",
        "jetstream_consumer_num_pending",
    } <= found
    assert len(list(expressions())) > 15


def test_what_a_replica_says_too_is_counted_at_its_leader_only():
    for where, expression in expressions():
        for metric, selector in re.findall(
            r"(jetstream_\w+)(\{[^}]*\})?", re.sub(r"jetstream_server_\w+", "", expression)
        ):
            leader = (
                'is_consumer_leader="true"'
                if metric.startswith("jetstream_consumer")
                else 'is_stream_leader="true"'
            )
            if where not in (
                "Replicas behind their stream",
                "StreamWithoutLeader",
            ):  # these compare the copies
                assert leader in selector, f"{where}: {metric}{selector}"


def test_a_word_that_the_exporter_does_not_serve_would_be_found():
    assert asked('sum by (stream_name) (rate(jetstream_lag{leader="x"}[1m])) > 0') == (
        {"jetstream_lag"},
        {"stream_name", "leader"},
    )


def test_every_panel_has_its_data_source_a_title_and_a_place_of_its_own():
    datasources = (MONITORING / "grafana" / "datasources" / "prometheus.yml").read_text(
        encoding="utf-8"
    )
    [uid] = re.findall(r"uid: ([\w-]+)", datasources)
    sources = [panel["datasource"] for panel in DASHBOARD["panels"]]
    sources += [
        target["datasource"] for panel in DASHBOARD["panels"] for target in panel["targets"]
    ]
    sources += [variable["datasource"] for variable in DASHBOARD["templating"]["list"]]
    assert all(source == {"type": "prometheus", "uid": uid} for source in sources)
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24
    for key in ("id", "title"):
        assert len({panel[key] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_compose_pins_images_publishes_on_loopback_only_and_mounts_what_is_there():
    services = re.search(r"(?ms)^  exporter-n1:.*?(?=^networks:)", COMPOSE)[0]
    assert f"image: natsio/prometheus-nats-exporter:{EXPORTER}" in COMPOSE
    assert len(re.findall(r"image: \S+:v?\d+\.\d+\.\d+", services)) == 2 and "latest" not in COMPOSE
    assert re.findall(r'ports: \["([^"]+)"\]', services) == [
        "127.0.0.1:9090:9090",
        "127.0.0.1:3000:3000",
    ]
    for path in re.findall(r"\./([\w./-]+?):/", services):
        assert (paths.PROJECT / path).exists(), path
    prometheus = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
    scraped = re.findall(r"exporter-n\d:7777", prometheus)
    assert scraped == [f"exporter-{name}:7777" for name in nodes.NAMES]
    for name in nodes.NAMES:
        assert f'"-varz", "-healthz", "-jsz=all", "{name},http://{name}:8222"' in services
    assert "/etc/grafana/provisioning/dashboards/nats-lab.json" in services


def test_compose_reads_the_file_with_and_without_the_profile():
    command = next(
        (
            c
            for c in (["docker-compose"], ["docker", "compose"])
            if shutil.which(c[0])
            and not subprocess.run([*c, "version"], capture_output=True).returncode
        ),
        None,
    )
    if not command:
        pytest.skip("no docker compose here")
    for profile in ([], ["--profile", "monitoring"]):
        done = subprocess.run(
            [*command, "-p", "labkit", *profile, "config", "-q"],
            cwd=paths.PROJECT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        assert done.returncode == 0, done.stderr

"""What the compose profile `monitoring` provides: every metric that a panel or an alert asks for is
one that the exporter serves, every panel has its data source, and compose can read the file.

No image is pulled here. The names of the metrics are those of the exporter's source:
https://github.com/nats-io/prometheus-nats-exporter at v0.20.1, collector/jsz.go,
collector/healthz.go, collector/collector.go
"""

import json
import re
import shutil
import subprocess

import pytest

from labkit import paths
from labkit.cluster import nodes


def read(*path):
    return paths.PROJECT.joinpath(*path).read_text(encoding="utf-8")


MONITORING = paths.PROJECT / "labkit" / "monitoring"
COMPOSE = read("docker-compose.yml")
DASHBOARD = json.loads(read(MONITORING, "grafana", "dashboards", "nats-lab.json"))
ALERTS = read(MONITORING, "alerts.yml")
EXPORTER = "0.20.1"

JSZ = """
server_jetstream_disabled server_total_streams server_total_consumers server_total_messages
server_total_message_bytes server_max_memory server_max_storage

account_max_memory account_max_storage account_storage_used account_memory_used

stream_total_messages stream_limit_messages stream_total_bytes stream_limit_bytes
stream_first_seq stream_last_seq stream_consumer_count stream_subject_count
stream_source_lag stream_source_active_duration_ns
stream_mirror_lag stream_mirror_active_duration_ns

consumer_delivered_consumer_seq consumer_delivered_stream_seq
consumer_last_delivery_seconds consumer_last_ack_seconds
consumer_num_ack_pending consumer_num_redelivered consumer_num_waiting consumer_num_pending
consumer_ack_floor_stream_seq consumer_ack_floor_consumer_seq
"""
HEALTHZ = {"gnatsd_healthz_status", "gnatsd_healthz_status_value"}
LABELS = """
server_id server_name cluster domain meta_leader is_meta_leader account account_name account_id
stream_name stream_leader is_stream_leader stream_raft_group
consumer_name consumer_leader is_consumer_leader consumer_desc value
"""
OUR_LABELS = {"job", "node"}  # of labkit/monitoring/prometheus.yml
WORDS = {"and", "or", "unless", "by", "on", "ignoring", "without", "bool", "up"}
GROUPING = r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)"
COPIES = {"Replicas behind their stream", "StreamWithoutLeader"}  # these compare the replicas


def flattened(facts, *path):
    """Names of the numbers in a server's /varz, as collector.go makes them: keys joined by _, after
    gnatsd_varz_."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from flattened(value, *path, key)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            name = "_".join([*path, key]).replace("/", "_")
            yield "gnatsd_varz_" + re.sub("_+", "_", name).strip("_")


def expressions():
    """(where, PromQL) of all panels and alerts."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for name, rest in re.findall(r"- alert: (\w+)(.*?)(?=- alert:|\Z)", ALERTS, re.S):
        block = re.search(r"expr: (?:>\n)?(.*?)\n +(?:for|annotations):", rest, re.S)
        yield name, " ".join(block[1].split())


def asked(expression):
    """(metric names, label names) in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", bare))
    for group in re.findall(GROUPING, bare):
        labels |= set(re.findall(r"\w+", group))
    bare = re.sub(GROUPING + r"|\{[^}]*\}|\[[^]]*\]", " ", bare)
    names = set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare))
    return names - WORDS, labels


async def test_every_metric_that_is_asked_for_is_one_that_the_exporter_serves(calm):
    varz = await calm.node("n1").ask(timeout=5)
    known = {f"jetstream_{name}" for name in JSZ.split()} | HEALTHZ | set(flattened(varz))
    found = set()
    for where, expression in expressions():
        metrics, labels = asked(expression)
        assert metrics <= known, f"{where}: {metrics - known}"
        unknown = labels - OUR_LABELS - set(LABELS.split())
        assert not unknown, f"{where}: {unknown}"
        found |= metrics
    one_of_each_kind = {
        "gnatsd_varz_connections",
        "gnatsd_healthz_status_value",
        "jetstream_consumer_num_pending",
    }
    assert one_of_each_kind <= found
    assert len(list(expressions())) > 15


def test_what_each_replica_reports_is_counted_at_its_leader_only():
    for where, expression in expressions():
        if where in COPIES:
            continue
        for metric, selector in re.findall(r"(jetstream_\w+)(\{[^}]*\})?", expression):
            if metric.startswith("jetstream_server"):
                continue
            kind = "consumer" if metric.startswith("jetstream_consumer") else "stream"
            assert f'is_{kind}_leader="true"' in selector, f"{where}: {metric}{selector}"


def test_a_metric_that_the_exporter_does_not_serve_would_be_found():
    expression = 'sum by (stream_name) (rate(jetstream_lag{leader="x"}[1m])) > 0'
    assert asked(expression) == ({"jetstream_lag"}, {"stream_name", "leader"})


def test_every_panel_has_its_data_source_a_title_and_a_place_of_its_own():
    panels = DASHBOARD["panels"]
    datasources = read(MONITORING, "grafana", "datasources", "prometheus.yml")
    [uid] = re.findall(r"uid: ([\w-]+)", datasources)
    targets = [target for panel in panels for target in panel["targets"]]
    for holder in [*panels, *targets, *DASHBOARD["templating"]["list"]]:
        assert holder["datasource"] == {"type": "prometheus", "uid": uid}, holder
    places = [place for panel in panels for place in squares(**panel["gridPos"])]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)


def squares(x, y, w, h):
    """The squares of the grid that a panel covers."""
    return [(column, row) for column in range(x, x + w) for row in range(y, y + h)]


def test_compose_pins_images_publishes_on_loopback_only_and_mounts_what_is_there():
    services = re.search(r"(?ms)^  exporter-n1:.*?(?=^networks:)", COMPOSE)[0]
    assert f"image: natsio/prometheus-nats-exporter:{EXPORTER}" in COMPOSE
    assert len(re.findall(r"image: \S+:v?\d+\.\d+\.\d+", services)) == 2
    assert "latest" not in COMPOSE
    published = re.findall(r'ports: \["([^"]+)"\]', services)
    assert published == ["127.0.0.1:9090:9090", "127.0.0.1:3000:3000"]
    for path in re.findall(r"\./([\w./-]+?):/", services):
        assert (paths.PROJECT / path).exists(), path
    scraped = re.findall(r"exporter-n\d:7777", read(MONITORING, "prometheus.yml"))
    assert scraped == [f"exporter-{name}:7777" for name in nodes.NAMES]
    for name in nodes.NAMES:
        assert f'"-varz", "-healthz", "-jsz=all", "{name},http://{name}:8222"' in services
    assert "/etc/grafana/provisioning/dashboards/nats-lab.json" in services


def compose():
    """The words of the command that reads a compose file here. Skips the test if there is none."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True)
            if done.returncode == 0:
                return command
    pytest.skip("no docker compose here")


@pytest.mark.parametrize("profile", [[], ["--profile", "monitoring"]])
def test_compose_reads_the_file_with_and_without_the_profile(profile):
    done = subprocess.run(
        [*compose(), "-p", "labkit", *profile, "config", "-q"],
        cwd=paths.PROJECT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stderr

"""The same cluster in containers, for real: a Docker daemon, and a stand-in image where none can be pulled."""
import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import nats
import pytest

from labkit import Lab, compose, nodes
from labkit import cluster as clusters

pytestmark = pytest.mark.compose
HERE = Path(__file__).parent / "compose"


def docker(*arguments):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def containers():
    said = subprocess.run(["sh", str(HERE / "image.sh"), nodes.server_binary()], capture_output=True, text=True)
    print(said.stdout + said.stderr)  # says whether the image was pulled or is a stand-in
    assert said.returncode == 0, said.stderr
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LABKIT_BACKEND", "compose")
        asyncio.run(clusters.find_or_start(print))
        yield
    compose.run("down", "-v")
    assert docker("ps", "-aq", "--filter", "name=labkit-") == "" and docker("volume", "ls", "-q", "--filter", "name=labkit-") == ""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_PORT", raising=False)
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.delenv("LABKIT_BACKEND", raising=False)


async def test_a_running_compose_cluster_is_found_and_used_by_itself(home, capsys):
    lab = await Lab.open("checks")
    assert "compose, nats-server" in capsys.readouterr().out
    assert set((await lab.nodes())["state"]) == {"up"}
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.close()


async def test_clients_on_the_host_hear_only_of_addresses_that_they_can_reach(home):
    cluster = await clusters.find()
    client = await nats.connect(cluster.servers[0], user="checks", password="lab")
    assert sorted(url.netloc for url in client.discovered_servers) == ["127.0.0.1:4223", "127.0.0.1:4224"]
    await client.close()


def test_ports_are_open_on_loopback_only_memory_is_limited_and_health_is_checked(home):
    for name in nodes.NAMES:
        facts = json.loads(docker("inspect", f"labkit-{name}"))[0]
        published = [binding["HostIp"] for bindings in facts["NetworkSettings"]["Ports"].values() for binding in bindings or []]
        assert published == ["127.0.0.1", "127.0.0.1"]
        assert facts["HostConfig"]["Memory"] == 256 << 20
        assert facts["State"]["Health"]["Status"] in ("starting", "healthy")
        assert set(facts["NetworkSettings"]["Networks"]) == {"labkit-client", "labkit-mesh"}


async def test_a_node_can_be_cut_off_from_the_mesh_and_still_answers_its_clients(home):
    cluster = await clusters.find()
    docker("network", "disconnect", "labkit-mesh", "labkit-n3")
    try:
        client = await nats.connect(cluster.servers[2], user="checks", password="lab")
        assert await client.rtt() < 1
        await client.close()
    finally:
        docker("network", "connect", "--alias", "n3-mesh", "labkit-mesh", "labkit-n3")
    for _ in range(600):  # the routes come back within seconds; half a minute was seen with the default route pings
        told = await asyncio.gather(*(node.varz() for node in cluster.nodes))
        if all(told) and clusters.agreed(told):
            return
        await asyncio.sleep(0.1)
    pytest.fail("the cluster was not whole a minute after the cut was mended")


def test_every_lesson_passes_in_strict_comparison_on_the_containers(home):
    environment = {**os.environ, "LABKIT_BACKEND": "compose"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "notebooks"], cwd=nodes.PROJECT, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert urllib.request.urlopen("http://127.0.0.1:8222/varz", timeout=1).status == 200  # and left it up

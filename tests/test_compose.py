"""The same cluster in containers. It needs a Docker daemon. If no image can be pulled, it builds a
stand-in."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import nats
import pytest

import lessons
from labkit import Lab, LabError, paths
from labkit.cluster import containers, lifecycle, nodes, tables

pytestmark = [
    pytest.mark.compose,
    pytest.mark.skipif(sys.platform == "win32", reason="a shell makes the image"),
]
HERE = Path(__file__).parent / "compose"
LESSONS = [path for path in lessons.LESSONS if not lessons.is_experiment(path)]
# These break nodes: here, the containers themselves.
BREAKING = [path for path in LESSONS if lessons.breaks_nodes(path)]


def docker(*arguments):
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout


@pytest.fixture(scope="module", autouse=True)
def cluster_of_containers():
    said = subprocess.run(
        ["sh", str(HERE / "image.sh"), nodes.server_binary()],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    print(said.stdout + said.stderr)  # whether the image was pulled or is a stand-in
    assert said.returncode == 0, said.stderr
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LABKIT_BACKEND", "compose")
        asyncio.run(lifecycle.find_or_start(print))
        yield
    containers.run("down", "-v")
    assert docker("ps", "-aq", "--filter", "name=labkit-") == ""
    assert docker("volume", "ls", "-q", "--filter", "name=labkit-") == ""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_PORT", raising=False)
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.delenv("LABKIT_BACKEND", raising=False)


async def test_a_running_compose_cluster_is_used_without_being_asked_for(home, capsys):
    lab = await Lab.open("checks")
    assert "compose, nats-server" in capsys.readouterr().out
    assert set((await lab.nodes())["state"]) == {"up"}
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.close()


async def test_clients_of_containers_are_on_the_wire_and_a_dead_one_refuses(home):
    lab = await Lab.open("checks", private=True)
    client = await lab.connect("n3", name="A", reconnect_time_wait=0.05)
    await client.publish("news", b"x")
    await client.flush()
    assert lab.wire.last("published")["client"] == "A"
    assert lab.wire.last("connected")["node"] == "n3"
    await lab.faults.kill("n3")
    with pytest.raises(LabError, match="ConnectionRefusedError"):
        await lab.connect("n3", timeout=1)
    await lab.until(lambda: lab.node_of(client) in ("n1", "n2"))
    await lab.faults.start("n3")
    assert lab.node_of(await lab.connect("n3")) == "n3"
    lab._net.take()
    await lab.close()


async def test_clients_on_the_host_learn_only_addresses_that_they_can_reach(home):
    cluster = await lifecycle.find()
    client = await nats.connect(cluster.servers[0], user="checks", password="lab")
    learned = sorted(url.netloc for url in client.discovered_servers)
    assert learned == ["127.0.0.1:4223", "127.0.0.1:4224"]
    await client.close()


def test_ports_are_open_on_loopback_only_memory_is_limited_and_health_is_checked(home):
    for name in nodes.NAMES:
        facts = json.loads(docker("inspect", f"labkit-{name}"))[0]
        published = [
            binding["HostIp"]
            for bindings in facts["NetworkSettings"]["Ports"].values()
            for binding in bindings or []
        ]
        assert published == ["127.0.0.1", "127.0.0.1"]
        assert facts["HostConfig"]["Memory"] == 256 << 20
        assert facts["State"]["Health"]["Status"] in ("starting", "healthy")
        assert set(facts["NetworkSettings"]["Networks"]) == {"labkit-client", "labkit-mesh"}


async def test_a_node_can_be_cut_off_from_the_mesh_and_still_answers_its_clients(home):
    lab = await Lab.open("checks")
    got = []

    async def note(message):
        got.append(message.data)

    far = await lab.connect(node="n3")
    await far.subscribe("news", cb=note)

    async def heard(word):
        await lab.nc.publish("news", word)
        return word in got

    await lab.until(lambda: heard(b"before"))
    containers.cut_off("n3")
    try:
        with pytest.raises(LabError):
            await lab.until(lambda: heard(b"during"), timeout=1.5)
        await far.rtt()
    finally:
        containers.rejoin("n3")
    await lab.until(lambda: heard(b"after"), timeout=120)  # it takes a few seconds; once 24
    await lab.close()


async def test_two_nodes_that_were_cut_off_meet_again_whichever_they_were(home):
    """A server never dials an address that was once its own, so each node must get its own back."""
    lab = await Lab.open("checks", private=True)
    for names in (["n3", "n1"], ["n1", "n2"], ["n1", "n3"]):
        await lab.faults.isolate(*names)
        await asyncio.sleep(4)  # silent routes are given up after three pings, one a second
        await lab.faults.heal()
        await lab.js.add_stream(name="".join(names), subjects=[".".join(names)], num_replicas=3)
    await lab.close()


async def test_what_a_killed_kernel_left_broken_is_healed_when_the_next_lesson_opens(home):
    containers.cut_off("n2")
    docker("pause", "labkit-n3")
    docker("kill", "labkit-n1")
    lab = await Lab.open("checks", private=True)
    assert set((await lab.nodes())["state"]) == {"up"}
    await lab.close()


def passes(*arguments):
    """Runs pytest on notebooks in strict comparison, on the containers; they are still up
    afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *map(str, arguments)],
        cwd=paths.PROJECT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LABKIT_BACKEND": "compose"},
        capture_output=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-3000:]
    assert nodes.DIRECT.open("http://127.0.0.1:8222/varz", timeout=10).status == 200


def test_the_lessons_that_share_a_cluster_pass_in_strict_comparison(home):
    passes(*[path for path in LESSONS if path not in BREAKING])


@pytest.mark.parametrize("path", BREAKING, ids=lambda path: path.stem)
def test_a_lesson_that_breaks_nodes_passes_in_strict_comparison_and_heals_them(home, path):
    passes("-n", 0, path)
    assert set(asyncio.run(table_of_nodes())["state"]) == {"up"}


async def table_of_nodes():
    return await tables.nodes(await lifecycle.find())

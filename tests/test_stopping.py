"""However the lab is stopped, it ends what is its own and nothing else, and what is left is found
and named."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nbclient.exceptions import CellExecutionError

from browsing import wait_until_it_answers
from conftest import free_base
from kernels import interrupt, kernel
from labkit import Lab, paths
from labkit.cluster import lifecycle, nodes
from labkit.system import launching, ports, reaper

OPEN = """
import asyncio, json, time
from labkit import Lab
from labkit.processes import workers
from labkit.cluster.standalone import start_server
from labkit.system import launching
async def main():
    lab = await Lab.open("checks", private=True)
    waits = "import asyncio\\nasync def work(nc, js, point): await asyncio.sleep(600)"
    workers.write("checks", "waits.py", waits)
    worker, server = await lab.worker("waits.py", "A"), await start_server(lab)
    await lab.faults.pause("n1")
    pids = [node.pid for node in lab.cluster.nodes]
    pids += [lab.cluster.route_proxies.child.pid, worker.pid, server.child.pid]
    held, = launching._held.values()
    print(json.dumps({"pids": pids, "servers": pids[:3] + pids[-1:], "reaper": held.reaper.pid,
                      "folder": str(held.folder)}), flush=True)
    time.sleep(600)
asyncio.run(main())
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


def alive(pids):
    found = []
    for pid in pids:
        try:
            found += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            pass
    return found


def wait_for(condition, timeout=30):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def told(process):
    """What this program prints as JSON."""
    return next(json.loads(line) for line in process.stdout if line.startswith("{"))


@posix
def test_after_kill_9_of_everything_at_once_doctor_and_down_find_what_is_left(own, python, command):
    kernel = python(OPEN)
    left = told(kernel)
    for pid in (left["reaper"], kernel.pid):
        os.kill(pid, signal.SIGKILL)
    kernel.wait()
    # The proxies and the worker end by themselves: they hear that the kernel is gone.
    servers = left["servers"]
    wait_for(lambda: alive(left["pids"]) == servers)
    code, said = command("doctor")
    assert (
        code == 0 and f"left {len(servers)} process(es)" in said and "python -m labkit down" in said
    )
    assert all(str(pid) in said for pid in servers)
    code, said = command("down")
    assert code == 0 and f"{len(servers)} that killed kernels had left" in said
    assert alive(left["pids"]) == [] and not Path(left["folder"]).exists()
    assert "killed" not in command("doctor")[1]


@posix
def test_down_leaves_what_belongs_to_a_kernel_that_lives(own, python, command):
    kernel = python(OPEN)
    mine = told(kernel)
    code, said = command("down")
    assert (
        code == 1
        and f"A lesson is open: checks (process {kernel.pid})" in said
        and "Or say --yes" in said
    )
    assert command("down", "--yes")[0] == 0
    assert alive(mine["pids"]) == mine["pids"]
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.wait()
    wait_for(lambda: not alive(mine["pids"]) and not Path(mine["folder"]).exists())


@posix
@pytest.mark.parametrize("answer, code", [("n\n", 1), ("y\n", 0)])
def test_on_a_terminal_down_asks(own, python, labkit, answer, code):
    lesson = python(
        "import asyncio\n"
        "from labkit import Lab\n"
        "async def main():\n"
        "    await Lab.open('checks')\n"
        "    print('{}', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    told(lesson)
    outer, inner = pytest.importorskip("pty").openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "labkit", "down"], stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)
    said = b""
    while b"Go on?" not in said:
        said += os.read(outer, 4096)
    assert b"A lesson is open: checks" in said
    os.write(outer, answer.encode())
    assert asked.wait(60) == code
    os.close(outer)
    assert len(nodes.processes_of_nodes(own)) == (3 if code else 0)


def test_a_reset_asks_as_well_and_only_about_the_lessons_that_it_empties(own, python, command):
    lesson = python(
        "import asyncio\n"
        "from labkit import Lab\n"
        "async def main():\n"
        "    await Lab.open('checks')\n"
        "    print('{}', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    told(lesson)
    code, said = command("reset")
    assert code == 1 and "checks (process" in said and "--yes" in said
    assert command("reset", "mine")[0] == 0
    assert command("reset", "--yes")[0] == 0


def test_down_beside_up_leaves_one_state_or_the_other(own, command):
    for _ in range(3):
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "labkit", verb],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for verb in ("up", "down")
        ]
        said = [process.communicate(timeout=120)[0].decode() for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        cluster = asyncio.run(lifecycle.find())
        assert len(nodes.processes_of_nodes(own)) == (3 if cluster else 0), said
        assert command("status")[0] == (0 if cluster else 1)
    command("down")


@posix
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_what_ends_the_lab_command_ends_jupyterlab(own, number):
    port = free_base()
    lab = subprocess.Popen(
        [sys.executable, "-m", "labkit", "lab", "--no-browser", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_it_answers(port, lab)
        lab.send_signal(getattr(signal, number))
        lab.wait(60)
        wait_for(lambda: not ports.listens(port))
    finally:
        if ports.listens(port):
            os.killpg(lab.pid, signal.SIGKILL)
    assert len(nodes.processes_of_nodes(own)) == 3, "the cluster stays up"


@posix
async def test_the_stop_button_ends_no_process_of_a_lesson(own):
    async with kernel() as (client, run):
        await run(
            "from labkit import Lab, clinic\n"
            "from labkit.cluster.standalone import start_server\n"
            "from labkit.processes import program\n"
            "from labkit.system import launching, reaper\n"
            "lab = await Lab.open('troubleshooting_clinic', private=True)"
        )
        await run(
            "server = await start_server(lab)\n"
            "lost = program(lab, 'producer.py', NATS_URL='nats://127.0.0.1:1')\n"
            "case = await clinic.open(lab, 'drill_gone_wrong')\n"
            "await lab.until(lambda: case.processes)"
        )
        listed = await run(
            "import json\n"
            "held, = launching._held.values()\n"
            "print(json.dumps(sorted(p.pid for p in reaper.owned(str(held.folder)))))"
        )
        before = json.loads(listed)
        # Three nodes, their proxies, the server and the program, a node of the clinic.
        assert len(before) >= 3 + 1 + 2 + 1
        kernel_of_client = client.km.provisioner.pid
        assert os.getpgid(kernel_of_client) not in {os.getpgid(pid) for pid in before}
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await interrupt(client, run, "import time\ntime.sleep(60)")
        assert alive(before) == before
        await run("await lab.close()")
        assert alive(before) == []


async def test_a_clock_that_is_set_while_a_lab_is_open_changes_nothing(own, monkeypatch):
    """The system counts a process's creation from the time of boot, which moves when the clock is
    set."""
    shared = await lifecycle.find_or_start()
    lab = await Lab.open("checks", private=True)
    created = psutil.Process.create_time
    for hours in (1, -1):
        monkeypatch.setattr(
            psutil.Process,
            "create_time",
            lambda process, hours=hours: created(process) + hours * 3600,
        )
        assert [node.process().pid for node in lab.cluster.nodes] == [
            node.pid for node in lab.cluster.nodes
        ]
        assert set((await lab.nodes())["state"]) == {"up"}
        assert [node.pid for node in (await lifecycle.find_or_start()).nodes] == [
            node.pid for node in shared.nodes
        ]
    pids = [node.pid for node in lab.cluster.nodes]
    await lab.close()
    assert alive(pids) == []


@posix
def test_nor_does_it_when_the_kernel_is_killed_after_the_clock_was_set(own, python, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, psutil\n"
        "created = psutil.Process.create_time\n"
        "clock = os.environ['CLOCK']\n"
        "psutil.Process.create_time = lambda p: created(p) + 3600 * os.path.exists(clock)\n",
        encoding="utf-8",
    )
    kernel = python(OPEN, PYTHONPATH=str(tmp_path), CLOCK=str(tmp_path / "set"))
    left = told(kernel)
    (tmp_path / "set").touch()
    kernel.kill()
    kernel.wait()
    wait_for(lambda: not alive(left["pids"]) and not Path(left["folder"]).exists())


def test_a_process_that_got_the_pid_of_ours_is_neither_ours_nor_ended(own):
    folder = launching.own_folder()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    mine = launching.launch([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert [
            process.pid
            for process in reaper.owned(str(folder))
            if process.pid in (stranger.pid, mine.pid)
        ] == [mine.pid]
        assert launching.owner_of(psutil.Process(stranger.pid)) is None
        node = nodes.Node("n1", 1, 1, store=str(own / "run-x" / "n1"), pid=stranger.pid)
        assert node.process() is None
    finally:
        for process in (stranger, mine):
            process.kill()
            process.wait()


SAYS_THAT_IT_IS_ASKED = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit((folder / "asked").touch()))
(folder / "ready").touch()
while True:
    time.sleep(0.01)
"""


@posix
@pytest.mark.parametrize("graceful", [0, 10])
def test_a_paused_process_is_killed_as_it_stands_or_asked_before_it_goes_on(
    own, tmp_path, monkeypatch, graceful
):
    child = launching.launch([sys.executable, "-c", SAYS_THAT_IT_IS_ASKED, str(tmp_path)])
    wait_for((tmp_path / "ready").exists)
    process = psutil.Process(child.pid)
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    resume, resumed = psutil.Process.resume, []

    def noted(process):
        resumed.append(process.pid)
        resume(process)

    monkeypatch.setattr(psutil.Process, "resume", noted)
    launching.end_processes([process], graceful)
    assert child.poll() is not None
    assert resumed == ([child.pid] if graceful else [])
    assert (tmp_path / "asked").exists() == bool(graceful)


@posix
def test_a_run_of_the_tests_that_is_killed_leaves_nothing(own, tmp_path):
    """Of the shared cluster too, which outlives whoever starts it otherwise, and in whatever
    home."""
    (tmp_path / "test_it.py").write_text(
        "import asyncio, os, pathlib, time\n"
        "from labkit.cluster import lifecycle\n"
        "from labkit.system import launching\n"
        "def test(own):\n"
        "    asyncio.run(lifecycle.find_or_start())\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    (folder / 'kernel').write_text(str(launching.own_folder()), encoding='utf-8')\n"
        "    (folder / 'mark').write_text(os.environ['LABKIT_TESTS'], encoding='utf-8')\n"
        "    time.sleep(600)\n",
        encoding="utf-8",
    )
    (tmp_path / "conftest.py").write_text(
        (paths.PROJECT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST", "LABKIT_TESTS"))
    }
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    try:
        wait_for(
            lambda: (
                (tmp_path / "mark").exists() and (tmp_path / "mark").read_text(encoding="utf-8")
            ),
            timeout=90,
        )
        mark = (tmp_path / "mark").read_text(encoding="utf-8")
        assert [process.name() for process in reaper.owned(mark, "LABKIT_TESTS")].count(
            "nats-server"
        ) == 3
    finally:
        run.kill()
        run.wait()
    kernel = Path((tmp_path / "kernel").read_text(encoding="utf-8"))
    wait_for(
        lambda: (
            not reaper.owned(mark, "LABKIT_TESTS")
            and not Path(mark).exists()
            and not kernel.exists()
        )
    )

"""Workers as processes: what they report, how they die, what they say when they cannot; and that
none outlives a kernel."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys

import nats
import psutil
import pytest
from nbclient.exceptions import CellExecutionError

import lessons
from kernels import interrupt, kernel
from labkit import Lab, LabError, Recorder
from labkit.processes import workers
from labkit.waiting import until

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
WAITS = """
import asyncio
async def work(nc, js, point):
    await asyncio.sleep(60)
"""
FAILS = """
async def work(nc, js, point):
    await point("here")
    1 / 0
"""
COUNTS = """
import asyncio
async def work(nc, js, point, most, **options):
    for number in range(most):
        await point("counted", number=number, **options)
"""


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab._end()


def write(lab, source, name="one.py"):
    workers.write(lab.topic, name, source)
    return name


async def test_a_worker_reports_its_points_on_the_axis_of_the_notebook_and_ends(lab):
    log = Recorder()
    log("begin")
    a = await lab.worker(write(lab, COUNTS), "A", log, most=3, colour="red")
    assert await a.ended() == 0 == a.returncode
    assert not a.alive and repr(a) == "<Worker A: ended (0)>"
    log("end")
    events = [e["event"] for e in log.events]
    assert events == ["begin", "ready", "counted", "counted", "counted", "end"]
    assert [e["number"] for e in log.all("counted", worker="A", colour="red")] == [0, 1, 2]
    assert [e["at"] for e in log.events] == sorted(e["at"] for e in log.events)


@posix
@pytest.mark.parametrize("place, seen", [("counted", 1), (("counted", 3), 3), ("ready", 0)])
async def test_it_is_killed_at_a_named_point_and_its_last_words_are_heard(lab, place, seen):
    log = Recorder()
    a = await lab.worker(write(lab, COUNTS), "A", log, kill_at=place, most=10)
    assert await a.ended() == -signal.SIGKILL and log.count("counted") == seen


ACKS = """
async def work(nc, js, point, stream, how):
    sub = await js.pull_subscribe_bind("worker", stream)
    [msg] = await sub.fetch(1, timeout=5)
    await getattr(msg, how)()
    await point("acked")
"""


async def test_what_it_had_not_sent_dies_with_it(lab):
    left = {}
    module = write(lab, ACKS)
    for ack in ("ack", "ack_sync"):
        stream = ack.upper()
        await lab.js.add_stream(name=stream, subjects=[ack])
        await lab.js.add_consumer(stream, durable_name="worker", ack_policy="explicit", ack_wait=30)
        await lab.settled(stream)
        await lab.js.publish(ack, b"")
        a = await lab.worker(module, "A", kill_at="acked", stream=stream, how=ack)
        await a.ended()
        left[ack] = (await lab.js.consumer_info(stream, "worker")).num_ack_pending
    assert left == {"ack": 1, "ack_sync": 0}


@posix
async def test_it_stands_still_at_a_named_point_until_it_is_resumed(lab):
    log = Recorder()
    a = await lab.worker(write(lab, COUNTS), "A", log, pause_at=("counted", 2), most=4)
    await lab.until(lambda: log.count("counted") == 2)
    await lab.until(lambda: a.process.status() == psutil.STATUS_STOPPED)
    assert a.alive and log.count("counted") == 2
    a.resume()
    assert await a.ended() == 0 and log.count("counted") == 4


@posix
async def test_where_python_is_started_by_a_launcher_the_worker_itself_is_paused(
    lab, monkeypatch, tmp_path
):
    """On Windows the python.exe of an environment is a small program that starts another one, and
    waits for it."""
    launcher = tmp_path / "python"
    launcher.write_text(f"#!/bin/sh\n'{sys.executable}' \"$@\"\nexit $?\n", encoding="utf-8")
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    log = Recorder()
    a = await lab.worker(write(lab, COUNTS), "A", log, pause_at="ready", most=4)
    assert a.pid != a._child.pid and psutil.Process(a.pid).ppid() == a._child.pid
    await lab.until(lambda: a.process.status() == psutil.STATUS_STOPPED)
    a.resume()
    assert await a.ended() == 0 and log.count("counted") == 4
    b = await lab.worker(write(lab, WAITS), "B")
    b.pause()
    await lab.until(lambda: psutil.Process(b.pid).status() == psutil.STATUS_STOPPED)
    await lab.close()
    assert not running([b.pid]) and not b.alive


@posix
async def test_kill_stop_pause(lab):
    a, b, c = [await lab.worker(write(lab, WAITS), name) for name in "ABC"]
    assert a.alive and repr(a) == "<Worker A: running>"
    a.kill()
    assert not a.alive and a.returncode == -signal.SIGKILL
    a.kill()
    b.stop()
    assert await b.ended() == -signal.SIGTERM
    c.pause()
    await lab.until(lambda: c.process.status() == psutil.STATUS_STOPPED)
    with pytest.raises(LabError, match="after 0.1 s .* worker C .*still runs. End it: .kill()"):
        await c.ended(timeout=0.1)
    await lab.close()  # a paused one as well
    assert not c.alive


async def test_an_exception_in_work_is_heard_where_somebody_waits_for_it(lab):
    a = await lab.worker(write(lab, FAILS), "A")
    words = "(?s)Worker A ended with an error:.*one.py.*line 4.*ZeroDivisionError"
    with pytest.raises(LabError, match=words):
        await a.ended()
    assert a.returncode == 1
    await lab.close()  # it was heard


SENDS_AND_FAILS = """
async def work(nc, js, point):
    for number in range(100):
        await nc.publish("sent")
    1 / 0
"""


async def test_what_it_sent_before_it_failed_has_left(lab):
    sent = await lab.nc.subscribe("sent")
    await lab.nc.flush()
    a = await lab.worker(write(lab, SENDS_AND_FAILS), "A")
    with pytest.raises(LabError, match="ZeroDivisionError"):
        await a.ended()
    assert sent.pending_msgs == 100


CLOSES = """
async def work(nc, js, point):
    await nc.drain()
"""


async def test_one_that_closes_its_connection_itself_has_not_failed(lab):
    a = await lab.worker(write(lab, CLOSES), "A")
    assert await a.ended() == 0


SPINS = """
import asyncio, contextlib
async def work(nc, js, point):
    async def spin():
        while True:
            with contextlib.suppress(Exception):
                await nc.publish("x")
                await nc.flush()
    global task
    task = asyncio.ensure_future(spin())
    await point("here")
"""
HANGS = """
import asyncio, time
async def work(nc, js, point):
    async def handle(msg):
        await point("here")
        await asyncio.Event().wait()
    await nc.subscribe("here", cb=handle)
    await nc.publish("here")
    await nc.flush()
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
"""


@pytest.mark.parametrize("source", [SPINS, HANGS])
async def test_it_ends_soon_after_its_work_whatever_goes_on_in_it(lab, source):
    log = Recorder()
    a = await lab.worker(write(lab, source), "A", log)
    assert await a.ended() == 1  # drain() alone would wait for half a minute
    assert log.count("here") == 1


CUT_OFF = """
async def work(nc, js, point):
    await nc.force_reconnect()
    await nc.publish("sent")
"""


async def test_one_that_is_cut_off_at_its_end_waits_for_the_next_server(lab):
    sent = await lab.nc.subscribe("sent")
    await lab.nc.flush()
    a = await lab.worker(write(lab, CUT_OFF), "A")
    assert await a.ended() == 0
    assert sent.pending_msgs == 1


async def test_or_else_when_the_lesson_ends(lab, capsys):
    a = await lab.worker(write(lab, FAILS), "A")
    await lab.until(lambda: not a.alive)
    with pytest.raises(LabError, match="(?s)Worker A ended with an error:.*ZeroDivisionError"):
        await lab.close()


async def test_and_also_when_no_server_answers_any_more(lab, monkeypatch):
    async def flush(*_):
        raise nats.errors.FlushTimeoutError

    a = await lab.worker(write(lab, FAILS, "one.py"), "A")
    await lab.worker(write(lab, WAITS, "two.py"), "B")
    await lab.until(lambda: a._said[-1]["event"] == "failed")
    monkeypatch.setattr(lab.nc, "flush", flush)
    (error,) = await workers.end_all(lab.workers)
    assert "ZeroDivisionError" in str(error)


CANNOT = """
import os, sys
print("I cannot", file=sys.stderr)
os._exit(3)
"""


@pytest.mark.parametrize(
    "begin, timeout, words",
    [
        ("import no_such_module", 10, "No module named 'no_such_module'"),
        (
            "import time\ntime.sleep(60)",
            1,
            "after 1 s waiting for worker A to get ready. It said: nothing",
        ),
        (CANNOT, 10, r"ended \(3\) before it was ready. It said: I cannot"),
    ],
)
async def test_a_worker_that_does_not_get_ready_says_why(lab, begin, timeout, words):
    with pytest.raises(LabError, match=words):
        await lab.worker(write(lab, begin + WAITS), "A", timeout=timeout)
    assert lab.workers == []


async def test_one_that_is_cancelled_while_it_starts_is_ended(lab):
    module = write(lab, "import time\ntime.sleep(60)" + WAITS)
    starting = asyncio.create_task(lab.worker(module, "A"))
    await lab.until(lambda: lab.workers)
    [worker] = lab.workers
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not worker.alive and lab.workers == []


@pytest.mark.parametrize(
    "name", ["", "charge", "charge.txt", "../charge.py", "/charge.py", "a-b.py", "a b.py", ".py"]
)
def test_a_file_has_a_plain_name(shared, name):
    with pytest.raises(LabError, match="wanted: a plain name such as charge.py"):
        workers.write("checks", name, WAITS)


UMLAUT = """
from labkit.processes import workers
workers.write("checks", "w\\xf6rker.py", "")
"""


@posix
def test_a_file_name_that_this_system_cannot_write_is_said(shared, python):
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    said, _ = python(UMLAUT, **ascii_only).communicate(timeout=60)
    assert "LabError: This system writes file names in ascii" in said, said
    assert "wanted: a plain name" in said, said


@pytest.mark.parametrize(
    "source", ["", "def work(nc, js, point): pass", "async def works(nc, js, point): pass"]
)
async def test_a_worker_has_a_coroutine_function_work(lab, source):
    with pytest.raises(LabError, match="has no coroutine function `work`"):
        await lab.worker(write(lab, source), "A")


def test_a_file_that_is_not_python_is_not_written(shared):
    with pytest.raises(SyntaxError):
        workers.write("checks", "broken.py", "async def work(:")
    assert not (workers.folder("checks") / "broken.py").exists()


async def test_a_point_that_it_never_gets_to(lab):
    with pytest.raises(LabError, match="never gets to 'counted' for time 0; wanted: 1 or more"):
        await lab.worker(write(lab, COUNTS), "A", kill_at=("counted", 0), most=1)


async def test_no_such_file(lab):
    with pytest.raises(LabError, match="There is no 'nobody.py'.*%%worker nobody.py"):
        await lab.worker("nobody.py", "A")


async def test_two_of_one_name(lab):
    a = await lab.worker(write(lab, WAITS), "A")
    words = "A worker 'A' is running.* for worker in lab.workers: worker.kill"
    with pytest.raises(LabError, match=words):
        await lab.worker("one.py", "A")
    for worker in lab.workers:
        worker.kill()
    assert not a.alive
    assert (await lab.worker("one.py", "A")).alive


async def test_any_name_will_do(lab):
    assert (await lab.worker(write(lab, WAITS), 'a/b: é "x"')).alive


FIRST = """
VALUE = 7
async def work(nc, js, point): pass
"""
SECOND = """
import first, sys
async def work(nc, js, point):
    await point("here", value=first.VALUE, path=sys.path)
"""


async def test_modules_of_a_lesson_import_each_other_and_not_what_lies_beside_the_runner(lab):
    log = Recorder()
    write(lab, FIRST, "first.py")
    a = await lab.worker(write(lab, SECOND, "second.py"), "A", log)
    await a.ended()
    here = log.last("here")
    assert here["value"] == 7 and os.path.dirname(workers.__file__) not in here["path"]


async def test_the_scratch_folder_goes_with_the_lesson(lab):
    scratch = lab.scratch
    (scratch / "books.db").write_text("", encoding="utf-8")
    await lab.close()
    assert not scratch.exists()


KERNEL = """
import asyncio, json, sys, time
from labkit import Lab
from labkit.processes import valkey, workers
from labkit.system import launching

async def main():
    lab = await Lab.open("effects_once")
    workers.write("effects_once", "waits.py", %r)
    a = await lab.worker("waits.py", "A")
    b = await lab.worker("waits.py", "B", pause_at="ready")
    c = await lab.worker("waits.py", "C")
    c.pause()
    [held] = launching._held.values()
    pids = [a.pid, b.pid, c.pid, held.reaper.pid]
    folders = [str(lab.scratch)]
    if sys.platform != "win32":
        import redis
        client = redis.Redis.from_url(await valkey(lab), decode_responses=True)
        pids.append(client.info("server")["process_id"])
        folders.append(client.config_get("dir")["dir"])
    print(json.dumps({"pids": pids, "folders": folders}), flush=True)
    %s
asyncio.run(main())
"""


def running(pids):
    return [pid for pid in pids if runs(pid)]


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # gone, perhaps between two looks
        return False


async def gone(told):
    """Waits until these processes and folders are gone."""

    def left():
        return running(told["pids"]) + [*filter(os.path.exists, told["folders"])]

    await until(lambda: not left(), timeout=15)


def what_it_started(process):
    """What the source KERNEL prints: {"pids": list, "folders": list}."""
    return next(json.loads(line) for line in process.stdout if line.startswith("{"))


@pytest.mark.parametrize("in_the_middle_of", ["time.sleep(60)", "await asyncio.sleep(60)"])
async def test_nothing_outlives_a_kernel_that_is_killed(shared, python, in_the_middle_of):
    process = python(KERNEL % (WAITS, in_the_middle_of))
    told = what_it_started(process)
    assert running(told["pids"]) == told["pids"]
    assert len(told["pids"]) == (4 if sys.platform == "win32" else 5)
    assert all(os.path.isdir(folder) for folder in told["folders"])
    process.kill()
    await gone(told)


@posix
async def test_nor_one_whose_whole_process_group_is_killed(shared, python, monkeypatch):
    popen = subprocess.Popen
    with monkeypatch.context() as changed:
        changed.setattr(
            subprocess, "Popen", lambda *a, **k: popen(*a, **{**k, "start_new_session": True})
        )
        process = python(KERNEL % (WAITS, "time.sleep(60)"))
    told = what_it_started(process)
    os.killpg(process.pid, signal.SIGKILL)
    await gone(told)


BEGIN = """
import json, sys
from labkit.system import launching
shop = await open_shop()
a = await lab.worker("shop.py", "A", **shop)
b = await lab.worker("shop.py", "B", **shop)
b.pause()
[held] = launching._held.values()
pids = [a.pid, b.pid, held.reaper.pid]
url = None
if sys.platform != "win32":
    url = await valkey(lab)
    async with redis.from_url(url) as client:
        pids.append((await client.info("server"))["process_id"])
print(json.dumps({"pids": pids, "folders": [str(lab.scratch)]}))
"""
GO_ON = """
b.kill()
await order(shop, 1)
await lab.until(lambda: acked(shop))                         # by A
if url:
    async with redis.from_url(url) as client:
        assert await client.ping()
"""


@contextlib.asynccontextmanager
async def lesson():
    """A Jupyter kernel that has run the lesson "effects once" as far as its first worker: (client,
    run, what it started)."""
    cells = lessons.sources("effects_once")
    async with kernel() as (client, run):
        for name in ("setup", "shop-tools", "shop-looks", "worker-shop"):
            await run(cells[name])
        yield client, run, json.loads(await run(BEGIN))


@posix
async def test_the_stop_button_interrupts_the_cell_and_ends_no_worker_and_no_valkey(shared):
    async with lesson() as (client, run, told):
        for _ in range(5):  # the kernel's event loop must wake up for each
            with pytest.raises(CellExecutionError, match="KeyboardInterrupt|CancelledError"):
                await interrupt(client, run, "await asyncio.sleep(60)")
        group = os.getpgid(client.km.provisioner.pid)
        assert running(told["pids"]) == told["pids"]
        assert group not in map(os.getpgid, told["pids"])
        await run(GO_ON)
        *ours, _, valkey = told["pids"]  # but for the reaper
        await run("await lab.close()")
        assert running([*ours, valkey]) == []


async def test_nothing_outlives_a_jupyter_kernel_that_is_killed(shared):
    async with lesson() as (client, _, told):
        assert running(told["pids"]) == told["pids"]
        psutil.Process(client.km.provisioner.pid).kill()
        await gone(told)

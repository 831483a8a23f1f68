"""A connection, worker, close or flush that is cancelled, at any moment, leaves nothing behind."""

import asyncio
import contextlib
import gc
import json

import psutil
import pytest

from labkit import Lab, LabError
from labkit.cluster import connection, nodes
from labkit.processes import workers
from labkit.system import ports
from labkit.waiting import until

WAITS = """
import asyncio

async def work(nc, js, point):
    await asyncio.sleep(60)
"""


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab._end()


@pytest.fixture
def counted(server):
    """A nats-server: (its address, a function that returns how many connections it has)."""
    monitor = ports.free_port()
    port, _ = server(f"http: 127.0.0.1:{monitor}")

    def connections():
        with nodes.DIRECT.open(f"http://127.0.0.1:{monitor}/connz", timeout=5) as answer:
            return json.load(answer)["num_connections"]

    return f"nats://127.0.0.1:{port}", connections


async def cancel_after(turns, task):
    """Cancels this task after so many turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()


async def nothing_runs():
    """Waits until no task runs but the test's own."""
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, 15)


async def test_a_connection_that_is_cancelled_at_any_moment_is_closed(counted):
    url, connections = counted
    ended = {"cancelled": 0, "made": 0}
    for turns in [*range(40), *range(40, 400, 20)]:
        attempt = asyncio.create_task(connection.connect(servers=[url]))
        await cancel_after(turns, attempt)
        with contextlib.suppress(asyncio.CancelledError):
            await connection.close_client(await attempt)
            ended["made"] += 1
            continue
        ended["cancelled"] += 1
        await nothing_runs()
        await until(lambda: connections() == 0, 15)
    assert ended["cancelled"] > 3, ended


@pytest.fixture
async def mute():
    """A server that accepts a connection, sends the lines of a greeting, and then nothing: (its
    address, the open connections, those lines, an event that is set when a connection has come)."""
    held, greeting, came = set(), [], asyncio.Event()

    async def accept(reader, writer):
        held.add(writer)
        came.set()
        for line in greeting:
            writer.write(line)
        while await reader.read(4096):
            pass
        held.discard(writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", held, greeting, came
    server.close()


INFO = b'INFO {"server_id": "x", "version": "2.15.1", "max_payload": 1048576, "client_id": 1}\r\n'


@pytest.mark.parametrize(
    "said",
    [[], [INFO], [INFO, b"-ERR 'Maximum Connections Exceeded'\r\n"]],
    ids=["nothing", "a greeting", "no"],
)
async def test_a_connection_to_a_server_that_falls_silent_is_closed(mute, said, capfd):
    """Both when the time is up and when the attempt is cancelled."""
    url, held, greeting, came = mute
    greeting += said
    with pytest.raises(LabError, match="No connection"):
        await connection.connect(servers=[url], timeout=0.3)
    await until(lambda: not held, 15)
    for turns in range(20):
        came.clear()
        attempt = asyncio.create_task(connection.connect(servers=[url]))
        await came.wait()
        await cancel_after(turns, attempt)
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await until(lambda: not held, 15)
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err


async def test_cancelled_connections_do_not_delay_the_end_of_the_lesson(lab, capsys):
    attempts = []
    for turns in range(0, 80, 2):
        attempts.append(asyncio.create_task(lab.connect(name="cancelled")))
        await cancel_after(turns, attempts[-1])
    await asyncio.gather(*attempts, return_exceptions=True)
    await lab.close()
    assert capsys.readouterr().out.endswith("closed: nothing left behind\n")


async def test_a_connection_that_is_made_while_the_lesson_ends_is_closed(lab, capsys):
    async def connect():
        with contextlib.suppress(LabError):  # "This lab is closed."
            return await lab.connect(name="late")

    late = [asyncio.create_task(connect()) for _ in range(5)]
    await asyncio.sleep(0)
    await lab.close()
    assert all(one is None or one.is_closed for one in await asyncio.gather(*late))
    assert capsys.readouterr().out.endswith("closed: nothing left behind\n")


async def test_a_connection_that_is_made_while_its_nodes_end_is_closed_or_refused(shared):
    """At any moment of its making: it hears nothing of the end, which would count as an error."""

    async def connect():
        with contextlib.suppress(LabError):  # "This lab is closed."
            return await lab.connect(name="late")

    for steps in range(0, 12, 2):
        lab = await Lab.open("checks", private=True)
        late = [asyncio.create_task(connect()) for _ in range(5)]
        await asyncio.sleep(0.001 * steps)
        await lab.close()
        assert all(one is None or one.is_closed for one in await asyncio.gather(*late))


def runners():
    """Returns the processes of workers that this process started and that still run."""
    children = [
        child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE
    ]
    return [child for child in children if str(workers.RUNNER) in child.cmdline()]


async def test_a_worker_that_was_cancelled_while_it_started_does_not_run(lab):
    name = workers.write(lab.topic, "waits.py", WAITS).name
    for steps in (0, 1, 30, 60):
        start = asyncio.create_task(lab.worker(name, "A"))
        for _ in range(steps):
            await asyncio.sleep(0.005)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            worker = await start  # it was ready before
            worker.kill()
            await worker.ended()
        assert not runners()
    again = await lab.worker(name, "A")  # refused while another A runs
    again.kill()
    await again.ended()


async def ignore(msg):
    pass


async def test_a_client_whose_close_was_cancelled_is_closed_by_the_next_call(counted):
    url, connections = counted
    for turns in range(20):
        nc = await connection.connect(servers=[url])
        await nc.subscribe("news", cb=ignore)
        closing = asyncio.create_task(nc.close())
        await cancel_after(turns, closing)
        await asyncio.wait([closing])
        await connection.close_client(nc)
        await nothing_runs()
        await until(lambda: connections() == 0, 15)


async def cancel_a_flush(flush):
    flushing = asyncio.ensure_future(flush)
    await cancel_after(1, flushing)  # the PING is on its way
    await asyncio.wait([flushing])


async def test_a_client_whose_flush_was_cancelled_still_receives(lab):
    nc = await lab.connect()
    got = []

    async def note(msg):
        got.append(msg.data)

    await nc.subscribe("news", cb=note)
    await connection.flush(nc)
    await cancel_a_flush(connection.flush(nc))
    await lab.nc.publish("news", b"1")
    await lab.until(lambda: got)


async def test_nats_py_stops_reading_after_a_cancelled_flush(lab):
    """When this fails, nats-py has been fixed, and connection.flush() can go."""
    nc = await lab.connect()
    await cancel_a_flush(nc.flush())
    await lab.until(nc._reading_task.done)


async def test_a_worker_that_ends_before_it_reads_its_order_is_reported(lab, monkeypatch, tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text("import os, sys\nos.close(0)\nsys.exit('no room')\n", encoding="utf-8")
    monkeypatch.setattr("labkit.processes.workers.RUNNER", runner)
    name = workers.write(lab.topic, "waits.py", WAITS).name
    with pytest.raises(LabError, match="Worker A ended .1. before it was ready. It said: no room"):
        await lab.worker(name, "A", padding="x" * 1_000_000)
    assert not lab.workers


async def test_what_nats_py_itself_refuses_is_reported_in_its_words():
    with pytest.raises(LabError, match="InvalidCallbackTypeError"):
        await connection.connect(servers=["nats://127.0.0.1:1"], closed_cb=print)
    words = "No connection to nats://127.0.0.1:port .*invalid connect url"
    with pytest.raises(LabError, match=words):
        await connection.connect(servers="nats://127.0.0.1:port")


@pytest.mark.parametrize(
    "url, shown, login",
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222", {}),
        ("127.0.0.1", "127.0.0.1", {}),
        ("nats://me:SECRET@host:4222", "nats://host:4222", {"user": "me", "password": "SECRET"}),
        ("tls://SECRET@host", "tls://host", {"token": "SECRET"}),
        ("me:SECRET@host:4222", "host:4222", {"user": "me", "password": "SECRET"}),
        (
            "nats://me:SEC@RET:/@host:4222",
            "nats://host:4222",
            {"user": "me", "password": "SEC@RET:/"},
        ),
        ("nats://me:@host", "nats://host", {"user": "me", "password": ""}),
    ],
)
def test_an_address_is_shown_without_its_secrets(url, shown, login):
    assert connection.without_secrets(url) == shown
    assert connection.login_in(url) == login

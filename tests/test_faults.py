"""Each fault is in place when its verb returns, heal() undoes it, and it happens nowhere but on a
cluster of one's own."""

import asyncio
import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from labkit import Lab, LabError
from labkit.cluster import lifecycle, nodes, raft, streams, tables
from labkit.processes import programs

OPEN = """
import asyncio, json, time
from labkit import Lab
async def main():
    lab = await Lab.open("checks", private=True)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.faults.pause("n1")
    await lab.faults.isolate("n2")
    pids = [node.pid for node in lab.cluster.nodes] + [lab.cluster.route_proxies.child.pid]
    print(json.dumps({"pids": pids,
                      "folders": [str(lab.cluster.folder), str(lab.scratch)]}), flush=True)
    time.sleep(60)  # a busy cell, and nobody who cleans up
asyncio.run(main())
"""
VERBS = {
    "kill": ["n1"],
    "stop": ["n1"],
    "lame_duck": ["n1"],
    "pause": ["n1"],
    "resume": ["n1"],
    "start": ["n1"],
    "isolate": ["n1"],
    "step_down": [],
}


@pytest.fixture
async def lab(own):
    """A private lab with an R3 stream, whole when the test begins."""
    lab = await Lab.open("checks", private=True)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.wait_for_current("ORDERS")
    yield lab
    await lab.close()


async def states(lab):
    return dict((await lab.nodes())["state"])


async def test_each_fault_is_in_place_on_return_and_undone_by_heal(lab):
    n2 = lab.node("n2")
    await lab.faults.kill("n2")
    await lab.faults.kill("n2")  # no news
    assert n2.process() is None and await states(lab) == {"n1": "up", "n2": "dead", "n3": "up"}
    with pytest.raises(
        LabError, match=r"n2 is down. Start it first: await lab.faults.start\('n2'\)"
    ):
        await lab.faults.pause("n2")
    await lab.faults.start("n2")
    assert (await states(lab))["n2"] == "up" and n2.server_id
    await lab.faults.stop("n2")
    assert n2.process() is None and "Server Exiting" in n2.log.read_text(encoding="utf-8")
    await lab.faults.heal()
    assert set((await states(lab)).values()) == {"up"}

    await lab.faults.pause("n2")
    await lab.faults.pause("n2")
    assert n2.process().status() == psutil.STATUS_STOPPED and (await states(lab))["n2"] == "paused"
    with pytest.raises(LabError, match=r"n2 is paused, not dead. .*resume\('n2'\)"):
        await lab.faults.start("n2")
    await lab.faults.resume("n2")
    await lab.faults.resume("n2")
    assert (await states(lab))["n2"] == "up"

    far, near = await lab.connect(node="n2"), await lab.connect(node="n1")
    got = []

    async def note(message):
        got.append(message.data)

    async def heard():
        await near.publish("news", b"before")
        return got

    await far.subscribe("news", cb=note)
    await lab.until(heard)
    await lab.faults.isolate("n2")
    await lab.faults.isolate("n2")
    assert await states(lab) == {"n1": "up", "n2": "isolated", "n3": "up"}
    await near.publish("news", b"during")
    await near.flush()
    with pytest.raises(LabError, match="Timed out after 0.5 s waiting for"):
        await lab.until(lambda: b"during" in got, timeout=0.5)
    assert await far.rtt(), "its clients still reach it"
    with pytest.raises(LabError, match="no node 'n9'"):
        await lab.faults.isolate("n1", "n9")
    assert lab.faults.isolated == {"n2"}, "a name that is not known cuts nobody off"
    await lab.faults.rejoin("n2")
    await lab.until(lambda: b"during" in got)  # what was on its way arrives
    await lab.faults.heal()
    await lab.faults.heal()
    assert set((await states(lab)).values()) == {"up"} and not lab.faults.isolated


async def test_two_faults_at_once_take_the_quorum_and_heal_gives_it_back(lab):
    leader = await lab.wait_for_leader("ORDERS")
    other, third = sorted({"n1", "n2", "n3"} - {leader})
    await lab.settled("ORDERS")
    await lab.js.publish("orders.new", b"before")
    await asyncio.gather(lab.faults.kill(leader), lab.faults.pause(other))
    assert await states(lab) == {leader: "dead", other: "paused", third: "up"}
    with pytest.raises(
        LabError,
        match=rf"Timed out after 1 s waiting for a leader of stream ORDERS other than {leader}. "
        rf"Last seen, node by node, who leads: {{'{third}': {{'meta': .*'ORDERS': ",
    ):
        await lab.wait_for_leader("ORDERS", other_than=leader, timeout=1)
    await lab.faults.heal()
    assert set((await states(lab)).values()) == {"up"}

    # a node that was dead stores what it missed a moment after it counts as current
    async def all_hold_it():
        return (await lab.replicas()).loc["ORDERS", "messages"].dropna().to_list() == [1, 1, 1]

    await lab.until(all_hold_it)


async def test_a_leader_that_is_killed_is_replaced_and_the_tables_say_so(lab):
    before = await lab.wait_for_leader("ORDERS")
    await lab.faults.kill(before)
    after = await lab.wait_for_leader("ORDERS", other_than=before)
    table = (await lab.replicas()).loc["ORDERS"]
    assert (
        after != before
        and table.loc[after, "role"] == "leader"
        and table.loc[before, "state"] == "offline"
    )
    await lab.faults.heal()
    await lab.wait_for_current("ORDERS")
    assert set((await lab.replicas())["state"]) == {"current"}


async def test_a_stream_is_deleted_also_when_the_leader_that_should_say_so_stands_still(lab):
    """The stream's leader answers a delete. One that meets the end of its leadership is answered by
    nobody."""
    await lab.faults.step_down(to="n1")
    await lab.faults.step_down("ORDERS", to="n2")
    client = await lab.connect(node="n1")
    js = client.jetstream(timeout=1)
    await lab.faults.pause("n2")
    assert await streams.delete(js, "ORDERS") is True
    assert await streams.stream_names(client) == set()
    assert await streams.delete(js, "ORDERS") is False, "it was gone"
    await lab.faults.heal()


async def test_after_a_fault_only_what_nats_py_met_by_itself_is_no_news(lab):
    async def callback(message):
        open("/no/such/file")

    async def background():
        await asyncio.open_connection("127.0.0.1", 1)

    await lab.connect(node="n2", reconnect_time_wait=0.01)
    await lab.faults.kill("n2")
    await lab.until(lambda: len(lab._net.caught) > 1)  # it was cut off, and nobody answers there
    lab.raise_errors()
    await lab.nc.subscribe("x", cb=callback)
    await lab.nc.publish("x", b"")
    task = asyncio.create_task(background())
    await lab.until(
        lambda: (
            task.done() and any(isinstance(error, FileNotFoundError) for error in lab._net.caught)
        )
    )
    with pytest.raises(
        LabError,
        match=(
            r"(?s)2 errors.*FileNotFoundError: .*\(in callback, line \d+\).*\(in background, line"
            r" \d+\)"
        ),
    ):
        lab.raise_errors()


async def test_a_step_down_names_the_new_leader(lab):
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    for group in ({"stream": "ORDERS"}, {"stream": "ORDERS", "consumer": "worker"}, {}):
        before = await lab.wait_for_leader(**group)
        after = await lab.faults.step_down(**group)
        assert after != before and await lab.wait_for_leader(**group) == after
    with pytest.raises(LabError, match="waiting for a leader of stream NONE"):
        await lab.faults.step_down("NONE", timeout=0.2)


async def test_a_step_down_to_a_dead_node_ends_and_says_what_was_seen(lab):
    leader = await lab.wait_for_leader("ORDERS")
    target = next(name for name in ("n1", "n2", "n3") if name != leader)
    await lab.faults.kill(target)
    with pytest.raises(
        LabError
    ):  # refused, not answered, or another one leads: it depends on who notices the death first
        async with asyncio.timeout(60):
            await lab.faults.step_down("ORDERS", to=target, timeout=2)
    with pytest.raises(
        LabError,
        match=rf"current replicas of stream ORDERS. Last seen, .*'ORDERS': 'n\d; {target} offline'",
    ):
        await lab.wait_for_leader("ORDERS")
        await lab.wait_for_current("ORDERS", timeout=4)


async def test_lame_duck_hands_over_before_it_ends(lab):
    if not hasattr(__import__("signal"), "SIGUSR2"):
        pytest.skip("no such signal on Windows")
    before = await lab.wait_for_leader("ORDERS")
    await lab.faults.lame_duck(before)
    await lab.wait_for_leader("ORDERS", other_than=before)
    assert lab.node(before).process(), "it still lives, so nobody had to miss it first"


async def test_faults_on_the_shared_cluster_are_refused_with_the_way_out(shared):
    lab = await Lab.open("checks")
    for verb, names in VERBS.items():
        with pytest.raises(
            LabError,
            match=r"Other lessons use this cluster too. .*Lab.open\('checks', private=True\)",
        ):
            await getattr(lab.faults, verb)(*names)
    await lab.faults.heal()  # nothing was broken: nothing to do
    assert set((await states(lab)).values()) == {"up"}
    await lab.close()


async def test_faults_on_an_attached_cluster_are_refused_with_the_way_out(own, server, monkeypatch):
    port, process = server(f"jetstream: {{store_dir: {nodes.quoted(str(own / 'js'))}}}")
    monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{port}")
    monkeypatch.delenv("LABKIT_BACKEND")
    lab = await Lab.open("checks")
    for verb, names in VERBS.items():
        with pytest.raises(
            LabError,
            match=r"your own \(NATS_URL\): the lab never breaks it. .*private=True.*unset NATS_URL",
        ):
            await getattr(lab.faults, verb)(*names)
    assert len(await lab.nodes()) == 0 and len(await lab.replicas()) == 0
    await lab.close()
    assert process.is_running()


async def test_two_private_clusters_and_the_shared_one_do_not_disturb_each_other(own):
    ours, theirs, common = (
        await Lab.open("checks", private=True),
        await Lab.open("mine", private=True),
        await Lab.open("core_nats"),
    )
    for lab in (ours, theirs, common):
        await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
        await lab.settled("ORDERS")
        await lab.js.publish("orders.new", lab.topic.encode())
    await ours.faults.kill("n2")
    await ours.faults.isolate("n3")
    for lab in (theirs, common):
        assert set((await states(lab)).values()) == {"up"}
        assert (await lab.js.publish("orders.new", b"")).seq == 2
        assert (await lab.js.get_msg("ORDERS", 1)).data == lab.topic.encode()
    await ours.close()  # broken as it is
    await theirs.faults.pause("n1")
    assert set((await states(common)).values()) == {"up"}
    folder, processes = theirs.cluster.folder, [node.process() for node in theirs.cluster.nodes]
    await theirs.close()
    await common.close()
    assert not Path(folder).exists() and not any(process.is_running() for process in processes)
    assert await lifecycle.find(), "the shared cluster stays up"


async def test_a_node_that_is_silent_for_no_known_reason_says_so():
    gone = lifecycle.Cluster(
        "embedded", [nodes.Node("n1", 1, 1)]
    )  # port 1: nobody answers, and it is no private cluster
    assert list((await tables.nodes(gone))["state"]) == ["no answer"]
    assert await raft.seen(gone, "checks") == {} and len(await tables.replicas(gone, "checks")) == 0


def test_after_a_kernel_that_was_killed_in_the_middle_of_a_fault_nothing_is_left(own, python):
    kernel = python(OPEN)
    left = next(json.loads(line) for line in kernel.stdout if line.startswith("{"))
    processes = [psutil.Process(pid) for pid in left["pids"]]
    assert [process.status() == psutil.STATUS_STOPPED for process in processes] == [
        True,
        False,
        False,
        False,
    ]
    assert all(Path(folder).is_dir() for folder in left["folders"])
    kernel.kill()
    kernel.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end and (
        alive(processes) or any(Path(folder).exists() for folder in left["folders"])
    ):
        time.sleep(0.05)
    assert not alive(processes), "neither a node, paused or not, nor the proxies"
    assert not [folder for folder in left["folders"] if Path(folder).exists()]


def alive(processes):
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


async def test_where_there_is_no_sigterm_a_reader_is_told_that_it_is_a_kill(
    lab, monkeypatch, capsys
):
    producer = programs.program(lab, "producer.py")
    await lab.until(lambda: producer.lines() or producer.log(), timeout=20)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        await lab.faults.stop("n3")
        producer.stop()
        with pytest.raises(LabError, match="Windows has no signal for lame duck mode"):
            await lab.faults.lame_duck("n1")
    said = capsys.readouterr().out
    assert "Windows has no SIGTERM: n3 is killed" in said and "producer is killed" in said
    await producer.ended()
    await lab.faults.heal()

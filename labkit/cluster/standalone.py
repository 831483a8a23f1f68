"""One plain nats-server beside the cluster, with a configuration of its own: for passwords,
permissions, TLS and limits."""

import asyncio
import itertools
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from labkit.cluster import nodes
from labkit.errors import LabError
from labkit.system import ports
from labkit.system.launching import end, launch

_count = itertools.count(1)


class Standalone:
    """A server that start_server() started. `url`, `port`; `stop()`, `await start()`, `pause()`,
    `resume()`."""

    def __init__(self, folder):
        self.folder, self.port, self.child = folder, ports.free_port(), None
        self.url, self.log = f"nats://127.0.0.1:{self.port}", folder / "server.log"

    async def start(self, timeout=10):
        """Starts it (again, on its old data) and returns when it answers. Raises LabError with the
        log's last words."""
        with open(self.log, "ab") as log:
            self.child = launch(
                [nodes.server_binary(), "-c", str(self.folder / "server.conf")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = asyncio.get_running_loop().time() + timeout
        while not await self._answers():
            if self.child.poll() is not None or asyncio.get_running_loop().time() > limit:
                self.stop()
                said = (
                    self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:]
                )
                raise LabError(
                    "The server with this configuration did not answer. It said:"
                    f" {' | '.join(said) or 'nothing'}"
                )
            await asyncio.sleep(0.01)

    async def _answers(self):
        """True if a NATS server greets on the port."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                return (await asyncio.wait_for(reader.readline(), 1)).startswith(b"INFO ")
            finally:
                writer.close()
        except (OSError, TimeoutError):
            return False

    def stop(self):
        """SIGKILL, and it is gone; its data stays."""
        if self.child:
            end(self.child)

    def pause(self):
        """It stands still and keeps its connections (SIGSTOP)."""
        process, end = psutil.Process(self.child.pid), time.monotonic() + 1
        process.suspend()
        while (
            process.status() != psutil.STATUS_STOPPED and time.monotonic() < end
        ):  # until then it may still answer
            time.sleep(0.002)

    def resume(self):
        """It goes on after pause()."""
        psutil.Process(self.child.pid).resume()


async def start_server(lab, config=""):
    """Starts one nats-server with this configuration (text, as in a nats-server file, without
    `listen`), on a free port of loopback. It ends with the lesson. Returns a Standalone; raises
    LabError with the server's own words if it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"single-{next(_count)}-", dir=lab.scratch))
    for _ in range(3):  # another program may take the port in that moment
        server = Standalone(folder)
        lab.on_close(server.stop)
        text = f'listen: "127.0.0.1:{server.port}"\n{config}\n'
        (folder / "server.conf").write_text(text, encoding="utf-8", newline="\n")
        try:
            await server.start()
            break
        except LabError as error:
            if "address already in use" not in str(error):
                raise
            server.log.unlink()
    else:
        raise LabError("No free port could be held for the server.")
    return server

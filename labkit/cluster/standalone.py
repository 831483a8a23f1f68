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
from labkit.waiting import until

_count = itertools.count(1)


class Standalone:
    """A server that start_server() started. `url`, `port`; `stop()`, `await start()`, `pause()`,
    `resume()`."""

    def __init__(self, folder):
        """folder: with its configuration, server.conf."""
        self.folder = folder
        self.port = ports.free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.child = None  # its Popen

    async def start(self, timeout=10):
        """Starts the server (again, on its old data) and returns when it answers. timeout: seconds.
        Raises LabError with the last lines of its log."""
        with open(self.log, "ab") as log:
            self.child = launch(
                [nodes.server_binary(), "-c", str(self.folder / "server.conf")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        async def answers():
            if self.child.poll() is not None:
                raise LabError(f"The server with this configuration ended. {self._last_words()}")
            return await self._answers()

        try:
            await until(answers, timeout, lambda: f"the server to answer. {self._last_words()}")
        except LabError:
            self.stop()
            raise

    def _last_words(self):
        log = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"It said: {' | '.join(log[-2:]) or 'nothing'}"

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
        """Kills the server (SIGKILL) and waits until it is gone. Its data stays."""
        if self.child:
            end(self.child)

    def pause(self):
        """Makes the server stand still; it keeps its connections (SIGSTOP)."""
        process = psutil.Process(self.child.pid)
        process.suspend()
        limit = time.monotonic() + 1
        while process.status() != psutil.STATUS_STOPPED and time.monotonic() < limit:
            time.sleep(0.002)  # until then it may still answer

    def resume(self):
        """Lets the server go on after pause()."""
        psutil.Process(self.child.pid).resume()


async def start_server(lab, config=""):
    """Starts one nats-server on a free port of loopback. It ends with the lesson. Returns a
    Standalone; raises LabError with the server's own words if it does not start.

    config: text as in a configuration file of nats-server, without `listen`."""
    folder = Path(tempfile.mkdtemp(prefix=f"server-{next(_count)}-", dir=lab.scratch))
    for _ in range(3):  # another program may take the port in that moment
        server = Standalone(folder)
        lab.on_close(server.stop)
        text = f'listen: "127.0.0.1:{server.port}"\n{config}\n'
        (folder / "server.conf").write_text(text, encoding="utf-8", newline="\n")
        try:
            await server.start()
            return server
        except LabError as error:
            if "address already in use" not in str(error):
                raise
            server.log.unlink()
    raise LabError("Other programs took the server's port three times. Try again.")

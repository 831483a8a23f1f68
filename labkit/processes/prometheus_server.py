"""A real Prometheus for a lesson, where the program is installed: a child process that ends with
the lesson."""

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.parse

from labkit.cluster import nodes
from labkit.errors import LabError
from labkit.system import ports
from labkit.system.launching import end, launch
from labkit.waiting import until


async def prometheus(lab, config, rules="", timeout=20):
    """Starts the program `prometheus` on this configuration and returns it ready, as a Prometheus;
    None where it is not installed. It ends with the lesson.

    config: text of prometheus.yml; rules: text of rules.yml, which lies beside it; timeout: seconds
    to get ready in. Raises LabError with its last words if it does not.
    """
    program = shutil.which("prometheus")
    if not program:
        return None
    folder = lab.scratch / f"prometheus-{ports.free_port()}"
    folder.mkdir()
    (folder / "prometheus.yml").write_text(config, encoding="utf-8", newline="\n")
    (folder / "rules.yml").write_text(rules or "groups: []\n", encoding="utf-8", newline="\n")
    server = Prometheus(program, folder)
    lab.on_close(server.end)
    await server.wait_until_ready(timeout)
    return server


class Prometheus:
    """A running Prometheus. `url`: its address, also for a browser."""

    def __init__(self, program, folder):
        """Starts it. program: path; folder: holds prometheus.yml (Path)."""
        port = ports.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "prometheus.log"
        with open(self._log, "wb") as said:
            self._child = launch(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
            )

    def end(self):
        """Kills it, and returns when it is gone."""
        end(self._child)

    async def wait_until_ready(self, timeout):
        """Returns once it answers queries. Raises LabError with its last words if it does not get
        so far in `timeout` seconds, or ends before."""

        async def ready_or_ended():
            return self._child.poll() is not None or await self.ready()

        await until(
            ready_or_ended,
            timeout,
            lambda: f"Prometheus to get ready. It said: {self._last_words()}",
        )
        if self._child.poll() is not None:
            raise LabError(
                f"Prometheus ended ({self._child.returncode}) before it was ready."
                f" It said: {self._last_words()}"
            )

    def _last_words(self):
        """The last three lines of its log (text)."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " ".join(lines[-3:]) or "nothing"

    async def ready(self):
        """True once it answers queries."""

        def get():
            try:
                with nodes.DIRECT.open(f"{self.url}/-/ready", timeout=1) as answer:
                    return answer.status == 200
            except OSError:
                return False

        return await asyncio.to_thread(get)

    async def api(self, path, **parameters):
        """What its HTTP API answers (the field `data`), such as api("query", query="up") or
        api("alerts"). Raises LabError with its own words if it refuses."""

        def get():
            address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            try:
                with nodes.DIRECT.open(address, timeout=5) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as refused:
                with refused:
                    return json.load(refused)

        answer = await asyncio.to_thread(get)
        if answer["status"] != "success":
            raise LabError(f"Prometheus refused {parameters}: {answer['error']}")
        return answer["data"]

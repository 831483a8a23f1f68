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


async def prometheus(lab, config, rules="", timeout=20):
    """Starts the program `prometheus` on this configuration and returns it ready, as a Prometheus;
    None where it is not installed. It ends with the lesson.

    config: text of prometheus.yml; rules: text of rules.yml, which lies beside it; timeout: seconds
    to get ready in. Raises LabError with what it said last if it does not."""
    program = shutil.which("prometheus")
    if not program:
        return None
    folder, port = lab.scratch / f"prometheus-{ports.free_port()}", ports.free_port()
    folder.mkdir()
    (folder / "prometheus.yml").write_text(config, encoding="utf-8", newline="\n")
    (folder / "rules.yml").write_text(rules or "groups: []\n", encoding="utf-8", newline="\n")
    with open(folder / "prometheus.log", "wb") as said:
        child = launch(
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
    lab.on_close(lambda: end(child))
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        await lab.until(lambda: child.poll() is not None or server.ready(), timeout)
    except LabError:
        end(child)
    if child.poll() is not None:
        last = (
            (folder / "prometheus.log")
            .read_text(encoding="utf-8", errors="replace")
            .strip()
            .splitlines()[-3:]
        )
        raise LabError(
            f"Prometheus did not get ready in {timeout} s. It said: {' '.join(last) or 'nothing'}"
        )
    return server


class Prometheus:
    """A running Prometheus. `url`: its address, also for a browser."""

    def __init__(self, url):
        self.url = url

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

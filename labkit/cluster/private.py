"""A cluster for one lesson alone, to break: three fresh nodes on free ports. It ends with the
lesson."""

import contextlib
import os
import random
import shutil

from labkit.cluster import nodes
from labkit.cluster.lifecycle import (
    Cluster,
    find_compose,
    healed_compose,
    refuse_full_disk,
    start_compose,
    wait_ready,
)
from labkit.cluster.partition import RouteProxies
from labkit.cluster.readiness import can_create
from labkit.errors import LabError
from labkit.system import launching, ports

# What a node tells the others about its routes: they must not find a way around the proxies.
NOWHERE = "127.0.0.1:1"
FIRST_PORTS = range(20000, 26000, 10)  # where the client port of n1 may lie
PROXIES = 6  # one for each direction between two of the three nodes
PROXY_OFFSET = 6000  # what to add to the client port of n1 for the first of six route proxies


class PrivateCluster(Cluster):
    """Three nodes whose routes run through proxies (see partition.py)."""

    def __init__(self, folder, first, sync):
        """Nothing runs yet. folder: for the nodes' data and logs (Path). first: client port of n1.
        sync: the nodes' sync_interval."""
        super().__init__("embedded", nodes.new_nodes(first, folder, sync))
        self.folder = folder
        self.first = first
        self.route_proxies = None

    def start_proxies(self):
        """Starts the proxies. Raises OSError if one of their ports is taken."""
        pairs = [(one, other) for one in self.nodes for other in self.nodes if one is not other]
        listen = self.first + PROXY_OFFSET
        self.route_proxies = RouteProxies(
            {
                (one.name, other.name): (listen + i, other.route)
                for i, (one, other) in enumerate(pairs)
            }
        )

    def spawn(self, node):
        """Starts one node (again, on its old data) and returns at once."""
        routes = [port for (one, _), port in self.route_proxies.ports.items() if one == node.name]
        node.spawn(routes, advertise=NOWHERE)

    def end(self):
        """Ends nodes and proxies, removes the data. Returns the names of nodes that still run."""
        launching.end_processes([node.process() for node in self.nodes])
        if self.route_proxies:
            self.route_proxies.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        return [node.name for node in self.nodes if node.process()]


async def start(sync="2m"):
    """Starts a PrivateCluster and waits until an R3 stream can be created (about a second).

    sync: the nodes' sync_interval, such as "2m" (the server's own default) or "always". Raises
    LabError."""
    launching.own_folder()
    refuse_full_disk()
    for _ in range(2):  # another program may just have taken a port: try others
        with contextlib.suppress(LabError, OSError):
            return await _start_once(sync)
    return await _start_once(sync)


async def _start_once(sync):
    # On a real disk: a folder for temporary files may be in memory.
    cluster = PrivateCluster(launching.new_folder("private"), free_base(), sync)
    try:
        cluster.start_proxies()
        for node in cluster.nodes:
            cluster.spawn(node)
        await wait_ready(cluster.nodes)
        await can_create(cluster)
    except BaseException:
        cluster.end()
        raise
    return cluster


async def start_or_containers(say):
    """Returns a PrivateCluster. If the lab runs in containers (they are up, or LABKIT_BACKEND is
    "compose"), returns those. say: see lifecycle.find_or_start(). Raises LabError."""
    asked = os.environ.get("LABKIT_BACKEND", "")
    if asked in ("", "compose") and await find_compose():
        return await healed_compose()
    if asked == "compose":
        return await start_compose(say)
    return await start()


def free_base():
    """Returns a client port for n1 such that the ports of three nodes and six proxies are free.

    They lie below the ports that systems give to outgoing connections, so that a node that was
    killed gets its own back. Raises LabError if there is none."""
    for first in random.sample(FIRST_PORTS, len(FIRST_PORTS)):
        proxies = [first + PROXY_OFFSET + i for i in range(PROXIES)]
        if all(ports.is_free(port) for port in nodes.ports_of_nodes(first) + proxies):
            return first
    highest = FIRST_PORTS[-1] + PROXY_OFFSET + PROXIES - 1
    raise LabError(
        f"No 15 free ports between {FIRST_PORTS[0]} and {highest} on 127.0.0.1 for a private"
        " cluster. Look with: python -m labkit doctor"
    )

"""A cluster for one lesson alone: three fresh nodes on free ports, to break at will, gone with the
lesson."""

import itertools
import os
import random
import shutil

from labkit.cluster import nodes
from labkit.cluster.lifecycle import (
    Cluster,
    find_compose,
    mended_compose,
    refuse_full_disk,
    start_compose,
    wait_ready,
)
from labkit.cluster.nodes import Node
from labkit.cluster.partition import RouteProxies
from labkit.cluster.readiness import can_create
from labkit.errors import LabError
from labkit.system import launching, ports

NOWHERE = (  # what a node tells others about its routes: gossip must not lead around the proxies
    "127.0.0.1:1"
)


class Private(Cluster):
    """Three nodes whose routes run through proxies (see partition.py).

    `route_proxies`: those; `folder`: holds the nodes' data and logs (Path)."""

    route_proxies = None

    def start_proxies(self):
        """Starts the proxies. Raises OSError if one of their ports is taken."""
        self.route_proxies = RouteProxies(self.proxy_ports)

    def spawn(self, node):
        """Starts (or starts again, on its old data) one node; returns at once."""
        node.spawn(
            [port for (one, _), port in self.route_proxies.ports.items() if one == node.name],
            advertise=NOWHERE,
        )

    def end(self):
        """Ends nodes and proxies and removes the data. Returns the names of nodes that could not be
        ended."""
        launching.end_processes([node.process() for node in self.nodes])
        if self.route_proxies:
            self.route_proxies.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        return [node.name for node in self.nodes if node.process()]


async def start(tries=3, sync="2m"):
    """Starts a Private cluster and waits until an R3 stream can be created (about a second). Raises
    LabError.

    sync: the nodes' sync_interval, such as "2m" (the server's own default) or "always"."""
    launching.own_folder()
    refuse_full_disk()
    while True:
        cluster = _laid_out(sync)
        try:
            cluster.start_proxies()
            for node in cluster.nodes:
                cluster.spawn(node)
            await wait_ready(cluster.nodes)
            await can_create(cluster)
            return cluster
        except (LabError, OSError):  # another program may have taken a port in that moment
            cluster.end()
            if not (tries := tries - 1):
                raise
        except BaseException:
            cluster.end()
            raise


async def start_or_containers(say):
    """A Private cluster; where the lab runs in containers (LABKIT_BACKEND, or because they are up),
    those."""
    asked = os.environ.get("LABKIT_BACKEND", "")
    if asked in ("", "compose") and await find_compose():
        return await mended_compose()
    return await start_compose(say) if asked == "compose" else await start()


def _laid_out(sync):
    """A Private cluster with its ports and its folder; nothing of it runs yet."""
    folder = launching.new_folder(
        "private"
    )  # on a real disk: a folder for temporary files may be memory
    base, at = free_base(), itertools.count(6000)
    members = [
        Node(name, base + i, base + i + 4000, str(folder / name), sync=sync)
        for i, name in enumerate(nodes.NAMES)
    ]
    cluster = Private("embedded", members, [node.url for node in members])
    cluster.folder = folder
    cluster.proxy_ports = {
        (a.name, b.name): (base + next(at), b.route) for a in members for b in members if a is not b
    }
    return cluster


def free_base():
    """A client port such that the ports of three nodes and six proxies are free (below those that
    systems give to outgoing connections, so that a node that was killed gets its own back)."""
    for base in random.sample(range(20000, 26000, 10), 600):
        offsets = [offset + i for offset in (0, 2000, 4000) for i in range(3)] + [
            6000 + i for i in range(6)
        ]
        if all(ports.is_free(base + offset) for offset in offsets):
            return base
    raise LabError(
        "No 15 free ports between 20000 and 32006 on 127.0.0.1 for a private cluster. "
        "Look with: python -m labkit doctor"
    )

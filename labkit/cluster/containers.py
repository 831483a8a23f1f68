"""The same three nodes as containers of docker-compose.yml."""

import asyncio
import json
import shutil
import subprocess

from labkit import paths
from labkit.cluster import nodes
from labkit.cluster.nodes import Node
from labkit.errors import LabError
from labkit.system import ports

PROJECT = "labkit"  # compose's name for this set of containers
MESH = {
    "n1": "10.213.37.11",
    "n2": "10.213.37.12",
    "n3": "10.213.37.13",
}  # in the network of the routes: as in the file


async def members():
    """The nodes of the running compose cluster (list of Node), or None: one of them at least
    answers on its monitoring port, and says that it runs in a container."""
    found = [Node(name, 4222 + i, 8222 + i) for i, name in enumerate(nodes.NAMES)]
    if not any(
        await asyncio.gather(*(asyncio.to_thread(ports.listens, node.monitor) for node in found))
    ):
        return None
    told = await asyncio.gather(*(node.ask(timeout=2) for node in found))
    return found if any("compose" in facts.get("tags", []) for facts in told if facts) else None


def run(*arguments):
    """Runs `docker compose` (or the older `docker-compose`) on the project's file. Returns what it
    printed; raises LabError with its words."""
    if not shutil.which("docker") and not shutil.which("docker-compose"):
        raise LabError(
            "Docker is not installed (no `docker` on the PATH). The lab needs none: leave"
            " LABKIT_BACKEND unset, and the same cluster runs as three processes."
        )
    plugin = (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    command = (
        ["docker", "compose"]
        if plugin or not shutil.which("docker-compose")
        else ["docker-compose"]
    )
    done = subprocess.run(
        [*command, "-p", PROJECT, "-f", str(paths.PROJECT / "docker-compose.yml"), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise LabError(
            f"`{' '.join([*command, *arguments])}` failed: {said}. If the Docker daemon is not"
            " running, start it (Docker Desktop, or: sudo systemctl start docker). The lab also"
            " runs without Docker: leave LABKIT_BACKEND unset."
        )
    return done.stdout


def docker(*arguments):
    """Runs `docker` with these arguments. Returns what it printed; raises LabError with its
    words."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise LabError(
            f"`docker {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def resume(name):
    """Lets this node's container go on, if it does not."""
    if json.loads(docker("inspect", f"labkit-{name}"))[0]["State"]["Status"] != "running":
        docker("unpause", f"labkit-{name}")


def cut_off(name):
    """Takes this node's container out of the network of the routes."""
    docker("network", "disconnect", "labkit-mesh", f"labkit-{name}")


def mend(*names):
    """Undoes what a lesson does to these nodes' containers: resumes, starts, brings back into the
    network of the routes."""
    for name in names:
        container = json.loads(docker("inspect", f"labkit-{name}"))[0]
        if (state := container["State"]["Status"]) != "running":
            docker("unpause" if state == "paused" else "start", f"labkit-{name}")
        if "labkit-mesh" not in container["NetworkSettings"]["Networks"]:
            docker(
                "network",
                "connect",
                "--ip",
                MESH[name],
                "--alias",
                f"{name}-mesh",
                "labkit-mesh",
                f"labkit-{name}",
            )

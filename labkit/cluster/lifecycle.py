"""Three nodes as one thing: found if they are up, started if not, told apart from strangers, ended
when asked."""

import asyncio
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import AsyncFileLock, FileLock, Timeout

from labkit import paths
from labkit.cluster import containers, nodes
from labkit.cluster.connection import login_in, without_secrets
from labkit.cluster.nodes import Node
from labkit.cluster.raft import agreed
from labkit.cluster.readiness import can_create
from labkit.errors import LabError, explained
from labkit.system import launching, ports

LEAST_ROOM = 256 << 20  # bytes of free disk below which no node is started
PATIENCE = 60  # seconds to wait for another process that starts or ends the cluster


@dataclass
class Cluster:
    """A cluster to learn on. `backend` is "embedded" (processes), "compose" (containers) or
    "attached" (NATS_URL)."""

    backend: str
    nodes: list = field(default_factory=list)
    servers: list = field(default_factory=list, repr=False)  # URLs for nats.connect
    url_login: dict = field(default_factory=dict, repr=False)  # the login in NATS_URL, as options

    @property
    def shown(self):
        """The servers as they may be printed, logged and stored: without user, password, token."""
        return " ".join(map(without_secrets, self.servers))

    def login(self, account):
        """Options for nats.connect that lead to this account; on an attached cluster, those of
        NATS_USER, NATS_PASSWORD and NATS_CREDS, or of NATS_URL itself. Raises LabError if the
        credentials file is not there."""
        if self.backend != "attached":
            return {"servers": self.servers, "user": account, "password": "lab"}
        wanted = {
            "user": os.environ.get("NATS_USER"),
            "password": os.environ.get("NATS_PASSWORD"),
            "user_credentials": os.environ.get("NATS_CREDS"),
        }
        if wanted["user_credentials"] and not os.path.isfile(wanted["user_credentials"]):
            raise LabError(
                f"NATS_CREDS names {wanted['user_credentials']}, which is no file; wanted: a .creds"
                " file."
            )
        given = {key: value for key, value in wanted.items() if value}
        return {"servers": self.servers, **self.url_login, **given}


def attached(urls):
    """The Cluster of these URLs (text, as in NATS_URL).

    A login in them becomes an option of the clients, so that it holds also on servers that the
    cluster tells of, and stands in no client's addresses. Where there are several logins, each
    stays in its URL."""
    urls = [url.strip() for url in urls.split(",")]
    logins = [login for url in urls if (login := login_in(url))]
    if any(login != logins[0] for login in logins):
        return Cluster("attached", servers=urls)
    addresses = [without_secrets(url) for url in urls]
    return Cluster("attached", servers=addresses, url_login=logins[0] if logins else {})


async def find():
    """The cluster that this environment asks for, if it is there; else None. Starts nothing. Raises
    LabError.

    In this order: NATS_URL (any cluster), a running compose cluster, the running embedded one.
    LABKIT_BACKEND=embedded or =compose insists.
    """
    backend = os.environ.get("LABKIT_BACKEND", "")
    if backend not in ("", "embedded", "compose"):
        raise LabError(
            f"LABKIT_BACKEND is {backend!r}; wanted: embedded, compose, or not set (then NATS_URL"
            " counts, then a running compose cluster, then the embedded one)."
        )
    if os.environ.get("NATS_URL") and not backend:
        return attached(os.environ["NATS_URL"])
    if backend == "compose":
        return await find_compose()
    if backend == "embedded":
        return await find_embedded()
    return await find_compose() or await find_embedded()


async def find_compose():
    """The running compose Cluster, or None."""
    members = await containers.members()
    return Cluster("compose", members, [node.url for node in members]) if members else None


async def start_compose(say=lambda text: None):
    """Brings the containers up and waits until an R3 stream can be created. Returns a Cluster;
    raises LabError."""
    up_in_part = (
        await asyncio.to_thread(containers.run, "ps", "-q")
    ).strip()  # the ports are held by containers of ours
    for port in () if up_in_part else (4222, 4223, 4224, 8222, 8223, 8224):
        if who := ports.holder(port):
            raise LabError(
                f"Port {port} is held by {who}, and the containers want it. If it is the lab's"
                " embedded cluster, end it: LABKIT_BACKEND=embedded python -m labkit down"
            )
    say("starting three containers")
    try:
        await asyncio.to_thread(containers.run, "up", "-d")
    except LabError:
        await asyncio.to_thread(containers.run, "down", "-v")
        raise
    return await mended_compose()


async def mended_compose():
    """The compose Cluster, whatever a kernel that was killed did to its containers, once an R3
    stream can be created. Raises LabError after a minute."""
    await asyncio.to_thread(containers.mend, *nodes.NAMES)
    for _ in range(600):
        cluster = await find_compose()
        told = cluster and await asyncio.gather(*(node.ask() for node in cluster.nodes))
        if told and all(told) and agreed(told):
            await can_create(cluster)
            return cluster
        await asyncio.sleep(0.1)
    raise LabError(
        "The containers are up, but the cluster was not ready after 60 s. Look with: "
        f"docker compose -p {containers.PROJECT} logs"
    )


async def find_or_start(say=lambda text: None):
    """As find(), but what is not up is started: containers if LABKIT_BACKEND=compose, processes
    otherwise.

    `say` is called with a line of text when something takes time. Returns a Cluster that is ready;
    raises LabError.
    """
    start = start_compose if os.environ.get("LABKIT_BACKEND") == "compose" else start_embedded
    return await find() or await start(say)


# --- the embedded backend


def state_file():
    return paths.home() / "cluster.json"


def written_down():
    """The nodes of the cluster that was last started in this home, alive or not (list of Node); []
    if none was."""
    try:
        members = [Node(**entry) for entry in json.loads(state_file().read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # no file, half a file, a file of an older labkit
        return []
    return members if all(_is_ours(node) for node in members) else []


def _is_ours(node):
    """False if the state file came with a copy of another lab's folder: the data of that lab's
    nodes still lies there. Where the folder was moved, the old place is gone."""
    return paths.home() in Path(node.store).parents or not os.path.exists(node.store)


def _running():
    """Processes of this home's shared nodes (list): those on its stores, and those of a folder that
    was moved since."""
    found = {process.pid: process for process in nodes.strays(paths.home())}
    found.update({process.pid: process for node in written_down() if (process := node.process())})
    return list(found.values())


async def is_well(node):
    """True if the node's process lives, is the one we started, and answers with the server id that
    we know.

    It is asked with patience: who is not well is ended and started again, and on a busy machine
        half a second is short.
    """
    told = await node.ask(timeout=5) if node.process() else None
    return bool(told) and told["server_id"] == node.server_id


async def find_embedded():
    """The running embedded Cluster, or None if it is not up as a whole."""
    members = written_down()
    if not members or members[0].port != nodes.first_port():
        return None
    if all(await asyncio.gather(*map(is_well, members))):
        return Cluster("embedded", members, [node.url for node in members])
    return None


def part():
    """The embedded Cluster that is up in part: at least one of its nodes runs. Else None."""
    members = written_down()
    if (
        members
        and members[0].port == nodes.first_port()
        and any(node.process() for node in members)
    ):
        return Cluster("embedded", members, [node.url for node in members])
    return None


async def start_embedded(say=lambda text: None):
    """Starts what is missing and waits until an R3 stream can be created. Two callers at once get
    one cluster."""
    paths.make_folder(paths.home())
    lock = AsyncFileLock(lock_file(), timeout=PATIENCE)
    try:
        async with lock:
            return await find_embedded() or await _start_embedded(say)
    except Timeout:
        raise _busy() from None
    except OSError as error:
        raise explained(error) from None


def lock_file():
    """Who starts or ends the cluster of this home holds this lock."""
    return paths.home() / "cluster.lock"


def _busy():
    return LabError(
        f"Another process has been starting or ending the cluster for {PATIENCE} s and holds"
        f" {lock_file()}. Look with: python -m labkit doctor"
    )


async def _start_embedded(say):
    members = written_down()
    alive = await asyncio.gather(*map(is_well, members))
    refuse_second_port()
    if any(alive):
        missing = [
            node for node, well in zip(members, alive) if not well
        ]  # they come back to their own store
        say(f"starting {', '.join(node.name for node in missing)} again")
        launching.end_processes([node.process() for node in missing])
    else:
        _end_nodes()
        refuse_full_disk()
        # A new folder every time: a store cannot be opened by two servers, and an empty one boots
        # ten times faster (a restart with state waits out a full election, 4 to 9 s).
        run = tempfile.mkdtemp(prefix="run-", dir=paths.home())
        first = nodes.first_port()
        members = missing = [
            Node(name, first + i, first + i + 4000, os.path.join(run, name))
            for i, name in enumerate(nodes.NAMES)
        ]
        say("starting three nodes")
    refuse_taken_ports(missing)
    try:
        for node in (
            missing
        ):  # all at once: 0.3 s between them, and the first vote fails and the next takes 4 to 9 s
            node.spawn([other.route for other in members], outlives=True)
        _write_down(members)
        await wait_ready(members)
        cluster = Cluster("embedded", members, [node.url for node in members])
        await can_create(cluster)
        _write_down(members)
    except BaseException:
        launching.end_processes([node.process() for node in missing])
        raise
    return cluster


def _write_down(members):
    """Notes the nodes in the state file."""
    paths.write_whole(state_file(), json.dumps([asdict(node) for node in members], indent=1))


def refuse_second_port():
    """One home holds one cluster. Raises LabError if it runs on other ports than this environment
    asks for."""
    running = running_port()
    if running not in (None, nodes.first_port()):
        raise LabError(
            f"The cluster of {paths.home()} is up on {_span(running)}, and LABKIT_PORT asks for"
            f" {nodes.first_port()}. Three ways out: set LABKIT_PORT={running} to use it; end it"
            " first, with python -m labkit down; or set LABKIT_HOME to another folder to have a"
            " second one beside it."
        )


def running_port():
    """The client port of n1 of the cluster that runs in this home, as a whole or in part, whatever
    is written down. None if no node runs."""
    return next((nodes.first_port_of(process) for process in _running()), None)


def place(first=None):
    """Which lab is meant, in words: its ports and its home. first: client port of n1 (default: the
    one asked for)."""
    return f"{_span(first or nodes.first_port())}, home {paths.home()}"


def _span(first):
    return f"ports {first}–{first + 2}"


def refuse_full_disk():
    free = shutil.disk_usage(paths.home()).free
    if free < LEAST_ROOM:
        raise LabError(
            f"{free / 2**20:.0f} MiB of disk are free at {paths.home()}; three nodes want"
            f" {LEAST_ROOM >> 20} MiB. Free some space, or set LABKIT_HOME to a folder on another"
            " disk."
        )


def refuse_taken_ports(members):
    for node in members:
        for port in (node.port, node.monitor, node.route):
            who = ports.holder(port)
            if who:
                raise LabError(
                    f"Port {port} (wanted by {node.name}) is held by {who}. Three ways out: end"
                    " that program; use other ports with the environment variable"
                    f" LABKIT_PORT={nodes.other_port()}; or, if it is a NATS cluster that you want"
                    f" to learn on, set NATS_URL=nats://127.0.0.1:{node.port}. `python -m labkit"
                    " doctor` shows all ports."
                )


async def wait_ready(members, timeout=40):
    """Waits until all nodes are linked and agree on a meta leader that sees two current replicas
    (seconds). Raises LabError early if a process ends. Learns the server ids on the way."""
    start = time.monotonic()
    while True:
        told = await asyncio.gather(*(node.ask(timeout=1) for node in members))
        for node, facts in zip(members, told):
            if not node.process():
                raise LabError(f"{node.name} ended while it started. {last_words(node)}")
            if facts:
                node.server_id = facts["server_id"]
        if all(told) and agreed(told):
            return
        if time.monotonic() - start > timeout:
            seen = {
                node.name: (facts or {}).get("jetstream", {}).get("meta", "no answer")
                for node, facts in zip(members, told)
            }
            raise LabError(
                f"The cluster was not ready after {timeout} s. Last seen: {seen}. "
                f"Logs: {members[0].log.parent}"
            )
        await asyncio.sleep(0.02)


def last_words(node):
    """Why a node ended, from its log, and what to do."""
    lines = [
        line
        for line in node.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line
    ][-2:]
    text = " | ".join(line.split("] ", 1)[-1] for line in lines) or "Its log says nothing."
    advice = {
        "no space left": (
            "Free some disk space, or set LABKIT_HOME to a folder on a disk with room "
            f"(now {paths.home()})."
        ),
        "address already in use": (
            "Something took the port in that moment: python -m labkit doctor shows who."
        ),
        "permission denied": (
            f"It may not write there: set LABKIT_HOME to a folder of yours (now {paths.home()})."
        ),
    }
    way_out = next(
        (advice[key] for key in advice if key in text), "python -m labkit doctor looks closer."
    )
    return f"It said: {text}. {way_out} Whole log: {node.log}"


def end_embedded():
    """Ends the cluster of this home and what killed kernels left there, and removes the data.
    Returns (number of nodes, number of processes of killed kernels). Waits for somebody who is just
    starting or ending it. Raises LabError.
    """
    paths.make_folder(paths.home())
    try:
        with FileLock(lock_file(), timeout=PATIENCE):
            return _end_nodes(), _end_orphans()
    except Timeout:
        raise _busy() from None
    except OSError as error:
        raise explained(error) from None


def _end_nodes():
    """Ends every shared node that was started from this home, written down or not. Returns their
    number."""
    found = _running()
    launching.end_processes(found, graceful=2)
    state_file().unlink(missing_ok=True)
    for run in paths.home().glob("run-*"):
        shutil.rmtree(run, ignore_errors=True)
    return len(found)


def _end_orphans():
    """Ends what outlived a kernel because its reaper was killed as well. Returns the number of
    processes."""
    processes, folders = launching.orphans()
    launching.end_processes(processes)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        launching.remove_lock(folder)
    return len(processes)

"""The three nodes as one cluster: finds it if it is up, starts it if not, tells it apart from other
programs, and ends it."""

import asyncio
import json
import os
import shutil
import tempfile
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
from labkit.waiting import until

LEAST_ROOM = 256 << 20  # bytes of free disk; with less, no node is started
PATIENCE = 60  # seconds to wait for containers, and for another process that starts a cluster


@dataclass
class Cluster:
    """A cluster to learn on."""

    backend: str  # "embedded" (processes), "compose" (containers) or "attached" (NATS_URL)
    nodes: list = field(default_factory=list)
    servers: list = field(default_factory=list, repr=False)  # URLs; default: those of the nodes
    url_login: dict = field(default_factory=dict, repr=False)  # the login in NATS_URL, as options

    def __post_init__(self):
        if not self.servers:
            self.servers = [node.url for node in self.nodes]

    @property
    def shown(self):
        """The servers as they may be printed, logged and stored: without user, password, token."""
        return " ".join(without_secrets(server) for server in self.servers)

    def login(self, account):
        """Returns options for nats.connect that lead to this account. On an attached cluster they
        come from NATS_USER, NATS_PASSWORD and NATS_CREDS, or from NATS_URL itself.

        Raises LabError if the credentials file is not there."""
        if self.backend != "attached":
            return {"servers": self.servers, "user": account, "password": "lab"}
        wanted = {
            "user": os.environ.get("NATS_USER"),
            "password": os.environ.get("NATS_PASSWORD"),
            "user_credentials": os.environ.get("NATS_CREDS"),
        }
        credentials = wanted["user_credentials"]
        if credentials and not os.path.isfile(credentials):
            raise LabError(
                f"NATS_CREDS is {credentials}, and there is no such file; wanted: a .creds file."
            )
        given = {key: value for key, value in wanted.items() if value}
        return {"servers": self.servers, **self.url_login, **given}


def attached(urls):
    """Returns the Cluster of these URLs (text, as in NATS_URL).

    A login in them becomes an option of the clients. So clients also use it for servers that
    the cluster announces, and it appears in no address. If there are several logins, each stays in
    its URL.
    """
    urls = [url.strip() for url in urls.split(",")]
    logins = [login_in(url) for url in urls if login_in(url)]
    if any(login != logins[0] for login in logins):
        return Cluster("attached", servers=urls)
    addresses = [without_secrets(url) for url in urls]
    return Cluster("attached", servers=addresses, url_login=logins[0] if logins else {})


async def find():
    """Returns the cluster that this environment asks for if it is up, else None. Starts nothing.

    In this order: NATS_URL (any cluster), a running compose cluster, the running embedded one.
    LABKIT_BACKEND=embedded or =compose insists. Raises LabError if that variable has another value.
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


async def find_or_start(say=lambda text: None):
    """Returns a Cluster that is ready: the one that find() finds, or a new one. Containers are
    started if LABKIT_BACKEND=compose, processes otherwise.

    `say` is called with a line of text when something takes time. Raises LabError.
    """
    found = await find()
    if found:
        return found
    if os.environ.get("LABKIT_BACKEND") == "compose":
        return await start_compose(say)
    return await start_embedded(say)


async def wait_ready(members, timeout=40):
    """Waits until all nodes are linked and agree on a meta leader that sees two current replicas.

    timeout: seconds. Raises LabError, at once if a process ends. Learns the server ids meanwhile.
    """
    answers = []

    async def ready():
        nonlocal answers
        answers = await asyncio.gather(*(node.ask(timeout=1) for node in members))
        for node, answer in zip(members, answers):
            if node.store and not node.process():
                raise LabError(f"{node.name} ended while it started. {last_words(node)}")
            if answer:
                node.server_id = answer["server_id"]
        return all(answers) and agreed(answers)

    def describe():
        seen = {
            node.name: answer.get("jetstream", {}).get("meta", {}) if answer else "no answer"
            for node, answer in zip(members, answers)
        }
        look = f"docker compose -p {containers.PROJECT} logs"
        if members[0].store:
            look = f"the logs in {members[0].log.parent}"
        return f"the nodes to agree on a meta leader. Last seen: {seen}. Look at: {look}"

    await until(ready, timeout, describe, every=0.02)


# --- the backend of containers


async def find_compose():
    """Returns the running compose Cluster, or None."""
    members = await containers.members()
    return Cluster("compose", members) if members else None


async def start_compose(say=lambda text: None):
    """Starts the containers and waits until an R3 stream can be created. Returns a Cluster; raises
    LabError."""
    running = await asyncio.to_thread(containers.run, "ps", "-q")
    if not running.strip():  # else containers of ours hold the ports
        _refuse_ports_that_containers_want()
    say("starting three containers")
    try:
        await asyncio.to_thread(containers.run, "up", "-d")
    except LabError:
        await asyncio.to_thread(containers.run, "down", "-v")
        raise
    return await healed_compose()


def _refuse_ports_that_containers_want():
    for port in (4222, 4223, 4224, 8222, 8223, 8224):
        who = ports.holder(port)
        if who:
            raise LabError(
                f"Port {port} is held by {who}, and the containers want it. If it is the lab's"
                " embedded cluster, end it: LABKIT_BACKEND=embedded python -m labkit down"
            )


async def healed_compose():
    """Heals the containers from whatever a killed kernel did to them. Returns the compose Cluster
    once an R3 stream can be created; raises LabError."""
    await asyncio.to_thread(containers.heal, *nodes.NAMES)
    cluster = await until(
        find_compose,
        PATIENCE,
        f"the containers to answer (look at: docker compose -p {containers.PROJECT} logs)",
    )
    await wait_ready(cluster.nodes, PATIENCE)
    await can_create(cluster)
    return cluster


# --- the embedded backend: the state file


def state_file():
    return paths.home() / "cluster.json"


def written_down():
    """Returns the nodes of the cluster that was last started in this home, alive or not (list of
    Node); [] if there was none."""
    try:
        members = [Node(**entry) for entry in json.loads(state_file().read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # no file, half a file, a file of an older labkit
        return []
    return members if all(_is_ours(node) for node in members) else []


def _is_ours(node):
    """False if the state file is a copy from another lab's folder: that lab's data is still there.
    If the folder was moved, the old place is gone."""
    return paths.home() in Path(node.store).parents or not os.path.exists(node.store)


def _write_down(members):
    """Writes the nodes to the state file."""
    paths.write_whole(state_file(), json.dumps([asdict(node) for node in members], indent=1))


# --- the embedded backend: what runs


def _running():
    """Returns the processes of this home's shared nodes (list of psutil processes): those with a
    store in it, and those of a folder that has been moved since."""
    found = {process.pid: process for process in nodes.processes_of_nodes(paths.home())}
    for node in written_down():
        process = node.process()
        if process:
            found[process.pid] = process
    return list(found.values())


def running_port():
    """Returns the client port of n1 of the cluster that runs in this home, as a whole or in part,
    whatever is written down. None if no node runs."""
    return next((nodes.first_port_of(process) for process in _running()), None)


async def is_well(node):
    """True if the node's process lives and answers with the server id that we know.

    It has five seconds to answer: a node that is not well is ended and started again, and on a busy
    machine half a second is too short."""
    answer = await node.ask(timeout=5) if node.process() else None
    return bool(answer) and answer["server_id"] == node.server_id


def _members_on_these_ports():
    """Returns the nodes that are written down, or [] if LABKIT_PORT asks for other ports."""
    members = written_down()
    if members and members[0].port == nodes.first_port():
        return members
    return []


async def find_embedded():
    """Returns the running embedded Cluster, or None unless all three nodes are well."""
    members = _members_on_these_ports()
    if members and all(await asyncio.gather(*map(is_well, members))):
        return Cluster("embedded", members)
    return None


def find_partly_running():
    """Returns the embedded Cluster if at least one of its nodes runs, else None."""
    members = _members_on_these_ports()
    if any(node.process() for node in members):
        return Cluster("embedded", members)
    return None


# --- the embedded backend: start and end


async def start_embedded(say=lambda text: None):
    """Starts what is missing and waits until an R3 stream can be created. Two callers at once get
    the same Cluster. Raises LabError."""
    paths.make_folder(paths.home())
    try:
        async with AsyncFileLock(lock_file(), timeout=PATIENCE):
            return await find_embedded() or await _start_embedded(say)
    except Timeout:
        raise _busy() from None
    except OSError as error:
        raise explained(error) from None


def lock_file():
    """Returns the file whose lock a process holds while it starts or ends this home's cluster."""
    return paths.home() / "cluster.lock"


def _busy():
    return LabError(
        f"Another process has been starting or ending the cluster for {PATIENCE} s and holds"
        f" {lock_file()}. Look with: python -m labkit doctor"
    )


async def _start_embedded(say):
    members = written_down()
    well = await asyncio.gather(*map(is_well, members))
    refuse_second_port()
    dead = [node for node, is_up in zip(members, well) if not is_up]
    if any(well):
        missing = dead
        say(f"starting {', '.join(node.name for node in missing)} again")
        launching.end_processes([node.process() for node in missing])
    else:
        _end_nodes()
        refuse_full_disk()
        # Always a new folder: two servers cannot open one store, and an empty store boots ten times
        # faster (with state, a restart waits for a full election, 4 to 9 s).
        run = tempfile.mkdtemp(prefix="run-", dir=paths.home())
        members = nodes.new_nodes(nodes.first_port(), run)
        missing = members
        say("starting three nodes")
    await asyncio.gather(*(node.ports_are_let_go() for node in dead))
    refuse_taken_ports(missing)
    try:
        # All at once: if they start 0.3 s apart, the first vote fails and the next takes 4 to 9 s.
        for node in missing:
            node.spawn([other.route for other in members], outlives=True)
        _write_down(members)
        await wait_ready(members)
        cluster = Cluster("embedded", members)
        await can_create(cluster)
        _write_down(members)  # now with the server ids
    except BaseException:
        launching.end_processes([node.process() for node in missing])
        raise
    return cluster


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


def place(first=None):
    """Returns which lab is meant, in words: its ports and its home. first: client port of n1
    (default: the one that is asked for)."""
    return f"{_span(first or nodes.first_port())}, home {paths.home()}"


def _span(first):
    return f"ports {first}–{first + 2}"


def refuse_full_disk():
    """Raises LabError if the disk has too little room for three nodes."""
    free = shutil.disk_usage(paths.home()).free
    if free < LEAST_ROOM:
        raise LabError(
            f"{free / 2**20:.0f} MiB of disk are free at {paths.home()}; three nodes want"
            f" {LEAST_ROOM >> 20} MiB. Free some space, or set LABKIT_HOME to a folder on another"
            " disk."
        )


def refuse_taken_ports(members):
    """Raises LabError if another program has a port that one of these nodes wants."""
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


def last_words(node):
    """Returns why a node ended, from its log, and what to do (text)."""
    log = node.log.read_text(encoding="utf-8", errors="replace").splitlines()
    problems = [
        line.split("] ", 1)[-1]
        for line in log
        if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line
    ]
    words = " | ".join(problems[-2:]) or "Its log says nothing."
    return f"It said: {words}. {_advice(words)} Whole log: {node.log}"


def _advice(words):
    """Returns what to do about a node's last words."""
    if "no space left" in words:
        return (
            "Free some disk space, or set LABKIT_HOME to a folder on a disk with room (now"
            f" {paths.home()})."
        )
    if "address already in use" in words:
        return "Another program has just taken the port: python -m labkit doctor shows which."
    if "permission denied" in words:
        return f"It may not write there: set LABKIT_HOME to a folder of yours (now {paths.home()})."
    return "To look closer: python -m labkit doctor."


def end_embedded():
    """Ends the cluster of this home, and what killed kernels left there, and removes the data.

    Waits for a process that is starting or ending the cluster. Returns (number of nodes, number of
    processes of killed kernels). Raises LabError.
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

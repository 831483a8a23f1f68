"""What all tests share: a lab of one's own, and a look round at the end that nothing was left
behind."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

import labkit as package
from labkit import Lab, paths
from labkit.cluster import lifecycle, nodes
from labkit.system import launching, ports

MARK = "LABKIT_TESTS"  # in the environment of all that a run of the tests starts: its folder
TAKEN = {}  # first port -> sockets that hold ports for this process, see free_base()
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
]
# Command prefix: runs as an unprivileged user that can read root's files but not write them.
STRANGER = [
    "setpriv",
    "--reuid=54321",
    "--regid=54321",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
]
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root may become another user",
)
RUN_IF = {  # marker -> (environment variable that switches it on, what the test needs)
    "compose": ("LABKIT_TEST_COMPOSE", "a Docker daemon and free ports 4222-4224 and 8222-8224"),
    "network": ("LABKIT_TEST_NETWORK", "a package index"),
    "house": ("LABKIT_TEST_HOUSE", "requirements-dev.txt"),
    "soak": ("LABKIT_TEST_SOAK", "a quarter of an hour"),
    "answers": ("LABKIT_TEST_ANSWERS", "ten minutes, for who changes what an exercise checks"),
    "prometheus": (
        "LABKIT_TEST_PROMETHEUS",
        "the program prometheus (Debian's package of that name)",
    ),
    "browser": ("LABKIT_TEST_BROWSER", "Chromium and tests/browser/requirements.txt"),
}


def pytest_configure(config):
    os.environ["LABKIT_HEADLESS"] = "1"
    # An open() that names no encoding is an EncodingWarning.
    os.environ["PYTHONWARNDEFAULTENCODING"] = "1"
    os.environ["PYTHONWARNINGS"] = our_warnings_are_errors()
    for marker, (switch, needs) in RUN_IF.items():
        config.addinivalue_line("markers", f"{marker}: needs {needs}; runs where {switch}=1")


def our_warnings_are_errors():
    """PYTHONWARNINGS for the processes that tests start (kernels, the command, workers): what
    Python will do without one day is an error where our code does it (cells and programs are called
    __main__), and no affair of ours elsewhere.
    """
    folder = Path(package.__file__).parent
    modules = [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in folder.rglob("*.py")
    ]
    kinds = "DeprecationWarning", "PendingDeprecationWarning", "EncodingWarning"
    return ",".join(
        ["ignore::EncodingWarning"]
        + [f"error::{kind}:{name}" for kind in kinds for name in ["__main__", *modules]]
    )


LONG = [
    ".ipynb",
    "test_clinic",
    "test_lab_ends_in_a_jupyterlab",
    "clustering-survive",
    "test_experiment",
    "test_chaos",
]


def pytest_collection_modifyitems(items):
    """Marks what is not asked for. Mixes what computes (notebooks) with what waits (for elections),
    the same way in each run, and puts what takes long into the first half, so that no process works
    alone at the end."""
    for item in items:
        for marker, (switch, needs) in RUN_IF.items():
            if item.get_closest_marker(marker) and not os.environ.get(switch):
                item.add_marker(pytest.mark.skip(reason=f"needs {needs}: set {switch}=1"))
    if items and items[0].config.getoption("numprocesses", None) != 0:
        items.sort(key=place)


def place(item):
    """Where in the run this test stands (number): mixed, and what takes long in the first half."""
    mixed = zlib.crc32(unit(item.nodeid).encode())
    return mixed if any(word in item.nodeid for word in LONG) else 2 * mixed


def unit(nodeid):
    """What one process runs as a whole: the cells of a notebook in their order, tests that share a
    lab, or a single test."""
    path = nodeid.split("::")[0]
    return path if path.endswith((".ipynb", "test_clinic.py")) else nodeid


class Units(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        return unit(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Units(config, log)


def pytest_sessionstart(session):
    """Whatever the tests start, in any process, carries a mark, and ends when this process does,
    also by SIGKILL."""
    session.was_up = bool(asyncio.run(lifecycle.find()))
    if not hasattr(session.config, "workerinput"):
        mark = tempfile.mkdtemp(prefix="labkit-tests-")
        session.reaper = launching.launch(
            [sys.executable, "-P", str(launching.REAPER), mark, MARK],
            outlives=True,
            stdin=subprocess.PIPE,
        )
        os.environ[MARK] = mark


def pytest_sessionfinish(session):
    """The shared cluster is left as it was found; a notebook's cell that was not run or not
    compared is a failure."""
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist: its parent looks round
    if not session.was_up and os.environ.get("LABKIT_BACKEND") != "compose":
        lifecycle.end_embedded()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    doubtful = [
        report.nodeid
        for state in ("skipped", "xfailed", "xpassed")
        for report in reporter.stats.get(state, [])
        if report.nodeid.split("::")[0].endswith(".ipynb")
    ]
    if doubtful:
        reporter.write_line(f"cells that were skipped, xfailed or xpassed: {doubtful}", red=True)
        session.exitstatus = 1


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A lab of the test's own, to break: an empty home with a space in its path, ports apart from
    the usual ones, embedded. Whatever the test started there is ended."""
    folder, base = tmp_path / "a home", free_base()
    settle(monkeypatch, folder, base)
    yield folder
    settle(monkeypatch, folder, base)  # again: whatever the test has set, only this lab is ended
    lifecycle.end_embedded()
    launching.release()
    assert not nodes.processes_of_nodes(folder)
    give_back(base)


@pytest.fixture(scope="session")
def session_home(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("session"), free_base()
    yield folder, base
    with pytest.MonkeyPatch.context() as monkeypatch:
        settle(monkeypatch, folder, base)
        lifecycle.end_embedded()
        launching.release()


@pytest.fixture
def shared(session_home, monkeypatch):
    """A lab shared by all tests that break no node: its cluster stays up between them."""
    settle(monkeypatch, *session_home)
    return session_home[0]


@pytest.fixture
async def lab(shared):
    """A lab with nodes of its own, to break; what a fault leaves in callbacks is no news. (Many
    files have another `lab`.)"""
    lab = await Lab.open("checks", private=True)
    yield lab
    lab._net.take()
    await lab._end()


@pytest.fixture
async def calm(shared):
    """A lab on nodes that nobody breaks: an error that nobody has heard of fails the test."""
    lab = await Lab.open("checks")
    yield lab
    await lab.close()


def settle(monkeypatch, folder, base):
    """From here on, this process and those it starts work on the embedded lab of this folder and
    client port."""
    monkeypatch.setenv("LABKIT_HOME", str(folder))
    monkeypatch.setenv("LABKIT_PORT", str(base))
    monkeypatch.setenv("LABKIT_BACKEND", "embedded")
    monkeypatch.delenv("NATS_URL", raising=False)


def tracked():
    """The files that git keeps of this project, or would keep (list of paths relative to it). Skips
    the test where it has none."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=paths.PROJECT,
        capture_output=True,
        encoding="utf-8",
    )
    if listed.returncode:
        pytest.skip("this folder is no clone")
    return [Path(name) for name in listed.stdout.split("\0") if (paths.PROJECT / name).is_file()]


def copy_project(folder):
    """Makes this folder, with the files of the project as a clone has them. Returns it."""
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths.PROJECT / path, folder / path)
    return folder


def free_base():
    """A client port whose nine ports are free, below those of private clusters (20000 and up).

    Ports are bound later. So base+9 of each block of ten is held now as a reservation, until
    give_back() or the end of this process: another pytest that runs now draws other ports. There is
    room for 200 blocks at a time; a run of the tests uses about as many, one after the other."""
    for base in random.sample(range(10000, 16000, 10), 600):
        tens = [base + offset for offset in (0, 2000, 4000)]
        if all(ports.is_free(ten + i) for ten in tens for i in range(3)) and take(
            [ten + 9 for ten in tens]
        ):
            return base
    raise RuntimeError("no nine free ports between 10000 and 20000")


def take(ports):
    """Binds these ports until give_back() or the end of the process. Returns False, and holds none,
    if one is taken."""
    with contextlib.ExitStack() as held:
        try:
            for port in ports:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            return False
        TAKEN[ports[0]] = held.pop_all()
    return True


def give_back(base):
    """Lets others draw these ports again: nothing of the test listens there any more."""
    TAKEN.pop(base + 9).close()


@pytest.fixture
def shots(tmp_path):
    """Where a test leaves what somebody may look at: the folder LABKIT_SHOTS, or one that goes with
    the test."""
    folder = Path(os.environ.get("LABKIT_SHOTS") or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests that are marked so."""
    from playwright.sync_api import sync_playwright

    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert chromium, "no Chromium on the PATH (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def labkit():
    """Runs `python -m labkit …` in the lab of the test. Returns (exit code, everything printed)."""

    def run(*arguments, cwd=None, timeout=300, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "labkit", *arguments],
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "COLUMNS": "200", **environment},
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def command(monkeypatch, capfd):
    """As labkit, in this process, which takes a tenth of the time."""
    from labkit.__main__ import main

    def run(*arguments, **environment):
        with monkeypatch.context() as changed:
            changed.setattr("sys.argv", ["labkit", *arguments])
            for key, value in environment.items():
                changed.setenv(key, value)
            try:
                code = main()
            except SystemExit as end:
                code = end.code
        return code or 0, "".join(capfd.readouterr())

    return run


@pytest.fixture
def python():
    """Starts Python in the lab of the test, on a piece of source. Returns a Popen with text pipes;
    killed at the end."""
    started = []

    def run(source, **environment):
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", source],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **environment},
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def server(tmp_path):
    """Starts one plain nats-server (not of the lab) with this configuration; returns its port and
    process."""
    import psutil

    started, drawn = [], []

    def run(config="", port=None, binary=None):
        if not port:
            port = free_base()
            drawn.append(port)
        folder = tmp_path / f"server-{port}"
        folder.mkdir(exist_ok=True)  # it may be started a second time
        (folder / "server.conf").write_text(f"listen: 127.0.0.1:{port}\n{config}", encoding="utf-8")
        started.append(
            subprocess.Popen(
                [binary or nodes.server_binary(), "-c", str(folder / "server.conf")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
        )
        end = time.monotonic() + 20
        while time.monotonic() < end and started[-1].poll() is None:
            if ports.listens(port):
                return port, psutil.Process(started[-1].pid)
            time.sleep(0.01)
        raise RuntimeError("the server did not start")

    yield run
    for process in started:
        process.kill()
        process.wait()
    for port in drawn:
        give_back(port)


@pytest.fixture
def attach(shared, monkeypatch):
    """Makes this server, or these, the cluster of the lessons. settings: more variables of the
    environment."""

    def to(url, **settings):
        monkeypatch.delenv("LABKIT_BACKEND", raising=False)
        monkeypatch.setenv("NATS_URL", url)
        for key, value in settings.items():
            monkeypatch.setenv(key, value)

    return to


async def barrier(client):
    """Returns when the server has read what this client has sent so far, a subscription among it.
    The PING of a flush() may go ahead of a SUB that nats-py has not written yet: on a busy machine
    47 of 1,500 messages were lost after one flush. The second one's goes behind it."""
    await client.flush()
    await client.flush()


def written(home):
    """The state file of an embedded cluster as a list of dicts."""
    return json.loads((home / "cluster.json").read_text(encoding="utf-8"))

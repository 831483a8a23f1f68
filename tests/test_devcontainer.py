"""The development container (Codespaces, VS Code): what its file says, and its post-create command,
run by another user."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import MARK, as_root, copy_project, free_base
from labkit import paths

TEXT = (paths.PROJECT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
CONTAINER = json.loads(TEXT)  # without comments, so that every tool reads it
BECOME = [
    "setpriv",
    "--reuid=54321",
    "--regid=54321",
    "--clear-groups",
    "sh",
    "-c",
    'umask 077; eval "$0"',
]


def test_it_installs_as_the_readme_says_and_starts_nothing():
    readme = (paths.PROJECT / "README.md").read_text(encoding="utf-8")
    assert (f"\n{CONTAINER['postCreateCommand']} && .venv/bin/python -m labkit lab\n") in readme
    assert CONTAINER["waitFor"] == "postCreateCommand", (
        "else the editor opens before there is a kernel"
    )
    commands = {key for key in CONTAINER if key.endswith("Command")}
    assert commands == {"postCreateCommand"}
    assert "docker" not in TEXT.lower() and "features" not in CONTAINER


def test_its_python_is_one_that_the_lab_is_tested_with():
    version = re.fullmatch(
        r"mcr\.microsoft\.com/devcontainers/python:3-(3\.\d+)-bookworm", CONTAINER["image"]
    ).group(1)
    workflow = (paths.PROJECT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert f'"{version}"' in re.search(r"python: \[(.*)\]", workflow).group(1)


@pytest.fixture
def workspace():
    """A fresh copy of the files that git tracks, or will once they are added, another user's
    own."""
    assert sys.platform == "linux", "see as_root"
    folder = Path(
        tempfile.mkdtemp(prefix="devcontainer-", dir="/var/tmp")
    )  # tmp_path lies in a folder for root alone
    copy_project(folder / "nats lab")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 54321, 54321)
    yield folder / "nats lab"
    shutil.rmtree(folder)


@pytest.mark.network
@as_root
def test_its_post_create_command_makes_a_lab_for_another_user_who_has_nothing(workspace):
    """With the system's Python, an empty home, a PATH of two folders, and of all settings only
    those of pip."""
    assert not subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"]).returncode, (
        "Debian: apt-get install python3-venv"
    )
    settings = {
        key: value
        for key, value in os.environ.items()
        if key.startswith("PIP_") or key.lower().endswith("_proxy")
    }
    bare = {
        "HOME": str(workspace.parent),
        "PATH": "/usr/bin:/bin",
        MARK: os.environ[MARK],
        **settings,
    }

    def run(command):
        done = subprocess.run(
            [*BECOME, command],
            cwd=workspace,
            env=bare,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=800,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    run(CONTAINER["postCreateCommand"])
    bare["LABKIT_PORT"] = str(free_base())
    python = CONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    python = f"'{python.replace('${containerWorkspaceFolder}', str(workspace))}'"
    assert "BAD" not in run(f"{python} -m labkit doctor")
    run(f"{python} -m labkit up")
    try:
        assert run(f"{python} -m labkit status").count(" up ") == 3
        assert str(workspace / ".venv") in run(f"{python} -m jupyter kernelspec list")
        assert "00_start_here.ipynb: as committed" in run(f"{python} -m labkit execute --check 00")
    finally:
        assert "3 processes ended" in run(f"{python} -m labkit down --yes")
    written = {path.name for path in workspace.iterdir()} - {
        path.name for path in paths.PROJECT.iterdir()
    }
    assert written <= {".venv", ".labkit", "labkit.egg-info"}

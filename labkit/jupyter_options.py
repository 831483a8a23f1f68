"""How `labkit lab` starts JupyterLab: the folder that it shows, and its options."""

import os
import re
import shutil
import sys

from labkit import paths
from labkit.system import ports

# short names of options that the lab sets
ALIASES = {"ip": "ServerApp.ip", "notebook-dir": "ServerApp.root_dir"}


def options(port, browser, given, say):
    """Returns the command line of JupyterLab (list of text). The lab's options first, then the
    user's. A lab option that the user also gives is left out, since JupyterLab takes each only
    once. Calls `say` with a line of text if learners work on copies, see folder().
    """
    long = [argument for argument in given if argument.startswith("--")]
    named = [argument.partition("=")[0].lstrip("-") for argument in long]
    names = {ALIASES.get(name, name) for name in named}
    ours = {
        "ServerApp.port": port,
        "ServerApp.ip": "127.0.0.1",
        "LabApp.default_url": "/lab/tree/notebooks/00_start_here.ipynb",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    if "ServerApp.root_dir" not in names:
        ours["ServerApp.root_dir"] = folder(say)
    if os.environ.get("CODESPACE_NAME"):
        ours |= in_a_codespace(port)
    line = [f"--{name}={value}" for name, value in ours.items() if name not in names]
    if not browser or _is_elsewhere():
        line.append("--no-browser")
    if sys.platform != "win32" and os.geteuid() == 0:
        line.append("--allow-root")
    return line + list(given)


def _is_elsewhere():
    """True where the browser is on another machine, and the reader clicks the address: what
    JupyterLab opens itself is a file on this one."""
    return "CODESPACE_NAME" in os.environ or "REMOTE_CONTAINERS" in os.environ


def folder(say):
    """The folder that JupyterLab shows: the project. Where its lessons may only be read, nothing
    that a learner writes into them could be saved: then it is a folder of the learner's own with
    copies of the lessons. A copy that is there already stays as it is. Raises LabError if nothing
    can be written there either."""
    lessons = paths.PROJECT / "notebooks"
    if all(os.access(path, os.W_OK) for path in [lessons, *lessons.glob("*.ipynb")]):
        return paths.PROJECT
    copies = paths.make_folder(paths.work() / "notebooks")
    for path in lessons.glob("*.*"):
        if path.is_file() and not (copies / path.name).exists():
            shutil.copyfile(path, copies / path.name)
    say(f"You may not write to {lessons}, so JupyterLab shows your copies: {copies}")
    return copies.parent


def in_a_codespace(port):
    """Options for a GitHub codespace, whose proxy stands between the browser and JupyterLab: the
    address to click, and whom to answer. Some have seen that proxy put localhost into the headers
    Host and Origin, some have seen its own name there.
    """
    port = next(filter(ports.is_free, range(port, 65536)))  # it is part of the address
    domain = os.environ.get("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN") or "app.github.dev"
    address = f"https://{os.environ['CODESPACE_NAME']}-{port}.{domain}"
    return {
        "ServerApp.port": port,
        "ServerApp.custom_display_url": address,
        "ServerApp.allow_remote_access": True,
        "ServerApp.allow_origin_pat": f"{re.escape(address)}|http://localhost:{port}",
    }

"""Where the lab keeps its files."""

import os
import tempfile
import time
from pathlib import Path

from labkit.errors import LabError, advice

PROJECT = Path(__file__).resolve().parents[1]


def home():
    """Returns the folder that holds all state of the lab (Path): LABKIT_HOME, or .labkit in the
    project's folder, which git ignores.

    A relative LABKIT_HOME starts at the project's folder, so that it means the same to the command
    and to a notebook, which run in different folders. `~` is the user's own folder. Raises LabError
    if there is no such user.
    """
    try:
        wanted = Path(os.environ.get("LABKIT_HOME") or ".labkit").expanduser()
    except RuntimeError as error:  # ~nobody_of_that_name
        raise LabError(
            f"LABKIT_HOME is {os.environ['LABKIT_HOME']!r}: {error} Wanted: a folder of yours."
        ) from None
    return (PROJECT / wanted).resolve()


def work():
    """Returns the folder for what lessons write: workers' code, rows of experiments (Path).

    It is `work` in the project, which git ignores, or in LABKIT_HOME if that is set, because the
    project may not be writable then.
    """
    parent = home() if os.environ.get("LABKIT_HOME") else PROJECT
    return parent / "work"


def make_folder(path):
    """Makes this folder, and those above it, where they are missing. Returns it.

    Raises LabError if it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise not_writable(path, error) from None
    return path


def write_whole(path, text):
    """Writes this file in one step: a reader gets all of the old text or all of the new one, also
    if this process is killed meanwhile. Line ends are LF on every system.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8", newline="\n")
    for pause in (0.01, 0.1, 1):
        try:
            os.replace(draft, path)
            return
        except PermissionError:  # Windows says so also while somebody reads the old file
            time.sleep(pause)
    os.replace(draft, path)


def not_writable(path, error):
    """Returns the LabError for a folder that this OSError keeps the lab from writing to."""
    return LabError(f"The lab may not write to {path} ({error.strerror}). {advice(error)}")

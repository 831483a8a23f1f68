"""Where the lab's files lie."""

import os
import tempfile
import time
from pathlib import Path

from labkit.errors import LabError, advice

PROJECT = Path(__file__).resolve().parents[1]


def home():
    """The folder that holds all state of the lab: LABKIT_HOME, or .labkit in the project's folder,
    which git ignores.

    A relative LABKIT_HOME is taken from the project's folder, so that it means the same to the
    command and to a notebook, which run in different folders. `~` is the user's own folder. Raises
    LabError if there is no such user.
    """
    try:
        wanted = Path(os.environ.get("LABKIT_HOME") or ".labkit").expanduser()
    except RuntimeError as error:  # ~nobody-of-that-name
        raise LabError(
            f"LABKIT_HOME is {os.environ['LABKIT_HOME']!r}: {error} Wanted: a folder of yours."
        ) from None
    return (PROJECT / wanted).resolve()


def work():
    """The folder for what lessons write (workers' code, rows of experiments), which git ignores:
    `work` in the project, or in LABKIT_HOME if that is set, since the project may not be writable
    then."""
    return (home() if os.environ.get("LABKIT_HOME") else PROJECT) / "work"


def make_folder(path):
    """Makes this folder, and those above it, unless they are there. Returns it; raises LabError
    where it may not be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise not_writable(path, error) from None
    return path


def write_whole(path, text):
    """Writes this file such that whoever reads it meanwhile, or after this process was killed, gets
    all of the old text or all of the new one. Line ends are LF on every system."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8", newline="\n")
    for pause in (0.01, 0.1, 1, None):
        try:
            return os.replace(draft, path)
        except PermissionError:  # on Windows also while somebody reads the old one
            if pause is None:
                raise
            time.sleep(pause)


def not_writable(path, error):
    """The LabError that says so."""
    return LabError(f"The lab may not write to {path} ({error.strerror}). {advice(error)}")

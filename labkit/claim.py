"""One kernel a lesson: two in one account would read each other's messages, so the second is told so."""
import os

from filelock import FileLock, Timeout

from labkit import nodes
from labkit.errors import LabError


def claim(topic):
    """Takes the lesson for this process. Returns a lock to release; raises LabError if another kernel has it."""
    folder = nodes.home() / "lessons"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"The lab may not write to {folder} ({error.strerror}). Set LABKIT_HOME to a folder of yours.") from None
    owner = folder / f"{topic}.pid"
    lock = FileLock(folder / f"{topic}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "?"
        raise LabError(f"The lesson {topic!r} is open in another kernel (process {who}), and one account "
                       "serves one kernel at a time. Close it there: run its last cell, or shut that kernel down "
                       "(in JupyterLab: Kernel > Shut Down Kernel).") from None
    owner.write_text(str(os.getpid()), encoding="utf-8")
    return lock

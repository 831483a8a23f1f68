"""Only one kernel may have a lesson open: two kernels in one account would read each other's
messages, so the second one is refused."""

import os

from filelock import FileLock, Timeout

from labkit import paths
from labkit.errors import LabError, explained
from labkit.system.launching import is_locked


def take(topic):
    """Takes the lesson for this process. Returns a lock to release; raises LabError if another
    kernel has it."""
    folder = paths.make_folder(paths.home() / "lessons")
    lock = FileLock(folder / f"{topic}.lock")
    try:
        # open_lessons() holds the lock for a moment when it looks whether the lesson is open.
        lock.acquire(timeout=1)
        _owner(topic).write_text(str(os.getpid()), encoding="utf-8", newline="\n")
    except Timeout:
        raise LabError(
            f"The lesson {topic!r} is open in another kernel (process {_pid(topic)}), and one"
            " account serves one kernel at a time. Close it there: run its last cell, or shut that"
            " kernel down (in JupyterLab: Kernel > Shut Down Kernel)."
        ) from None
    except OSError as error:
        lock.release()
        raise explained(error) from None
    return lock


def open_lessons():
    """The lessons of this home that a kernel has open now: {topic: pid, as text}."""
    locks = sorted((paths.home() / "lessons").glob("*.lock"))
    return {lock.stem: _pid(lock.stem) for lock in locks if is_locked(lock)}


def _owner(topic):
    return paths.home() / "lessons" / f"{topic}.pid"


def _pid(topic):
    try:
        return _owner(topic).read_text(encoding="utf-8")
    except OSError:
        return "?"

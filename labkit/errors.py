"""The one error that labkit raises by itself, and a net for errors that nobody awaits."""

import asyncio
import errno
import gc
import os
import sys
import sysconfig
import traceback
from pathlib import Path

FOLDERS = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
FOLDERS += [os.path.dirname(os.__file__), os.path.dirname(__file__)]  # labkit's own is the last
LIBRARIES = tuple(os.path.normcase(os.path.join(folder, "")) for folder in FOLDERS)


class LabError(Exception):
    """What was seen, what was wanted, and the way out. In a notebook only these lines show, no
    traceback."""

    def _render_traceback_(
        self,
    ):  # IPython's hook for exceptions that need no stack to be understood
        return [f"LabError: {self}"]


WAYS_OUT = {
    errno.ENOSPC: "Free some disk space, or set LABKIT_HOME to a folder on a disk with room.",
    errno.EACCES: "Set LABKIT_HOME to a folder of yours.",
    errno.EPERM: "Set LABKIT_HOME to a folder of yours.",
    errno.EROFS: "Set LABKIT_HOME to a folder that can be written to.",
    errno.EEXIST: "Something else has this name. Set LABKIT_HOME to another folder.",
    errno.ENOTDIR: "Something on the way to it is no folder. Set LABKIT_HOME to another folder.",
    errno.ENAMETOOLONG: "Set LABKIT_HOME to a folder with a shorter path.",
    errno.EMFILE: "Allow more open files in the shell that starts the lab: ulimit -n 1024",
    errno.ENFILE: "Close some programs: this machine has no more files to open.",
}
WAYS_OUT[getattr(errno, "EDQUOT", errno.ENOSPC)] = WAYS_OUT[errno.ENOSPC]


def explained(error):
    """The LabError that says in one line what an OSError means for the lab and what to do. An error
    that is none of the lab's (a refused connection, say) comes back as it is."""
    if error.errno not in WAYS_OUT:
        return error
    where = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return LabError(f"{error.strerror}{where}. {advice(error)}")


def advice(error):
    """What a user can do about this OSError (text); whose file it is, where that is the reason."""
    way_out = WAYS_OUT.get(error.errno, "Look with: python -m labkit doctor")
    if error.errno in (errno.EACCES, errno.EPERM) and (owner := _other_owner(error.filename)):
        return (
            f"It belongs to the user {owner}, who ran the lab before. Let that user end the lab and"
            " hand the folder over (python -m labkit down; chown), or do without it:"
            f" {way_out[0].lower()}{way_out[1:]}"
        )
    return way_out


def _other_owner(path):
    """Name of the user whose file or folder this is, or None if it is this user's own, is not
    there, or nobody knows."""
    if sys.platform == "win32":  # there it is a list of rights, of many users
        return None
    try:
        path = Path(os.fsdecode(path))
        while not path.exists():
            path = path.parent
        return path.owner() if path.stat().st_uid != os.geteuid() else None
    except (OSError, TypeError, KeyError):
        return None


def check_timeout(seconds):
    """Raises LabError unless this is a number above 0."""
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise LabError(f"timeout is {seconds!r}; wanted: a number of seconds above 0.")


class ErrorNet:
    """Collects what would otherwise end in a log line, or nowhere: errors that nats-py hands to
    error_cb (those of subscription callbacks among them), and exceptions of background tasks that
    nobody awaited."""

    def __init__(self):
        self.caught, self.failed, self.loop = [], [], None

    async def error_cb(self, error):
        """For nats.connect(error_cb=…)."""
        self.caught.append(error)

    def watch(self, loop):
        """From now on, remembers the tasks of this loop that fail."""
        self.loop, self.before = loop, loop.get_task_factory()
        loop.set_task_factory(self._make_task)

    def unwatch(self):
        if self.loop and self.loop.get_task_factory() == self._make_task:
            self.loop.set_task_factory(self.before)
        self.loop = None

    def _make_task(self, loop, coroutine, **options):
        task = (
            self.before(loop, coroutine, **options)
            if self.before
            else asyncio.Task(coroutine, loop=loop, **options)
        )
        task.add_done_callback(self._note)
        return task

    def _note(self, task):
        if not task.cancelled() and _unseen(task):
            self.failed.append(task)

    def take(self):
        """The errors collected since the last call (list of exceptions); those that were awaited
        after all are not among them."""
        gc.collect()
        unseen = [task.exception() for task in self.failed if _unseen(task)]
        taken, self.caught, self.failed = self.caught + unseen, [], []
        return taken


def _unseen(task):
    """True while asyncio itself would still complain that the task's exception was never
    retrieved."""
    return getattr(task, "_log_traceback", False)


def own_frames(error):
    """The frames of the reader's own code that the error passed through, innermost last (list of
    FrameSummary): not those of labkit, of Python, or of an installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not _is_library(frame.filename)]


def _is_library(filename):
    path = os.path.normcase(filename)
    return (
        path.startswith(("<frozen", *LIBRARIES))
        or "site-packages" in path
        or "dist-packages" in path
    )


def where(error):
    """' (in handler, line 3)': where in the reader's own code it happened; empty if nowhere in
    it."""
    frames = own_frames(error)
    return f" (in {frames[-1].name}, line {frames[-1].lineno})" if frames else ""


def describe(error):
    """'ValueError: text (in handler, line 3)', see where()."""
    return f"{type(error).__name__}: {error}".removesuffix(": ") + where(error)

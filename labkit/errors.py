"""LabError, what an OSError means for the lab, and a net for errors that nobody awaits."""

import asyncio
import errno
import gc
import os
import sys
import sysconfig
import traceback
from pathlib import Path

FOLDERS = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
FOLDERS += [os.path.dirname(os.__file__), os.path.dirname(__file__)]  # the last one: labkit
LIBRARIES = tuple(os.path.normcase(os.path.join(folder, "")) for folder in FOLDERS)


class LabError(Exception):
    """What was seen, what was wanted, and what to do. A notebook shows only this, no traceback."""

    def _render_traceback_(self):
        """IPython calls this instead of printing a traceback."""
        return [f"LabError: {self}"]


WAYS_OUT = {
    errno.ENOSPC: "Free some disk space, or set LABKIT_HOME to a folder on a disk with room.",
    errno.EACCES: "Set LABKIT_HOME to a folder of yours.",
    errno.EPERM: "Set LABKIT_HOME to a folder of yours.",
    errno.EROFS: "Set LABKIT_HOME to a folder that can be written to.",
    errno.EEXIST: "There is already a file of this name. Set LABKIT_HOME to another folder.",
    errno.ENOTDIR: "A part of this path is a file. Set LABKIT_HOME to another folder.",
    errno.ENAMETOOLONG: "Set LABKIT_HOME to a folder with a shorter path.",
    errno.EMFILE: "Allow more open files in the shell that starts the lab: ulimit -n 1024",
    errno.ENFILE: "Close some programs: this machine cannot open more files.",
}
WAYS_OUT[getattr(errno, "EDQUOT", errno.ENOSPC)] = WAYS_OUT[errno.ENOSPC]


def explained(error):
    """Returns a LabError that says what this OSError means for the lab and what to do.

    An error that does not concern the lab's files (a refused connection, say) is returned as it is.
    """
    if error.errno not in WAYS_OUT:
        return error
    where = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return LabError(f"{error.strerror}{where}. {advice(error)}")


def advice(error):
    """Returns what to do about this OSError (text). Names the owner of somebody else's file."""
    way_out = WAYS_OUT.get(error.errno, "Look with: python -m labkit doctor")
    if error.errno not in (errno.EACCES, errno.EPERM):
        return way_out
    owner = _other_owner(error.filename)
    if not owner:
        return way_out
    return (
        f"It belongs to the user {owner}, who ran the lab before. Ask that user to end the lab"
        " (python -m labkit down) and to give you the folder (chown). Without that user:"
        f" {way_out[0].lower()}{way_out[1:]}"
    )


def _other_owner(path):
    """Returns the name of the user who owns this file, or the folder that it would be in.

    None if that is this user, or nobody can tell.
    """
    if sys.platform == "win32":  # a file has no single owner with rights there
        return None
    try:
        path = Path(os.fsdecode(path))
        while not path.exists():
            path = path.parent
        if path.stat().st_uid == os.geteuid():
            return None
        return path.owner()
    except (OSError, TypeError, KeyError):
        return None


def check_timeout(seconds):
    """Raises LabError unless this is a number above 0."""
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise LabError(f"timeout is {seconds!r}; wanted: a number of seconds above 0.")


class ErrorNet:
    """Collects errors that would otherwise only be logged, or lost.

    These are the errors that nats-py hands to error_cb (those of subscription callbacks among
    them), and exceptions of background tasks that nobody awaited.
    """

    def __init__(self):
        self.caught = []  # exceptions that error_cb got
        self.failed = []  # tasks that ended with an exception
        self.loop = None  # the event loop that is watched
        self.factory_before = None  # the task factory that this loop had

    async def error_cb(self, error):
        """Goes to nats.connect(error_cb=…)."""
        self.caught.append(error)

    def watch(self, loop):
        """From now on, remembers the tasks of this event loop that fail."""
        self.loop = loop
        self.factory_before = loop.get_task_factory()
        loop.set_task_factory(self._make_task)

    def unwatch(self):
        """Gives the event loop its own task factory back."""
        if self.loop and self.loop.get_task_factory() == self._make_task:
            self.loop.set_task_factory(self.factory_before)
        self.loop = None

    def _make_task(self, loop, coroutine, **options):
        if self.factory_before:
            task = self.factory_before(loop, coroutine, **options)
        else:
            task = asyncio.Task(coroutine, loop=loop, **options)
        task.add_done_callback(self._note)
        return task

    def _note(self, task):
        if not task.cancelled() and _is_unretrieved(task):
            self.failed.append(task)

    def take(self):
        """Returns the errors since the last call (list of exceptions).

        A task that failed, and was awaited later, does not count.
        """
        gc.collect()
        unseen = [task.exception() for task in self.failed if _is_unretrieved(task)]
        errors = self.caught + unseen
        self.caught = []
        self.failed = []
        return errors


def _is_unretrieved(task):
    """True while asyncio would still complain that nobody retrieved the task's exception."""
    return getattr(task, "_log_traceback", False)


def own_frames(error):
    """Returns the frames of the reader's own code that the error passed through (list of
    FrameSummary, the innermost last): those of labkit, Python and installed packages are left out.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not is_library(frame.filename)]


def is_library(filename):
    path = os.path.normcase(filename)
    if path.startswith(("<frozen", *LIBRARIES)):
        return True
    return "site-packages" in path or "dist-packages" in path


def where(error):
    """Returns the place in the reader's own code: ' (in handler, line 3)'; '' if there is none."""
    frames = own_frames(error)
    if not frames:
        return ""
    return f" (in {frames[-1].name}, line {frames[-1].lineno})"


def describe(error):
    """Returns 'ValueError: text (in handler, line 3)', see where()."""
    return f"{type(error).__name__}: {error}".removesuffix(": ") + where(error)

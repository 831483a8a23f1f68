"""Starts processes, and knows them again.

Each one is detached: what interrupts or ends this process (Ctrl-C, the stop button, a closed
terminal) does not reach it. What belongs to a kernel carries the kernel's name: a process in its
environment (LABKIT_OWNER), a folder in its path. A pid may be given to another program and a clock
may be set, but the environment that a process was started with stays. So nobody else's process is
ever ended, and what a killed kernel left behind can be found.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from labkit import paths
from labkit.errors import LabError, explained

OWNER = "LABKIT_OWNER"
REAPER = Path(__file__).with_name("reaper.py")
FILES = 4096  # open files, as JupyterLab too wants for itself and its kernels
# Popen of a node that this process started -> its store; kept so that ended nodes are reaped, and
# known at once
STARTED = {}
_held = {}  # folder of all kernels -> what this process holds there


@dataclass
class Held:
    """What a kernel holds as long as it lives."""

    folder: Path
    lock: FileLock  # tells everybody else that the folder is in use
    reaper: subprocess.Popen = (
        None  # removes the folder, and ends what uses it, when the kernel has ended
    )


def launch(command, env=None, outlives=False, **options):
    """Starts a detached process that ends with this one, at the latest. Returns its Popen.

    env: its whole environment (default: this process's own). outlives: True for what stays when
        this process ends.
    options: of subprocess.Popen. Raises LabError with the way out where the system refuses (too
        many open files, say).
    """
    env = dict(os.environ if env is None else env)
    env.pop(OWNER, None)
    if not outlives:
        env[OWNER] = str(own_folder())
    allow_more_files()
    if sys.platform == "win32":
        detached = {
            "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        }
    else:
        detached = {"start_new_session": True}
    try:
        return subprocess.Popen(command, env=env, **detached, **options)
    except OSError as error:
        raise explained(error) from error


def allow_more_files():
    """Lets this process, and those that it starts, open FILES files, or as many as it may. On macOS
    a process that does not ask has 256, which is too few for some experiments."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # a system that allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def say_that_it_is_a_kill(name):
    """Where a program is asked to end: tells the reader that Windows cannot ask."""
    if sys.platform == "win32":
        print(
            f"Windows has no SIGTERM: {name} is killed, and what the text says of an orderly end"
            " does not show here."
        )


def end(child):
    """Kills this process (a Popen), a paused one too, and returns when it is gone."""
    child.kill()
    child.wait()


def own_folder():
    """The folder of this process under the lab's home (Path). It goes when the process ends,
    however it ends. Raises LabError where it cannot be made."""
    kernels = paths.home() / "kernels"
    held = _held.get(kernels)
    if not held or not held.folder.is_dir():
        held = _held[kernels] = _make(kernels)
    if not held.reaper or held.reaper.poll() is not None:
        held.reaper = launch(
            [sys.executable, "-P", str(REAPER), str(held.folder)],
            outlives=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return held.folder


def release():
    """Ends and removes what own_folder() stands for before this process ends: all that it launched
    in this home."""
    held = _held.pop(paths.home() / "kernels", None)
    if held:
        held.reaper.communicate()  # it reads the end of its input, does its work, and ends
        held.lock.release()


def _make(kernels):
    folder = kernels / f"{os.getpid()}-{secrets.token_hex(4)}"
    paths.make_folder(kernels)
    lock = FileLock(_lock_of(folder))
    try:
        lock.acquire(
            timeout=0
        )  # before there is a folder: one without a lock that is held is anybody's to remove
        folder.mkdir()
    except OSError as error:
        raise paths.not_writable(kernels, error) from None
    return Held(folder, lock)


def new_folder(prefix):
    """A new empty folder in own_folder(), whose name begins with `prefix`. Returns a Path; raises
    LabError where none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=own_folder()))
    except OSError as error:
        raise paths.not_writable(own_folder(), error) from None


def orphans():
    """What kernels that are gone have left in this home: (list of psutil processes, list of
    folders)."""
    kernels = paths.home() / "kernels"
    processes = [
        process
        for process in psutil.process_iter()
        if (owner := owner_of(process)) and owner.parent == kernels and not in_use(owner)
    ]
    return processes, [folder for folder in kernels.glob("*/") if not in_use(folder)]


def owner_of(process):
    """The folder of the kernel that this psutil process was started for (Path). None if there is
    none, the process has ended, or it is another user's."""
    try:
        owner = process.environ().get(OWNER)
    except (psutil.Error, OSError):
        return None
    return Path(owner) if owner else None


def in_use(folder):
    """True while the kernel lives to which this folder belongs."""
    return is_locked(_lock_of(folder))


def is_locked(path):
    """True if a living process holds the lock of this file. Raises OSError if it is another user's
    file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def remove_lock(folder):
    """Removes what is left of a kernel that is gone, when its folder is removed."""
    _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder):
    return folder.with_name(f"{folder.name}.lock")


def end_processes(processes, graceful=0):
    """Ends these psutil processes: asks first if graceful (seconds) is given, then kills. Returns
    when all are gone. Raises LabError, in the end, if one is another user's."""
    processes, refused = [process for process in processes if process], []
    for signal, patience in (("terminate", graceful), ("kill", 5)):
        if patience:
            for process in processes:
                try:
                    process.resume()  # a paused process would not hear it
                    getattr(process, signal)()
                except psutil.NoSuchProcess:
                    pass
                except psutil.AccessDenied:
                    refused.append(process)
            processes = [process for process in processes if process not in refused]
            _, processes = psutil.wait_procs(processes, timeout=patience)
    for child in STARTED:
        child.poll()
    if refused:
        who = ", ".join(f"{process.pid} of {process.username()}" for process in refused)
        raise LabError(f"These processes belong to another user, who has to end them: {who}.")

"""Starts processes, and recognises them later.

Each process is detached: what interrupts or ends this one (Ctrl-C, the stop button, a closed
terminal) does not reach it. What belongs to a kernel carries the name of the kernel's own folder in
its environment (LABKIT_OWNER). The system may give a pid to another program, and somebody may set
the clock; but a process keeps the environment that it was started with. So the lab never ends a
process that is not its own, and finds what a killed kernel left behind.
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
OPEN_FILES = 4096  # as many as JupyterLab asks for, for itself and its kernels
if sys.platform == "win32":
    DETACHED = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
else:
    DETACHED = {"start_new_session": True}

_children = {}  # pid -> (Popen, environment) of each process that this one launched
_held = {}  # folder of all kernels -> what this process holds there (OwnFolder)


@dataclass
class OwnFolder:
    """The folder that this process has as long as it lives."""

    folder: Path
    lock: FileLock  # shows others that the folder is in use
    reaper: subprocess.Popen | None = None  # cleans up when this process has ended, see reaper.py


# --- starting


def launch(command, env=None, outlives=False, **options):
    """Starts a detached process that is killed when this process ends, unless `outlives`. Returns
    its Popen.

    env: its whole environment (default: that of this process). options: those of subprocess.Popen.
    Raises LabError if the system refuses (too many open files, say).
    """
    environment = dict(os.environ if env is None else env)
    environment.pop(OWNER, None)
    if not outlives:
        environment[OWNER] = str(own_folder())
    allow_more_files()
    _forget_ended_children()
    try:
        child = subprocess.Popen(command, env=environment, **DETACHED, **options)
    except OSError as error:
        raise explained(error) from error
    _children[child.pid] = child, environment
    return child


def allow_more_files():
    """Lets this process, and those that it starts, open OPEN_FILES files, or as many as it may.

    On macOS a process that does not ask for more has 256, too few for some experiments."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# --- recognising


def environment_of(process):
    """Returns the environment that this psutil process was started with (dict). It is empty if the
    process has ended or belongs to another user.

    For a moment after a start the system shows an empty one; that of our own children is known.
    """
    try:
        return process.environ() or _environment_of_child(process.pid)
    except (psutil.Error, OSError):
        return {}


def _environment_of_child(pid):
    child, environment = _children.get(pid, (None, {}))
    if child and child.poll() is None:  # the system gives its pid to nobody else
        return environment
    return {}


def owner_of(process):
    """Returns the folder of the kernel that this psutil process was started for (Path), or None if
    it was started for none, has ended, or belongs to another user."""
    owner = environment_of(process).get(OWNER)
    return Path(owner) if owner else None


def orphans():
    """Returns what killed kernels left in this home: (psutil processes, folders), two lists."""
    kernels = paths.home() / "kernels"
    processes = []
    for process in psutil.process_iter():
        owner = owner_of(process)
        if owner and owner.parent == kernels and not in_use(owner):
            processes.append(process)
    return processes, [folder for folder in kernels.glob("*/") if not in_use(folder)]


# --- the folder of this process


def own_folder():
    """Returns the folder of this process in the lab's home (Path). It goes when the process ends,
    however it ends. Raises LabError if it cannot be made."""
    kernels = paths.home() / "kernels"
    held = _held.get(kernels)
    if not held or not held.folder.is_dir():
        held = _make_own_folder(kernels)
        _held[kernels] = held
    if not held.reaper or held.reaper.poll() is not None:
        held.reaper = launch(
            [sys.executable, "-P", str(REAPER), str(held.folder)],
            outlives=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return held.folder


def _make_own_folder(kernels):
    folder = kernels / f"{os.getpid()}-{secrets.token_hex(4)}"
    paths.make_folder(kernels)
    lock = FileLock(_lock_of(folder))
    try:
        # The lock comes first: anybody may remove a folder whose lock nobody holds.
        lock.acquire(timeout=0)
        folder.mkdir()
    except OSError as error:
        raise paths.not_writable(kernels, error) from None
    return OwnFolder(folder, lock)


def release():
    """Ends everything that this process launched in this home, and removes its own folder, before
    the process ends."""
    held = _held.pop(paths.home() / "kernels", None)
    if held:
        held.reaper.communicate()  # closes its input: it cleans up and ends
        held.lock.release()


def new_folder(prefix):
    """Makes an empty folder in own_folder(), whose name begins with `prefix`. Returns its Path;
    raises LabError if it cannot be made."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=own_folder()))
    except OSError as error:
        raise paths.not_writable(own_folder(), error) from None


def in_use(folder):
    """True while the kernel lives that has this folder."""
    return is_locked(_lock_of(folder))


def is_locked(path):
    """True if a living process holds the lock of this file. Raises OSError if the file belongs to
    another user."""
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
    """Removes the lock file of a kernel's folder that is gone."""
    _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder):
    return folder.with_name(f"{folder.name}.lock")


# --- ending


def end(child):
    """Kills this process (a Popen), also a paused one, and returns when it is gone."""
    child.kill()
    child.wait()


def end_processes(processes, graceful=0):
    """Ends these psutil processes (a None among them is skipped) and returns when they are gone.

    graceful: seconds to let them end in good order before they are killed. Raises LabError, at the
    end, if one of them belongs to another user.
    """
    left = [process for process in processes if process]
    refused = []
    if graceful:
        left = _send(psutil.Process.terminate, left, refused, 0)
        left = _send(psutil.Process.resume, left, refused, graceful)  # a paused one hears it now
    _send(psutil.Process.kill, left, refused, 5)
    _forget_ended_children()
    if refused:
        owners = ", ".join(f"{process.pid} of {process.username()}" for process in refused)
        raise LabError(f"These processes belong to another user, who has to end them: {owners}.")


def _send(signal, processes, refused, patience):
    """Sends a signal to these processes. Returns those that still run after `patience` seconds.

    signal: a function of a psutil.Process. Adds to the list `refused` those of another user."""
    hit = []
    for process in processes:
        try:
            signal(process)
            hit.append(process)
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            refused.append(process)
    _, alive = psutil.wait_procs(hit, timeout=patience)
    return alive


def _forget_ended_children():
    """Asks each child whether it has ended. This reaps zombies, and drops pids that the system may
    reuse."""
    for pid, (child, _) in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


def say_that_it_is_a_kill(name):
    """Tells the reader that Windows cannot ask a program to end. Nothing happens elsewhere."""
    if sys.platform == "win32":
        print(
            f"Windows has no SIGTERM: {name} is killed, and what the text says of an orderly end"
            " does not show here."
        )

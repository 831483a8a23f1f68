"""Ends what must not outlive a notebook's kernel: the processes that it started, and the folder
that they use.

Each kernel starts one such process (see launching.py). It needs nothing but psutil. Its standard
input is a pipe, and the kernel holds the other end. When the kernel ends, also by SIGKILL, the
system closes the pipe. Then this process ends everything that was started for the kernel, removes
the folder and its lock, and ends itself.

    python reaper.py FOLDER [VARIABLE]

The processes to end have FOLDER in this variable of their environment (default: LABKIT_OWNER).
"""

import contextlib
import os
import shutil
import sys
import time

import psutil


def owned(folder, variable="LABKIT_OWNER"):
    """Returns the living processes that were started with this variable set to `folder` (list of
    psutil processes). Other reapers are left out: they end by themselves after their work."""
    return [process for process in psutil.process_iter() if _is_owned(process, folder, variable)]


def _is_owned(process, folder, variable):
    try:
        if process.environ().get(variable) != folder or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return __file__ not in process.cmdline()
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False


def end(folder, variable="LABKIT_OWNER", timeout=10):
    """Kills these processes, also paused ones, until there are none, or for `timeout` seconds."""
    limit = time.monotonic() + timeout
    processes = owned(folder, variable)
    while processes and time.monotonic() < limit:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)
        processes = owned(folder, variable)  # some may have been started meanwhile


def main(folder, *variable):
    sys.stdin.buffer.read()  # returns when the kernel has ended
    end(folder, *variable)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}.lock")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Ends what must not outlive a notebook's kernel: the processes that it started and the folder that
they use.

A small process of its own for each kernel (see launching.py), which imports nothing of labkit. Its
standard input is a pipe whose other end the kernel holds. When the kernel ends, also by SIGKILL,
the system closes the pipe. Then this process ends everything that was started for the kernel,
removes the folder and its lock, and ends itself.

    python reaper.py FOLDER [VARIABLE]

VARIABLE is the environment variable that holds FOLDER in the processes to end: LABKIT_OWNER, unless
    another one is given.
"""

import contextlib
import os
import shutil
import sys
import time

import psutil


def owned(folder, variable="LABKIT_OWNER"):
    """The living processes that were started with this variable set to `folder` (list of psutil
    processes), but for reapers: these end by themselves, when they have done their work."""
    return [process for process in psutil.process_iter() if _is_owned(process, folder, variable)]


def _is_owned(process, folder, variable):
    try:
        if process.environ().get(variable) != folder or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return __file__ not in process.cmdline()
    except (psutil.Error, OSError):  # gone, or another user's
        return False


def end(folder, variable="LABKIT_OWNER", timeout=10):
    """Kills these processes, paused ones too, and looks again until there are none, or for
    `timeout` seconds."""
    limit = time.monotonic() + timeout
    while (processes := owned(folder, variable)) and time.monotonic() < limit:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def main(folder, *variable):
    sys.stdin.buffer.read()  # returns when the kernel has ended
    end(folder, *variable)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}.lock")


if __name__ == "__main__":
    main(*sys.argv[1:])

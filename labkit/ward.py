"""What must not outlive a notebook's kernel: processes that it started, folders that it filled.

One small process a kernel reads from a pipe what to look after. When the kernel ends, also by SIGKILL, the system closes
the pipe; then the ward ends those processes, paused ones too, removes the folders, and ends itself. It lives in a session
of its own, so that what ends the kernel's process group does not end the ward.
"""
import json
import os
import shutil
import subprocess
import sys
import time

import psutil

_kept, _ward = [], None


def keep(pid=None, folder=None):
    """From now on this process (by its pid) or folder does not outlive the kernel that calls this."""
    try:
        _kept.append({"pid": pid, "created": psutil.Process(pid).create_time()} if pid else {"folder": str(folder)})
    except psutil.NoSuchProcess:
        return
    if _ward is None or _ward.poll() is not None:
        _start()
    else:
        _tell(_kept[-1])


def _start():
    global _ward
    detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    _ward = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, **detached)
    for entry in _kept:
        _tell(entry)


def _tell(entry):
    _ward.stdin.write(json.dumps(entry).encode() + b"\n")
    _ward.stdin.flush()


def _end(entries):
    """Kills these processes, all before it waits for any: where nobody reaps orphans (in many a container) a killed one
    stays as a zombie, and waiting for it would let the next one live on."""
    killed = []
    for entry in entries:
        try:
            process = psutil.Process(entry["pid"])
            if abs(process.create_time() - entry["created"]) < 0.01:  # a pid that was given away again is not it
                process.kill()  # a paused process dies of it as well
                killed.append(process)
        except psutil.Error:
            pass
    end = time.monotonic() + 5
    while time.monotonic() < end and any(map(_runs, killed)):
        time.sleep(0.02)


def _runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    entries = [json.loads(line) for line in sys.stdin.buffer]  # ends when the kernel has ended
    _end([entry for entry in entries if "pid" in entry])
    for entry in entries:
        if "folder" in entry:
            shutil.rmtree(entry["folder"], ignore_errors=True)

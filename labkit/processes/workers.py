"""Workers as processes: a crash is a crash. The code of a worker stands in the notebook, in a cell
that begins with `%%worker NAME.py`: plain nats-py, with a coroutine function

    async def work(nc, js, point, **options):
        ...
        await point("charged", order=7)      # noted in the notebook's Recorder; a place where the
        worker can be killed

and runs as a process of its own that shares nothing with the notebook but the servers.
"""

import ast
import asyncio
import bisect
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nats
import psutil
from nats.nuid import NUID

from labkit import paths
from labkit.cluster.connection import flush
from labkit.errors import LabError, check_timeout
from labkit.system.launching import launch

RUNNER = Path(__file__).with_name("worker_main.py")


def folder(topic):
    """Where the modules of this lesson's workers lie."""
    return paths.work() / topic


def write(topic, name, source):
    """Writes a module for workers and returns its path. Raises LabError if the name is no plain
    NAME.py, or none that this system can write, SyntaxError if the source is none."""
    if not name.endswith(".py") or not name[:-3].isidentifier():
        raise LabError(
            f"The worker's file is called {name!r}; wanted: a plain name such as charge.py."
        )
    ast.parse(source, name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise LabError(
            f"Files of this system have names in {sys.getfilesystemencoding()}, and {name!r} is"
            " none. Wanted: a plain name such as charge.py."
        ) from None
    path = folder(topic) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.write_whole(path, source)
    return path


def is_stub(topic, name):
    """True if the module's `work` holds nothing but `...`: an exercise that nobody has touched."""
    path = folder(topic) / name
    work = _work(path) if name.endswith(".py") and path.exists() else None
    return work is not None and only_dots(work)


def only_dots(function):
    """True if the body of this function (ast node) is nothing but `...`, after a docstring
    perhaps."""
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    return [ast.unparse(part) for part in body] == ["..."]


def _work(path):
    """The module's `work` (ast node), or None if it has none."""
    return next(
        (
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.AsyncFunctionDef) and node.name == "work"
        ),
        None,
    )


def offer_magic(topic):
    """Makes `%%worker NAME.py` write a cell's text for this lesson, where there is an IPython."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):

        def worker(line, cell):
            print(f"written: {write(topic, line.strip(), cell).name}")

        shell.register_magic_function(worker, magic_kind="cell")


class Worker:
    """A running worker. `name`, `pid`; `alive`; `returncode` (negative: the signal that ended it)
    once it has ended."""

    def __init__(self, name, child, sub, said):
        self.name, self._child, self._sub, self._said = name, child, sub, said
        self.process = psutil.Process(child.pid)

    @property
    def pid(self):
        return self.process.pid

    def _is(self, pid):
        """It says that this is its process. On Windows the python.exe of an environment starts
        another one, and waits for it: to pause the one that was started would pause nothing."""
        if pid != self.pid:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
                self.process = psutil.Process(pid)

    @property
    def returncode(self):
        return self._child.poll()

    @property
    def alive(self):
        return self.returncode is None

    def kill(self):
        """SIGKILL: it ends where it stands (TerminateProcess on Windows), and is gone when this
        returns."""
        with contextlib.suppress(psutil.Error):
            self.process.kill()
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(10)

    def stop(self):
        """SIGTERM: asks it to end. What comes of it is the worker's own business."""
        if (
            sys.platform == "win32"
        ):  # where terminate() is a kill: the runner raises SIGTERM inside the worker
            self._child.stdin.write(b"stop\n")
            self._child.stdin.flush()
        else:
            self._child.terminate()

    def pause(self):
        """It stands still and keeps its connection (SIGSTOP; psutil's suspend on Windows)."""
        self.process.suspend()

    def resume(self):
        """It goes on after pause()."""
        self.process.resume()

    async def ended(self, timeout=15):
        """Waits until the process is gone and its last events are noted. Returns its returncode.

        timeout: seconds. Raises LabError if it still runs then, or if its `work` raised an
            exception.
        """
        check_timeout(timeout)
        end = time.monotonic() + timeout
        while self.alive:
            if time.monotonic() > end:
                raise LabError(
                    f"Worker {self.name} (pid {self.pid}) still runs after {timeout} s. End it:"
                    " .kill() or .stop()."
                )
            await asyncio.sleep(0.005)
        await self._forget()
        for error in self._errors():
            raise error
        return self.returncode

    def _errors(self):
        """The exception that ended its work, if one did and nobody has heard of it (list of
        LabErrors)."""
        failed = [entry["text"] for entry in self._said if entry["event"] == "failed"]
        self._said.clear()
        return [LabError(f"Worker {self.name} ended with an error:\n{text}") for text in failed]

    async def _forget(self):
        if self._child.stdin and not self._child.stdin.closed:
            self._child.stdin.close()
        if not self._sub._closed and not self._sub._conn.is_closed:
            await flush(self._sub._conn)  # what the worker said before its end was on its way
            await asyncio.sleep(0.02)
            if not self._sub._closed:  # by another who waits for its end, meanwhile
                await self._sub.unsubscribe()

    async def _close(self):
        if self.alive:
            self.kill()
            await asyncio.to_thread(self._child.wait)
        with contextlib.suppress(
            nats.errors.Error, asyncio.TimeoutError
        ):  # no server answers: there is nothing to hear
            await self._forget()

    def __repr__(self):
        return f"<Worker {self.name}: {'running' if self.alive else f'ended ({self.returncode})'}>"


async def end_all(workers):
    """Kills the workers that still run. Returns the errors that ended the others, unless somebody
    has heard of them."""
    await asyncio.gather(*(worker._close() for worker in workers))
    errors = [error for worker in workers for error in worker._errors()]
    workers.clear()
    return errors


def place(point):
    """["point", n] of "point" or ("point", n), as the runner wants it; None stays None. Raises
    LabError if n is below 1."""
    if isinstance(point, str):
        return [point, 1]
    if point and point[1] < 1:
        raise LabError(
            f"A worker never gets to {point[0]!r} for time {point[1]}; wanted: 1 or more."
        )
    return point and list(point)


async def start(lab, module, name, log, kill_at, pause_at, timeout, options):
    """Starts a worker of this lab (see Lab.worker)."""
    path = folder(lab.topic) / module
    if not path.exists():
        raise LabError(
            f"There is no {module!r} in {path.parent}; write it first, in a cell that begins with"
            f" %%worker {module}"
        )
    if not _work(path):
        raise LabError(
            f"{module} has no coroutine function `work`; wanted: async def work(nc, js, point, …)."
        )
    if any(worker.alive and worker.name == name for worker in lab.workers):
        raise LabError(
            f"A worker {name!r} is running, perhaps from a cell that failed. End what runs with: "
            "for worker in lab.workers: worker.kill()"
        )
    said, tag = [], NUID().next().decode()
    subject = f"_LABKIT.worker.{tag}"

    async def note(msg):
        entry = json.loads(msg.data)
        if "event" not in entry:  # it says who it is
            worker._is(entry["pid"])
            return lab._cleanup.count_in(entry["connection"])
        said.append(entry)
        if log is not None:  # both clocks count from the same moment: perf_counter is the machine's
            bisect.insort(
                log.events, {**entry, "at": entry["at"] - log.start}, key=lambda e: e["at"]
            )
        if msg.reply:  # its last words: it waits until they are noted
            await msg.respond(b"")

    sub = await lab.nc.subscribe(subject, cb=note)
    await flush(lab.nc)
    lab.refuse_closed()
    order = {
        "module": str(path),
        "events": subject,
        "name": name,
        "options": options,
        "login": {"dont_randomize": True, **lab.cluster.login(lab.topic)},
        "kill_at": place(kill_at),
        "pause_at": place(pause_at),
    }
    words = lab.scratch / f"worker-{tag}.err"
    with (
        open(words, "wb") as errors
    ):  # -P: else labkit's own folder is on its path, and `import valkey` finds valkey.py there
        child = launch(
            [sys.executable, "-P", "-u", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=lab.scratch,
        )
    worker = Worker(name, child, sub, said)
    lab.workers.append(worker)
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended already: told below
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
        await _until_ready(worker, said, words, timeout)
    except BaseException:  # a cancel too: who has got no Worker cannot end it
        if worker in lab.workers:  # else the lesson's own end has come first
            lab.workers.remove(worker)
        await asyncio.shield(worker._close())
        raise
    return worker


async def _until_ready(worker, said, words, timeout):
    def ready():
        return any(entry["event"] == "ready" for entry in said)

    end = time.monotonic() + timeout
    while not ready():
        if not worker.alive or time.monotonic() > end:
            what = (
                f"did not get ready in {timeout} s"
                if worker.alive
                else f"ended ({worker.returncode}) before it was ready"
            )
            await worker._close()  # hears all that was on its way
            if ready():
                break  # it got ready and has ended since: killed, as it was told to be
            for error in worker._errors():
                raise error
            last = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise LabError(f"Worker {worker.name} {what}. It said: {' '.join(last) or 'nothing'}")
        await asyncio.sleep(0.005)

"""Workers as processes: a crash is a crash. The code of a worker stands in the notebook, in a cell
that begins with `%%worker NAME.py`: plain nats-py, with a coroutine function

    async def work(nc, js, point, **options):
        ...
        await point("charged", order=7)

A point is noted in the notebook's Recorder, and is a place where the worker can be killed or
paused. The code runs as a process of its own that shares nothing with the notebook but the servers.
"""

import ast
import asyncio
import bisect
import contextlib
import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import nats
import psutil
from nats.nuid import NUID

from labkit import paths
from labkit.cluster.connection import OUR_NAME, flush
from labkit.errors import LabError
from labkit.system.launching import launch
from labkit.waiting import until

RUNNER = Path(__file__).with_name("worker_main.py")


# --- the code of workers


def folder(topic):
    """Where the modules of this lesson's workers lie."""
    return paths.work() / topic


def write(topic, name, source):
    """Writes a module for workers and returns its path.

    Raises LabError if the name is not a plain NAME.py, or one that this system cannot write;
    SyntaxError if the source is not Python.
    """
    if not name.endswith(".py") or not name[:-3].isidentifier():
        raise LabError(
            f"The worker's file is called {name!r}; wanted: a plain name such as charge.py."
        )
    ast.parse(source, name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise LabError(
            f"This system writes file names in {sys.getfilesystemencoding()}, which cannot spell"
            f" {name!r}; wanted: a plain name such as charge.py."
        ) from None
    path = folder(topic) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.write_whole(path, source)
    return path


def is_stub(topic, name):
    """True if the module's `work` holds nothing but `...`: an exercise that nobody has touched."""
    path = folder(topic) / name
    if not name.endswith(".py") or not path.exists():
        return False
    work = _work(path)
    return work is not None and only_dots(work)


def only_dots(function):
    """True if the body of this function (ast node) is nothing but `...`, after a docstring
    perhaps."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return [ast.unparse(part) for part in body] == ["..."]


def _work(path):
    """The module's `work` (ast node), or None if it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "work":
            return node
    return None


def _module(topic, name):
    """The path of the module of this name. Raises LabError if it is not there, or has no `work`."""
    path = folder(topic) / name
    if not path.exists():
        raise LabError(
            f"There is no {name!r} in {path.parent}; write it first, in a cell that begins with"
            f" %%worker {name}"
        )
    if not _work(path):
        raise LabError(
            f"{name} has no coroutine function `work`; wanted: async def work(nc, js, point, …)."
        )
    return path


def offer_magic(topic):
    """Makes `%%worker NAME.py` write a cell's text for this lesson, where there is an IPython."""
    if "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is None:
        return

    def worker(line, cell):
        print(f"written: {write(topic, line.strip(), cell).name}")

    shell.register_magic_function(worker, magic_kind="cell")


# --- workers that run


async def start(lab, module, name, log, kill_at, pause_at, timeout, options):
    """Starts a worker of this lab (see Lab.worker)."""
    lab.refuse_closed()
    _refuse_second(lab.workers, name)
    order = {
        "module": str(_module(lab.topic, module)),
        "login": {"dont_randomize": True, **lab.login()},
        "beside": {"name": OUR_NAME, **lab.login(wire=False)},  # for its last words
        "kill_at": _place(kill_at),
        "pause_at": _place(pause_at),
        "options": options,
    }
    worker = Worker(lab, name, log)
    lab.workers.append(worker)
    try:
        await worker._listen()
        lab.refuse_closed()
        worker._hand_over(order)
        await worker._until_ready(timeout)
    except BaseException:  # a cancel too: nobody else has this Worker, to end it
        if worker in lab.workers:  # else the lesson's own end has come first
            lab.workers.remove(worker)
        await asyncio.shield(worker._close())
        raise
    return worker


def _refuse_second(workers, name):
    if any(worker.alive and worker.name == name for worker in workers):
        raise LabError(
            f"A worker {name!r} is running, perhaps from a cell that failed. End what runs with: "
            "for worker in lab.workers: worker.kill()"
        )


def _place(point):
    """["point", n] of "point" or ("point", n), as worker_main.py wants it; None stays None. Raises
    LabError if n is below 1."""
    if point is None:
        return None
    if isinstance(point, str):
        return [point, 1]
    event, count = point
    if count < 1:
        raise LabError(f"A worker never gets to {event!r} for time {count}; wanted: 1 or more.")
    return [event, count]


async def end_all(workers):
    """Kills the workers that still run. Returns the errors that ended the others, unless somebody
    has heard of them."""
    await asyncio.gather(*(worker._close() for worker in workers))
    errors = [error for worker in workers for error in worker._errors()]
    workers.clear()
    return errors


class Worker:
    """A running worker. `name`, `pid`; `alive`; `returncode` (negative: the signal that ended it)
    once it has ended."""

    def __init__(self, lab, name, log):
        """Starts its process, which waits for its order. log: Recorder for its points, or None."""
        tag = NUID().next().decode()
        self.name = name
        self._lab = lab
        self._log = log
        self._subject = f"_LABKIT.worker.{tag}"  # where it reports
        self._sub = None  # to that subject, see _listen
        self._said = []  # what it has reported (dicts), as it arrived
        self._stderr = lab.scratch / f"worker-{tag}.err"
        self._child = _launch(lab.scratch, self._stderr)
        self.process = psutil.Process(self._child.pid)  # runs its `work`, see _introduce

    @property
    def pid(self):
        return self.process.pid

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
        if sys.platform == "win32":
            # There terminate() is a kill. worker_main.py raises SIGTERM inside the worker instead.
            self._child.stdin.write(b"stop\n")
            self._child.stdin.flush()
        else:
            self._child.terminate()

    def pause(self):
        """It stands still and keeps its connection (SIGSTOP; psutil's suspend on Windows)."""
        self.process.suspend()

    def resume(self):
        """It continues after pause()."""
        self.process.resume()

    async def ended(self, timeout=15):
        """Waits until the process is gone and its last events are noted. Returns its returncode.

        timeout: seconds. Raises LabError if it still runs then, or if its `work` raised an
            exception.
        """
        await until(
            lambda: not self.alive,
            timeout,
            lambda: (
                f"the end of worker {self.name} (pid {self.pid}), which still runs. End it: .kill()"
                " or .stop()."
            ),
        )
        await self._forget()
        self._raise_error()
        return self.returncode

    def __repr__(self):
        return f"<Worker {self.name}: {'running' if self.alive else f'ended ({self.returncode})'}>"

    # --- its start

    async def _listen(self):
        """From now on, notes what it reports."""
        self._sub = await self._lab.nc.subscribe(self._subject, cb=self._note)
        await flush(self._lab.nc)

    def _hand_over(self, order):
        """Gives the process its order, see worker_main.py."""
        order = {"name": self.name, "events": self._subject, **order}
        with contextlib.suppress(BrokenPipeError):  # it has ended already: _until_ready() tells
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()

    async def _until_ready(self, timeout):
        """Waits until it is connected. Raises LabError with its last words if it does not get so
        far in `timeout` seconds, or ends before."""
        await until(
            lambda: self._is_ready() or not self.alive,
            timeout,
            lambda: f"worker {self.name} to get ready. It said: {self._last_words()}",
        )
        if self._is_ready():
            return
        await self._close()  # hears all that was on its way
        if self._is_ready():  # it has ended since: killed, as it was told to be
            return
        self._raise_error()
        raise LabError(
            f"Worker {self.name} ended ({self.returncode}) before it was ready."
            f" It said: {self._last_words()}"
        )

    def _is_ready(self):
        return any(entry["event"] == "ready" for entry in self._said)

    def _last_words(self):
        """The last line of its stderr (text)."""
        lines = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    # --- what it reports

    async def _note(self, msg):
        entry = json.loads(msg.data)
        if "event" not in entry:
            self._introduce(entry["pid"], entry["connection"])
            return
        self._said.append(entry)
        self._lab.mark(f"{self.name}: {entry['event']}", entry["at"])
        if self._log is not None:
            # Both clocks count from the same moment: perf_counter is the machine's.
            event = {**entry, "at": entry["at"] - self._log.start}
            bisect.insort(self._log.events, event, key=operator.itemgetter("at"))
        if msg.reply:  # its last words: it waits until they are noted
            await msg.respond(b"")

    def _introduce(self, pid, connection):
        """It says which process and which connection are its own."""
        # On Windows the python.exe of an environment starts another one, and waits for it: to pause
        # the one that was started would pause nothing.
        if pid != self.pid:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
                self.process = psutil.Process(pid)
        self._lab._cleanup.count_in(connection)

    def _errors(self):
        """The exception that ended its work, if one did and nobody has heard of it (list of
        LabErrors)."""
        failed = [entry["text"] for entry in self._said if entry["event"] == "failed"]
        self._said.clear()
        return [LabError(f"Worker {self.name} ended with an error:\n{text}") for text in failed]

    def _raise_error(self):
        errors = self._errors()
        if errors:
            raise errors[0]

    # --- its end

    async def _forget(self):
        """Hears what it said before its end, and listens no more."""
        with contextlib.suppress(BrokenPipeError):  # it never read its order
            self._child.stdin.close()
        if self._sub is None or self._sub._closed or self._sub._conn.is_closed:
            return
        await flush(self._sub._conn)  # what the worker said before its end was on its way
        await asyncio.sleep(0.02)
        # Another caller of ended() may have closed it meanwhile.
        if not self._sub._closed:
            await self._sub.unsubscribe()

    async def _close(self):
        if self.alive:
            self.kill()
            await asyncio.to_thread(self._child.wait)
        # Where no server answers, there is nothing to hear.
        with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
            await self._forget()


def _launch(folder, stderr):
    """Starts worker_main.py in this folder (Popen). stderr: path of the file for what it says."""
    # -P: else the folder of worker_main.py is on its path, whose modules a worker could import.
    with open(stderr, "wb") as errors:
        return launch(
            [sys.executable, "-P", "-u", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
        )

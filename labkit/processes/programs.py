"""Whole programs beside the notebooks (producer.py, consumer.py), run as a system would run them: a
process, an environment, signals, an exit code."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from labkit import paths
from labkit.errors import LabError
from labkit.system.launching import end, launch, say_that_it_is_a_kill


class Program:
    """A running program. `pid`, `alive`, `returncode`; what it said: `lines()` (stdout) and `log()`
    (stderr)."""

    def __init__(self, name, child, folder):
        self.name, self.child, self.folder, self.pid = name, child, folder, child.pid

    @property
    def returncode(self):
        return self.child.poll()

    @property
    def alive(self):
        return self.returncode is None

    def lines(self):
        """The whole lines that it has printed so far (list)."""
        said = (self.folder / f"{self.name}.out").read_text(encoding="utf-8", errors="replace")
        return said[: said.rfind("\n") + 1].splitlines()

    def log(self):
        """What it has written to stderr so far (list of lines)."""
        return (
            (self.folder / f"{self.name}.err")
            .read_text(encoding="utf-8", errors="replace")
            .splitlines()
        )

    def kill(self):
        """SIGKILL."""
        self.child.kill()

    def stop(self):
        """SIGTERM: asks it to end in good order (on Windows it is a kill, and that is said)."""
        if sys.platform == "win32":
            say_that_it_is_a_kill(self.name)
        self.child.terminate()

    async def ended(self, timeout=10):
        """Waits until the process is gone; returns its exit code. Raises LabError if it still runs
        after `timeout` s."""
        limit = asyncio.get_running_loop().time() + timeout
        while self.alive:
            if asyncio.get_running_loop().time() > limit:
                raise LabError(
                    f"{self.name} (pid {self.pid}) still runs after {timeout} s. Its last words: "
                    f"{' | '.join(self.log()[-3:]) or 'none'}"
                )
            await asyncio.sleep(0.01)
        return self.returncode

    def end(self):
        """Kills it if it still runs, and reaps it."""
        end(self.child)


def source(file):
    """Path of a program beside the notebooks."""
    return Path(paths.PROJECT, "notebooks", file)


def program(lab, file, name=None, **environment):
    """Starts a program on the lesson's account (NATS_URL, NATS_USER and NATS_PASSWORD are set).
    Returns a Program.

    environment: more variables, or other values for these. It ends with the lesson at the latest.
    """
    login = lab.cluster.login(lab.topic)
    # A token stands nowhere but in the URL.
    url = os.environ["NATS_URL"] if lab.attached else ",".join(login["servers"])
    settings = {
        "NATS_URL": url,
        "NATS_USER": login.get("user"),
        "NATS_PASSWORD": login.get("password"),
        **environment,
    }
    name = name or Path(file).stem
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NATS_")}
    with (
        open(lab.scratch / f"{name}.out", "wb") as out,
        open(lab.scratch / f"{name}.err", "wb") as err,
    ):
        child = launch(
            [sys.executable, str(source(file))],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=lab.scratch,
            env={**clean, **{k: str(v) for k, v in settings.items() if v is not None}},
        )
    running = Program(name, child, lab.scratch)
    lab.on_close(running.end)
    return running


def progress(log, producer, database):
    """How far producer.py and consumer.py are. Notes log("depth", stream="acked" or "charged",
    messages=number), as for streams.depths, and returns the ids of the orders: {"acked": set,
    "charged": set}."""
    found = {
        "acked": {line.split()[1] for line in producer.lines() if line.startswith("acked ")},
        "charged": charged(database),
    }
    for name, ids in found.items():
        log("depth", stream=name, messages=len(ids))
    return found


def charged(database):
    """Ids of the orders that consumer.py has charged in this database (set); empty if there is none
    yet."""
    if not Path(database).exists():
        return set()
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(database)) as db,
    ):
        return {row[0] for row in db.execute("SELECT id FROM charges")}
    return set()

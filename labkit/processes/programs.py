"""Whole programs beside the notebooks (producer.py, consumer.py), run as a system would run them: a
process, an environment, signals, an exit code."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from labkit import paths
from labkit.system.launching import end, launch, say_that_it_is_a_kill
from labkit.waiting import until


class Program:
    """A running program. `pid`, `alive`, `returncode`; what it said: `lines()` (stdout) and `log()`
    (stderr)."""

    def __init__(self, name, command, folder, env):
        """Starts it. folder: where it runs, and where NAME.out and NAME.err go (Path); env: its
        whole environment."""
        self.name = name
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.child = launch(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=env
            )
        self.pid = self.child.pid

    @property
    def returncode(self):
        return self.child.poll()

    @property
    def alive(self):
        return self.returncode is None

    def lines(self):
        """The whole lines that it has printed so far (list)."""
        said = self._out.read_text(encoding="utf-8", errors="replace")
        whole = said[: said.rfind("\n") + 1]
        return whole.splitlines()

    def log(self):
        """What it has written to stderr so far (list of lines)."""
        return self._err.read_text(encoding="utf-8", errors="replace").splitlines()

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
        await until(
            lambda: not self.alive,
            timeout,
            lambda: (
                f"the end of {self.name} (pid {self.pid}), which still runs. Its last words: "
                f"{' | '.join(self.log()[-3:]) or 'none'}"
            ),
        )
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

    environment: more variables, or other values for these (None: not set). The program ends with
        the lesson at the latest.
    """
    name = name or Path(file).stem
    settings = {**_login(lab), **environment}
    env = {key: value for key, value in os.environ.items() if not key.startswith("NATS_")}
    env |= {key: str(value) for key, value in settings.items() if value is not None}
    running = Program(name, [sys.executable, str(source(file))], lab.scratch, env)
    lab.on_close(running.end)
    return running


def _login(lab):
    """How a program connects as this lesson does: {variable: text, or None}."""
    login = lab.login()
    servers = ",".join(login["servers"])
    if lab.attached:  # a token stands nowhere but in the URL
        servers = ",".join(lab.addresses(os.environ["NATS_URL"].split(",")))
    return {
        "NATS_URL": servers,
        "NATS_USER": login.get("user"),
        "NATS_PASSWORD": login.get("password"),
    }


def progress(log, producer, database):
    """How far producer.py and consumer.py are. Notes log("depth", stream="acked" or "charged",
    messages=number), which pictures.depths draws, and returns the ids of the orders: {"acked": set,
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
    try:
        with contextlib.closing(sqlite3.connect(database)) as db:
            return {row[0] for row in db.execute("SELECT id FROM charges")}
    except sqlite3.OperationalError:  # it has no table yet, say
        return set()

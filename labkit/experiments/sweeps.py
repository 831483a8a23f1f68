"""Experiments: an async function measured over a grid of parameters, in shuffled order, repeated.
A finished trial is not repeated on resume: each row is on disk before the next trial begins.
Nothing here knows of NATS."""

import contextlib
import csv
import importlib.metadata
import io
import itertools
import json
import operator
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
from tqdm import tqdm

from labkit import paths
from labkit.errors import LabError

LAST = ["seconds", "error"]  # these columns stand behind the parameters and the measured values


async def sweep(fn, grid, repeats=5, seed=1, warmup=1, path=None, about=None):
    """Runs `await fn(**point)` for each point of the grid, `repeats` times, all trials in one
    shuffled order.

    fn: coroutine function that returns a dict of measured values (numbers or short texts), the same
        keys each time.
    grid: {parameter: list of values} (all combinations), or a list of dicts, one a point.
    warmup: so many trials are run before the first one that counts, and thrown away.
    path: CSV file that gets each row as soon as it is known. If it exists, its rows are kept and
        only what is missing is run, so that an interrupted sweep can be resumed (None or "": no
        file).
    about: facts for `attrs`, such as versions, and whatever else makes rows comparable. A file is
        resumed only if they, and the machine, are the same.

    Returns a DataFrame, one row a trial, in the order of `trial`: the point's parameters, repeat,
    the values, seconds (of the call) and error (empty, or what a failed trial raised; its values
    are missing). `attrs["environment"]` holds about, the machine, and the arguments. Raises
    LabError if there is nothing to run, or if the file belongs to another sweep, other facts or
    another machine.
    """
    _check("repeats", repeats, 1)
    _check("warmup", warmup, 0)
    points = _points(grid)
    trials = [(point, repeat) for repeat in range(repeats) for point in points]
    random.Random(seed).shuffle(trials)
    table = _Table(path, {"grid": points, "repeats": repeats, "seed": seed}, about or {})
    done = table.trials()
    todo = [(number, *trial) for number, trial in enumerate(trials) if number not in done]
    for _, point, _ in todo[:warmup]:
        await _trial(fn, point)
    hidden = bool(os.environ.get("LABKIT_HEADLESS"))
    bar = tqdm(todo, initial=len(done), total=len(trials), leave=False, disable=hidden)
    for number, point, repeat in bar:
        table.add({"trial": number, "repeat": repeat, **point, **await _trial(fn, point)})
    return table.frame()


def _check(name, value, least):
    if not isinstance(value, int) or value < least:
        raise LabError(f"{name} is {value!r}; wanted: a whole number, {least} or more.")


def _points(grid):
    """The points of the grid (list of dicts). Raises LabError if there are none."""
    if isinstance(grid, list):
        points = [dict(point) for point in grid]
    else:
        points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    if not points:
        raise LabError(
            f"The grid {grid!r} has no point; wanted: at least one value of each parameter."
        )
    return points


async def _trial(fn, point):
    """One call: what it returned, how long it took (seconds), and what it raised, as text."""
    values = {}
    error = ""
    began = time.perf_counter()
    try:
        returned = await fn(**point)
        if not isinstance(returned, dict):
            raise TypeError(
                f"{fn.__name__} returned {returned!r}; wanted: a dict of measured values"
            )
        values = returned
    except Exception as raised:  # recorded, not lost; an interrupt goes through
        error = f"{type(raised).__name__}: {raised}"
    return {**values, "seconds": time.perf_counter() - began, "error": error}


class _Table:
    """The rows so far, in the order of their trials, and the CSV file that holds just these at any
    time. A file beside it (.json) holds the head: which sweep, which facts, which machine."""

    def __init__(self, path, plan, about):
        self.path = Path(path) if path else None
        self.head_path = self.path.with_suffix(".json") if self.path else None
        self.head = json.loads(json.dumps({"plan": plan, "about": about, "machine": machine()}))
        self.rows = []
        if not self.path:
            return
        if self.path.exists():
            self._resume()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.head, indent=1)
            self.head_path.write_text(text, encoding="utf-8", newline="\n")

    def trials(self):
        """Numbers of the trials that have a row (set)."""
        return {row["trial"] for row in self.rows}

    def add(self, row):
        """Takes the row of a trial (dict), into the file as well."""
        before = self._columns()
        self.rows.append(row)
        self.rows.sort(key=operator.itemgetter("trial"))
        if not self.path:
            return
        if before == self._columns() and self.rows[-1] is row:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(self._csv([row], header=False))
        else:  # this row adds columns (the first row does) or belongs in the middle
            paths.write_whole(self.path, self._csv(self.rows))

    def frame(self):
        """The rows as a DataFrame. It is read from the text of the file, also where there is none:
        a sweep that was resumed gives the same table as one that was never interrupted."""
        frame = pd.read_csv(
            io.StringIO(self._csv(self.rows)),
            dtype={"error": "str"},
            keep_default_na=False,
            na_values=["", "nan"],
        )
        frame["error"] = frame["error"].fillna("")
        frame.attrs["environment"] = {
            **self.head["machine"],
            **self.head["about"],
            **self.head["plan"],
        }
        return frame

    def _columns(self):
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in LAST] + LAST

    def _csv(self, rows, header=True):
        """These rows as text of the file."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self._columns(), lineterminator="\n", restval="")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def _resume(self):
        """Takes the rows of the file, and mends it. Raises LabError if it is another sweep's."""
        known = {}
        if self.head_path.exists():
            known = json.loads(self.head_path.read_text(encoding="utf-8"))
        self._refuse_other(known)
        self.head = known
        with open(self.path, encoding="utf-8", newline="") as file:
            text = file.read()
        for row in csv.DictReader(io.StringIO(_whole_rows(text))):
            values = {name: value for name, value in row.items() if value != ""}
            self.rows.append({**values, "trial": int(row["trial"])})
        self.rows.sort(key=operator.itemgetter("trial"))
        if text != self._csv(self.rows):
            paths.write_whole(self.path, self._csv(self.rows))

    def _refuse_other(self, known):
        differences = []
        for part, facts in self.head.items():
            for name, now in facts.items():
                then = known.get(part, {}).get(name)
                if then != now:
                    differences.append(f"{name} {then!r}, now {now!r}")
        if differences:
            raise LabError(
                f"{self.path} belongs to another sweep or machine: {self.head_path.name} beside it"
                f" names {'; '.join(differences)[:400]}. Delete both to start again, or give"
                " another path."
            )


def _whole_rows(text):
    """The CSV text without a last row that is written in part only, by a run that was killed.

    A row ends with a line end that stands outside of quotes, so after an even number of them.
    """
    lines = text.splitlines(keepends=True)
    while lines and (not lines[-1].endswith("\n") or "".join(lines).count('"') % 2):
        lines.pop()
    return "".join(lines)


def cpu_seconds(processes):
    """CPU seconds (float) that these psutil processes have used so far; nan if one of them is None,
    as that of a server in a container is, or if there are none."""
    processes = list(processes)
    if not processes or None in processes:
        return float("nan")
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def machine():
    """What a reader wants to know of the machine that measured: system, processor, cores, memory
    (GiB), Python, pandas."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory (GiB)": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "pandas": importlib.metadata.version("pandas"),
    }


def _processor():
    """Its name, as the system tells it; else what Python knows, which may be nothing."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        if sys.platform == "darwin":  # where Python knows "arm"
            asked = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8"
            )
            return asked.stdout.strip() or platform.processor()
    return platform.processor()

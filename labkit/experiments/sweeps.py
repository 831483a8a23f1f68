"""Experiments: an async function measured over a grid of parameters, in shuffled order, repeated,
and never twice for
nothing: each row is on disk before the next trial begins. Nothing here knows of NATS."""

import contextlib
import csv
import importlib.metadata
import io
import itertools
import json
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
    only what is missing is run; so an interrupted sweep goes on where it stopped (None or "": no
    file). about: facts for `attrs`, such as versions, and whatever else makes rows comparable; a
    file is gone on with only if they, and the machine, are the same.

    Returns a DataFrame, one row a trial, in the order of `trial`: the point's parameters, repeat,
    the values, seconds (of the call) and error (empty, or what a failed trial raised; its values
    are missing). `attrs["environment"]` holds about, the machine, and the arguments. Raises
    LabError if there is nothing to run, or if the file belongs to another sweep, other facts or
    another machine.
    """
    _check("repeats", repeats, 1)
    _check("warmup", warmup, 0)
    points = (
        [dict(point) for point in grid]
        if isinstance(grid, list)
        else [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    )
    if not points:
        raise LabError(
            f"The grid {grid!r} has no point; wanted: at least one value of each parameter."
        )
    trials = [(point, repeat) for repeat in range(repeats) for point in points]
    random.Random(seed).shuffle(trials)
    table = _Table(path, {"grid": points, "repeats": repeats, "seed": seed}, about or {})
    todo = [(number, *trial) for number, trial in enumerate(trials) if number not in table.done]
    for _, point, _ in todo[:warmup]:
        await _trial(fn, point)
    for number, point, repeat in tqdm(
        todo,
        initial=len(trials) - len(todo),
        total=len(trials),
        leave=False,
        disable=bool(os.environ.get("LABKIT_HEADLESS")),
    ):
        table.add({"trial": number, "repeat": repeat, **point, **await _trial(fn, point)})
    return table.frame()


def _check(name, value, least):
    if not isinstance(value, int) or value < least:
        raise LabError(f"{name} is {value!r}; wanted: a whole number, {least} or more.")


async def _trial(fn, point):
    """One call: what it returned, how long it took (seconds), and what it raised, as text."""
    began, values, error = time.perf_counter(), {}, ""
    try:
        values = await fn(**point)
        if not isinstance(values, dict):
            raise TypeError(f"{fn.__name__} returned {values!r}; wanted: a dict of measured values")
    except Exception as raised:  # recorded, not lost; an interrupt goes through
        error = f"{type(raised).__name__}: {raised}"
    return {
        **(values if isinstance(values, dict) else {}),
        "seconds": time.perf_counter() - began,
        "error": error,
    }


class _Table:
    """The rows so far, and the file that holds them: whole at any time, since each new one takes
    the old one's place."""

    def __init__(self, path, plan, about):
        self.path, self.rows = Path(path) if path else None, []
        self.head = json.loads(json.dumps({"plan": plan, "about": about, "machine": machine()}))
        if self.path and self.path.exists():
            self._go_on()
        elif self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._side().write_text(json.dumps(self.head, indent=1), encoding="utf-8", newline="\n")
        self.done = {int(row["trial"]) for row in self.rows}

    def _side(self):
        return self.path.with_suffix(".json")

    def _go_on(self):
        known = (
            json.loads(self._side().read_text(encoding="utf-8")) if self._side().exists() else {}
        )
        other = [
            f"{key} {then!r}, now {now!r}"
            for part in self.head
            for key, now in self.head[part].items()
            if (then := known.get(part, {}).get(key)) != now
        ]
        if other:
            raise LabError(
                f"{self.path} belongs to another sweep or machine: {self._side().name} beside it"
                f" names {'; '.join(other)[:400]}. Delete both to begin anew, or give another path."
            )
        self.head = known
        with open(self.path, newline="", encoding="utf-8") as file:
            self.rows = [
                {key: value for key, value in row.items() if value != ""}
                for row in csv.DictReader(file)
            ]

    def add(self, row):
        self.rows.append(row)
        if self.path:
            paths.write_whole(self.path, self._text())

    def _text(self):
        rows = sorted(self.rows, key=lambda row: int(row["trial"]))
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in LAST)) + LAST
        out = io.StringIO()
        writer = csv.DictWriter(out, columns or LAST, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def frame(self):
        """Read from the text of the file, also where there is none: a sweep that went on gives the
        same table as one that was never interrupted."""
        frame = pd.read_csv(
            io.StringIO(self._text()),
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


def cpu_seconds(processes):
    """CPU seconds (float) that these psutil processes have used so far; nan if one of them is None,
    as that of a server in a container is, or if there are none."""
    processes = list(processes)
    return (
        sum(sum(p.cpu_times()[:2]) for p in processes)
        if processes and all(processes)
        else float("nan")
    )


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

"""The bench for questions: order, repeats, failures, and the same table however often it was
interrupted."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest

from labkit import LabError
from labkit.experiments.sweeps import cpu_seconds, machine, sweep

GRID = {"size": [1, 2, 3], "kind": ["a", "b"]}


def measure(calls, fail=lambda **point: False, stop_at=None):
    async def trial(**point):
        calls.append(point)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        if fail(**point):
            raise ValueError("no such size")
        return {"double": point["size"] * 2.5, "word": point["kind"] * 2}

    return trial


async def test_one_row_a_trial_in_an_order_that_the_seed_decides():
    calls = []
    again = []
    other = []
    frame = await sweep(measure(calls), GRID, repeats=4, seed=3, warmup=2)
    await sweep(measure(again), GRID, repeats=4, seed=3, warmup=2)
    await sweep(measure(other), GRID, repeats=4, seed=4, warmup=2)
    columns = "trial repeat size kind double word seconds error"
    assert list(frame.columns) == columns.split()
    assert list(frame["trial"]) == list(range(24)) and len(calls) == 26
    repeats = frame.groupby(["size", "kind"])["repeat"].apply(sorted)
    assert len(repeats) == 6 and all(found == [0, 1, 2, 3] for found in repeats)
    assert calls == again != other and calls[2:] == frame[["size", "kind"]].to_dict("records")
    assert calls[2:] != sorted(calls[2:], key=str), "shuffled"
    assert (frame["double"] == frame["size"] * 2.5).all() and (frame["error"] == "").all()
    environment = frame.attrs["environment"]
    assert environment["seed"] == 3 and environment["cores"] == os.cpu_count()


async def test_a_failing_point_is_recorded_and_the_others_are_not_lost():
    frame = await sweep(measure([], fail=lambda size, kind: size == 2), GRID, repeats=3)
    failed = frame[frame["size"] == 2]
    assert len(frame) == 18 and failed["double"].isna().all()
    assert (failed["error"] == "ValueError: no such size").all()
    assert (frame[frame["size"] != 2]["error"] == "").all()


@pytest.mark.parametrize("stop_at", [1, 2, 7, 18])
async def test_interrupted_and_resumed_it_gives_the_table_of_an_uninterrupted_one(
    tmp_path, stop_at
):
    path = tmp_path / "rows" / "a.csv"
    calls = []
    whole = await sweep(measure([]), GRID, repeats=3, warmup=0, path=tmp_path / "whole.csv")
    with pytest.raises(KeyboardInterrupt):
        await sweep(measure(calls, stop_at=stop_at), GRID, repeats=3, warmup=0, path=path)
    resumed = await sweep(measure(calls), GRID, repeats=3, warmup=0, path=path)
    assert len(calls) == 19, "only the interrupted trial ran twice"
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))
    pd.testing.assert_frame_equal(resumed, await sweep(measure(calls), GRID, repeats=3, path=path))
    assert len(calls) == 19, "a complete one runs nothing again, no warm-up either"


async def test_a_row_is_appended_unless_it_brings_columns(tmp_path):
    """Where a row brings columns, the file is written anew, under another inode."""
    path = tmp_path / "a.csv"
    inodes = []
    sizes = []

    async def trial(number):
        if path.exists():
            inodes.append(path.stat().st_ino)
            sizes.append(len(pd.read_csv(path)))
        if number < 3:
            raise ValueError("no values yet")
        return {"double": number * 2}

    points = [{"number": number} for number in range(8)]
    order = [
        call["number"] for call in (await sweep(trial, points, 1, warmup=0)).to_dict("records")
    ]
    first = next(place for place, number in enumerate(order) if number >= 3)
    inodes.clear()
    await sweep(trial, points, 1, warmup=0, path=path)
    assert sizes == list(range(1, 8)), "each row is there before the next trial"
    changes = [place for place in range(1, len(inodes)) if inodes[place] != inodes[place - 1]]
    assert changes == [first] * (first > 0)


@pytest.mark.parametrize("cut", [1, 5, 12, 30])
async def test_a_last_row_that_is_written_in_part_is_dropped_and_run_again(tmp_path, cut):
    """Its error has a comma, quotes and line ends in it, as others have."""

    def fails(size, kind):
        raise ValueError(f'first line\n"{kind}", second line\nthird line')

    path = tmp_path / "a.csv"
    whole = await sweep(measure([], fails), GRID, repeats=2, warmup=0, path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    calls = []
    resumed = await sweep(measure(calls, fails), GRID, repeats=2, warmup=0, path=path)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))
    assert len(pd.read_csv(path)) == 12


async def test_rows_that_somebody_has_deleted_are_run_again_in_their_places(tmp_path):
    path = tmp_path / "a.csv"
    whole = await sweep(measure([]), GRID, repeats=2, warmup=0, path=path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[5:]), encoding="utf-8")
    calls = []
    resumed = await sweep(measure(calls), GRID, repeats=2, warmup=0, path=path)
    assert len(calls) == 2
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))
    assert list(pd.read_csv(path)["trial"]) == list(range(12))


KILLED = """
import asyncio, os, sys
from labkit.experiments import sweep

count, rows = sys.argv[1:]

async def trial(size, kind):
    if os.path.getsize(count) == 9:
        os.kill(os.getpid(), 9)
    with open(count, "ab") as file:
        file.write(b"x")
    return {"double": size * 2.5, "word": kind * 2}

grid = {"size": [1, 2, 3], "kind": ["a", "b"]}
asyncio.run(sweep(trial, grid, repeats=3, warmup=0, path=rows))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL")
async def test_killed_and_resumed_as_well(tmp_path):
    (tmp_path / "count").touch()
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, tmp_path / "count", tmp_path / "a.csv"]
    )
    assert done.returncode == -signal.SIGKILL and len(pd.read_csv(tmp_path / "a.csv")) == 9
    calls = []
    resumed = await sweep(measure(calls), GRID, repeats=3, warmup=0, path=tmp_path / "a.csv")
    whole = await sweep(measure([]), GRID, repeats=3, warmup=0)
    assert len(calls) == 9
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"repeats": 0}, "repeats is 0; wanted: a whole number, 1 or more"),
        ({"repeats": "5"}, "repeats is '5'; wanted"),
        ({"warmup": -1}, "warmup is -1; wanted: a whole number, 0 or more"),
        ({"grid": {"size": []}}, "has no point"),
        ({"grid": []}, "has no point"),
    ],
)
async def test_nothing_to_run_is_refused(arguments, words):
    with pytest.raises(LabError, match=words):
        await sweep(measure([]), **{"grid": GRID, **arguments})


async def test_a_file_of_another_sweep_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    await sweep(measure([]), GRID, repeats=1, path=path)
    words = "belongs to another sweep or machine.*names repeats 1, now 2. Delete both"
    with pytest.raises(LabError, match=words):
        await sweep(measure([]), GRID, repeats=2, path=path)


async def test_rows_of_other_requests_are_not_resumed(tmp_path):
    path = tmp_path / "a.csv"
    about = {"requests": 60, "server": "any"}
    await sweep(measure([]), GRID, repeats=1, path=path, about=about)
    with pytest.raises(LabError, match="names requests 60, now 1000. Delete both"):
        await sweep(measure([]), GRID, repeats=1, path=path, about={**about, "requests": 1000})


@pytest.mark.parametrize("part, value", [("python", "2.7.18"), ("processor", "Z80"), ("cores", 77)])
async def test_rows_of_another_machine_or_python_are_not_resumed(
    tmp_path, monkeypatch, part, value
):
    path = tmp_path / "a.csv"
    await sweep(measure([]), GRID, repeats=1, path=path)
    here = machine()
    monkeypatch.setattr("labkit.experiments.sweeps.machine", lambda: {**here, part: value})
    words = re.escape(f"names {part} {here[part]!r}, now {value!r}. Delete both")
    with pytest.raises(LabError, match=words):
        await sweep(measure([]), GRID, repeats=1, path=path)


async def test_a_value_that_is_not_known_stays_a_number(tmp_path):
    async def trial(size):
        return {"cores": float("nan")}

    for path in (None, tmp_path / "a.csv"):
        frame = await sweep(trial, {"size": [1, 2]}, repeats=1, path=path)
        assert frame["cores"].dtype == float and frame["cores"].isna().all()


async def test_points_can_be_listed_and_a_function_must_return_values(tmp_path):
    frame = await sweep(
        measure([]), [{"size": 1, "kind": "a"}, {"size": 2, "kind": "b"}], repeats=2
    )
    assert len(frame) == 4

    async def nothing(**point):
        return 7

    frame = await sweep(nothing, GRID, repeats=1)
    assert frame["error"].str.contains("returned 7; wanted: a dict").all()


def test_cpu_time_is_known_of_processes_and_not_of_none():
    here = psutil.Process()
    before = cpu_seconds([here])
    while cpu_seconds([here]) == before:  # it grows with what this process does
        pass
    assert cpu_seconds([here, here]) >= 2 * before > 0
    assert math.isnan(cpu_seconds([])) and math.isnan(cpu_seconds([here, None]))

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
    calls, again, other = [], [], []
    frame = await sweep(measure(calls), GRID, repeats=4, seed=3, warmup=2)
    await sweep(measure(again), GRID, repeats=4, seed=3, warmup=2)
    await sweep(measure(other), GRID, repeats=4, seed=4, warmup=2)
    assert list(frame.columns) == [
        "trial",
        "repeat",
        "size",
        "kind",
        "double",
        "word",
        "seconds",
        "error",
    ]
    assert list(frame["trial"]) == list(range(24)) and len(calls) == 26
    assert (
        frame.groupby(["size", "kind"])["repeat"].apply(sorted).apply(list) == [[0, 1, 2, 3]] * 6
    ).all()
    assert calls == again != other and calls[2:] == frame[["size", "kind"]].to_dict("records")
    assert calls[2:] != sorted(calls[2:], key=str), "shuffled"
    assert (frame["double"] == frame["size"] * 2.5).all() and (frame["error"] == "").all()
    assert (
        frame.attrs["environment"]["seed"] == 3
        and frame.attrs["environment"]["cores"] == os.cpu_count()
    )


async def test_a_failing_point_is_recorded_and_the_others_are_not_lost():
    frame = await sweep(measure([], fail=lambda size, kind: size == 2), GRID, repeats=3)
    failed = frame[frame["size"] == 2]
    assert (
        len(frame) == 18
        and (failed["error"] == "ValueError: no such size").all()
        and failed["double"].isna().all()
    )
    assert (frame[frame["size"] != 2]["error"] == "").all()


@pytest.mark.parametrize("stop_at", [1, 2, 7, 18])
async def test_interrupted_and_resumed_it_gives_the_table_of_an_uninterrupted_one(
    tmp_path, stop_at
):
    path, calls = tmp_path / "rows" / "a.csv", []
    whole = await sweep(measure([]), GRID, repeats=3, warmup=0, path=tmp_path / "whole.csv")
    with pytest.raises(KeyboardInterrupt):
        await sweep(measure(calls, stop_at=stop_at), GRID, repeats=3, warmup=0, path=path)
    resumed = await sweep(measure(calls), GRID, repeats=3, warmup=0, path=path)
    assert len(calls) == 19, "only the interrupted trial ran twice"
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))
    pd.testing.assert_frame_equal(resumed, await sweep(measure(calls), GRID, repeats=3, path=path))
    assert len(calls) == 19, "a complete one runs nothing again, no warm-up either"


KILLED = """
import asyncio, os, sys
from labkit.sweep import sweep
async def trial(size, kind):
    if len(open(sys.argv[1], "rb").read()) == 9: os.kill(os.getpid(), 9)
    open(sys.argv[1], "ab").write(b"x")
    return {"double": size * 2.5, "word": kind * 2}
grid = {"size": [1, 2, 3], "kind": ["a", "b"]}
asyncio.run(sweep(trial, grid, repeats=3, warmup=0, path=sys.argv[2]))
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
    await sweep(measure([]), GRID, repeats=1, path=tmp_path / "a.csv")
    with pytest.raises(
        LabError, match="belongs to another sweep or machine.*names repeats 1, now 2. Delete both"
    ):
        await sweep(measure([]), GRID, repeats=2, path=tmp_path / "a.csv")


async def test_rows_of_other_requests_are_not_gone_on_with(tmp_path):
    await sweep(
        measure([]),
        GRID,
        repeats=1,
        path=tmp_path / "a.csv",
        about={"requests": 60, "server": "2.15.1"},
    )
    with pytest.raises(LabError, match="names requests 60, now 1000. Delete both"):
        await sweep(
            measure([]),
            GRID,
            repeats=1,
            path=tmp_path / "a.csv",
            about={"requests": 1000, "server": "2.15.1"},
        )


async def test_rows_of_another_machine_or_python_are_not_gone_on_with(tmp_path, monkeypatch):
    await sweep(measure([]), GRID, repeats=1, path=tmp_path / "a.csv")
    here = machine()
    for part, value in (("python", "2.7.18"), ("processor", "Z80"), ("cores", 77)):
        monkeypatch.setattr("labkit.experiments.sweeps.machine", lambda: {**here, part: value})
        with pytest.raises(
            LabError, match=re.escape(f"names {part} {here[part]!r}, now {value!r}. Delete both")
        ):
            await sweep(measure([]), GRID, repeats=1, path=tmp_path / "a.csv")


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


def test_cpu_time_is_known_of_processes_and_not_of_what_is_none():
    here = psutil.Process()
    before = cpu_seconds([here])
    while cpu_seconds([here]) == before:  # it grows with what this process does
        pass
    assert cpu_seconds([here, here]) >= 2 * before > 0
    assert math.isnan(cpu_seconds([])) and math.isnan(cpu_seconds([here, None]))

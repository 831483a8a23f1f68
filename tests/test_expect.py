"""`lab.expect`: silent when the claim holds; else a quiet line for a reader, or an error for
a test."""

import asyncio
import os
import subprocess
import sys

import pytest
from nbclient.exceptions import CellExecutionError

import kernels
from labkit import Lab, LabError, Recorder, paths

lab = Lab()
got = [1, 2]
gap = 2.31


@pytest.fixture
def reader(monkeypatch, capsys):
    """A reader's environment. Returns what was printed since the last call."""
    monkeypatch.delenv("LABKIT_STRICT")
    return lambda: capsys.readouterr().out


def test_a_claim_that_holds_is_silent(reader):
    assert lab.expect("two arrived", len(got) == 2) is None
    assert reader() == ""


def test_a_reader_gets_one_line_with_the_values_and_goes_on(reader):
    assert lab.expect("B gets message 5 after its ack wait", 0.9 < gap < 1.4) is None
    assert reader() == (
        "This differs from the text below: B gets message 5 after its ack wait "
        "(you may have changed something). Seen: gap = 2.31.\n"
    )


def test_a_test_gets_an_error_with_the_values():
    with pytest.raises(LabError) as error:
        lab.expect("B gets message 5 after its ack wait", 0.9 < gap < 1.4)
    assert str(error.value) == (
        "The cell does not show what the text says: B gets message 5 after its ack wait. "
        "`0.9 < gap < 1.4` is false. Seen: gap = 2.31."
    )


def test_every_run_of_pytest_is_strict_also_one_of_a_single_notebook():
    assert os.environ["LABKIT_STRICT"] == "1"
    source = """
import os, pytest
pytest.main(["-q", "-n0", "--collect-only", "notebooks/00_start_here.ipynb"])
print("strict:", os.environ["LABKIT_STRICT"])
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=paths.PROJECT,
        env={key: value for key, value in os.environ.items() if key != "LABKIT_STRICT"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.endswith("strict: 1\n"), done.stdout + done.stderr


def test_in_a_function_it_sees_the_local_names(reader):
    seconds = 4
    lab.expect(
        "it took five seconds",
        seconds == 5 and len(got) == 2,
    )
    assert "Seen: len(got) = 2, seconds = 4, got = [1, 2] (2 items).\n" in reader()


async def test_in_a_coroutine_and_beside_an_await(reader):
    acks = 3
    lab.expect("all acked", await asyncio.sleep(0, 2) == acks)
    assert "Seen: acks = 3.\n" in reader()


def test_of_two_claims_on_a_line_it_takes_the_right_one(reader):
    a, b = 1, 2
    assert [lab.expect("é", a == 1), lab.expect("ü", b == 1)] == [None, None]
    assert reader() == (
        "This differs from the text below: ü (you may have changed something). Seen: b = 2.\n"
    )


def test_what_only_counts_is_called_once_more_and_nothing_else_is(reader):
    log = Recorder()
    log("acked")
    queue = [1, 2, 3]
    lab.expect("four acks", log.count("acked") == 4)
    assert "Seen: log.count('acked') = 1" in reader()
    lab.expect("the first is 1", queue.pop() == 1)
    assert "Seen: queue = [1, 2] (2 items).\n" in reader()


def test_more_values_can_be_named(reader):
    lab.expect("all arrived", condition=False, missing=[7], wanted=3)
    assert reader().endswith("Seen: missing = [7] (1 item), wanted = 3.\n")


def test_without_source_it_tells_no_values(reader):
    exec("lab.expect('it is fast', gap < 1)", {"lab": lab, "gap": 2})
    assert reader() == (
        "This differs from the text below: it is fast (you may have changed something).\n"
    )


@pytest.mark.parametrize("condition", [lambda: False, asyncio.sleep], ids=["lambda", "function"])
def test_a_function_is_refused_since_it_is_always_true(condition):
    with pytest.raises(LabError, match="a function, which is always true. Wanted: its value"):
        lab.expect("it is so", condition)


async def test_so_is_a_coroutine_that_nobody_awaits():
    with pytest.raises(LabError, match="a coroutine, which is always true. .*await it"):
        lab.expect("it is so", asyncio.sleep(0))


CELL = """
import asyncio
took = 0.1
print("shown first")
await asyncio.sleep(0)
lab.expect(
    "it takes a second",
    0.9 < took < 1.1,
)
print("and it goes on")
"""


async def test_in_a_kernel(monkeypatch):
    async with kernels.kernel() as (_, run):
        await run("from labkit import Lab\nlab = Lab()")
        with pytest.raises(
            CellExecutionError, match="0.9 < took < 1.1` is false. Seen: took = 0.1"
        ):
            await run(CELL)
        await run("import os\ndel os.environ['LABKIT_STRICT']")
        assert await run(CELL) == (
            "shown first\nThis differs from the text below: it takes a second "
            "(you may have changed something). Seen: took = 0.1.\nand it goes on\n"
        )

"""The storm of lesson 07 with other seeds: the code that a reader sees, read out of the
notebook."""

import ast
import random

import nbformat
import pytest

from labkit import Lab, notebooks
from labkit.processes import workers

BOOK = nbformat.read(notebooks.FOLDER / "07_effects_once.ipynb", 4)
QUICK, LONG = (100, 10), (300, 30)  # orders, kills; the lesson has 300 and 22
SEEDS = {1: QUICK, 2: LONG, 3: LONG, 4: LONG, 5: LONG}
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.fixture
async def lesson(shared):
    """The names that the lesson's cells define: its imports and functions, and the lab. Its workers
    are written."""
    lab = await Lab.open("effects_once")
    names = {"lab": lab, "nc": lab.nc, "js": lab.js}
    for cell in BOOK.cells:
        magic, _, body = cell.source.partition("\n")
        if cell.cell_type == "code" and magic.startswith("%%worker "):
            workers.write(lab.topic, magic.split()[1], body)
        elif cell.cell_type == "code":
            kept = [node for node in ast.parse(cell.source).body if isinstance(node, KEPT)]
            exec(compile(ast.Module(kept, []), cell["id"], "exec"), names)
    yield names
    await lab._leave()
    assert not lab._net.take()


@pytest.mark.parametrize(
    "seed, size",
    [
        pytest.param(seed, size, marks=[pytest.mark.soak] if size == LONG else [])
        for seed, size in SEEDS.items()
    ],
)
async def test_every_order_is_charged_once_whoever_is_killed(lesson, seed, size):
    orders, kills = size
    log, result = await lesson["storm"]("safe.py", seed, orders, kills)
    assert result["killed"] == kills and result["published again"] > 5
    assert result["ordered"] == result["charges"] == result["orders charged"] == orders, result
    assert {e["point"] for e in log.all("killed")} <= {"before", "between", "after", "acked"}


async def test_the_same_storm_finds_the_fault_of_a_worker_without_a_marker(lesson):
    """A storm that no worker could fail would prove nothing."""
    safe = workers.folder("effects_once") / "safe.py"
    workers.write(
        "effects_once", "unsafe.py", safe.read_text(encoding="utf-8").replace("if new:", "if True:")
    )
    _, result = await lesson["storm"]("unsafe.py", 6, 60, 4)
    assert result["orders charged"] == 60 and result["charges"] >= 60 + result["published again"]


def test_the_seeds_leave_orders_enough_for_every_kill():
    for seed, orders, kills in [
        *((seed, *size) for seed, size in SEEDS.items()),
        (6, 60, 4),
        (7, 300, 22),
    ]:
        chance = random.Random(seed)
        passes = [(chance.choice("abcd"), chance.randint(1, 12))[1] for _ in range(kills)]
        assert sum(passes) <= orders, (seed, sum(passes))

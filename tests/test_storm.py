"""The storm of lesson 22 with other seeds. It runs the code that a reader sees, taken from the
notebook."""

import ast
import random

import nbformat
import pytest

from labkit import Lab, notebooks
from labkit.processes import workers

BOOK = nbformat.read(notebooks.FOLDER / "22_effects_once.ipynb", 4)
QUICK = (100, 10)  # orders, kills; the lesson has 300 and 22
LONG = (300, 30)
SEEDS = {1: QUICK, 2: LONG, 3: LONG, 4: LONG, 5: LONG}
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef)
POINTS = ["before", "between", "after", "acked"]


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
    await lab._end()
    assert not lab._net.take()


def drawn(seed, orders, kills):
    """Returns what the storm draws from this seed: the point of each kill (list), and the number of
    orders that are published again.

    A worker is killed at its n-th pass of a point. If the passes add up to more than the orders, it
    may wait for orders that never come."""
    chance = random.Random(seed)
    places = [(chance.choice(POINTS), chance.randint(1, 12)) for _ in range(kills)]
    assert sum(passes for _, passes in places) <= orders, f"seed {seed} wants more orders"
    again = sum(chance.random() < 0.2 for _ in range(orders))
    return [point for point, _ in places], again


@pytest.mark.parametrize(
    "seed, size",
    [
        pytest.param(seed, size, marks=[pytest.mark.soak] if size == LONG else [])
        for seed, size in SEEDS.items()
    ],
)
async def test_every_order_is_charged_once_whoever_is_killed(lesson, seed, size):
    orders, kills = size
    points, again = drawn(seed, orders, kills)
    log, result = await lesson["storm"]("safe.py", seed, orders, kills)
    assert result["ordered"] == result["charges"] == result["orders charged"] == orders, result
    assert result["published again"] == again > 0, "the storm had duplicates to survive"
    assert sorted(event["point"] for event in log.all("killed")) == sorted(points)


async def test_the_same_storm_finds_the_fault_of_a_worker_without_a_marker(lesson):
    """A storm that no worker can fail proves nothing."""
    orders, kills = 60, 4
    _, again = drawn(6, orders, kills)
    source = (workers.folder("effects_once") / "safe.py").read_text(encoding="utf-8")
    assert source.count("if new:") == 1
    workers.write("effects_once", "unsafe.py", source.replace("if new:", "if True:"))
    _, result = await lesson["storm"]("unsafe.py", 6, orders, kills)
    assert result["orders charged"] == orders
    assert result["charges"] >= orders + again, "it charged each order that was published again"
    assert again > 0

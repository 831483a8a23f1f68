"""Every exercise, four ways: the stub is not attempted, the solution passes, each wrong answer
hears its own words, and each right answer in another style passes."""

import asyncio
import collections
import contextlib
import importlib
import inspect
import os
import re

import nbformat
import pytest

import answers
import lessons
from labkit import Lab, LabError
from labkit.cluster.faults import is_consequence
from labkit.exercises import engine
from labkit.processes import workers

BOOKS = {
    lessons.topic(path): nbformat.read(path, 4)
    for path in lessons.LESSONS
    if not lessons.is_experiment(path)
}
TABLE = inspect.cleandoc("""
    # Exercise × answers

    Written by `LABKIT_WRITE_ANSWERS=1 python -m pytest tests/test_exercises.py -k table`; without
    the variable this test compares it.
    """)


def stubs(topic):
    """{exercise: (source of its starter cell, source of the cell that checks)}."""
    sources = {
        cell["id"]: cell.source for cell in BOOKS[topic].cells if cell["id"].startswith("ex-")
    }
    names = [
        name.removesuffix("-check").removeprefix("ex-")
        for name in sources
        if name.endswith("-check")
    ]
    return {name: (sources[f"ex-{name}"], sources[f"ex-{name}-check"]) for name in names}


def defined(topic):
    module = importlib.import_module(f"labkit.exercises.{topic}")
    found = {name: item for name, item in vars(module).items() if isinstance(item, engine.Exercise)}
    assert all(item.name == name for name, item in found.items())
    return found


ALL = [(topic, name) for topic in BOOKS for name in defined(topic)]
# Lessons that break nodes have a cluster of their own, and so have their exercises.
PRIVATE = {
    topic
    for topic, book in BOOKS.items()
    if "private=True" in next(c.source for c in book.cells if c["id"] == "setup")
}


FEW = 2  # answers of a kind to an exercise that every run tries; all: LABKIT_TEST_ANSWERS=1


def cases(right):
    """Parameters (topic, answer) for the answers that are right, or wrong."""
    mine = [answer for answer in answers.every() if bool(answer.words) != right]
    seen = collections.Counter()
    found = []
    for answer in mine:
        seen[answer.topic, answer.exercise] += 1
        marks = ()
        if seen[answer.topic, answer.exercise] > FEW:
            marks = pytest.mark.answers
        elif answer.topic in PRIVATE:  # they take minutes of elections together
            marks = pytest.mark.soak
        name = f"{answer.topic}-{answer.exercise}-{answer.name}"
        found.append(pytest.param(answer.topic, answer, id=name, marks=marks))
    return found


@pytest.fixture
async def lab(shared, request):
    topic = request.node.callspec.params["topic"]
    lab = await Lab.open(topic, private=topic in PRIVATE)
    yield lab
    await lab._end()
    left = [error for error in lab._net.take() if not (lab.faults.used and is_consequence(error))]
    assert not left, "an answer left an error behind in a callback or a task"


async def answered(lab, name, source):
    """The verdict on this source, put into the starter cell's place and checked by the notebook's
    own check cell."""
    check = stubs(lab.topic)[name][1]
    variable = re.search(r"\((\w+|\"\w+.py\")\)\s*$", check)[1]
    scope = await engine.run_source(source, lab=lab, nc=lab.nc, js=lab.js)
    exercise = getattr(lab.exercises, name)
    return await exercise.verdict(scope[variable] if variable in scope else variable.strip('"'))


def written(topic, answer):
    """The answer as a learner writes it into the starter cell (text)."""
    exercise = defined(topic)[answer.exercise]
    check = stubs(topic)[answer.exercise][1]
    variable = re.search(r"\((\w+|\"\w+.py\")\)\s*$", check)[1]
    source = answer.source(variable)
    name = getattr(answer.value, "__name__", None)
    if exercise.file:
        return f"%%worker {exercise.file}\n{source.replace(f'def {name}(', 'def work(')}"
    if exercise.variable and name:
        return f"{source}\n\n{variable} = {name}()"
    return f"{source}\n\n{variable} = {name}" if name else source


@pytest.mark.parametrize("topic", BOOKS)
def test_notebook_and_module_name_the_same_exercises(topic):
    assert list(stubs(topic)) == list(defined(topic)) and 2 <= len(stubs(topic)) <= 3
    for name, (_, check) in stubs(topic).items():
        assert check.startswith(f"await lab.exercises.{name}(")


@pytest.mark.parametrize("topic, name", ALL)
async def test_the_stub_is_not_attempted_and_the_solution_passes_twice(lab, topic, name):
    assert "not attempted" in await answered(lab, name, stubs(topic)[name][0])
    for _ in range(2):
        solution = defined(topic)[name].solution_text()
        assert await answered(lab, name, solution) == f"{name}: passed."


@pytest.mark.parametrize("topic, answer", cases(right=False))
async def test_a_wrong_answer_hears_its_own_words(lab, topic, answer):
    verdict = await answered(lab, answer.exercise, written(topic, answer))
    assert verdict.startswith(f"{answer.exercise}: not yet. "), verdict
    assert answer.words in verdict, verdict


@pytest.mark.parametrize("topic, answer", cases(right=True))
async def test_a_right_answer_in_another_style_passes(lab, topic, answer):
    verdict = await answered(lab, answer.exercise, written(topic, answer))
    assert verdict == f"{answer.exercise}: passed."


def test_the_table_of_answers_is_that_of_the_answers(request):
    """Exercise × (wrong answers, right answers in another style); "none" is a cell to be filled."""
    rows = ["| lesson | exercise | wrong answers | right in another style |", "|---|---|---|---|"]
    for topic, name in ALL:
        mine = [each for each in answers.every() if (each.topic, each.exercise) == (topic, name)]
        columns = [[each.name for each in mine if bool(each.words) == wrong] for wrong in (1, 0)]
        cells = [" · ".join(f"`{name}`" for name in column) or "none" for column in columns]
        rows.append(f"| {topic} | {name} | {' | '.join(cells)} |")
    table = f"{TABLE}\n\n" + "\n".join(rows) + "\n"
    path = request.path.parent / "answers" / "README.md"
    if os.environ.get("LABKIT_WRITE_ANSWERS"):
        path.write_text(table, encoding="utf-8", newline="\n")
    assert path.read_text(encoding="utf-8") == table


def test_every_answer_is_to_an_exercise():
    assert {(each.topic, each.exercise) for each in answers.every()} <= set(ALL)


async def test_after_close_a_check_asks_for_the_setup_cell(shared):
    lab = await Lab.open("start_here")
    check = lab.exercises.first_check
    await lab.close()
    assert "Run the setup cell again" in await check.verdict(1)
    with pytest.raises(LabError, match="This lab is closed. Run the setup cell again"):
        await lab.connect()


@pytest.fixture
def unseen(monkeypatch):
    """As in a new kernel: no hint was shown yet."""
    monkeypatch.setattr(engine, "_shown", collections.Counter(), raising=False)


@pytest.mark.parametrize("topic, name", ALL)
def test_there_are_answers_of_both_kinds(topic, name):
    mine = [each for each in answers.every() if (each.topic, each.exercise) == (topic, name)]
    wrong = [each for each in mine if each.words]
    assert len(wrong) >= 2 and len(mine) - len(wrong) >= 2


@pytest.mark.parametrize("topic, name", ALL)
def test_there_is_a_way_to_help(unseen, topic, name, capsys):
    item = defined(topic)[name]
    assert item.hints and item.task and item.answer is not None
    for number, hint in enumerate(item.hints, 1):
        item.hint()
        assert capsys.readouterr().out == f"Hint {number} of {len(item.hints)}: {hint}\n"
    item.solution()
    assert item.solution_text() in capsys.readouterr().out


async def test_hints_move_on_whichever_way_the_exercise_is_reached(unseen, shared, capsys):
    lab = await Lab.open("start_here")
    first, last = lab.exercises.first_check.hints
    capsys.readouterr()

    def shown(exercise):
        exercise.hint()
        return capsys.readouterr().out

    assert shown(lab.exercises.first_check) == f"Hint 1 of 2: {first}\n"
    assert shown(lab.exercises.first_check) == f"Hint 2 of 2: {last}\n"
    assert "Hint 1 of 2" in shown(lab.exercises.first_message), (
        "another exercise has hints of its own"
    )
    kept = lab.exercises.first_check
    again = await Lab.open("start_here")  # the setup cell, once more
    capsys.readouterr()
    over = f"Hint 2 of 2: {last}\nThat was the last hint. See a solution with .solution()\n"
    assert [
        shown(exercise)
        for exercise in (kept, again.exercises.first_check, defined("start_here")["first_check"])
    ] == [over] * 3
    await again.close()


async def test_a_check_that_never_ends_is_ended():
    async def patient(lab, answer):
        "Wait."
        await asyncio.sleep(60)

    exercise = engine.Exercise(patient, [], limit=0.05)
    assert "did not end within 0.05 s" in await exercise.verdict(1)


async def test_also_one_that_swallows_a_cancel():
    async def stubborn(lab, answer):
        "Wait."
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    exercise = engine.Exercise(stubborn, [], limit=0.05)
    assert "did not end within 0.05 s" in await exercise.verdict(1)


async def test_a_timeout_of_the_answer_is_not_taken_for_one_of_the_check():
    async def impatient(lab, answer):
        "Wait."
        await asyncio.wait_for(asyncio.sleep(1), 0.01)

    exercise = engine.Exercise(impatient, [])
    assert "Your code raised TimeoutError" in await exercise.verdict(1)


async def test_what_fails_outside_of_the_answer_is_not_put_down_to_it():
    exercise = engine.Exercise(Lab.until, [])  # any function of labkit that raises
    assert "The check met TypeError" in await exercise.verdict(1)


async def test_a_coroutine_in_place_of_a_function_is_told_apart():
    async def check(lab, answer):
        "Anything."

    exercise = engine.Exercise(check, [])
    assert "without calling it" in await exercise.verdict(check(None, None))


@pytest.mark.parametrize(
    "source, expected",
    [
        ("answer = ...", True),
        ("async def answer(nc):\n    ...", True),
        ("def answer(a, b=1):\n    'what to do'\n    ...", True),
        ("def answer(): ...", True),
        ("async def answer(nc):\n    await nc.flush()", False),
        ("answer = None", False),
        ("async def answer():\n    return 1", False),
        ("def answer(x):\n    pass", False),
        ("def answer(x):\n    return x", False),
        ("def answer(x):\n    'what to do'", False),
        ("def answer(x):\n    ...\n    return x", False),
        ("answer = lambda: ...", False),
        ("exec('def answer(): ...')", False),
    ],
)  # the last one has no source
async def test_only_the_untouched_stub_is_not_attempted(source, expected):
    assert engine.untouched((await engine.run_source(source))["answer"]) is expected


@pytest.mark.parametrize(
    "body, expected",
    [
        ("...", True),
        ("'what to do'\n    ...", True),
        ("pass", False),
        ("return 1", False),
        ("await nc.flush()\n    ...", False),
    ],
)
def test_nor_is_a_worker_whose_file_holds_only_the_stub(shared, body, expected):
    workers.write("checks", "mine.py", f"async def work(nc, js, point):\n    {body}\n")
    assert workers.is_stub("checks", "mine.py") is expected


LIMIT = 3


def twice(number):
    return 2 * number


@engine.exercise(hints=[])
async def shown(lab, answer):
    """Anything."""


@shown.solved_by
async def shown(js, number):
    try:
        await asyncio.sleep(twice(number) + LIMIT)
        re = number  # a name of its own, like that of a module that is imported here
    except LabError:
        return None
    return inspect.isfunction(js) and re


def test_a_solution_is_shown_with_what_it_uses_and_nothing_else():
    """Its source runs in a cell of its own."""
    lines = shown.solution_text().splitlines()
    assert lines[:3] == ["import asyncio", "import inspect", "from labkit.errors import LabError"]
    assert "LIMIT = 3" in lines and "def twice(number):" in lines
    assert "import re" not in lines and not any(line.startswith("@") for line in lines)
    compile(shown.solution_text(), "cell", "exec")

"""Which exercises are passed, with tries and hints: kept in the home, shown as a table."""

import json

import pandas as pd
import pytest

from labkit import Lab, paths
from labkit.lesson import progress
from lessons import LESSONS, lesson


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def seen(exercise):
    """(state, tries, hints) of this exercise in the table."""
    found = [row for row in progress.rows() if row["exercise"] == exercise]
    assert len(found) == 1
    return found[0]["state"], found[0]["tries"], found[0]["hints"]


async def test_checks_and_hints_of_an_open_lab_are_kept_and_the_table_has_the_course(own, capsys):
    lab = await Lab.open("start_here")
    assert seen("first_check") == ("not attempted", 0, 0)
    await lab.exercises.first_check(...)
    assert seen("first_check") == ("not attempted", 0, 0)
    await lab.exercises.first_check(5)
    lab.exercises.first_check.hint()
    assert seen("first_check") == ("not yet", 1, 1)
    await lab.exercises.first_check(1)
    await lab.exercises.first_check(5)
    lab.exercises.first_check.hint()
    assert seen("first_check") == ("passed", 2, 1)
    table = lab.progress()
    await lab.close()
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["lesson", "exercise", "state", "tries", "hints"]
    assert table.iloc[0].to_dict() == {
        "lesson": lesson("start_here").stem,
        "exercise": "first_check",
        "state": "passed",
        "tries": 2,
        "hints": 1,
    }


def test_the_table_follows_the_notebooks_and_has_each_exercise_once(home):
    rows = progress.rows()
    lessons = list(dict.fromkeys(row["lesson"] for row in rows))
    assert lessons == [path.stem for path in LESSONS if path.stem in lessons]
    assert set(lessons) >= {lesson(name).stem for name in ("start_here", "delivery", "clustering")}
    names = [(row["lesson"], row["exercise"]) for row in rows]
    assert len(names) == len(set(names)) > 30
    assert {row["state"] for row in rows} == {"not attempted"}


def test_hints_are_not_more_than_there_are(home):
    for _ in range(5):
        progress.note("start_here", "first_check", "hint")
    assert seen("first_check") == ("not attempted", 0, 2)


def test_a_lesson_has_a_file_of_its_own(home):
    progress.note("start_here", "first_check", "passed")
    progress.note("core_nats", "pattern", "not yet")
    assert sorted(path.name for path in (home / "progress").iterdir()) == [
        "core_nats.json",
        "start_here.json",
    ]
    assert progress.read("start_here") == {"first_check": progress.Record(True, 1, 0)}


BROKEN = ["", "{", "[1]", "null", '{"first_check": 1}', '{"first_check": {"passed": true}}']
BROKEN += ['{"first_check": {"passed": true, "tries": "some", "hints": 0}}', "\udcff"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_counts_as_empty_and_is_written_anew(home, text):
    file = home / "progress" / "start_here.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert seen("first_check") == ("not attempted", 0, 0)
    progress.note("start_here", "first_check", "passed")
    assert seen("first_check") == ("passed", 1, 0)
    assert json.loads(file.read_text(encoding="utf-8"))


async def test_a_home_that_cannot_be_written_to_does_not_fail_a_check(own, capsys):
    lab = await Lab.open("start_here")
    (own / "progress").write_text("a file where the folder should be", encoding="utf-8")
    await lab.exercises.first_check(1)
    lab.exercises.first_check.hint()
    assert "first_check: passed." in capsys.readouterr().out
    assert seen("first_check") == ("not attempted", 0, 0)
    await lab.close()


def test_the_command_prints_the_table_and_how_many_are_passed(own, command):
    count = len(progress.rows())
    code, said = command("progress")
    assert code == 0 and said.endswith(f"\n0 of {count} exercises passed\n")
    progress.note("delivery", "right_answer", "not yet")
    progress.note("delivery", "right_answer", "passed")
    code, said = command("progress")
    assert code == 0 and said.endswith(f"\n1 of {count} exercises passed\n")
    assert str(paths.home() / "progress") in said
    cells = next(line for line in said.splitlines() if "right_answer" in line).split()
    assert cells == [lesson("delivery").stem, "right_answer", "passed", "2", "0"]


def test_neither_down_nor_reset_forgets_it(own, command):
    progress.note("start_here", "first_check", "passed")
    assert command("up")[0] == 0
    assert command("reset")[0] == 0
    assert command("down")[0] == 0
    assert seen("first_check") == ("passed", 1, 0)

"""Guards over the notebooks: what nbval itself does not see, and the anatomy that every lesson
keeps."""

import json
import re

import nbformat
import pytest

import lessons
from conftest import tracked
from labkit import notebooks, paths
from labkit.cluster import nodes

BOOKS = {path.name: nbformat.read(path, 4) for path in lessons.LESSONS}
TAGS = {"nbval-ignore-output", "parameters"}  # no cell is skipped, none may raise
EXPERIMENTS = [path.name for path in lessons.LESSONS if lessons.is_experiment(path)]
QUESTIONS = [
    "Question",
    "Prediction",
    "Parameters",
    "Apparatus",
    "Conclusion",
    "What would change my mind",
    "Close",
]
HEADINGS = [
    "What can go wrong",
    "Situation and behaviour",
    "Exercises",
    "Recap",
    "Try next",
    "Close",
]

every = pytest.mark.parametrize("name", BOOKS)


def cells(name, kind):
    return [cell for cell in BOOKS[name].cells if cell.cell_type == kind]


def text(name):
    return "\n".join(cell.source for cell in cells(name, "markdown"))


def tags(cell):
    return set(cell.metadata.get("tags", []))


@every
def test_it_is_written_as_the_command_writes_it(name):
    stored = (notebooks.FOLDER / name).read_text(encoding="utf-8")
    assert stored == nbformat.writes(notebooks.normalise(nbformat.reads(stored, 4))) + "\n"


@every
def test_it_follows_the_format_of_notebooks(name):
    nbformat.validate(BOOKS[name])


@every
def test_every_cell_was_executed_and_none_left_an_error_or_a_warning(name):
    for cell in cells(name, "code"):
        assert cell.execution_count, cell["id"]
        for output in cell.outputs:
            assert output.output_type != "error", cell["id"]
            assert output.get("name") != "stderr", cell["id"]
            assert "Traceback" not in json.dumps(output), cell["id"]


@every
def test_cells_have_telling_ids_and_only_known_tags(name):
    ids = [cell["id"] for cell in BOOKS[name].cells]
    assert len(ids) == len(set(ids))
    for cell in BOOKS[name].cells:
        assert re.fullmatch(r"[a-z][a-z0-9_-]+", cell["id"]) and not re.fullmatch(
            r"[0-9a-f-]{8,}", cell["id"]
        ), cell["id"]
        assert tags(cell) <= TAGS, cell["id"]


@every
def test_cells_await_and_do_no_shell(name):
    for cell in cells(name, "code"):
        assert cell.source.strip(), f"{cell['id']} is empty"
        source = re.sub(r"\A%%worker \w+\.py\n", "", cell.source)
        assert not re.search(r"^\s*[!%]|time\.sleep|NBVAL_", source, re.M), cell["id"]
        first = lessons.topic(lessons.LESSONS[0])  # it runs a script of its own
        assert "asyncio.run(" not in cell.source or first in name, cell["id"]


@every
def test_ignored_output_still_states_a_truth(name):
    for cell in cells(name, "code"):
        if "nbval-ignore-output" in tags(cell) and cell["id"] != "setup":
            states = "assert " in cell.source or "lab.expect(" in cell.source
            assert states, f"{cell['id']}: its output is not compared, so a claim must hold"


@every
def test_every_picture_has_words(name):
    for cell in cells(name, "code"):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert output.data["text/plain"].startswith("Picture: "), cell["id"]
                assert len(output.metadata["image/png"]["alt"]) > 30, cell["id"]
    for alt in re.findall(r"!\[(.*?)\]\(", text(name)):
        assert len(alt) > 30, "an image without words"


@every
def test_no_path_of_a_machine_and_no_false_promise(name):
    whole = json.dumps(BOOKS[name])
    assert not re.search(r"/(root|home|tmp|work|Users)/[\w.]", whole)
    assert not re.search(r"exactly[- ]once[- ]delivery", whole, re.I)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_anatomy_of_an_experiment(name):
    book, words = BOOKS[name], text(name)
    assert [c["id"] for c in book.cells[:4]] == ["title", "box", "question", "prediction"]
    headings = re.findall(r"^## (.+)$", words, re.M)
    assert [h for h in headings if h in QUESTIONS] == QUESTIONS
    parameters = next(cell for cell in book.cells if "parameters" in tags(cell))
    assert parameters["id"] == "parameters" and {"repeats = ", "out = "} <= set(
        re.findall(r"^\w+ = ", parameters.source, re.M)
    )
    code = cells(name, "code")
    assert (
        code[0]["id"] == "setup"
        and "Lab.open(" in code[0].source
        and code[-1].source == "await lab.close()"
    )
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert f"python -m labkit experiment {name[:2]}" in words, "how the committed results were made"


@pytest.mark.parametrize("name", [name for name in BOOKS if name not in EXPERIMENTS])
def test_the_anatomy(name):
    book, words = BOOKS[name], text(name)
    assert [c["id"] for c in book.cells[:3]] == ["title", "box", "goals"]
    assert book.cells[0].source.startswith(f"# {name[:2]}. ")
    assert len(re.findall(r"^# ", words, re.M)) == 1, "one H1"
    for word in ("**Time**", "**Level**", "**Needs**", "**Uses**"):
        assert word in book.cells[1].source
    goals = re.findall(r"^- ", book.cells[2].source, re.M)
    assert "**By the end you can**" in book.cells[2].source and 3 <= len(goals) <= 5
    headings = re.findall(r"^## (.+)$", words, re.M)
    assert headings[-len(HEADINGS) :] == HEADINGS
    assert 2 <= len([h for h in headings if re.match(r"\d\. ", h)]) <= 6
    assert words.count("**Predict.**") >= 2 and words.count("**What happened.**") >= 2
    assert "<details>" in words and "https://docs.nats.io" in words
    levels = [len(mark) for mark in re.findall(r"^(#+) ", words, re.M)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:])), "a heading level is left out"
    code = cells(name, "code")
    assert code[0]["id"] == "setup" and "Lab.open(" in code[0].source
    assert code[-1].source == "await lab.close()"


@every
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)", text(name)):
        if not target.startswith("https://"):
            assert (notebooks.FOLDER / target).exists(), target


NUMBERS = {path.name[:2]: path for path in lessons.LESSONS}
NAMED = r"\b[Ll]essons?[\s>]+(\d\d(?:(?:,[\s>]+|[\s>]+(?:and|or|to)[\s>]+|–)\d\d)*)\b"
LABELLED = (
    r"\[(?:[Ll]esson |[Ee]xperiment )?(\d\d)\b[^\]]*\]\((?:\.\./)?(?:notebooks/)?(\d\d)_\w+\.ipynb"
)


def named(text):
    """Numbers of the lessons that this text names ("lesson 13", "lessons 30 and 32"; list)."""
    return [number for group in re.findall(NAMED, text) for number in re.findall(r"\d\d", group)]


def pages():
    """{name: text} of all that somebody may read: notebooks cell by cell, pages, code."""
    found = {
        path: (paths.PROJECT / path).read_text(encoding="utf-8")
        for path in tracked()
        if path.suffix in (".md", ".py", ".yml", ".toml") or path.name == "run"
    }
    for name, book in BOOKS.items():
        found.update({f"{name}: {cell['id']}": cell.source for cell in book.cells})
    return found


def test_a_named_lesson_is_found_in_every_form():
    assert named("lesson 13, and Lessons 30 and\n> 32; lesson\n05") == ["13", "30", "32", "05"]


def test_every_lesson_that_a_text_names_is_there():
    for page, words in pages().items():
        if "test_notebooks" not in str(page):
            assert set(named(words)) <= set(NUMBERS), page
            for label, target in re.findall(LABELLED, words):
                assert label == target, f"{page}: a link says {label} and leads to {target}"


def test_readme_lists_every_lesson_and_no_other():
    readme = (paths.PROJECT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\(notebooks/([\w.]+\.ipynb)\)", readme) == list(BOOKS)
    for name, minutes in re.findall(r"\(notebooks/([\w.]+\.ipynb)\) \| (\d+ min)", readme):
        assert f"**Time** {minutes}utes" in cells(name, "markdown")[1].source, name


def test_the_readme_shows_the_picture_that_the_lesson_drew():
    lesson, cell, copy = notebooks.README_PICTURE
    assert copy.read_bytes() == notebooks.png_of(notebooks.FOLDER / lesson, cell)
    assert f"(notebooks/{copy.name})" in (paths.PROJECT / "README.md").read_text(encoding="utf-8")


def test_every_lesson_has_its_account_and_its_exercises():
    for name in BOOKS:
        topic = name[3:].removesuffix(".ipynb")
        assert topic in nodes.accounts()
        measures = name in EXPERIMENTS
        direct = ", wire=False" if measures else ""
        opens = rf'Lab\.open\("{topic}"(, private=True)?{direct}\)'
        assert re.search(opens, cells(name, "code")[0].source)
        assert measures or (paths.PROJECT / "labkit" / "exercises" / f"{topic}.py").exists()

"""Nothing is told that is not shown: each statement of a lesson names what shows it.

A file for each lesson, tests/claims/NN_topic.toml, lists its statements in the order of the text:

    [[claim]]
    says = "the server did nothing about it"
    shown = ["worker-dies"]

says: words of the lesson, as in its text; line breaks, emphasis and links do not matter. Then at
least one of

- shown: code cells that would not come out as committed if it were false. Of this lesson; of
  another one with its number: "30: first-connection".
- test: a test that shows what takes too long or is too large for a lesson: "test_x.py::test_name".
- source: who says so: an address, or "nats-server 2.15.1, server/stream.go, rebuildDedupe", or
  "nats-py 2.16.0, aio/client.py, _select_next_server". What stands in nats-py is looked up.
"""

import re
import tomllib
from pathlib import Path

import nats
import nbformat
import pytest

import lessons

HERE = Path(__file__).parent
LESSONS = {path.name[:2]: path for path in lessons.LESSONS}
BOOKS = {number: nbformat.read(path, 4) for number, path in LESSONS.items()}
CLAIMS = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    for path in HERE.glob("claims/*.toml")
}
EACH = [
    pytest.param(stem, claim, id=f"{stem[:2]}-{claim['says'][:40]}")
    for stem, claims in sorted(CLAIMS.items())
    for claim in claims
]
KINDS = {"shown", "test", "source"}
SOURCE = re.compile(
    r"https://\S+|nats-server 2\.15\.1, \S+\.go(, \S+)?"
    r"|nats-py 2\.16\.0, (?P<file>\S+\.py)(, (?P<name>\S+))?"
)


def plain(text):
    """The text without line breaks, emphasis, quotation marks in the margin, targets of links."""
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^>", "", text, flags=re.M)
    text = re.sub(r"</?\w+>|[*`\[\]|]", "", text)
    return " ".join(text.split())


def said(number):
    """[(cell id, text)] of the lesson with this number."""
    markdown = [cell for cell in BOOKS[number].cells if cell.cell_type == "markdown"]
    return [(cell["id"], cell.source) for cell in markdown]


def states_a_truth(cell):
    """True if the cell would not come out as committed, or would fail, if it were not so."""
    compared = "nbval-ignore-output" not in cell.metadata.get("tags", []) and cell.outputs
    return bool(compared) or "assert " in cell.source or "lab.expect(" in cell.source


def test_each_lesson_lists_its_statements():
    assert sorted(CLAIMS) == [path.stem for path in LESSONS.values()]


@pytest.mark.parametrize("stem, claim", EACH)
def test_the_lesson_says_it(stem, claim):
    assert claim.keys() <= KINDS | {"says"} and claim.keys() & KINDS
    assert any(plain(claim["says"]) in plain(text) for _, text in said(stem[:2])), claim["says"]


@pytest.mark.parametrize("stem, claim", EACH)
def test_something_shows_it(stem, claim):
    for name in claim.get("shown", []):
        number, _, cell_id = name.rpartition(": ")
        (cell,) = [cell for cell in BOOKS[number or stem[:2]].cells if cell["id"] == cell_id]
        assert cell.cell_type == "code" and states_a_truth(cell), name
    if "test" in claim:
        file, _, name = claim["test"].partition("::")
        assert re.search(
            rf"^(async )?def {name}\(", (HERE / file).read_text(encoding="utf-8"), re.M
        )
    for source in [claim["source"]] if "source" in claim else []:
        found = SOURCE.fullmatch(source)
        assert found, f"{source}: wanted an address, or a version and a file"
        if found["file"]:
            text = (Path(nats.__file__).parent / found["file"]).read_text(encoding="utf-8")
            assert (found["name"] or "") in text, source


@pytest.mark.parametrize("number", BOOKS)
def test_no_result_row_or_recap_is_left_out(number):
    """Each "What happened", row of a table, point of a recap and paragraph of a conclusion holds
    a listed statement."""
    listed = [plain(claim["says"]) for claim in CLAIMS.get(LESSONS[number].stem, [])]
    missing = [part for part in results(number) if not any(words in part for words in listed)]
    assert not missing


def results(number):
    """Parts of the lesson's text that each hold a statement at least (list of plain text)."""
    parts = []
    for cell_id, text in said(number):
        if cell_id == "recap":
            points = text.partition("**Ask yourself**")[0]
            parts += re.findall(r"^- .*(?:\n(?!- |\n).*)*", points, re.M)
            continue
        parts += re.findall(
            r"^\*\*What (?:happened|the data says)\.\*\*.*(?:\n(?!\n).*)*", text, re.M
        )
        if cell_id == "conclusion":
            parts += text.split("\n\n")[1:]
        if "## Situation and behaviour" in text:
            for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.M):
                parts += table.splitlines()[2:]
    return [plain(part) for part in parts]

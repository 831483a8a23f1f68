"""`python -m labkit experiment`: another number of trials, data and pictures beside the notebook,
clear refusals."""

import json
import shutil

import nbformat
import pandas as pd
import pytest

from labkit import notebooks, paths

TINY = """
import pandas as pd
from labkit.pictures import Picture, canvas
from labkit.sweep import sweep
async def trial(size):
    if size == stop:
        raise KeyboardInterrupt
    return {"double": size * 2}
"""


def book(path):
    cell = nbformat.v4.new_code_cell
    made = nbformat.v4.new_notebook(
        cells=[
            cell(
                "repeats = 2\nsizes = [1, 2]\nstop = 0\nout = ''", metadata={"tags": ["parameters"]}
            ),
            cell(TINY),
            cell(
                "rows = await sweep(trial, {'size': sizes}, repeats=repeats, warmup=0,"
                " path=f'{out}/rows.csv')\nlen(rows)"
            ),
            cell("Picture(canvas(1, 1)[0], 'nothing at all')", id="nothing"),
        ]
    )
    nbformat.write(notebooks.normalise(made), path)
    return str(path)


def test_it_leaves_notebook_rows_and_pictures(labkit, tmp_path):
    code, said = labkit(
        "experiment",
        book(tmp_path / "a.ipynb"),
        "--repeats",
        "3",
        "-p",
        "sizes=[1, 2, 5]",
        "--out",
        str(tmp_path / "out"),
    )
    assert code == 0, said
    assert len(pd.read_csv(tmp_path / "out/rows.csv")) == 9
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a.ipynb",
        "rows.csv",
        "rows.json",
        "nothing.png",
    }
    assert (tmp_path / "out/nothing.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "out" / "rows.csv") in said
    machine = json.loads((tmp_path / "out/rows.json").read_text(encoding="utf-8"))["machine"]
    assert machine["cores"] >= 1 and machine["python"]


@pytest.mark.soak
def test_stopped_in_the_middle_the_same_command_goes_on(labkit, tmp_path):
    path, out = book(tmp_path / "a.ipynb"), str(tmp_path / "out")
    code, said = labkit("experiment", path, "--out", out, "-p", "sizes=[1, 2, 5]", "-p", "stop=2")
    assert code == 1 and "the same command goes on from there" in said
    before = (tmp_path / "out/rows.csv").read_text(encoding="utf-8").splitlines()
    code, said = labkit("experiment", path, "--out", out, "-p", "sizes=[1, 2, 5]")
    assert code == 0, said
    after = (tmp_path / "out/rows.csv").read_text(encoding="utf-8").splitlines()
    assert 1 < len(before) < len(after) == 7 and set(before) <= set(after)


MAGIC = """
from IPython.core.interactiveshell import InteractiveShell
from labkit import workers
shell = InteractiveShell.instance()
workers.offer_magic("checks")
shell.run_cell("%%worker one.py\\nasync def work(nc, js, point): ...")
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of the project in a folder of its own, which Python imports labkit from."""
    folder = tmp_path / "the course"
    shutil.copytree(
        paths.PROJECT / "labkit", folder / "labkit", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.chdir(tmp_path)  # else the working directory would come first
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_home_elsewhere_takes_all_that_is_written(own, course, labkit, python, tmp_path):
    before = files(course)
    assert python(MAGIC).communicate(timeout=60)[0] == "written: one.py\n"
    code, said = labkit("experiment", book(tmp_path / "a.ipynb"), cwd=tmp_path)
    assert code == 0, said
    assert {
        "work/checks/one.py",
        "work/a/a.ipynb",
        "work/a/rows.csv",
        "work/a/nothing.png",
    } <= files(own)
    assert files(course) == before


def test_without_one_the_project_takes_it(own, course, python, monkeypatch):
    monkeypatch.delenv("LABKIT_HOME")
    assert python(MAGIC).communicate(timeout=60)[0] == "written: one.py\n"
    assert (course / "work/checks/one.py").is_file()


def test_what_does_not_fit_is_refused_in_words(command, tmp_path):
    path = book(tmp_path / "a.ipynb")
    assert (
        "no parameter 'size'; wanted: one of repeats, sizes, stop, out"
        in command("experiment", path, "-p", "size=3")[1]
    )
    for nothing in (["--repeats", "0"], ["-p", "repeats=0"]):
        code, said = command("experiment", path, *nothing, "--out", str(tmp_path / "out"))
        assert code and (
            "should be greater than or equal to 1" in said
            or "repeats is 0; wanted: a whole number, 1 or more" in said
        )
    assert "wanted: name=value" in command("experiment", path, "-p", "sizes")[1]
    assert "has no `parameters` cell" in command("experiment", "00")[1]
    assert "No notebook '77'" in command("experiment", "77")[1]


@pytest.mark.soak
def test_keep_writes_the_results_into_the_notebook_and_not_the_parameters(labkit, tmp_path):
    path = book(tmp_path / "a.ipynb")
    before = [cell.source for cell in nbformat.read(path, 4).cells]
    code, said = labkit(
        "experiment", path, "--repeats", "4", "--keep", "--out", str(tmp_path / "out")
    )
    assert code == 0, said
    after = nbformat.read(path, 4)
    assert [cell.source for cell in after.cells] == before and after.cells[2].outputs[0].data[
        "text/plain"
    ] == "8"
    assert notebooks.normalise(nbformat.read(path, 4)) == after, (
        "in the form in which it is committed"
    )

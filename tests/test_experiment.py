"""`python -m labkit experiment`: another number of trials, data and pictures beside the notebook,
clear refusals."""

import json
import shutil

import nbformat
import pandas as pd
import pytest

from labkit import notebooks, paths

PARAMETERS = """
repeats = 2
sizes = [1, 2]
stop = 0
out = ''
"""
TRIAL = """
from labkit.experiments import sweep
from labkit.pictures.style import Picture, canvas

async def trial(size):
    if size == stop:
        raise KeyboardInterrupt
    return {"double": size * 2}
"""
MEASURE = """
grid = {"size": sizes}
rows = await sweep(trial, grid, repeats=repeats, warmup=0, path=f"{out}/rows.csv")
len(rows)
"""
DRAW = "Picture(canvas(1, 1)[0], 'nothing at all')"


def book(path):
    """Writes a small experiment there. Returns the path (text)."""
    cell = nbformat.v4.new_code_cell
    cells = [
        cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}),
        cell(TRIAL.strip()),
        cell(MEASURE.strip()),
        cell(DRAW, id="nothing"),
    ]
    nbformat.write(notebooks.normalise(nbformat.v4.new_notebook(cells=cells)), path)
    return str(path)


def test_it_leaves_notebook_rows_and_pictures(labkit, tmp_path):
    path = book(tmp_path / "a.ipynb")
    out = tmp_path / "out"
    options = ["--repeats", "3", "-p", "sizes=[1, 2, 5]", "--out", str(out)]
    code, said = labkit("experiment", path, *options)
    assert code == 0, said
    assert len(pd.read_csv(out / "rows.csv")) == 9
    assert files(out) == {"a.ipynb", "rows.csv", "rows.json", "nothing.png"}
    assert (out / "nothing.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "rows.csv") in said
    machine = json.loads((out / "rows.json").read_text(encoding="utf-8"))["machine"]
    assert machine["cores"] >= 1 and machine["python"]


@pytest.mark.soak
def test_interrupted_it_is_resumed_by_the_same_command(labkit, tmp_path):
    path = book(tmp_path / "a.ipynb")
    out = tmp_path / "out"
    command = ["experiment", path, "--out", str(out), "-p", "sizes=[1, 2, 5]"]
    code, said = labkit(*command, "-p", "stop=2")
    assert code == 1 and "Run the same command again to resume." in said
    before = (out / "rows.csv").read_text(encoding="utf-8").splitlines()
    code, said = labkit(*command)
    assert code == 0, said
    after = (out / "rows.csv").read_text(encoding="utf-8").splitlines()
    assert 1 < len(before) < len(after) == 7 and set(before) <= set(after)


MAGIC = """
from IPython.core.interactiveshell import InteractiveShell
from labkit.processes import workers

shell = InteractiveShell.instance()
workers.offer_magic("checks")
shell.run_cell("%%worker one.py\\nasync def work(nc, js, point): ...")
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of labkit in a folder of its own, which Python imports it from."""
    folder = tmp_path / "the course"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(paths.PROJECT / "labkit", folder / "labkit", ignore=no_caches)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns of another one
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
    written = {"checks/one.py", "a/a.ipynb", "a/rows.csv", "a/nothing.png"}
    assert written <= files(own / "work")
    assert files(course) == before


def test_without_one_the_project_takes_it(own, course, python, monkeypatch):
    monkeypatch.delenv("LABKIT_HOME")
    assert python(MAGIC).communicate(timeout=60)[0] == "written: one.py\n"
    assert (course / "work/checks/one.py").is_file()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-p", "size=3"], "no parameter 'size'; wanted: one of repeats, sizes, stop, out"),
        (["-p", "sizes"], "wanted: name=value"),
        (["--repeats", "0"], "should be greater than or equal to 1"),
        (["-p", "repeats=0"], "repeats is 0; wanted: a whole number, 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(command, tmp_path, arguments, words):
    out = ["--out", str(tmp_path / "out")]
    code, said = command("experiment", book(tmp_path / "a.ipynb"), *arguments, *out)
    assert code and words in said


@pytest.mark.parametrize(
    "name, words", [("00", "has no `parameters` cell"), ("77", "No notebook '77'")]
)
def test_so_is_what_is_not_an_experiment(command, name, words):
    code, said = command("experiment", name)
    assert code and words in said


@pytest.mark.soak
def test_keep_writes_the_results_into_the_notebook_and_not_the_parameters(labkit, tmp_path):
    path = book(tmp_path / "a.ipynb")
    before = [cell.source for cell in nbformat.read(path, 4).cells]
    options = ["--repeats", "4", "--keep", "--out", str(tmp_path / "out")]
    code, said = labkit("experiment", path, *options)
    assert code == 0, said
    after = nbformat.read(path, 4)
    assert [cell.source for cell in after.cells] == before
    assert after.cells[2].outputs[0].data["text/plain"] == "8"
    as_committed = notebooks.normalise(nbformat.read(path, 4))
    assert as_committed == after

"""Runs an experiment's notebook with other parameters, without a browser, and leaves notebook, data
and pictures."""

import os
from pathlib import Path

import nbformat
import papermill

from labkit import notebooks
from labkit.errors import LabError


def run(name, parameters, out, keep=False):
    """Runs the notebook (number, name or path) with these parameters; returns the paths of what
    lies in `out` afterwards.

    parameters: {name: value}, each a name that the notebook's `parameters` cell sets. out: folder
    (str or Path) for the executed notebook, the rows (CSV, from which an interrupted run is
    resumed) and each picture (PNG). keep: also write the results into the notebook itself, as they
    are committed. Raises LabError if there is no such notebook or parameter, or a cell fails.
    """
    path = notebooks.find([name])[0]
    _check(path, parameters)
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["LABKIT_HEADLESS"] = "1"
    os.environ["LABKIT_STRICT"] = "1"  # see notebooks.py
    try:
        done = papermill.execute_notebook(
            str(path),
            str(folder / path.name),
            {**parameters, "out": str(folder)},
            kernel_name="python3",
            cwd=str(path.parent),
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=True,
        )
    except papermill.PapermillExecutionError as error:
        raise LabError(
            f"{path.name} stopped: {error.ename}: {error.evalue}. Its rows so far are in {folder}."
            " Run the same command again to resume."
        ) from None
    for cell_id, picture in notebooks.pictures(done):
        (folder / f"{cell_id}.png").write_bytes(picture)
    if keep:
        _keep(path, done)
    return sorted(folder.iterdir())


def _check(path, parameters):
    known = papermill.inspect_notebook(str(path))
    if not known:
        raise LabError(f"{path.name} has no `parameters` cell; wanted: an experiment (90 and up).")
    for name in parameters:
        if name not in known:
            raise LabError(
                f"{path.name} has no parameter {name!r}; wanted: one of {', '.join(known)}."
            )


def _keep(path, done):
    """Puts the outputs of a run into the committed notebook; its sources stay as they are."""
    book = nbformat.read(path, 4)
    outputs = {cell["id"]: cell.outputs for cell in done.cells if cell.cell_type == "code"}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs[cell["id"]]
    path.write_text(
        nbformat.writes(notebooks.normalise(book)) + "\n", encoding="utf-8", newline="\n"
    )

"""Executes a notebook and writes it in one stable form, so that it is committed with results and
its diff is readable."""

import asyncio
import base64
import os
import subprocess
from pathlib import Path

import nbformat

from labkit.errors import LabError
from labkit.paths import PROJECT

FOLDER = PROJECT / "notebooks"
KEPT = {"tags", "jupyter"}  # cell metadata that stays
IGNORED = "nbval-ignore-output"
WIDGETS = "application/vnd.jupyter.widget-view+json"
# notebook, cell, copy for the README
README_PICTURE = ("01_core_nats.ipynb", "late-subscriber", FOLDER / "timeline.png")


def find(names=()):
    """Paths of these notebooks (numbers, names or paths), or of all lessons. Raises LabError if one
    is unknown."""
    lessons = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return lessons
    found = []
    for name in names:
        matches = [path for path in lessons if path.name.startswith(name)]
        if not matches and Path(name).is_file():
            matches = [Path(name)]
        if not matches:
            known = ", ".join(path.stem for path in lessons)
            raise LabError(f"No notebook {name!r}; wanted: a path, or one of {known}.")
        found += matches
    return found


async def execute(path, refresh=False):
    """Executes the notebook and returns it as it should stand in the repository (text of the file).

    Cells tagged nbval-ignore-output (times, pictures) keep their output unless `refresh` is true,
    their source is not the committed one, or they have none, so that their noise makes no diff.
    Raises LabError if a cell fails, or takes more than 20 minutes.
    """
    from nbclient import NotebookClient  # takes longer to import than the rest of this module

    notebook = nbformat.read(path, 4)
    kept = {} if refresh else _outputs_to_keep(notebook, _committed_sources(path))
    os.environ["LABKIT_HEADLESS"] = "1"  # no progress bars, no widgets: nobody looks while it runs
    os.environ["LABKIT_STRICT"] = "1"  # a claim of the text that does not hold is an error
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # not its notice about TCP on loopback
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        await client.async_execute()
    except Exception as error:
        raise LabError(f"{path.name} does not run: {error}") from None
    for cell in notebook.cells:
        if cell["id"] in kept:
            cell.outputs = kept[cell["id"]]
    return nbformat.writes(normalise(notebook)) + "\n"


def _outputs_to_keep(notebook, committed):
    """{cell id: outputs} of the ignored cells whose source is the committed one. committed: see
    _committed_sources()."""
    kept = {}
    for cell in notebook.cells:
        unchanged = committed is None or committed.get(cell["id"]) == cell.source
        if _is_ignored(cell) and cell.get("outputs") and unchanged:
            kept[cell["id"]] = cell.outputs
    return kept


def _committed_sources(path):
    """{cell id: source} of the notebook as it is committed; None where there is no such commit, or
    no git."""
    try:
        done = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True
        )
    except OSError:
        return None
    if done.returncode:
        return None
    committed = nbformat.reads(done.stdout.decode(), 4)
    return {cell["id"]: cell.source for cell in committed.cells}


def normalise(notebook):
    """The same notebook without what differs from run to run or from machine to machine: timings,
    versions of the kernel, widget ids; cells counted from 1, streams of one name merged. Changes
    and returns it."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat = 4
    notebook.nbformat_minor = 5
    count = 0
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in sorted(cell.metadata) if key in KEPT}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            count += 1
            _normalise_code(cell, count)
        else:
            cell.pop("outputs", None)  # of a cell that was code before
            cell.pop("execution_count", None)
    return notebook


def _normalise_code(cell, number):
    cell.execution_count = number
    cell.outputs = merged(cell.outputs)
    for output in cell.outputs:
        output.get("data", {}).pop(WIDGETS, None)  # of a notebook that was saved in JupyterLab
        if output.output_type == "execute_result":
            output.execution_count = number


def merged(outputs):
    """Outputs with neighbouring pieces of one stream joined, as nbval compares them."""
    joined = []
    for output in outputs:
        if joined and _are_of_one_stream(joined[-1], output):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _are_of_one_stream(one, other):
    return one.output_type == other.output_type == "stream" and one.name == other.name


def without_ignored(text):
    """The notebook's text with the outputs of ignored cells left out: what must not change between
    two runs."""
    notebook = nbformat.reads(text, 4)
    for cell in notebook.cells:
        if _is_ignored(cell):
            cell.outputs = []
    return nbformat.writes(notebook)


def _is_ignored(cell):
    return IGNORED in cell.metadata.get("tags", [])


def pictures(notebook):
    """The pictures that the notebook's cells show, in their order: yields (cell id, PNG as
    bytes)."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield cell["id"], base64.b64decode(output.data["image/png"])


def png_of(path, cell_id):
    """The first picture that this cell of the notebook shows (bytes)."""
    return next(png for cell, png in pictures(nbformat.read(path, 4)) if cell == cell_id)


def execute_all(paths, check=False, refresh=False, say=print):
    """Executes notebooks one after the other and writes them (unless `check`). Returns the names of
    those whose compared content changed."""
    changed = []
    for path in paths:
        old = path.read_text(encoding="utf-8")
        new = asyncio.run(execute(path, refresh))
        state = "as committed" if check else "done"
        if without_ignored(old) != without_ignored(new):
            changed.append(path.name)
            state = "changed"
        if not check and old != new:
            _write(path, new)
        say(f"{path.name}: {state}")
    return changed


def _write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")
    lesson, cell, copy = README_PICTURE
    if path.name == lesson:
        copy.write_bytes(png_of(path, cell))

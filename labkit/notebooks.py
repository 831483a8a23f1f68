"""Executes a notebook and writes it in one stable form, so that it is committed with results and
its diff is readable."""

import asyncio
import base64
import os
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from labkit.cockpit.panel import WIDGETS
from labkit.errors import LabError
from labkit.paths import PROJECT

FOLDER = PROJECT / "notebooks"
KEPT = {"tags", "jupyter"}  # cell metadata that stays
IGNORED = "nbval-ignore-output"
README_PICTURE = (
    "01_core_nats.ipynb",
    "late-subscriber",
    FOLDER / "timeline.png",
)  # notebook, cell, copy for the README


def find(names=()):
    """Paths of these notebooks (numbers, names or paths), or of all lessons. Raises LabError if one
    is unknown."""
    lessons = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    found = []
    for name in names:
        match = [path for path in lessons if path.name.startswith(name)] or [
            p for p in [Path(name)] if p.is_file()
        ]
        if not match:
            raise LabError(
                f"No notebook {name!r}; wanted: a path, or one of"
                f" {', '.join(p.stem for p in lessons)}."
            )
        found += match
    return found if names else lessons


async def execute(path, refresh=False):
    """The notebook as it should stand in the repository, executed anew: text of the file.

    Cells tagged nbval-ignore-output (times, pictures) keep their output unless `refresh` is true,
    their source is not the committed one, or they have none, so that their noise makes no diff.
    Raises LabError if a cell fails, or takes more than 20 minutes.
    """
    notebook = nbformat.read(path, 4)
    committed = _committed_sources(path)
    kept = (
        {}
        if refresh
        else {
            cell["id"]: cell.outputs
            for cell in notebook.cells
            if IGNORED in cell.metadata.get("tags", [])
            and cell.get("outputs")
            and (committed is None or committed.get(cell["id"]) == cell.source)
        }
    )
    os.environ["LABKIT_HEADLESS"] = "1"  # no progress bars, no widgets: nobody looks while it runs
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


def _committed_sources(path):
    """{cell id: source} of the notebook as git has it; None where git has none of it, or is not
    there."""
    try:
        done = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True
        )
    except OSError:
        return None
    return (
        None
        if done.returncode
        else {cell["id"]: cell.source for cell in nbformat.reads(done.stdout.decode(), 4).cells}
    )


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
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in sorted(cell.metadata) if key in KEPT}
        )
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = merged(cell.outputs)
            for output in cell.outputs:
                output.get("data", {}).pop(
                    WIDGETS, None
                )  # of a notebook that was saved in JupyterLab
                if output.output_type == "execute_result":
                    output.execution_count = count
        else:
            cell.pop("outputs", None)  # of a cell that was code before
            cell.pop("execution_count", None)
    return notebook


def merged(outputs):
    """Outputs with neighbouring pieces of one stream joined, as nbval compares them."""
    joined = []
    for output in outputs:
        if (
            joined
            and output.output_type == "stream" == joined[-1].output_type
            and output.name == joined[-1].name
        ):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def without_ignored(text):
    """The notebook's text with the outputs of ignored cells left out: what must not change between
    two runs."""
    notebook = nbformat.reads(text, 4)
    for cell in notebook.cells:
        if IGNORED in cell.metadata.get("tags", []):
            cell.outputs = []
    return nbformat.writes(notebook)


def png_of(path, cell_id):
    """The picture that this cell of the notebook shows (bytes)."""
    cell = next(cell for cell in nbformat.read(path, 4).cells if cell["id"] == cell_id)
    return base64.b64decode(
        next(
            output.data["image/png"]
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        )
    )


def execute_all(paths, check=False, refresh=False, say=print):
    """Executes notebooks one after the other and writes them (unless `check`). Returns the names of
    those whose compared content changed."""
    changed = []
    for path in paths:
        old, new = path.read_text(encoding="utf-8"), asyncio.run(execute(path, refresh))
        if without_ignored(old) != without_ignored(new):
            changed.append(path.name)
        if not check and old != new:
            path.write_text(new, encoding="utf-8", newline="\n")
            if path.name == README_PICTURE[0]:
                README_PICTURE[2].write_bytes(png_of(path, README_PICTURE[1]))
        say(
            f"{path.name}:"
            f" {'changed' if path.name in changed else 'as committed' if check else 'done'}"
        )
    return changed

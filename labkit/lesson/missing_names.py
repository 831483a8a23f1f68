"""A NameError says which cell of the notebook makes the name: "`crew` is made in section 3, code
cell 2: run that cell first"."""

import ast
import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from labkit import paths

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What has names of its own: they are not those of the cell.
SCOPES = (
    *DEFINITIONS,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
LONGEST = 60  # characters of a line of code that are shown


class MissingNames:
    """Adds that line to the NameErrors of a kernel's cells, below the traceback. topics: those of
    the lessons that are open (list)."""

    def __init__(self, shell):
        self.shell = shell
        self.topics = []

    def install(self):
        """IPython has one handler of this kind. If there is one already, it stays."""
        if not self.shell.custom_exceptions:
            self.shell.set_custom_exc((NameError,), self._show)

    def remove(self):
        if self.shell.custom_exceptions == (NameError,):
            self.shell.set_custom_exc((), None)

    def _show(self, shell, kind, error, traceback, tb_offset=None):
        """Called by IPython in place of showtraceback(); it shows what is below."""
        with contextlib.suppress(Exception):  # no hint may stand in the way of the error itself
            hint = self._hint(error, traceback)
            if hint:
                error.add_note(hint)
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)

    def _hint(self, error, traceback):
        """Where the name is made (text), or None."""
        while traceback.tb_next:
            traceback = traceback.tb_next
        is_of_a_cell = traceback.tb_frame.f_globals is self.shell.user_ns
        if isinstance(error, UnboundLocalError) or not is_of_a_cell:
            return None
        request = self.shell.kernel.get_parent("shell")
        running = (request["metadata"].get("cellId"), request["content"]["code"])
        for path in self._notebooks():
            cell = where_made(error.name, code_cells(path), running, self.shell.transform_cell)
            if cell:
                line = _line(cell, error.name)
                return f"`{error.name}` is made {cell.place} ({line}): run that cell first."
        return None

    def _notebooks(self):
        """The notebook that this kernel belongs to, if the front end tells its path (VS Code and
        JupyterLab do). Else those of the lessons that are open."""
        told = self.shell.user_ns.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")
        if told and told.endswith(".ipynb") and Path(told).is_file():
            return [Path(told)]
        folder = paths.PROJECT / "notebooks"
        return [path for topic in self.topics for path in folder.glob(f"[0-9][0-9]_{topic}.ipynb")]


@dataclass
class CodeCell:
    """A cell of a notebook. place: where a reader finds it, such as "in section 3, code cell 2"."""

    place: str
    source: str
    id: str | None


def code_cells(path):
    """The code cells of this notebook (list of CodeCell, in their order)."""
    section = "above the first section"
    number = 0
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            number += 1
            found.append(CodeCell(f"{section}, code cell {number}", source, cell.get("id")))
        for heading in re.findall(r"^## +(.+)$", source, re.M):
            if cell["cell_type"] == "markdown":
                section = _section(heading.strip())
                number = 0
    return found


def _section(heading):
    numbered = re.match(r"(\d+)\.", heading)
    return f"in section {numbered[1]}" if numbered else f'in the section "{heading}"'


def where_made(name, cells, running, transform=str):
    """The cell that has to run first (CodeCell), or None if no other cell makes this name.

    That is the last one above the cell that runs, else the first one below. running: (id, source)
    of the cell that runs; either may be unknown to the notebook, which may not be saved.
    transform: makes Python of a cell's source, which may hold magics."""
    here = len(cells)
    for number, cell in enumerate(cells):
        if cell.source == running[1] or (cell.id and cell.id == running[0]):
            here = number
    makers = [
        number
        for number, cell in enumerate(cells)
        if number != here and name in names_made(transform(cell.source))
    ]
    above = [number for number in makers if number < here]
    if not makers:
        return None
    return cells[above[-1] if above else makers[0]]


def names_made(source):
    """The names that this source sets at its top level (set): by assignment, def, class, import,
    for, with. Empty if it is not Python."""
    try:
        nodes = ast.parse(source).body
    except SyntaxError:
        return set()
    made = set()
    deleted = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, DEFINITIONS):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
            deleted.add(node.id)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        if not isinstance(node, SCOPES):
            nodes.extend(ast.iter_child_nodes(node))
    return made - deleted


def _line(cell, name):
    """The line of the cell in which the name stands first: "`crew = [`"."""
    lines = [line.strip() for line in cell.source.splitlines() if re.search(rf"\b{name}\b", line)]
    shown = lines[0] if len(lines[0]) <= LONGEST else f"{lines[0][:LONGEST]}…"
    return f"`{shown}`"

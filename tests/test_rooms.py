"""The house: which part of labkit may import which, and which files import nothing of it."""

import ast
from pathlib import Path

import pytest

import labkit

FOLDER = Path(labkit.__file__).parent
ROOMS = [  # from the ground up: each imports only from itself and from those before it
    "errors",
    "paths",
    "waiting",
    "system",
    "pictures",
    "wire",
    "cluster",
    "notebooks",
    "processes",
    "cockpit",
    "experiments",
    "doctor",
    "jupyter_options",
    "exercises",
    "lesson",
    "clinic",
    "__main__",
]
BARE = {  # programs of their own: what they may import beside the standard library
    "system/reaper.py": {"psutil"},
    "cluster/partition.py": set(),
    "processes/worker_main.py": {"nats", "psutil"},
    "wire/protocol.py": set(),
    "wire/proxy.py": {"protocol"},
}
SOURCES = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.py")}


def imported(path, everywhere=True):
    """Full names of the modules that this file imports (set); also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path):
    return path.partition("/")[0].removesuffix(".py")


def test_every_file_is_in_a_room():
    assert {room(path) for path in SOURCES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in SOURCES if path != "__init__.py"])
def test_it_imports_only_from_rooms_below_its_own(path):
    allowed = ROOMS[: ROOMS.index(room(path)) + 1]
    used = {name.split(".")[1] for name in imported(SOURCES[path]) if name.startswith("labkit.")}
    # `from labkit import Lab` is `labkit.Lab`: what the package hands on comes from the top.
    assert used <= set(allowed), f"{path} imports {sorted(used - set(allowed))}"


@pytest.mark.parametrize("path", BARE)
def test_a_program_of_its_own_imports_nothing_of_labkit(path):
    import sys

    names = {name.split(".")[0] for name in imported(SOURCES[path], everywhere=False)}
    assert names <= BARE[path] | sys.stdlib_module_names


def test_no_module_has_the_name_of_what_it_holds():
    for path, source in SOURCES.items():
        tree = ast.parse(source.read_text(encoding="utf-8"))
        names = {getattr(node, "name", None) for node in tree.body}
        assert Path(path).stem not in names, f"{path} holds {Path(path).stem}"

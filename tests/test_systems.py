"""Nothing here works on one system alone without saying so: what only POSIX has is guarded, or has
a counterpart.

mypy knows what each system's Python lacks (os.fork, signal.SIGKILL, …) and reads `if sys.platform
== "win32"`. A short list below names what it cannot know. Both look at labkit, the tests, the
programs, and the cells of the notebooks.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from conftest import copy_project, tracked
from labkit import paths

CONFTEST = ast.parse((Path(__file__).with_name("conftest.py")).read_text(encoding="utf-8"))
SYSTEMS = ["linux", "darwin", "win32"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FOLDERS = ["labkit", "tests", "notebooks"]


# --- what is looked at


def sources(root):
    """All Python of this checkout: {name: text}. The cells of a notebook are one text; one that is
    written to a file is another."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        found.update(cells(path))
    return found


def cells(path):
    """The code of a notebook: {name: text}."""
    found, together = {}, []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        magic = re.match(r"%%(?:worker|writefile)\s+(\S+)\n", cell.source)
        if magic:
            found[f"notebooks/{path.stem}_{cell['id']}_{magic[1]}".replace("-", "_")] = cell.source[
                magic.end() :
            ]
        else:
            together.append(TransformerManager().transform_cell(cell.source))
    return {f"notebooks/lesson_{path.stem}.py": "\n".join(together), **found}


@pytest.fixture(scope="module")
def code():
    return sources(paths.PROJECT)


# --- what mypy knows


def lacking(folder, code):
    """What a system lacks that others have, and that is used without a guard (list of texts).

    Compared are the systems: what mypy says on all of them is about types, which nobody has written
        here.
    """
    for name, text in code.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(SYSTEMS, pool.map(lambda system: unknown_names(folder, system), SYSTEMS)))
    everywhere = set.intersection(*said.values())
    found = []
    for system in SYSTEMS:
        for name, line, words in sorted(said[system] - everywhere):
            tree = ast.parse(code[name])
            if line not in skipped(tree, system):
                found.append(
                    f"{system}: {name}: {code[name].splitlines()[line - 1].strip()}: {words}"
                )
    return found


def unknown_names(folder, system):
    """What mypy does not find on this system: {(file, line, its words)}."""
    options = [
        "--platform",
        system,
        "--follow-imports=skip",
        "--ignore-missing-imports",
        "--check-untyped-defs",
        "--disable-error-code=top-level-await",
        "--explicit-package-bases",
        "--namespace-packages",
        "--no-error-summary",
        "--hide-error-context",
        f"--cache-dir={os.devnull}",
        f"--python-executable={sys.executable}",
    ]
    strict = "PYTHONWARNDEFAULTENCODING", "PYTHONWARNINGS"  # see conftest.py; mypy is none of ours
    environment = {key: value for key, value in os.environ.items() if key not in strict}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "."],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
    lines = re.findall(r"^(.+?):(\d+): error: (.*)  \[attr-defined\]$", done.stdout, re.M)
    return {(Path(name).as_posix(), int(line), words) for name, line, words in lines}


def skipped(tree, system):
    """The lines that do not run on this system (set): tests that are skipped there, and functions
    that assert another."""
    marks = names_of(CONFTEST) | names_of(tree)
    of_all = getattr(marks.get("pytestmark"), "elts", [marks.get("pytestmark")])
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            own = [
                marks.get(getattr(mark, "id", ""), mark) for mark in [*node.decorator_list, *of_all]
            ]
            marked = [
                holds(mark.args[0], system) for mark in own if is_skip(mark) and asks(mark.args[0])
            ]
            asserts = [
                each.test for each in node.body if isinstance(each, ast.Assert) and asks(each.test)
            ]
            if any(marked) or not all(holds(condition, system) for condition in asserts):
                lines.update(range(node.body[0].lineno, node.end_lineno + 1))
    return lines


def names_of(tree):
    """{name: its value (ast node)} of what the module sets."""
    assigned = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and hasattr(node.targets[0], "id")
    ]
    return {node.targets[0].id: node.value for node in assigned}


def is_skip(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.skipif"


def holds(condition, system):
    """True if this condition (ast node) is true on this system."""
    return bool(
        eval(
            ast.unparse(condition),
            {"os": os, "shutil": shutil, "sys": SimpleNamespace(platform=system)},
        )
    )


def asks(condition):
    """True if this condition (ast node) begins with the question which system this is."""
    return ast.unparse(condition).startswith("sys.platform")


@pytest.mark.house
def test_no_name_is_used_that_another_system_lacks(tmp_path, code):
    found = lacking(tmp_path, code)
    assert not found, "\n".join(found)


PLANTED = {
    "labkit/a.py": "import os\nos.fork()",
    "tests/b.py": (
        "import signal, pytest\n"
        "@pytest.mark.parametrize('number', [signal.SIGKILL])\n"
        "def test(number): pass"
    ),
    "notebooks/c.py": ("import sys, subprocess\ndef f():\n    return subprocess.CREATE_NO_WINDOW"),
    "notebooks/d.py": "import os\nawait f(os.sched_getaffinity(0))",
}
GUARDED = {
    "labkit/a.py": "import os, sys\nif sys.platform != 'win32':\n    os.fork()",
    "tests/b.py": (
        "import signal, sys, pytest\n"
        "posix = pytest.mark.skipif(sys.platform == 'win32', reason='')\n"
        "@posix\n"
        "def test():\n"
        "    signal.SIGKILL\n"
        "def of_the_test():\n"
        "    assert sys.platform == 'linux'\n"
        "    signal.SIGSTKFLT"
    ),
    "notebooks/c.py": (
        "import os\nif hasattr(os, 'sched_getaffinity'):\n    cores = len(os.sched_getaffinity(0))"
    ),
}


@pytest.mark.house
def test_a_name_that_another_system_lacks_is_found(tmp_path):
    found = lacking(tmp_path, PLANTED)
    for system, words in [
        ("win32", "os.fork()"),
        ("win32", "[signal.SIGKILL]"),
        ("win32", "sched_getaffinity"),
        ("darwin", "sched_getaffinity"),
        ("darwin", "CREATE_NO_WINDOW"),
        ("linux", "CREATE_NO_WINDOW"),
    ]:
        assert [text for text in found if text.startswith(system) and words in text], (
            system,
            words,
            found,
        )
    assert len(found) == 6
    assert not lacking(tmp_path / "guarded", GUARDED)


# --- what mypy cannot know

OF_OTHER_LOOPS = "is not there on Windows' own loop"
METHODS = {
    "terminate": "is a kill on Windows",
    "send_signal": "is a kill on Windows",
    "kill": "with a signal's number: a kill on Windows",
    "add_signal_handler": "is not implemented on Windows",
    "add_reader": OF_OTHER_LOOPS,
    "add_writer": OF_OTHER_LOOPS,
    "rename": "fails on Windows where the name is taken: os.replace",
    "symlink_to": "needs a privilege on Windows",
    "symlink": "needs a privilege on Windows",
    "chmod": "knows one bit on Windows",
    "owner": "is not there on Windows",
    "rlimit": "is of Linux alone",
    "NamedTemporaryFile": "cannot be opened a second time on Windows",
}
WORDS = dict(  # noqa: C406 (neither {…} nor keywords: that is what is looked for)
    [
        ("start_new_session", "is nothing on Windows: creationflags"),
        ("preexec_fn", "is refused on Windows"),
        ("pass_fds", "is refused on Windows"),
        ("shell", "is another shell on Windows"),
    ]
)
PROGRAMS = {
    "sh",
    "bash",
    "env",
    "ps",
    "kill",
    "cat",
    "true",
    "sleep",
    "mount",
    "unshare",
    "setpriv",
    "ulimit",
    "lsof",
    "which",
}
MODULES = {
    "fcntl",
    "pty",
    "resource",
    "termios",
    "tty",
    "grp",
    "pwd",
    "syslog",
    "readline",
    "curses",
    "posix",
}
PLACE = re.compile(r"/(tmp|proc|dev|bin|usr|var|sys|home|opt|root|run)(/|$)")


def doubtful(code):
    """What works on POSIX alone, or differently on Windows, where nobody asks for sys.platform
    (list of texts)."""
    found = []
    for name, text in code.items():
        tree = ast.parse(text)
        thought_of = skipped(tree, "win32") | asks_for_the_system(tree)
        for node in ast.walk(tree):
            for words in doubts(node):
                if words == OF_OTHER_LOOPS and "asyncio.SelectorEventLoop" in text:
                    continue  # a program with a loop of its own, which has it everywhere
                if node.lineno not in thought_of:
                    found.append(f"{name}: {text.splitlines()[node.lineno - 1].strip()}: {words}")
    return found


def asks_for_the_system(tree):
    """The lines of functions, and of the module's own statements, that ask for the system, or for a
    program (set)."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    statements = [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    lines = set()
    for node in functions + statements:
        if re.search(r"sys\.platform|shutil\.which\(", ast.unparse(node)):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def doubts(node):
    """What is doubtful in this node alone (list of texts)."""
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.name":
        return ["mypy reads sys.platform alone"]
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.sep":
        return ["Windows has two: pathlib"]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and PLACE.match(node.value):
        return ["is no place of Windows"]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
        return [f"{name} is no module of Windows" for name in names if name in MODULES]
    if isinstance(node, ast.Dict):
        keys = [getattr(key, "value", None) for key in node.keys]
        return [WORDS[key] for key in keys if key in WORDS]
    return in_a_call(node) if isinstance(node, ast.Call) else []


def program(node):
    """The first word of the command that this call starts (ast node), or None."""
    if (
        not re.search(r"\b(run|Popen|call|check_call|check_output|launch)$", ast.unparse(node.func))
        or not node.args
    ):
        return None
    return next(iter(getattr(node.args[0], "elts", [])), None)


def in_a_call(node):
    words = [WORDS[keyword.arg] for keyword in node.keywords if keyword.arg in WORDS]
    if getattr(program(node), "value", "") in PROGRAMS:
        words.append("is no program of Windows")
    if not isinstance(node.func, ast.Attribute):
        return words
    method = node.func.attr
    if ast.unparse(node.func) in ("os.system", "os.popen", "get_ipython().system"):
        return [*words, "asks the shell, of which each system has its own"]
    if method == "kill" and ast.unparse(node.func.value) != "os":
        return words  # of a process: the same everywhere
    if method == "split" and [getattr(each, "value", "") for each in node.args] == ["/"]:
        return [*words, "is no path of Windows: pathlib"]
    return words + [METHODS[method]] if method in METHODS else words


def test_nothing_works_on_posix_alone_without_asking_for_the_system(code):
    found = doubtful(code)
    assert not found, "\n".join(found)


DOUBTFUL = """
import asyncio, os, subprocess
import fcntl
os.name
os.sep
"/tmp/a"
path.split("/")
path.rename(other)
path.symlink_to(other)
process.terminate()
process.send_signal(15)
os.kill(1, 9)
os.system("ls")
subprocess.run(["sh", "-c", "true"])
subprocess.Popen([], start_new_session=True)
subprocess.Popen([], **{"start_new_session": True})
subprocess.run("ls", shell=True)
loop.add_signal_handler(15, stop)
loop.add_reader(1, read)
tempfile.NamedTemporaryFile()
"""


def test_each_of_these_is_found():
    lines = DOUBTFUL.split("\n")[2:-1]
    found = doubtful({"a.py": DOUBTFUL})
    assert [line for line in lines if not any(f"a.py: {line}: " in text for text in found)] == []
    body = DOUBTFUL.replace("\n", "\n    ")
    assert doubtful({"a.py": f"def f():\n    sys.platform{body}"}) == []
    assert len(doubtful({"a.py": (f"def g():\n    sys.platform\ndef f():{body}")})) == len(found)


def test_no_path_stands_in_a_servers_configuration_as_json(code):
    """JSON says \\u00f6 for an ö, and nats-server reads no such thing: nodes.quoted() is what it
    reads."""
    odd = re.compile(r"(store_dir|\w+_file):? *\{? *json")
    found = [
        f"{name}: {line.strip()}"
        for name, text in code.items()
        for line in text.splitlines()
        if odd.search(line)
    ]
    assert not found, "\n".join(found)
    assert odd.search("cert_file: " + "{json.dumps(pem)}")


# --- line ends


def test_what_labkit_writes_has_the_same_line_ends_everywhere(code):
    """Path.write_text and open(…, "w") make CRLF of each LF on Windows, unless they are told
    newline."""
    found = [
        words
        for name, text in code.items()
        if name.startswith("labkit/")
        for words in loose_ends(name, text)
    ]
    assert not found, "\n".join(found)
    loose = ["path.write_text('a')", "open(path, 'w')", "open(path, mode='a')", "path.open('w')"]
    right = [
        "open(path, 'wb')",
        "open(path)",
        "path.write_text('a', newline='')",
        "open(path, 'w', newline='')",
    ]
    assert loose_ends("a.py", "\n".join(loose + right)) == [f"a.py: {line}" for line in loose]


def loose_ends(name, text):
    """The places in this source that write text and leave the line ends to the system (list of
    texts)."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and writes_text(node)
            and "newline" not in [each.arg for each in node.keywords]
        ):
            found.append(f"{name}: {text.splitlines()[node.lineno - 1].strip()}")
    return found


def writes_text(node):
    called = ast.unparse(node.func)
    if called.endswith(".write_text"):
        return True
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] + node.args[:2]
    words = [
        mode.value
        for mode in modes
        if isinstance(mode, ast.Constant) and isinstance(mode.value, str)
    ]
    return called.split(".")[-1] == "open" and any(
        re.fullmatch("[wax]t?[+]?", word) for word in words
    )


def has_text(content):
    return b"\0" not in content


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_clone_on_windows_has_the_line_ends_of_the_others(tmp_path):
    origin = copy_project(tmp_path / "origin")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@here", "-c", "core.autocrlf=true"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=origin, check=True, capture_output=True)
    subprocess.run(
        [*git, "clone", "-q", str(origin), str(tmp_path / "clone")], check=True, capture_output=True
    )
    for path in tracked():
        assert (tmp_path / "clone" / path).read_bytes() == (paths.PROJECT / path).read_bytes(), path


def test_a_folder_in_which_all_line_ends_are_those_of_windows_works(own, tmp_path, labkit):
    """Where .gitattributes did not help: a ZIP, a copy, an editor. The folder has an odd name, and
    lies as deep as may be."""
    deep = [] if sys.platform == "win32" else ["d" * 120, "e" * 110]
    copy = tmp_path.joinpath(*deep, "Größe #1, 100% it's C")
    for path in tracked():
        content = (paths.PROJECT / path).read_bytes()
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content.replace(b"\n", b"\r\n") if has_text(content) else content)

    path = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))

    def run(*arguments):
        return labkit(*arguments, cwd=copy, PYTHONPATH=path)

    code, said = run("doctor")
    assert (
        "Packages as pinned" in said and f"Notebooks use the labkit of this folder: {copy}" in said
    ), said
    code, said = run("up")
    assert code == 0, said
    before = (copy / "notebooks" / "00_start_here.ipynb").read_bytes()
    code, said = run("execute", "--check", "00")
    assert code == 0 and "00_start_here.ipynb: as committed" in said, said
    assert (copy / "notebooks" / "00_start_here.ipynb").read_bytes() == before
    assert run("down")[0] == 0

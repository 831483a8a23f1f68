"""python -m labkit: the lab's one command."""

import asyncio
import codecs
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.text import Text

from labkit import doctor as doctors
from labkit import jupyter_options, paths
from labkit.cluster import containers, lifecycle, nodes, tables
from labkit.errors import LabError, explained
from labkit.lesson import cleanup, lock

JUPYTER = Path(__file__).with_name("jupyter")
# What is written instead where the output's encoding lacks a letter.
PLAIN = {"…": "...", "–": "-", "→": "->", "✓": "+", "✗": "x", "·": "-", "×": "x"}
# The option of the commands that take the cluster, or its streams, away from open lessons.
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask, even if lessons are open")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="NATS Lab: a three-node cluster to learn on.",
)
# No markup: what is printed holds texts of others, and brackets in them are brackets.
console = Console(highlight=False, soft_wrap=True, markup=False)


@app.command()
def up():
    """Start the cluster, or find it if it is up."""
    began = time.monotonic()
    with _spinner("looking for a cluster") as spinner:
        cluster = asyncio.run(
            lifecycle.find_or_start(lambda text: spinner.update(Text(f"{text} …")))
        )
    console.print(
        f"cluster up after {time.monotonic() - began:.1f} s ({_which(cluster)}): {cluster.shown}"
    )


@app.command()
def down(yes: Yes = False):
    """End the cluster (its processes, and containers if they run) and delete its data."""
    where = lifecycle.place(lifecycle.running_port())
    _ask_about_open_lessons(f"Ending the cluster ({where}) breaks them.", lock.open_lessons(), yes)
    with _spinner("ending"):
        count, left = lifecycle.end_embedded()
        had_containers = _end_containers()
    said = [f"{count} processes ended" if count else "no process was running"]
    if left:
        said.append(f"and {left} that killed kernels had left")
    if had_containers:
        said.append("containers removed")
    console.print(f"cluster down ({where}): {', '.join(said)}")


def _end_containers():
    """Removes the lab's containers and their data. True if there were any."""
    if os.environ.get("LABKIT_BACKEND") == "embedded" or not asyncio.run(lifecycle.find_compose()):
        return False
    containers.run("--profile", "monitoring", "--profile", "valkey", "down", "-v")
    return True


def _spinner(what):
    """Shows what is being done, on a terminal, as long as it takes."""
    return console.status(Text(f"{what} …"))


def _which(cluster):
    """Which cluster this is, in words."""
    if cluster.backend == "embedded":
        return f"embedded, {lifecycle.place()}"
    return cluster.backend


def _ask_about_open_lessons(what, lessons, yes):
    """Asks before it takes the cluster away from somebody who uses it. Raises LabError where the
    answer is no, or nobody can be asked."""
    if yes or not lessons:
        return
    named = ", ".join(f"{topic} (process {pid})" for topic, pid in lessons.items())
    are = "Lessons are" if len(lessons) > 1 else "A lesson is"
    warning = f"{are} open: {named}. {what}"
    if not sys.stdin.isatty():
        raise LabError(
            f"{warning} Close them first: run their last cell, or shut their kernels down. Or say"
            " --yes."
        )
    console.print(warning)
    if not typer.confirm("Go on?"):
        raise LabError("Nothing was done.")


@app.command()
def status():
    """Show the nodes of the cluster (exit code 1 if not all of them are up)."""
    cluster = asyncio.run(lifecycle.find()) or lifecycle.find_partly_running()
    if not cluster:
        running = lifecycle.running_port()
        way_out = "Start one: python -m labkit up"
        if running:
            way_out = f"The cluster of this home is up on other ports: set LABKIT_PORT={running}."
        console.print(f"no cluster is up ({lifecycle.place()}). {way_out}")
        raise typer.Exit(1)
    console.print(f"{_which(cluster)}: {cluster.shown}")
    if cluster.backend == "attached":
        console.print(f"nats-server {asyncio.run(doctors.version(cluster))} answers")
        return
    frame = asyncio.run(tables.nodes(cluster))
    shown = frame.astype(object).where(frame.notna(), "")
    console.print(shown.reset_index().to_string(index=False))
    silent = list(frame.index[frame["state"] != "up"])
    if silent:
        console.print(
            f"{len(frame) - len(silent)} of {len(frame)} nodes are up; not {', '.join(silent)}. "
            "Start what is missing: python -m labkit up"
        )
        raise typer.Exit(1)


@app.command()
def reset(
    lesson: Annotated[
        str | None, typer.Argument(help="one lesson's account, e.g. core_nats")
    ] = None,
    yes: Yes = False,
):
    """Delete the streams of one lesson, or of all lessons. The cluster stays up."""
    lessons = {topic: pid for topic, pid in lock.open_lessons().items() if lesson in (None, topic)}
    _ask_about_open_lessons("A reset deletes the streams that they work with.", lessons, yes)
    said = asyncio.run(cleanup.wipe_accounts([lesson] if lesson else nodes.accounts()))
    console.print(f"{said} ({lifecycle.place()})")


@app.command()
def progress():
    """Show which exercises of the course are passed, with tries and hints."""
    from labkit.lesson import progress

    table = progress.table()
    console.print(table.to_string(index=False))
    console.print(f"kept in {paths.home() / 'progress'}")
    passed = (table["state"] == "passed").sum()
    console.print(f"{passed} of {len(table)} exercises passed")


@app.command()
def doctor():
    """Check what the lab needs, and say how to fix it (exit code 1 if something is wrong)."""
    findings = doctors.examine()
    for finding in findings:
        mark, colour = doctors.MARK[finding.state]
        console.print(mark, style=colour, end=" ")
        console.print(finding.text)
        if finding.fix:
            console.print(f"       → {finding.fix}")
    raise typer.Exit(any(finding.state == "bad" for finding in findings))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="JupyterLab's port (if taken, the next free one)"),
    ] = 8888,
):
    """Start the cluster and open JupyterLab at the first lesson. Other options go to JupyterLab."""
    bad = [finding for finding in doctors.examine() if finding.state == "bad"]
    if bad:
        raise LabError("\n".join(f"{finding.text} {finding.fix}" for finding in bad))
    up()
    options = jupyter_options.options(port, browser, context.args, console.print)
    console.print(
        "JupyterLab starts; end it with Ctrl-C. The cluster stays up until: python -m labkit down"
    )
    command = [sys.executable, "-m", "jupyterlab", *options]
    # The lab's defaults for JupyterLab (no question about news over the lesson); a user's own
    # settings win over them.
    config = os.pathsep.join(filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER)]))
    _become(command, {**os.environ, "JUPYTER_CONFIG_PATH": config})


def _become(command, env):
    """Runs the command in place of this process: a signal that is sent to this command, Ctrl-C for
    one, then reaches that program, and nothing is left behind. Windows cannot replace a process;
    there the program is a child, and this process waits for it.
    """
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, env)
    server = subprocess.Popen(command, env=env)
    while server.poll() is None:
        # The console sends Ctrl-C to JupyterLab as well, which asks what to do.
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()
    raise typer.Exit(server.returncode)


@app.command()
def execute(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NOTEBOOKS", help="numbers or paths (default: all)"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit code 1 if something changed")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="also renew times and pictures")
    ] = False,
):
    """Execute notebooks and write them in the form in which they are committed."""
    from labkit import notebooks

    with _spinner("executing notebooks"):
        chosen = notebooks.find(names or ())
        changed = notebooks.execute_all(chosen, check, refresh, console.print)
    if check and changed:
        raise typer.Exit(1)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="number, name or path, for example 91")],
    repeats: Annotated[int | None, typer.Option(min=1, help="trials of each point")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="name=value; see the notebook's parameters cell"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="folder for notebook, rows and pictures (default: in work/)"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="also write the results into the notebook itself")
    ] = False,
):
    """Run an experiment with other parameters. If interrupted, run the command again to resume."""
    from labkit import notebooks
    from labkit.experiments import runner

    values = _values(parameter or [])
    if repeats is not None:
        values["repeats"] = repeats
    folder = out or paths.work() / notebooks.find([name])[0].stem
    with _spinner(f"running experiment {name}"):
        left = runner.run(name, values, folder, keep)
    for path in left:
        console.print(path)


def _values(parameters):
    """{name: value} of "name=value" texts, each value read as YAML. Raises LabError if one has no
    "="."""
    values = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals:
            raise LabError(
                f"--parameter {parameter}; wanted: name=value, for example -p sizes=[128]"
            )
        values[name] = yaml.safe_load(value)
    return values


def _in_plain_letters(error):
    """What is written instead of letters that the output's encoding lacks (a handler of codec
    errors)."""
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in letters), error.end


def main():
    codecs.register_error("labkit", _in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="labkit")
    try:
        app()
    except (LabError, OSError) as error:
        known = error if isinstance(error, LabError) else explained(error)
        if not isinstance(known, LabError):
            raise
        console.print("✗", style="red", end=" ")
        console.print(str(known))
        sys.exit(1)


if __name__ == "__main__":
    main()

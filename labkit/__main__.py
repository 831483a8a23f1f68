"""python -m labkit: the lab's one command."""

import asyncio
import codecs
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
from labkit.cluster import containers, lifecycle, nodes
from labkit.errors import LabError, explained
from labkit.lesson import lock

JUPYTER = Path(__file__).with_name("jupyter")
PLAIN = {
    "…": "...",
    "–": "-",
    "→": "->",
    "✓": "+",
    "✗": "x",
    "·": "-",
    "×": "x",
}  # for encodings that lack them
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
def down(
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="do not ask, even if lessons are open")
    ] = False,
):
    """End the cluster that this project started (processes, and containers if they run), and remove
    its data."""
    where = lifecycle.place(lifecycle.running_port())
    _ask_about_open_lessons(
        f"Ending the cluster ({where}) ends them too.", lock.open_lessons(), yes
    )
    with _spinner("ending"):
        count, left = lifecycle.end_embedded()
        up_as_containers = os.environ.get("LABKIT_BACKEND") != "embedded" and asyncio.run(
            lifecycle.find_compose()
        )
        if up_as_containers:
            containers.run("--profile", "monitoring", "--profile", "valkey", "down", "-v")
    console.print(
        f"cluster down ({where}): "
        + (f"{count} processes ended" if count else "no process was running")
        + (f", and {left} that killed kernels had left" if left else "")
        + (", containers removed" if up_as_containers else "")
    )


def _spinner(what):
    """Shows what is being done, on a terminal, as long as it takes."""
    return console.status(Text(f"{what} …"))


def _which(cluster):
    """Which cluster this is, in words."""
    return f"embedded, {lifecycle.place()}" if cluster.backend == "embedded" else cluster.backend


def _ask_about_open_lessons(what, lessons, yes):
    """Asks before it takes the cluster away from somebody who uses it. Raises LabError where the
    answer is no, or nobody can be asked."""
    if yes or not lessons:
        return
    named = ", ".join(f"{topic} (process {pid})" for topic, pid in lessons.items())
    question = f"{'Lessons are' if len(lessons) > 1 else 'A lesson is'} open: {named}. {what}"
    if not sys.stdin.isatty():
        raise LabError(
            f"{question} Close them first: run their last cell, or shut their kernels down. Or say"
            " --yes."
        )
    console.print(question)
    if not typer.confirm("Go on?"):
        raise LabError("Nothing was done.")


@app.command()
def status():
    """Show the nodes of the cluster (exit code 1 if not all of them are up)."""
    cluster = asyncio.run(lifecycle.find()) or lifecycle.part()
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
    from labkit.cluster import tables

    frame = asyncio.run(tables.nodes(cluster))
    console.print(
        frame.astype(object).where(frame.notna(), "").reset_index().to_string(index=False)
    )
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
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="do not ask, even if lessons are open")
    ] = False,
):
    """Delete the streams of one lesson, or of all, as if nobody had run them. The cluster stays
    up."""
    from labkit.lesson.cleanup import wipe_accounts

    lessons = {topic: pid for topic, pid in lock.open_lessons().items() if lesson in (None, topic)}
    _ask_about_open_lessons("A reset deletes the streams that they work with.", lessons, yes)
    said = asyncio.run(wipe_accounts([lesson] if lesson else nodes.accounts()))
    console.print(f"{said} ({lifecycle.place()})")


@app.command()
def doctor():
    """Check everything that the lab needs; say how to mend what is wrong (exit code 1 if something
    is)."""
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
        typer.Option(min=1, max=65535, help="JupyterLab's port (the next free one if it is taken)"),
    ] = 8888,
):
    """Start the cluster and JupyterLab at the first lesson. Further options go to JupyterLab."""
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
    """Runs the command in place of this process: what ends this command, Ctrl-C or any signal, then
    ends that program in its own way, and nothing is left. Windows knows no such thing; there it is
    a child to wait for.
    """
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, env)
    server = subprocess.Popen(command, env=env)
    while True:
        try:
            raise typer.Exit(server.wait())
        except (
            KeyboardInterrupt
        ):  # the console sends it to JupyterLab as well, which asks what to do
            pass


@app.command()
def execute(
    notebooks: Annotated[
        list[str] | None, typer.Argument(help="numbers or paths; all if none")
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
        changed = notebooks.execute_all(
            notebooks.find(notebooks or ()), check, refresh, console.print
        )
    raise typer.Exit(bool(check and changed))


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="number, name or path, for example 91")],
    repeats: Annotated[int | None, typer.Option(min=1, help="trials of each point")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="name=value, of the notebook's parameters cell"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="folder for notebook, rows and pictures")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="write the results into the notebook itself as well")
    ] = False,
):
    """Run an experiment with other parameters. Stopped in the middle, the same command goes on."""
    from labkit import notebooks
    from labkit.experiments import runner

    values = dict(item.split("=", 1) for item in parameter or () if "=" in item)
    if len(values) != len(parameter or ()):
        raise LabError(
            f"--parameter {' '.join(parameter)}; wanted: name=value, for example -p sizes=[128]"
        )
    values = {key: yaml.safe_load(value) for key, value in values.items()} | (
        {"repeats": repeats} if repeats is not None else {}
    )
    out = out or str(paths.work() / notebooks.find([name])[0].stem)
    with _spinner(f"running experiment {name}"):
        left = runner.run(name, values, out, keep)
    for path in left:
        console.print(path)


def _in_plain_letters(error):
    """What stands in for the letters that the output's encoding lacks (a handler of codec
    errors)."""
    return (
        "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]),
        error.end,
    )


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

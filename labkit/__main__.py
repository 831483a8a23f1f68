"""python -m labkit: the lab's one command."""
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from typing import Annotated, Optional

import typer
import yaml
from rich.console import Console
from rich.table import Table

from labkit import cluster as clusters
from labkit import compose, nodes
from labkit import doctor as doctors
from labkit.errors import LabError

JUPYTER = nodes.CONFIG.with_name("jupyter")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="NATS Lab: a three-node cluster to learn on.")
console = Console(highlight=False, soft_wrap=True)


@app.command()
def up():
    """Start the cluster, or find it if it is up."""
    began = time.monotonic()
    with console.status("looking for a cluster …") as status:
        cluster = asyncio.run(clusters.find_or_start(lambda text: status.update(f"{text} …")))
    console.print(f"cluster up after {time.monotonic() - began:.1f} s ({cluster.backend}): {cluster.shown}")


@app.command()
def down():
    """End the cluster that this project started (processes, and containers if they run), and remove its data."""
    with console.status("ending …"):
        count = clusters.end_embedded()
        containers = os.environ.get("LABKIT_BACKEND") != "embedded" and asyncio.run(clusters.find_compose())
        if containers:
            compose.run("--profile", "monitoring", "--profile", "valkey", "down", "-v")
    console.print("cluster down: " + (f"{count} processes ended" if count else "no process was running")
                  + (", containers removed" if containers else ""))


@app.command()
def status():
    """Show the nodes of the cluster that is up (exit code 1 if none is)."""
    cluster = asyncio.run(clusters.find())
    if not cluster:
        console.print("no cluster is up. Start one: python -m labkit up")
        raise typer.Exit(1)
    from labkit import tables
    frame = asyncio.run(tables.nodes(cluster)).reset_index()
    table = Table(*map(str, frame.columns), title=f"{cluster.backend}: {cluster.shown}", title_justify="left")
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)


@app.command()
def reset(lesson: Annotated[Optional[str], typer.Argument(help="one lesson's account, e.g. core_nats")] = None):
    """Delete the streams of one lesson, or of all, as if nobody had run them. The cluster stays up."""
    from labkit.slate import wipe_accounts
    console.print(asyncio.run(wipe_accounts([lesson] if lesson else nodes.accounts())))


@app.command()
def doctor():
    """Check everything that the lab needs; say how to mend what is wrong (exit code 1 if something is)."""
    findings = doctors.examine()
    for finding in findings:
        console.print(f"{doctors.MARK[finding.state]} {finding.text}")
        if finding.fix:
            console.print(f"       → {finding.fix}")
    raise typer.Exit(any(finding.state == "bad" for finding in findings))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context, browser: Annotated[bool, typer.Option(help="open a browser")] = True,
        port: Annotated[int, typer.Option(help="JupyterLab's port (the next free one if it is taken)")] = 8888):
    """Start the cluster and JupyterLab at the first lesson. Further options go to JupyterLab."""
    bad = [finding for finding in doctors.examine() if finding.state == "bad"]
    if bad:
        raise LabError("\n".join(f"{finding.text} {finding.fix}" for finding in bad))
    up()
    console.print("JupyterLab starts; end it with Ctrl-C. The cluster stays up until: python -m labkit down")
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.root_dir={nodes.PROJECT}", "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               *([] if browser else ["--no-browser"]),
               *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []), *context.args]
    # The lab's defaults for JupyterLab (no question about news over the lesson); a user's own settings win over them.
    config = os.pathsep.join(filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER)]))
    server = subprocess.Popen(command, env={**os.environ, "JUPYTER_CONFIG_PATH": config})
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the terminal sends it to JupyterLab as well, which asks what to do
            raise typer.Exit(server.wait())


@app.command()
def execute(notebooks: Annotated[Optional[list[str]], typer.Argument(help="numbers or paths; all if none")] = None,
            check: Annotated[bool, typer.Option("--check", help="write nothing; exit code 1 if something changed")] = False,
            refresh: Annotated[bool, typer.Option("--refresh", help="also renew times and pictures")] = False):
    """Execute notebooks and write them in the form in which they are committed."""
    from labkit import notebook
    with console.status("executing notebooks …"):
        changed = notebook.execute_all(notebook.find(notebooks or ()), check, refresh, console.print)
    raise typer.Exit(bool(check and changed))


@app.command()
def experiment(name: Annotated[str, typer.Argument(help="number, name or path, for example 91")],
               repeats: Annotated[Optional[int], typer.Option(help="trials of each point")] = None,
               parameter: Annotated[Optional[list[str]], typer.Option(
                   "--parameter", "-p", help="name=value, of the notebook's parameters cell")] = None,
               out: Annotated[Optional[str], typer.Option(help="folder for notebook, rows and pictures")] = None,
               keep: Annotated[bool, typer.Option(
                   "--keep", help="write the results into the notebook itself as well")] = False):
    """Run an experiment with other parameters. Stopped in the middle, the same command goes on."""
    from labkit import experiment as experiments
    from labkit import notebook
    values = dict(item.split("=", 1) for item in parameter or () if "=" in item)
    if len(values) != len(parameter or ()):
        raise LabError(f"--parameter {' '.join(parameter)}; wanted: name=value, for example -p sizes=[128]")
    values = {key: yaml.safe_load(value) for key, value in values.items()} | ({"repeats": repeats} if repeats else {})
    out = out or str(nodes.PROJECT / "work" / notebook.find([name])[0].stem)
    with console.status(f"running experiment {name} …"):
        left = experiments.run(name, values, out, keep)
    for path in left:
        console.print(path)


def main():
    try:
        app()
    except LabError as error:
        console.print(f"[red]✗[/red] {error}", markup=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

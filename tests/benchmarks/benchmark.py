"""How long things take, beside their floors, measured in one run: python
tests/benchmarks/benchmark.py [runs] [--lessons] [--suite]

Boot of the cluster, Lab.open, the wire and imports always; with --lessons the wall time of each
notebook in a kernel of its own, with --suite that of the whole test suite.
Prints a table: median [least – most] in seconds, number of runs, and the ratio of medians to the
floor. Slow ones get fewer runs. Nothing is asserted: machines are noisy. Works on an embedded
cluster of its own, on other ports than the lab's.
"""

import asyncio
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time

import nats
import nbformat
from nbclient import NotebookClient

from labkit import Lab, LabError, notebooks, paths
from labkit.cluster import lifecycle, nodes, private
from labkit.system import ports

MESSAGES = 30_000


def seconds(since):
    return time.perf_counter() - since


async def boots(runs):
    """Two lists: from spawn to a cluster that is ready, and to an R3 stream that exists."""
    ready, stream = [], []
    for _ in range(runs):
        start = time.perf_counter()
        cluster = await lifecycle.find_or_start()
        ready.append(seconds(start))
        client = await nats.connect(cluster.servers[0], user="checks", password="lab")
        await client.jetstream(timeout=2).add_stream(name="S", subjects=["s"], num_replicas=3)
        stream.append(seconds(start))
        await client.close()
        lifecycle.end_embedded()
    return ready, stream


async def one_server(runs):
    """The floor of a boot: one nats-server without cluster, until its port takes a connection."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        server = subprocess.Popen(
            [nodes.server_binary(), "-a", "127.0.0.1", "-p", str(nodes.first_port())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while ports.is_free(nodes.first_port()):
            if server.poll() is not None:
                raise LabError(
                    f"The server ended with code {server.returncode} and never took a connection."
                )
            await asyncio.sleep(0.001)
        took.append(seconds(start))
        server.kill()
        server.wait()
    return took


async def opens(runs):
    """Three lists, taken by turns, on a cluster that is up: nats.connect, Lab.open without the
    wire, and with it."""
    cluster = await lifecycle.find_or_start()
    plain, opened = [], {False: [], True: []}
    for _ in range(runs):
        start = time.perf_counter()
        client = await nats.connect(cluster.servers, user="checks", password="lab")
        plain.append(seconds(start))
        await client.close()
        for wire, took in opened.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                lab = await Lab.open("checks", wire=wire)
                took.append(seconds(start))
                await lab.close()
    return plain, opened[False], opened[True]


async def wires(runs):
    """Two dicts, {False: directly, True: through the wire}, taken by turns: seconds of a request
    (lists), and of MESSAGES messages of 128 bytes from one client to another (lists)."""
    requests, streams = {False: [], True: []}, {False: [], True: []}
    with contextlib.redirect_stdout(io.StringIO()):
        lab = await Lab.open("checks")
        for _ in range(runs):
            for wire in (False, True):
                one, two = [await lab.connect(wire=wire) for _ in range(2)]
                requests[wire] += await many_requests(one, two)
                streams[wire].append(await many_messages(one, two))
                await one.close()
                await two.close()
                lab.wire.clear()
        await lab.close()
    return requests, streams


async def many_requests(one, two):
    async def echo(msg):
        await msg.respond(b"ok")

    await two.subscribe("bench.echo", cb=echo)
    await barrier(two)
    took = []
    for _ in range(300):
        start = time.perf_counter()
        await one.request("bench.echo", b"x" * 20)
        took.append(seconds(start))
    return took[100:]


async def barrier(client):
    """Returns when the server knows of the subscriptions: the PING of the first flush() may go
    ahead of them."""
    await client.flush()
    await client.flush()


async def many_messages(one, two):
    arrived, whole = 0, asyncio.Event()

    async def count(msg):
        nonlocal arrived
        arrived += 1
        if arrived == MESSAGES:
            whole.set()

    await two.subscribe("bench.many", cb=count, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await barrier(two)
    start = time.perf_counter()
    for _ in range(MESSAGES):
        await one.publish("bench.many", b"x" * 128)
    await whole.wait()
    return seconds(start)


def imports(module, runs):
    """Seconds that a fresh Python needs to import the module."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        took.append(seconds(start))
    return took


def lessons(runs):
    """Seconds of an empty notebook, and of each lesson and experiment: start of a kernel, all
    cells, its end."""

    async def run(book, folder):
        start = time.perf_counter()
        client = NotebookClient(
            book,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],
        )
        await client.async_execute()
        return seconds(start)

    asyncio.run(lifecycle.find_or_start())
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("pass")])
    books = {"an empty notebook": lambda: empty} | {
        path.stem: lambda path=path: nbformat.read(path, 4) for path in notebooks.find()
    }
    took = {
        name: [asyncio.run(run(read(), str(notebooks.FOLDER))) for _ in range(runs)]
        for name, read in books.items()
    }
    lifecycle.end_embedded()
    return took


def suite():
    """Seconds of `python -m pytest`, and of a pytest that only collects."""
    took = []
    for more in (["--collect-only"], []):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *more],
            cwd=paths.PROJECT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        took.append([seconds(start)])
    return took


def row(name, values, floor=None):
    ratio = f"{statistics.median(values) / statistics.median(floor):6.1f}×" if floor else ""
    spread = f"[{min(values):.3f} – {max(values):.3f}]"
    print(f"{name:42} {statistics.median(values):7.3f} {spread:20} {len(values):4} {ratio}")


def main(runs, with_lessons, with_suite):
    os.environ["LABKIT_HEADLESS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            LABKIT_HOME=folder, LABKIT_PORT=str(private.free_base()), LABKIT_BACKEND="embedded"
        )
        try:
            floor = asyncio.run(one_server(runs))
            ready, stream = asyncio.run(boots(runs))
            plain, without_wire, lab_open = asyncio.run(opens(runs))
            requests, streams = asyncio.run(wires(max(3, runs // 4)))
            lifecycle.end_embedded()
            books = lessons(max(2, runs // 10)) if with_lessons else {}
        finally:
            lifecycle.end_embedded()
    bare, with_nats, with_lab = (
        imports(module, max(3, runs // 4)) for module in ("sys", "nats", "labkit")
    )
    print("median [least – most] in seconds, runs, ratio to the row with which each group begins\n")
    row("one plain server answers", floor)
    row("three nodes ready", ready, floor)
    row("… and an R3 stream created", stream, floor)
    row("nats.connect", plain)
    row("Lab.open on a running cluster, wire=False", without_wire, plain)
    row("… with the wire", lab_open, plain)
    row("a request (ms)", [1000 * took for took in requests[False]])
    row(
        "… through the wire",
        [1000 * took for took in requests[True]],
        [1000 * took for took in requests[False]],
    )
    row(f"{MESSAGES:,} messages of 128 bytes", streams[False])
    row("… through the wire", streams[True], streams[False])
    row("python -c 'import sys'", bare)
    row("import nats", with_nats, bare)
    row("import labkit", with_lab, bare)
    for name, took in books.items():
        row(name, took, None if name.startswith("an ") else books["an empty notebook"])
    if with_suite:
        collecting, whole = suite()
        row("pytest --collect-only", collecting)
        row("pytest", whole, collecting)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 20, "--lessons" in sys.argv, "--suite" in sys.argv)

"""How long the foundations take, beside their floors, measured in one run: python tests/benchmarks/foundations.py [runs]

Prints a table: median [least – most] in seconds, and the ratio of medians to the floor. Nothing is asserted: machines
are noisy. Works on an embedded cluster of its own, on other ports than the lab's.
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

from labkit import Lab, nodes
from labkit import cluster as clusters


def seconds(since):
    return time.perf_counter() - since


async def boots(runs):
    """Two lists: from spawn to a cluster that is ready, and to an R3 stream that exists."""
    ready, stream = [], []
    for _ in range(runs):
        start = time.perf_counter()
        cluster = await clusters.find_or_start()
        ready.append(seconds(start))
        client = await nats.connect(cluster.servers[0], user="checks", password="lab")
        await client.jetstream(timeout=2).add_stream(name="S", subjects=["s"], num_replicas=3)
        stream.append(seconds(start))
        await client.close()
        clusters.end_embedded()
    return ready, stream


async def one_server(runs):
    """The floor of a boot: one nats-server without cluster, until its port takes a connection."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        server = subprocess.Popen([nodes.server_binary(), "-a", "127.0.0.1", "-p", str(nodes.first_port())],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while nodes.is_free(nodes.first_port()):
            await asyncio.sleep(0.001)
        took.append(seconds(start))
        server.kill()
        server.wait()
    return took


async def opens(runs):
    """Two lists, taken by turns: nats.connect, and Lab.open on a cluster that is up."""
    cluster = await clusters.find_or_start()
    plain, lab_open = [], []
    for _ in range(runs):
        start = time.perf_counter()
        client = await nats.connect(cluster.servers, user="checks", password="lab")
        plain.append(seconds(start))
        await client.close()
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            lab = await Lab.open("checks")
            lab_open.append(seconds(start))
            await lab.close()
    return plain, lab_open


def imports(module, runs):
    """Seconds that a fresh Python needs to import the module."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        took.append(seconds(start))
    return took


def row(name, values, floor=None):
    ratio = f"{statistics.median(values) / statistics.median(floor):6.1f}×" if floor else ""
    print(f"{name:42} {statistics.median(values):7.3f} [{min(values):.3f} – {max(values):.3f}]  {ratio}")


def main(runs):
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(LABKIT_HOME=folder, LABKIT_PORT="13222", LABKIT_BACKEND="embedded")
        floor = asyncio.run(one_server(runs))
        ready, stream = asyncio.run(boots(runs))
        plain, lab_open = asyncio.run(opens(runs))
        clusters.end_embedded()
    bare, with_nats, with_lab = (imports(module, max(3, runs // 4)) for module in ("sys", "nats", "labkit"))
    print(f"median [least – most] of {runs} runs, seconds; ratio to the row with which each group begins\n")
    row("one plain server answers", floor)
    row("three nodes ready", ready, floor)
    row("… and an R3 stream created", stream, floor)
    row("nats.connect", plain)
    row("Lab.open on a running cluster", lab_open, plain)
    row("python -c 'import sys'", bare)
    row("import nats", with_nats, bare)
    row("import labkit", with_lab, bare)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)

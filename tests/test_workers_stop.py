"""A worker that is told to stop ends well, and at once."""

import signal

import pytest

from labkit import Recorder
from labkit.processes import workers

IDLE = """
import asyncio, contextlib, signal

async def work(nc, js, point):
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stop.set))
    sub = await js.pull_subscribe_bind("workers", "ORDERS")
    for batch in (1, 5) * 8:  # leaves status messages behind, for which drain() would wait
        with contextlib.suppress(asyncio.TimeoutError):
            await sub.fetch(batch, timeout=0.05)
    await point("idle")
    while not stop.is_set():
        await asyncio.sleep(0.05)
"""
DEAF = """
import asyncio

async def work(nc, js, point):
    await asyncio.sleep(60)
"""


# Windows has no SIGTERM that a program can handle: there stop() sends a word.
@pytest.mark.parametrize("how", ["signal", "word"])
async def test_a_worker_that_is_told_to_stop_ends_at_once_and_with_0(calm, how):
    await calm.js.add_stream(name="ORDERS", subjects=["orders"])
    await calm.js.add_consumer("ORDERS", durable_name="workers", ack_policy="explicit")
    await calm.settled("ORDERS")
    log = Recorder()
    workers.write("checks", "idle.py", IDLE)
    worker = await calm.worker("idle.py", "idle", log)
    await calm.until(lambda: log.count("idle"), timeout=10)
    if how == "signal":
        worker.stop()
    else:
        say_stop(worker)
    assert await worker.ended(timeout=10) == 0  # drain() would wait for 30 s


async def test_a_worker_without_a_handler_is_ended_by_the_word_too(calm):
    workers.write("checks", "deaf.py", DEAF)
    worker = await calm.worker("deaf.py", "deaf")
    say_stop(worker)
    assert await worker.ended(timeout=10) not in (0, None, -signal.SIGABRT)


def say_stop(worker):
    worker._child.stdin.write(b"stop\n")
    worker._child.stdin.flush()

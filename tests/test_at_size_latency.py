"""Experiment 90 asks again only after an answer: a closed loop, which hides a pause of the server.
An open loop, which asks at a fixed rate, shows it."""

import asyncio
import statistics
import time

import pytest

pytestmark = pytest.mark.soak

SECONDS = 1.5  # that a loop runs
PAUSE = 0.2  # seconds within it that the server does not run


async def closed_loop(ask):
    """The next request goes out when the answer to the one before is there. Returns seconds each
    (list)."""
    took = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - start)
    return took


async def open_loop(ask, rate=500):
    """So many requests go out a second, whatever the answers do. Each is timed from the moment when
    it was due. Returns seconds each (list)."""
    began = time.perf_counter()

    async def due_at(moment):
        await asyncio.sleep(moment - time.perf_counter())
        await ask()
        return time.perf_counter() - moment

    return await asyncio.gather(
        *(due_at(began + number / rate) for number in range(int(SECONDS * rate)))
    )


async def test_a_closed_loop_hides_a_pause_that_an_open_loop_shows(lab):
    client = await lab.connect(node="n2", name="asks")

    async def answer(msg):
        await msg.respond(msg.data)

    server = await lab.connect(node="n2", name="answers")
    await server.subscribe("echo", cb=answer)
    await server.flush()

    async def p99(loop):
        running = asyncio.create_task(loop(lambda: client.request("echo", b"x", timeout=5)))
        await asyncio.sleep(SECONDS / 3)
        await lab.faults.pause("n2")
        await asyncio.sleep(PAUSE)
        await lab.faults.resume("n2")
        return statistics.quantiles(await running, n=100)[-1]

    closed, opened = await p99(closed_loop), await p99(open_loop)
    assert closed < PAUSE / 4 < opened

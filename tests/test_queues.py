"""The sampler of a consumer's numbers and its pictures; and that a worker which ends by itself ends
well, and at once."""

import signal

import pytest

from labkit import Lab, Recorder
from labkit.pictures import consumers
from labkit.processes import workers
from labkit.wire import samplers

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


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    await lab.js.add_stream(name="ORDERS", subjects=["orders"])
    await lab.js.add_consumer("ORDERS", durable_name="workers", ack_policy="explicit")
    await lab.settled("ORDERS")
    yield lab
    await lab._leave()


async def test_the_sampler_sees_every_number_that_lasts_and_the_last_one(lab):
    log = Recorder()
    async with samplers.watching(lab.js, "ORDERS", "workers", log, every=0.01):
        for _ in range(3):
            await lab.js.publish("orders", b"")
        await lab.until(lambda: log.count("lag", pending=3))
        sub = await lab.js.pull_subscribe_bind("workers", "ORDERS")
        msgs = [(await sub.fetch(1, timeout=5))[0] for _ in range(2)]
        await lab.until(lambda: log.count("lag", pending=1, ack_pending=2))
        msgs += await sub.fetch(1, timeout=5)
        await msgs[0].nak()
        await sub.fetch(1, timeout=5)
        await lab.until(lambda: log.count("lag", redelivered=1))
    seen = log.all("lag")
    assert (
        seen[0]["pending"],
        seen[-1]["pending"],
        seen[-1]["ack_pending"],
        seen[-1]["redelivered"],
    ) == (0, 0, 3, 1)


@pytest.mark.parametrize(
    "how", ["signal", "word"]
)  # the word is what Windows gets in place of the signal
async def test_a_worker_that_is_told_to_stop_ends_at_once_and_with_0(lab, how):
    log = Recorder()
    workers.write("checks", "idle.py", IDLE)
    worker = await lab.worker("idle.py", "idle", log)
    await lab.until(lambda: log.count("idle"), timeout=10)
    if how == "signal":
        worker.stop()
    else:
        worker._child.stdin.write(b"stop\n")
        worker._child.stdin.flush()
    assert await worker.ended(timeout=10) == 0  # drain() would wait for 30 s


async def test_a_worker_without_a_handler_is_ended_by_the_word_too(lab):
    workers.write(
        "checks",
        "deaf.py",
        "import asyncio\nasync def work(nc, js, point):\n    await asyncio.sleep(60)\n",
    )
    worker = await lab.worker("deaf.py", "deaf")
    worker._child.stdin.write(b"stop\n")
    worker._child.stdin.flush()
    assert await worker.ended(timeout=10) not in (0, None, -signal.SIGABRT)


def samples():
    log = Recorder()
    log("change", text="A comes")["at"] = 0
    log("lag", pending=3, ack_pending=0, waiting=0, redelivered=0)["at"] = 0.1
    log("change", text="B comes")["at"] = 0.1
    log("lag", pending=0, ack_pending=2, waiting=1, redelivered=1)["at"] = 2
    return log


@pytest.mark.parametrize(
    "draw",
    [
        lambda: consumers.lag(samples(), "t", "a"),
        lambda: consumers.lag(Recorder(), "t", "a"),
        lambda: consumers.shares(
            {"one way": {"A": 3, "B": 0}, "another": {"A": 1, "B": 2}}, "t", "a", "jobs"
        ),
        lambda: consumers.spread(
            {"rate": {"one": [1, 2, 4], "two": [3]}, "share": {"one": [0], "two": [0]}}, "t", "a"
        ),
    ],
)
def test_pictures_are_drawn_also_from_nothing(draw):
    assert draw().png == draw().png

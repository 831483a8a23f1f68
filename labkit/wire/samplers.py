"""Polls what no message reports: the depth of a stream, the numbers of a consumer."""

import asyncio
import contextlib


@contextlib.asynccontextmanager
async def regularly(look, every):
    """Awaits look() before the block, every so many seconds while the block runs, and once more at
    its end. A look that times out is left out; what else it raises is raised at the end of the
    block."""
    await look()
    ended = False  # a flag, not cancel(): wait_for in Python 3.11 may swallow a cancel()

    async def go_on():
        while not ended:
            await asyncio.sleep(every)
            with contextlib.suppress(TimeoutError):
                await look()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        ended = True
        await task  # raises the error that ended it early: half a chart would look like a whole one
        await look()


@contextlib.asynccontextmanager
async def sampling(js, log, *names, every=0.02):
    """While the block runs, looks at each stream every so many seconds, and once more at the end.

    Notes log("depth", stream=name, messages=n), and log("removed", stream=name, messages=n) when n
    messages have gone since the look before: the depth of a full stream stays the same while it
    loses its oldest messages.
    """
    gone = {}

    async def look():
        for name in names:
            state = (await js.stream_info(name)).state
            log("depth", stream=name, messages=state.messages)
            removed = state.last_seq - state.messages
            before = gone.get(name, removed)
            if removed > before:
                log("removed", stream=name, messages=removed - before)
            gone[name] = removed

    async with regularly(look, every):
        yield


@contextlib.asynccontextmanager
async def watching(js, stream, consumer, log, every=0.02):
    """While the block runs, looks at the consumer every so many seconds, and once more at the end.

    Notes log("lag", pending=…, ack_pending=…, waiting=…, redelivered=…), named like the columns of
    lab.consumers().
    """

    async def look():
        info = await js.consumer_info(stream, consumer)
        log(
            "lag",
            pending=info.num_pending,
            ack_pending=info.num_ack_pending,
            waiting=info.num_waiting,
            redelivered=info.num_redelivered,
        )

    async with regularly(look, every):
        yield

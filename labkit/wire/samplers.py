"""What no message tells is looked at regularly: the depth of a stream, the numbers of a
consumer."""

import asyncio
import contextlib


@contextlib.asynccontextmanager
async def regularly(look, every):
    """Awaits look() before the block, every so many seconds while it runs, and once more at its
    end."""
    await look()
    ended = False

    # ended by a flag: wait_for in Python 3.11 may swallow a cancel() that comes with an answer
    async def go_on():
        while not ended:
            await asyncio.sleep(every)
            with contextlib.suppress(
                TimeoutError
            ):  # a look that nobody answered in time is one dot less
                await look()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        ended = True
        await task  # raises what ended it early: a chart of half a run would look whole
        await look()


@contextlib.asynccontextmanager
async def sampling(js, log, *names, every=0.02):
    """While the block runs, looks at each stream, `every` so many seconds and once more at the end.
    Notes log("depth", stream=name, messages=n), and log("removed", stream=name, messages=n) when n
    more are gone than before: a full stream stays as deep as it is while it loses its oldest."""
    gone = {}

    async def look():
        for name in names:
            state = (await js.stream_info(name)).state
            log("depth", stream=name, messages=state.messages)
            removed = state.last_seq - state.messages
            if removed > gone.setdefault(name, removed):
                log("removed", stream=name, messages=removed - gone[name])
            gone[name] = removed

    async with regularly(look, every):
        yield


@contextlib.asynccontextmanager
async def watching(js, stream, consumer, log, every=0.02):
    """While the block runs, looks at the consumer `every` so many seconds, and once more at the
    end. Notes log("lag", pending=…, ack_pending=…, waiting=…, redelivered=…), named as the columns
    of lab.consumers().
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

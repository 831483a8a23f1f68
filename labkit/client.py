"""A first connection that ends within seconds, made or not."""
import asyncio
import contextlib
import os

import nats

from labkit.errors import LabError

PATIENCE = 5  # seconds that a drain may take at the end of a lesson


async def connect(timeout=3, error_cb=None, **options):
    """nats.connect, but a first connection that cannot be made ends in a LabError within `timeout` seconds.

    Left alone, nats-py tries again for two minutes (60 times, 2 s apart), and after a refused password at once and
    without a pause. A connection that was made once is kept up by nats-py as always.
    """
    seen, refused = {}, asyncio.Event()

    async def note(error):
        if attempt.done():
            return error_cb and await error_cb(error)
        seen[f"{type(error).__name__}: {error}".removesuffix(": ")] = error
        if "authorization" in str(error).lower():
            refused.set()

    attempt = asyncio.ensure_future(nats.connect(error_cb=note, **options))
    await asyncio.wait([attempt, stop := asyncio.ensure_future(refused.wait())], timeout=timeout,
                       return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    while not attempt.done():  # Python 3.11 may swallow a cancel that meets a refusal
        attempt.cancel()
        await asyncio.wait([attempt], timeout=0.05)
    if not attempt.cancelled() and not attempt.exception():
        return attempt.result()
    why = "; ".join(seen) or f"no answer within {timeout} s"
    raise LabError(f"No connection to {' or '.join(options['servers'])} as {options.get('user', 'anonymous')}: {why}. "
                   + way_out(refused.is_set()))


def way_out(refused):
    """What to do about a first connection that was not made, or was refused."""
    if os.environ.get("NATS_URL"):
        return ("The server does not know this user: look at NATS_USER and NATS_PASSWORD, or NATS_CREDS." if refused else
                "Is NATS_URL right and the server up? Unset NATS_URL to use the lab's own cluster.")
    return ("The cluster was started with another nats.conf, before an update perhaps: python -m labkit down ends it "
            "(docker compose -p labkit down for containers)." if refused else "Look with: python -m labkit doctor")


async def farewell(client, drain=True):
    """Drains a client if it can be drained, and closes it."""
    with contextlib.suppress(Exception):  # a client that broke on purpose is closed all the same
        for sub in list(client._subs.values()):
            if not sub._cb:  # nobody reads this one any more, and drain would wait for somebody who does
                await sub.unsubscribe()
        if drain and client.is_connected and not client.is_draining:
            await asyncio.wait_for(client.drain(), timeout=PATIENCE)
    if not client.is_closed:
        await _close(client)


async def _close(client):
    """Closes a client, also one whose connection is dead.

    Where close() writes its last bytes to a dead connection, it raises (an OSError or, by version of Python,
    AttributeError or TypeError) after it has called the client closed, and before it ends the subscriptions.
    Their tasks would live on, and fail when they are collected as garbage. So it is called once more, with nothing
    left to write.
    """
    try:
        await client.close()
    except Exception:
        client._pending, client._pending_data_size = [], 0
        client._status = client.DISCONNECTED
        await client.close()

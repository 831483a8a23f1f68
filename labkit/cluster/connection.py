"""A first connection that ends within seconds, made or not; and addresses as they may be shown."""

import asyncio
import contextlib
import os
import re

from nats.aio.client import Client

from labkit.errors import LabError

PATIENCE = 5  # seconds that a drain may take at the end of a lesson


async def connect(timeout=3, error_cb=None, **options):
    """nats.connect, but a first connection that cannot be made ends in a LabError.

    timeout: seconds; None waits for ever. Left alone, nats-py tries again for two minutes (60
    times, 2 s apart), and after a refused password at once and without a pause. A connection that
    was made once is kept up by nats-py as always. Whatever ends the attempt before that, also a
    cancel, leaves no task and no socket behind.
    """
    seen, refused, client, made = {}, asyncio.Event(), Client(), False

    async def note(error):
        if attempt.done():
            return error_cb and await error_cb(error)
        seen[_words(error)] = error
        if "authorization" in str(error).lower():
            refused.set()

    attempt = asyncio.ensure_future(client.connect(error_cb=note, **options))
    stop = asyncio.ensure_future(refused.wait())
    try:
        await asyncio.wait([attempt, stop], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        made = attempt.done() and not attempt.exception()
    finally:
        stop.cancel()
        if not made:
            await asyncio.shield(_abandon(client, attempt))
    if made:
        return client
    if not attempt.cancelled() and attempt.exception():
        seen.setdefault(_words(attempt.exception()))
    servers = options["servers"] if isinstance(options["servers"], list) else [options["servers"]]
    why = "; ".join(seen) or f"no answer within {timeout} s"
    shown, user = " or ".join(map(without_secrets, servers)), options.get("user", "anonymous")
    raise LabError(f"No connection to {shown} as {user}: {why}. {way_out(refused.is_set())}")


async def _abandon(client, attempt):
    """Ends a first connection wherever it stands."""
    while not attempt.done():  # Python 3.11 may swallow a cancel that meets a refusal
        attempt.cancel()
        await asyncio.wait([attempt], timeout=0.05)
    if not attempt.cancelled():
        attempt.exception()  # heard, so that asyncio does not complain
    if client._transport:  # else it never came to a socket, and nats-py has nothing to close
        await close_client(client, drain=False)


def _words(error):
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def without_secrets(url):
    """The address of a server as it may be shown: without user and password, or token."""
    return re.sub(r"^(\w+://)?.*@", r"\1", url)


def login_in(url):
    """The login in the address of a server, as options for nats.connect (dict).

    It is read as nats-py reads it: nothing in it is unquoted."""
    user, colon, password = re.sub(r"^\w+://", "", url).rpartition("@")[0].partition(":")
    if colon:
        return {"user": user, "password": password}
    return {"token": user} if user else {}


def server_version(client):
    """The version of the server that this client is connected to (text, such as "2.15.1")."""
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


def way_out(refused):
    """What to do about a first connection that was not made, or was refused."""
    if os.environ.get("NATS_URL") and refused:
        return (
            "The server does not know this user: look at NATS_USER and NATS_PASSWORD, or"
            " NATS_CREDS."
        )
    if os.environ.get("NATS_URL"):
        return "Is NATS_URL right and the server up? Unset NATS_URL to use the lab's own cluster."
    if refused:
        return (
            "The cluster was started with another nats.conf, before an update perhaps: python -m"
            " labkit down ends it (docker compose -p labkit down for containers)."
        )
    return "Look with: python -m labkit doctor"


async def flush(client):
    """client.flush() that may be cancelled, as by the stop button. nats-py 2.16.0 ends a client's
    reading when the PONG for a cancelled flush arrives (InvalidStateError in its read loop), and
    the client hears nothing from then on. So the flush itself goes on."""
    await asyncio.shield(client.flush())


async def close_client(client, drain=True):
    """Drains a client if it can be drained, and closes it, whatever happens."""
    try:
        with contextlib.suppress(
            Exception
        ):  # a client that broke on purpose is closed all the same
            for sub in list(client._subs.values()):
                if (
                    not sub._cb
                ):  # nobody reads this one any more, and drain would wait for somebody who does
                    await sub.unsubscribe()
            if drain and client.is_connected and not client.is_draining:
                await asyncio.wait_for(client.drain(), timeout=PATIENCE)
    finally:
        if not client.is_closed or _is_open(client):
            await _close(client)


def _is_open(client):
    """True while a client holds a socket. One whose close() was cancelled may hold it, although it
    calls itself closed."""
    writer = getattr(client._transport, "_io_writer", None)
    return writer is not None and not writer.is_closing()


async def _close(client):
    """Closes a client, also one whose close() was cancelled in the middle, or whose connection is
    dead.

    Where close() writes its last bytes to a dead connection, it raises (an OSError or, by version
    of Python, AttributeError or TypeError) after it has called the client closed, and before it
    ends the subscriptions. Their tasks would live on, and fail when they are collected as garbage.
    So it is called once more, with nothing left to write.
    """
    if client.is_closed:
        client._status = client.DISCONNECTED  # else close() would do nothing
    try:
        await client.close()
    except Exception:
        client._pending, client._pending_data_size = [], 0
        client._status = client.DISCONNECTED
        await client.close()

"""A first connection that succeeds or fails within seconds; and addresses without their secrets."""

import asyncio
import contextlib
import os
import re

from nats.aio.client import Client

from labkit.errors import LabError

OUR_NAME = "labkit"  # of the clients with which labkit asks by itself
PATIENCE = 5  # seconds that a drain may take at the end of a lesson


async def connect(timeout=3, error_cb=None, shown=None, **options):
    """Connects as nats.connect does. Returns the client; raises LabError if it cannot be connected.

    timeout: seconds; None waits for ever. nats-py by itself tries for two minutes (60 times, 2 s
    apart). Once the connection is made, nats-py keeps it up as always. If the attempt fails or is
    cancelled, it leaves no task and no socket behind. error_cb, options: those of nats.connect.
    shown: the servers as the error names them, if they are reached at other addresses (list).
    """
    client = Client()
    problems = []
    refused = asyncio.Event()

    async def note(error):
        if not attempt.done():
            problems.append(_words(error))
            if "authorization" in str(error).lower():
                refused.set()
        elif error_cb:
            await error_cb(error)

    attempt = asyncio.ensure_future(client.connect(error_cb=note, **options))
    refusal = asyncio.ensure_future(refused.wait())
    connected = False
    try:
        await asyncio.wait([attempt, refusal], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        connected = attempt.done() and not attempt.exception()
    finally:
        refusal.cancel()
        if not connected:
            await asyncio.shield(_abandon(client, attempt))
    if connected:
        return client
    if not attempt.cancelled() and attempt.exception():
        problems.append(_words(attempt.exception()))
    servers = options["servers"] if isinstance(options["servers"], list) else [options["servers"]]
    names = " or ".join(without_secrets(server) for server in shown or servers)
    why = "; ".join(dict.fromkeys(problems)) or f"no answer within {timeout} s"
    raise LabError(
        f"No connection to {names} as {options.get('user', 'anonymous')}: {why}."
        f" {way_out(refused.is_set())}"
    )


async def _abandon(client, attempt):
    """Ends a first connection, however far it has come."""
    while not attempt.done():  # Python 3.11 may lose a cancel that meets a refused connection
        attempt.cancel()
        await asyncio.wait([attempt], timeout=0.05)
    if not attempt.cancelled():
        attempt.exception()  # else asyncio complains that nobody retrieved it
    if client._transport:  # without one, nats-py has nothing to close
        await close_client(client, drain=False)


def _words(error):
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def without_secrets(url):
    """Returns a server's address as it may be shown: without user and password, or token."""
    return re.sub(r"^(\w+://)?.*@", r"\1", url)


def login_in(url):
    """Returns the login in a server's address, as options for nats.connect (dict).

    nats-py reads it the same way: it unquotes nothing."""
    user, colon, password = re.sub(r"^\w+://", "", url).rpartition("@")[0].partition(":")
    if colon:
        return {"user": user, "password": password}
    return {"token": user} if user else {}


def server_version(client):
    """Returns the version of the server that this client is connected to, such as "2.15.1"."""
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


def way_out(refused):
    """Returns what to do about a first connection that failed (text). refused: True if the server
    did not accept the login."""
    if os.environ.get("NATS_URL") and refused:
        return (
            "The server does not know this user: check NATS_USER and NATS_PASSWORD, or NATS_CREDS."
        )
    if os.environ.get("NATS_URL"):
        return "Is NATS_URL right and the server up? Unset NATS_URL to use the lab's own cluster."
    if refused:
        return (
            "The cluster was started with another nats.conf, perhaps before an update. End it with:"
            " python -m labkit down (containers: docker compose -p labkit down)."
        )
    return "Look with: python -m labkit doctor"


async def flush(client):
    """Does client.flush(), and may be cancelled, as by the stop button.

    When the PONG for a cancelled flush arrives, nats-py 2.16.0 stops reading (InvalidStateError in
    its read loop), and the client receives nothing from then on. So the flush itself goes on."""
    await asyncio.shield(client.flush())


async def close_client(client, drain=True):
    """Closes a client in any state. drain: True to let its subscriptions finish first."""
    try:
        with contextlib.suppress(Exception):  # close also a client that was broken on purpose
            for sub in list(client._subs.values()):
                if not sub._cb:  # drain would wait for a reader, and there is none any more
                    await sub.unsubscribe()
            if drain and client.is_connected and not client.is_draining:
                await asyncio.wait_for(client.drain(), timeout=PATIENCE)
    finally:
        if not client.is_closed or _holds_socket(client):
            await _close(client)


def _holds_socket(client):
    """True while a client holds a socket. After a cancelled close() it may call itself closed and
    still hold one."""
    writer = getattr(client._transport, "_io_writer", None)
    return writer is not None and not writer.is_closing()


async def _close(client):
    """Closes a client, also if its close() was cancelled halfway or its connection is dead.

    If close() writes its last bytes to a dead connection, it raises: an OSError or, depending on
    the version of Python, AttributeError or TypeError. By then it has called the client closed, but
    has not ended the subscriptions. Their tasks would live on, and fail when they are collected as
    garbage. So close() is called again, with nothing left to write.
    """
    if client.is_closed:
        client._status = client.DISCONNECTED  # else close() would do nothing
    try:
        await client.close()
    except Exception:
        client._pending = []
        client._pending_data_size = 0
        client._status = client.DISCONNECTED
        await client.close()

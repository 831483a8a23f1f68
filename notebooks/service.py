"""What producer.py and consumer.py share: a connection that outlives its servers, a good end, an exit code.

Settings are environment variables. Most have the names that the `nats` command uses:

    NATS_URL                    one server or several, with commas; default nats://127.0.0.1:4222
    NATS_USER, NATS_PASSWORD    the login, or
    NATS_CREDS                  a credentials file
    NATS_CA                     a file: the authority that signed the server's certificate
    NATS_CERT, NATS_KEY         files: our own certificate and key, if the server asks for one
    NATS_TLS_FIRST=1            TLS before the first word in plain text (handshake first). Without it, whoever stands in
                                the server's place and greets in plain text gets the password, also if NATS_CA is set.
    NATS_INBOX_PREFIX           where replies arrive, such as _INBOX_orders; default _INBOX
    REPLICAS                    of a stream that is made here; default 3

There is no health endpoint and no metrics: a program that cannot go on ends, so that its supervisor needs the exit code
alone, and what an alert needs the servers tell (`num_pending` and `num_ack_pending` of a consumer, the messages in DEAD).
"""
import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import ssl
import time
from pathlib import Path

import nats
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

SERVERS = os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(",")
ADDRESSES = ", ".join(url.rpartition("@")[2] for url in SERVERS)  # for messages: no password
# JetStream's error codes. Errors with HTTP code 400 are permanent, except these, which pass with time:
FULL_ACCOUNT, TOO_FEW_NODES, MADE_MEANWHILE = 10002, 10005, 10058
BEING_MOVED = {10123, 10124, 10202, 10226}
PASSING = {FULL_ACCOUNT, TOO_FEW_NODES, MADE_MEANWHILE, *BEING_MOVED}
NO_JETSTREAM, BAD_STREAM, ONE_SERVER = 10039, 10052, 10074  # permanent too, with HTTP codes 500 and 503
LEAVING = 3                                                  # seconds; a server that stands still must not hold up the end
STUCK = 40                                                   # seconds; TLS alone takes 30 to leave a server that stands still
CONNECTING = 10                                              # seconds; then a new client tries
TLS_FIRST = os.environ.get("NATS_TLS_FIRST", "") not in ("", "0")


class CannotGoOn(Exception):
    """Something that no retry mends. Its text is the last line of the program; the exit code is 1."""


def number(name, default, least=0, most=1_000_000):
    """A number of the environment (float)."""
    text = os.environ.get(name, default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise SystemExit(f"{name}={text!r}; wanted: a number from {least} to {most}")
    return value


REPLICAS = int(number("REPLICAS", "3", least=1, most=5))
USER = os.environ.get("NATS_USER") or os.environ.get("NATS_CREDS")  # for messages


def permanent(error):
    """True if the server's answer will be the same next time."""
    if isinstance(error, ConnectionClosedError):
        return True
    if not isinstance(error, APIError):
        return False
    if error.code == 400:
        return error.err_code not in PASSING
    return error.err_code in (NO_JETSTREAM, BAD_STREAM, ONE_SERVER)


async def have_stream(js, subject, **config):
    """Makes the stream. One that is there is an operator's: it stays as it is. It must take the subject."""
    name = config["name"]
    try:
        subjects = (await js.stream_info(name)).config.subjects or []
    except NotFoundError:
        await js.add_stream(**config, num_replicas=REPLICAS)
        return
    patterns = [re.escape(taken).replace(r"\*", "[^.]+").replace(">", ".+") for taken in subjects]
    if not any(re.fullmatch(pattern, subject) for pattern in patterns):
        raise CannotGoOn(f"stream {name} takes {', '.join(subjects) or 'no subject'}; wanted: {subject}")


def connection():
    """Options for nats.connect, from the environment."""
    files = {key: os.environ[key] for key in ("NATS_CREDS", "NATS_CA", "NATS_CERT", "NATS_KEY") if os.environ.get(key)}
    for key, path in files.items():
        if not Path(path).is_file():
            raise CannotGoOn(f"{key}={path}: there is no such file")
    inbox = os.environ.get("NATS_INBOX_PREFIX") or "_INBOX"
    if not re.fullmatch(r"[^\s.*>]+(\.[^\s.*>]+)*", inbox):
        raise CannotGoOn(f"NATS_INBOX_PREFIX={inbox!r}; wanted: a subject such as _INBOX_orders")
    options = {"user": os.environ.get("NATS_USER"), "password": os.environ.get("NATS_PASSWORD"),
               "user_credentials": files.get("NATS_CREDS"), "inbox_prefix": inbox}
    if TLS_FIRST or "NATS_CA" in files or "NATS_CERT" in files:
        try:
            options["tls"] = ssl.create_default_context(cafile=files.get("NATS_CA"))
            if "NATS_CERT" in files:
                options["tls"].load_cert_chain(files["NATS_CERT"], files.get("NATS_KEY"))
        except ssl.SSLError as error:
            raise CannotGoOn(f"NATS_CA, NATS_CERT or NATS_KEY: {error}") from error
        options["tls_handshake_first"] = TLS_FIRST
    return options


class End:
    """Whether the program is to end. `code`: 0 after SIGTERM or Ctrl-C; a text if it cannot go on; `at`: since when."""

    at = math.inf

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.called = self.loop.create_future()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self.loop.call_soon_threadsafe(self.call, 0))

    def call(self, code):
        if not self.called.done():                           # the first reason counts
            self.called.set_result(code)
            self.at = time.monotonic()

    @property
    def code(self):
        """None while the program is to go on."""
        return self.called.result() if self.called.done() else None

    async def within(self, seconds):
        """Waits so long, or until the end."""
        await asyncio.wait([self.called], timeout=seconds)


async def serve(name, work):
    """Connects and runs work(nc, end), which returns once `end.code` is not None. Returns 0 after SIGTERM or Ctrl-C,
    else a text that says why it cannot go on: sys.exit makes that exit code 1."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    log = logging.getLogger(name)
    end = End()

    async def on_error(error):
        log.warning("nats: %r", error)
        words = str(error).lower()
        if "authorization" in words:                         # left alone, nats-py tries a wrong password for ever
            end.call(f"{ADDRESSES} refuse user {USER!r}: {error}")
        elif "permissions violation" in words:               # all that we ask for, we need
            end.call(f"user {USER!r} lacks a permission: {error}")
        elif isinstance(error, ssl.SSLCertVerificationError):
            end.call(f"{ADDRESSES} show a certificate that is not trusted: {error.verify_message}")

    async def on_closed():                                   # closed is for good, also with max_reconnect_attempts=-1
        if nc:
            end.call(f"the connection was closed for good: {nc.last_error}")

    async def on_disconnect():
        away.set()
        log.warning("disconnected")

    async def on_reconnect():
        away.clear()
        log.warning("reconnected")

    nc = None
    away = asyncio.Event()
    try:
        nc = await connect(end, log, name=name, max_reconnect_attempts=-1, reconnect_time_wait=0.5, ping_interval=10,
                           max_outstanding_pings=2, drain_timeout=LEAVING, error_cb=on_error, closed_cb=on_closed,
                           disconnected_cb=on_disconnect, reconnected_cb=on_reconnect, **connection())
        if nc:
            watching = asyncio.ensure_future(watch(nc, away, end))
            await work(nc, end)
        why = end.code
    except CannotGoOn as error:
        why = end.code or error                              # what called for the end explains what happened then
    except (NatsError, TimeoutError, OSError) as error:
        why = end.code or f"stopped by {type(error).__name__}: {error}"
    finally:
        if nc:
            watching.cancel()
            await leave(nc)
    return f"{name}: {why}" if why else 0


async def connect(end, log, **options):
    """A client that is connected; None if the end is called for first. nats-py 2.16 tries for ever, but if a first TLS
    handshake fails it waits for ever, without a word, for that socket to close. So a new client tries after a while."""
    while True:
        nc = nats.NATS()
        connecting = asyncio.ensure_future(nc.connect(SERVERS, **options))
        await asyncio.wait([connecting, end.called], timeout=CONNECTING, return_when=asyncio.FIRST_COMPLETED)
        failed = connecting.exception() if connecting.done() else None
        if connecting.done() and not failed and end.code is None:
            return nc
        await give_up(connecting)
        await leave(nc)
        if end.code is not None:
            return None
        if isinstance(failed, NatsError):
            raise failed
        if failed:                                           # only its kind: its text may hold a part of a secret
            raise CannotGoOn(f"NATS_URL or NATS_CREDS cannot be used: {type(failed).__name__}") from failed
        hint = ". NATS_TLS_FIRST=1 needs handshake_first in the tls block of the servers" if TLS_FIRST else ""
        log.error("no connection to %s in %s s; a new client tries%s", ADDRESSES, CONNECTING, hint)


async def watch(nc, away, end):
    """Calls the end if the client cannot leave its server: nats-py 2.16 looks for another one only when the old one has
    read all that was written to it. One that stands still may never do so."""
    stuck = 0
    while end.code is None:
        await end.within(1)
        stuck = stuck + 1 if nc.is_reconnecting and not away.is_set() else 0
        if stuck >= STUCK:
            end.call(f"for {STUCK} s the client could not leave a server that stands still")


async def give_up(task):
    while not task.done():                                   # once may not do: Python 3.11 can swallow a cancel
        task.cancel()
        await asyncio.sleep(0.01)
    if not task.cancelled():
        task.exception()                                     # nobody wants to know


async def leave(nc):
    """Sends the last acks and what is buffered, and closes, whatever state the connection is in."""
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        if nc.is_connected:
            await nc.flush(LEAVING)
            await nc.drain()
    if nc.is_connected or nc.is_connecting or nc.is_reconnecting:
        closing = asyncio.ensure_future(nc.close())          # a socket that was given up before ends it with CancelledError
        await asyncio.wait([closing], timeout=LEAVING)
        await give_up(closing)

"""The inside of a worker process (see workers.py): connects, and runs `work` of a module that
stands in a notebook.

It imports nothing of labkit, so that a worker starts as fast as nats-py does.
"""

import _thread
import asyncio
import collections
import contextlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback

import nats

DRAINING = 4  # s; for handlers that have a message in hand
LEAVING = 8  # s; then the process ends, whatever holds it up


async def main(order):
    """Runs the worker to its end, which comes soon after that of its `work`.

    order: dict with module (path), login (of nats.connect), beside (another login, for its last
    words: they are not the worker's own), events (subject), name, kill_at and
    pause_at ([event, count] or None) and options (keyword arguments for work).
    """
    nc = await connect(order)
    point = make_point(nc, order)
    try:
        # The modules of one lesson may import each other.
        sys.path.insert(0, os.path.dirname(order["module"]))
        work = runpy.run_path(order["module"])["work"]
        await point("ready")
        await work(nc, nc.jetstream(), point, **order["options"])
        end_soon()
        await leave(nc)
    except (Exception, asyncio.CancelledError):
        end_soon()
        last_words(order, entry(order, "failed", {"text": traceback.format_exc(limit=-3)}))
        with contextlib.suppress(nats.errors.Error, OSError):
            await nc.flush()  # what it sent before it failed
        sys.exit(1)


async def connect(order):
    """Returns a connected client, once the notebook knows this process and this connection."""

    async def introduce():
        """Tells the notebook which connection this is, so that streams made on it belong to the
        lesson, and which process."""
        info = nc._server_info
        server = info.get("server_name") or info.get("server_id")
        told = {"connection": (server, nc.client_id, order["name"]), "pid": os.getpid()}
        await nc.publish(order["events"], json.dumps(told).encode())

    nc = await nats.connect(
        name=order["name"], reconnected_cb=introduce, drain_timeout=DRAINING, **order["login"]
    )
    await introduce()
    # last_words() uses another connection, so make sure that the pid has been reported first:
    # resume() needs it.
    await nc.flush()
    return nc


def make_point(nc, order):
    """Returns the function `point` that `work` gets."""
    passed = collections.Counter()

    async def point(event, **fields):
        """Tells the notebook's recorder that this worker is here now. If this is where it is to be
        killed or paused, it dies or stands still here."""
        words = entry(order, event, fields)
        passed[event] += 1
        here = [event, passed[event]]
        if here == order["kill_at"]:
            last_words(order, words)
            kill()
        elif here == order["pause_at"]:
            last_words(order, words)
            pause()
        else:
            await nc.publish(order["events"], json.dumps(words).encode())
            await asyncio.sleep(0)  # nats-py's own task writes it out now

    return point


def entry(order, event, fields):
    """An event of this worker, now (dict)."""
    return {"at": time.perf_counter(), "event": event, "worker": order["name"], **fields}


def end_soon():
    """Ends the process in LEAVING seconds: a task that swallows its cancel, or a thread that hangs,
    would keep it for ever."""
    watch = threading.Timer(LEAVING, os._exit, [1])
    watch.daemon = True
    watch.start()


async def leave(nc):
    """Drains and closes the client, unless `work` has done so."""
    while nc.is_connecting or nc.is_reconnecting:
        await asyncio.sleep(0.05)
    if nc.is_closed:
        return
    for sub in list(nc._subs.values()):
        if not sub._cb:  # nobody reads it any more, and drain would wait for that (30 s)
            await sub.unsubscribe()
    await nc.drain()


def last_words(order, words):
    """Returns when the notebook has noted these words (dict). They travel on a connection of their
    own while the worker's event loop stands still. Anything the worker has not sent yet (an ack,
    for example) is lost with the worker."""

    async def say():
        nc = await nats.connect(**order["beside"])
        await nc.request(order["events"], json.dumps(words).encode(), timeout=10)
        await nc.close()

    thread = threading.Thread(target=lambda: asyncio.run(say()))
    thread.start()
    thread.join()


def kill():
    if sys.platform == "win32":
        os.kill(os.getpid(), signal.SIGTERM)  # TerminateProcess: nothing is caught
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def pause():
    if sys.platform == "win32":
        import psutil

        psutil.Process().suspend()
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


def listen_to_the_parent():
    """The notebook holds the other end of stdin: when it is gone, so is this process, whatever it
    is doing. A word from there is SIGTERM for Windows, which has none."""
    # os.read, not sys.stdin: a thread that waits there aborts the interpreter's end (SIGABRT).
    while os.read(0, 1024):
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            break
        _thread.interrupt_main(signal.SIGTERM)
    os._exit(1)


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=listen_to_the_parent, daemon=True).start()
    asyncio.run(main(given))

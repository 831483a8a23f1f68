"""The inside of a worker process (see workers.py): connects, and runs `work` of a module that
stands in a notebook.

It imports nothing of labkit, so that a worker starts as fast as nats-py does."""

import _thread
import asyncio
import collections
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback

import nats


async def main(order):
    """order: dict with module (path), login (of nats.connect), events (subject), name, kill_at and
    pause_at ([event, count] or None) and options (keyword arguments for work)."""

    async def introduce():
        """Tells the notebook which connection this is, whose streams are the lesson's, and which
        process."""
        info = nc._server_info
        who = info.get("server_name") or info.get("server_id"), nc.client_id, order["name"]
        await nc.publish(
            order["events"], json.dumps({"connection": who, "pid": os.getpid()}).encode()
        )

    nc = await nats.connect(name=order["name"], reconnected_cb=introduce, **order["login"])
    await introduce()
    await (
        nc.flush()
    )  # before its last words, which take another way: who resumes it must know which process it is
    passed = collections.Counter()

    async def point(event, **fields):
        """Tells the notebook's recorder that this worker is here now. If this is where it is to be
        killed or paused, it dies or stands still here."""
        passed[event] += 1
        entry = {"at": time.perf_counter(), "event": event, "worker": order["name"], **fields}
        here = [event, passed[event]]
        if here in (order["kill_at"], order["pause_at"]):
            last_words(order, entry)
            kill() if here == order["kill_at"] else pause()
        else:
            await nc.publish(order["events"], json.dumps(entry).encode())
            await asyncio.sleep(0)  # nats-py's own task writes it out now

    try:
        sys.path.insert(
            0, os.path.dirname(order["module"])
        )  # the modules of one lesson may import each other
        work = runpy.run_path(order["module"])["work"]
        await point("ready")
        await work(nc, nc.jetstream(), point, **order["options"])
        for sub in list(nc._subs.values()):
            if (
                not sub._cb
            ):  # nobody reads it any more, and drain would wait for that (drain_timeout, 30 s)
                await sub.unsubscribe()
        await nc.drain()
    except Exception:
        last_words(
            order,
            {
                "at": time.perf_counter(),
                "event": "failed",
                "worker": order["name"],
                "text": traceback.format_exc(limit=-3),
            },
        )
        sys.exit(1)


def last_words(order, entry):
    """Returns when the notebook has noted this. They travel on a connection of their own while the
    worker's event loop stands still: what it had not yet sent, an ack say, dies with it."""

    async def say():
        nc = await nats.connect(name=order["name"], **order["login"])
        await nc.request(order["events"], json.dumps(entry).encode(), timeout=10)
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
    while os.read(
        0, 1024
    ):  # not sys.stdin: a thread that waits there aborts the interpreter's end (SIGABRT)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            break
        _thread.interrupt_main(signal.SIGTERM)
    os._exit(1)


if __name__ == "__main__":
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=listen_to_the_parent, daemon=True).start()
    asyncio.run(main(order))

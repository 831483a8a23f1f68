"""JupyterLab's stop button also stops a cell that waits."""

import signal
import socket
import sys

_waking = None  # (event loop, pair of sockets): what wakes the loop of this kernel


def wake_on_signals(loop):
    """From now on a signal wakes this event loop of a Jupyter kernel, which must be the loop that
    runs.

    ipykernel answers the stop button with a callback, and puts it among those that are due
    (tornado's add_callback) without waking the loop. A loop that waits for the network, or for a
    timer, sees it when something else happens: a cell that awaits a minute's sleep is stopped after
    that minute. See https://github.com/ipython/ipykernel/issues/881 (Nothing to do on Windows: its
    loop, asyncio's ProactorEventLoop, is woken by signals.)
    """
    global _waking
    if (
        "ipykernel" not in sys.modules
        or sys.platform == "win32"
        or (_waking and _waking[0] is loop)
    ):
        return
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    try:
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not the main thread (a subshell): no signal arrives here
        reader.close()
        writer.close()
        return
    loop.add_reader(reader, reader.recv, 4096)
    _waking = loop, (reader, writer)

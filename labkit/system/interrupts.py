"""Lets JupyterLab's stop button stop a cell that waits."""

import signal
import socket
import sys

_waking = None  # (event loop, (reader, writer)): the sockets that wake the loop of this kernel


def wake_on_signals(loop):
    """From now on, a signal wakes this event loop of a Jupyter kernel. It must be the running one.

    ipykernel answers the stop button with a callback, and schedules it (tornado's add_callback)
    without waking the loop. A loop that waits for the network or for a timer runs it only when
    something else happens: a cell that sleeps for a minute stops after that minute. See
    https://github.com/ipython/ipykernel/issues/881. On Windows, signals wake the loop already
    (asyncio's ProactorEventLoop).
    """
    global _waking
    if "ipykernel" not in sys.modules or sys.platform == "win32":
        return
    if _waking and _waking[0] is loop:
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

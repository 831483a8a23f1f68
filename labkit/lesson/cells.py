"""A cell that fails or is interrupted leaves nothing running that would spoil the next try.

When such a cell ends, the asyncio tasks and the subscriptions that it started are ended. What a
cell that succeeded has started stays: a responder in the background serves the cells below.

Which tasks are these? A task belongs to the cell in which it was created, also if a callback or
another task of that cell created it: a context variable tells that, which each new task inherits
from the code that creates it. So a responder of an earlier cell that makes a task for each message
goes on undisturbed. And a task is the reader's if the reader's code created it, or if it runs the
reader's code: not the tasks that nats-py makes for itself (to read, to ping, to reconnect, to
deliver the messages of a subscription), nor those of labkit and of the kernel.

Which subscriptions? All that came to the lesson's clients while the cell ran, except the inboxes of
nats-py, which it makes at the first request and keeps, and labkit's line to a worker.
"""

import asyncio
import contextlib
import contextvars
import sys
import threading
import weakref

from nats.aio.client import Client
from nats.js.client import JetStreamContext

from labkit import errors
from labkit.lesson.missing_names import MissingNames

PATIENCE = 1  # seconds for a server to hear of an unsubscribe, and for a task to end
TRIES = 3  # a task may swallow a cancel; then it is cancelled again
# modules whose frames are skipped when looking for the code that created the task
BETWEEN = ("asyncio", "labkit.errors", __name__)

_running = contextvars.ContextVar("the cell that runs", default=None)
_watch = None  # the Watch of this kernel


def watch(lab):
    """From now until unwatch(lab), cells that do not finish are tidied up, the present one too, and
    a NameError says which cell makes the name. Does nothing outside a Jupyter kernel."""
    global _watch
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    if not getattr(shell, "kernel", None):
        return
    loop = asyncio.get_running_loop()
    if not _watch or _watch.loop is not loop:
        _watch = Watch(shell, loop)
    _watch.add(lab)


def unwatch(lab):
    """Leaves the cells alone again, once no lab is open."""
    if _watch and lab in _watch.labs:
        _watch.remove(lab)


class Cell:
    """What a cell has started since this object was made."""

    def __init__(self, clients):
        self.tasks = weakref.WeakSet()
        self.numbers = {client: client._sid for client in clients}  # of the latest subscription

    def subscriptions(self, clients):
        """The subscriptions of these clients that have come since (list)."""
        return [
            sub
            for client in clients
            for sub in client._subs.values()
            if sub._id > self.numbers.get(client, 0) and not _is_internal(sub)
        ]


class Watch:
    """Watches the cells of this kernel while at least one lab is open."""

    def __init__(self, shell, loop):
        self.shell = shell
        self.loop = loop
        self.thread = threading.get_ident()
        self.labs = []
        self.cell = None  # the Cell that runs now
        self.ending = set()  # tasks that end others: asyncio itself holds them weakly
        self.makes_tasks = False  # True while the loop uses our task factory
        self.factory_before = None
        self.names = MissingNames(shell)

    def add(self, lab):
        if not self.labs:
            self.shell.events.register("pre_run_cell", self._cell_begins)
            self.shell.events.register("post_run_cell", self._cell_ends)
            self._count_tasks()
            self.names.install()
        self.labs.append(lab)
        self.names.topics.append(lab.topic)
        if not self.cell:
            self._cell_begins()  # it has begun already: it is the one that opens the lab

    def remove(self, lab):
        self.labs.remove(lab)
        self.names.topics.remove(lab.topic)
        if self.labs:
            return
        self.shell.events.unregister("pre_run_cell", self._cell_begins)
        self.shell.events.unregister("post_run_cell", self._cell_ends)
        self.cell = None
        self.names.remove()
        if self.loop.get_task_factory() == self._make_task:  # else another one calls it
            self.loop.set_task_factory(self.factory_before)
            self.makes_tasks = False

    def _count_tasks(self):
        if not self.makes_tasks:
            self.factory_before = self.loop.get_task_factory()
            self.loop.set_task_factory(self._make_task)
            self.makes_tasks = True

    def _make_task(self, loop, coroutine, **options):
        if self.factory_before:
            task = self.factory_before(loop, coroutine, **options)
        else:
            task = asyncio.Task(coroutine, loop=loop, **options)
        cell = _running.get()
        if cell and _is_the_readers(coroutine, sys._getframe(1)):
            cell.tasks.add(task)
        return task

    def _clients(self):
        return [client for lab in self.labs for client in lab.clients]

    def _cell_begins(self, info=None):
        if threading.get_ident() == self.thread:  # else a subshell's, with a loop of its own
            self.cell = Cell(self._clients())
            _running.set(self.cell)

    def _cell_ends(self, result):
        """Called by IPython in the event loop, before it answers the front end. It cannot wait, but
        what it starts here runs before the code of a next cell that awaits anything."""
        if threading.get_ident() != self.thread or not self.cell:
            return
        cell, self.cell = self.cell, None
        if not result or not result.success:
            self._end_what_it_started(cell)

    def _end_what_it_started(self, cell):
        tasks = [task for task in cell.tasks if not task.done()]
        subscriptions = cell.subscriptions(self._clients())
        for task in tasks:
            task.cancel()
        ending = self.loop.create_task(_end(tasks, subscriptions, self._clients()))
        self.ending.add(ending)
        ending.add_done_callback(self.ending.discard)
        if tasks or subscriptions:
            were = "was" if len(tasks) + len(subscriptions) == 1 else "were"
            counted = [_count(tasks, "task"), _count(subscriptions, "subscription")]
            print(
                f"This cell did not finish: {' and '.join(filter(None, counted))} that it had"
                f" started {were} ended."
            )


def _count(things, word):
    if not things:
        return ""
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _is_the_readers(coroutine, frame):
    """True if the reader's code asks for this task, or if it runs the reader's code. frame: of the
    code that called the task factory."""
    code = getattr(coroutine, "cr_code", None)
    if code and not errors.is_library(code.co_filename):
        return True
    while frame and frame.f_globals.get("__name__", "").startswith(BETWEEN):
        frame = frame.f_back
    return frame is not None and not errors.is_library(frame.f_code.co_filename)


def _is_internal(subscription):
    """True for an inbox of nats-py, whose answers a method of its own takes, and for labkit's line
    to a worker (see processes/workers.py)."""
    owner = getattr(subscription._cb, "__self__", None)
    return isinstance(owner, (Client, JetStreamContext)) or subscription.subject.startswith(
        "_LABKIT."
    )


async def _end(tasks, subscriptions, clients):
    """Ends these; the tasks are cancelled already. Takes a few seconds at most, whatever they do,
    and raises nothing."""
    await asyncio.gather(*map(_unsubscribe, subscriptions))
    for _ in range(TRIES):
        left = [task for task in tasks if not task.done()]
        if left:
            await asyncio.wait(left, timeout=PATIENCE)
        for task in left:
            task.cancel()  # does nothing if it is done by now
    for client in clients:
        _replace_cancelled_pings(client)


async def _unsubscribe(subscription):
    # Its client may be closed, or without a server; then no message comes in any case.
    with contextlib.suppress(Exception):
        await asyncio.wait_for(subscription.unsubscribe(), PATIENCE)


def _replace_cancelled_pings(client):
    """A flush() that was cancelled, as by the stop button, leaves a cancelled future behind. When
    its PONG arrives, nats-py 2.16.0 fails on it and never reads from the server again."""
    for number, future in enumerate(client._pongs):
        if future.cancelled():
            client._pongs[number] = asyncio.get_running_loop().create_future()

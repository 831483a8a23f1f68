"""What all cases share: apps that run as tasks and can be deployed anew, a log, the check, hints
and the repair."""

import asyncio
import collections
import contextlib
import textwrap

import nats.errors
from nats.js.errors import APIError

from labkit.cluster import connection
from labkit.cluster.streams import delete_all, stream_names
from labkit.errors import LabError
from labkit.exercises.engine import Helped, source_of
from labkit.exercises.helpers import comes_true

LIMIT = 25  # seconds after which a check gives up, whatever happens
CAUSES = [
    "no stream",
    "stream subjects too narrow",
    "stream full, discard new",
    "new messages taken for duplicates",
    "filter matches nothing",
    "ack pending limit reached",
    "consumer paused",
    "poison message",
    "two apps on one durable",
    "blocked event loop",
    "slow consumer on the client",
    "nobody listens on the subject",
    "client in another account",
    "only replica on a dead node",
    "node frozen",
    "wrong credentials",
    "wrong port",
    "unreachable addresses gossiped",
    # No case has one of these: guessing should not pay.
    "consumer deleted",
    "max_deliver used up",
    "ack wait too short",
    "handler too slow",
    "network partition",
    "JetStream switched off",
]


class Unwell(Exception):
    """The system is not well: what was observed."""


class Case(Helped):
    """A system that is ill.

    A case is a class with level, cause, report and hints, and with

        repair(case, lab, js)  static: repairs it; takes those of the three that it needs
        defaults()             the settings (dict)
        setup()                what it needs on the servers
        apps()                 {name: coroutine function}
        strike()               what happens once the apps run
        symptom()              true once it is ill
        healthy()              raises Unwell if it is not well
        well()                 what healthy() has seen of a system that is well (text)

    The body of repair() can stand in a cell; solution() shows it."""

    level = 1  # 1 to 3
    cause = ""  # one of CAUSES; none: a class that cases share
    report = ""  # as a user would tell it

    def __init__(self, lab):
        self.lab = lab
        self.name = type(self).__name__
        self.hints_of = type(self)
        self.causes = sorted(CAUSES)
        self.settings = {}  # what a redeploy can change
        self.clients = {}  # app -> its client, as a debugger would show it
        self.lines = collections.Counter()  # (app, line of its log) -> how many times
        self.patience = 5  # seconds for which a check waits for something good
        self.stopping = asyncio.Event()  # set when the apps are to end
        self._tasks = []
        self._streams_before = None  # names of those that are not of this case
        self._after = contextlib.AsyncExitStack()
        self._closed = False

    # --- what a learner calls

    async def redeploy(self, **changes):
        """Stops the programs in good order and starts them with these settings changed (none: a
        plain restart)."""
        if unknown := set(changes) - set(self.settings):
            raise LabError(
                f"{self.name} has no setting {', '.join(unknown)}; "
                f"it has: {', '.join(self.settings)}."
            )
        if self._closed:
            raise LabError("This case is closed. Open it again, with clinic.open(…).")
        await self._stop()
        self.settings.update(changes)
        await self._start()

    def log(self):
        """What the programs wrote into their logs: a DataFrame with app, message and how many
        times."""
        import pandas as pd

        rows = [(app, text, times) for (app, text), times in self.lines.items()]
        return pd.DataFrame(rows, columns=["app", "message", "times"])

    async def check(self, cause):
        """Prints the verdict: passed if `cause` (one of case.causes) is right and the live system
        is well again."""
        print(await self.verdict(cause))

    async def verdict(self, cause):
        """The same as text."""
        not_yet = f"{self.name}: not yet."
        if cause not in self.causes:
            return f"{not_yet} {cause!r} is none of case.causes: {', '.join(self.causes)}."
        if self._closed:
            return f"{self.name}: this case is closed. Open it again, with clinic.open(…)."
        illness = await self._illness()
        if cause == self.cause:
            if illness:
                return f"{not_yet} The cause is right. Still wrong: {illness}"
            return f"{self.name}: healed. The cause was: {self.cause}. {self.well()}"
        not_it = f"{cause!r} is not what it had."
        if illness:
            return f"{not_yet} {not_it} Still wrong: {illness}"
        return (
            f"{not_yet} The system is well again, but {not_it} "
            "What did you change, and why did it help?"
        )

    async def _illness(self):
        """What is still wrong (text), or None."""
        try:
            async with asyncio.timeout(LIMIT) as limit:
                await self.healthy()
            return None
        except Unwell as observed:
            return str(observed)
        except (TimeoutError, nats.errors.Error, APIError) as error:
            if limit.expired():
                return f"the system did not come to rest within {LIMIT} s."
            return f"the servers did not answer the check ({type(error).__name__}). Check again."

    def solution_text(self):
        """A repair that works, as a cell (text)."""
        imports, _, function = source_of(self.repair).rpartition("async def repair(")
        body = textwrap.dedent(function.partition("\n")[2])
        if imports:
            body = f"{imports.rstrip()}\n\n{body}"
        return f"# {self.cause}\n{body}"

    def story(self):
        """The report and what to do with it (text)."""
        report = textwrap.fill(self.report, 100, initial_indent="    ", subsequent_indent="    ")
        return (
            f"case {self.name}, level {self.level}\n\n{report}\n\n"
            f"running: {', '.join(self.apps())} · settings: {', '.join(self.settings)}"
        )

    # --- what a case may use

    @property
    def js(self):
        return self.lab.js

    def note(self, app, error):
        """Writes a line into the log of an app. error: text or exception."""
        if isinstance(error, Exception):
            error = f"{type(error).__name__}: {error}".removesuffix(": ")
        self.lines[app, error] += 1

    def last(self, app):
        """The latest kind of line in the log of this app (text)."""
        lines = [text for name, text in self.lines if name == app]
        return lines[-1] if lines else "nothing"

    async def connect(self, app, **options):
        """A client of one of the apps: its errors go to the log of the app. Ends with the app."""

        async def error_cb(error):
            self.note(app, error)

        try:
            self.clients[app] = await connection.connect(
                timeout=1.5,
                error_cb=error_cb,
                name=app,
                dont_randomize=True,
                connect_timeout=0.5,
                **{**self.lab.cluster.login(self.lab.topic), **options},
            )
        except LabError as error:
            raise ConnectionError(str(error).split(". ")[0]) from None
        return self.clients[app]

    def undo(self, call):
        """Calls call() (a coroutine function) when the case is closed."""
        self._after.push_async_callback(call)

    # --- how it runs

    async def begin(self):
        """Sets it up and returns when the symptom is there."""
        self._streams_before = await stream_names(self.lab.nc)
        try:
            self.settings = self.defaults()
            await self.setup()
            await self._start()
            await self.strike()
            if not await comes_true(self.symptom, 12):
                raise LabError(
                    f"The case {self.name} did not fall ill. Its log: {dict(self.lines)}. "
                    "Open it again."
                )
        except BaseException:
            await self.close()
            raise

    async def setup(self): ...

    async def strike(self): ...

    async def _start(self):
        self.stopping.clear()
        self._tasks = [
            asyncio.create_task(self._keep_running(app, run)) for app, run in self.apps().items()
        ]

    async def _keep_running(self, app, run):
        """An app as its supervisor runs it: what ends with an error is noted, and started again."""
        while not self.stopping.is_set():
            try:
                await run()
            except Exception as error:
                if asyncio.current_task().cancelling():
                    raise  # the app was being ended when it failed: it must not come back
                self.note(app, error)
                await asyncio.sleep(0.1)

    async def _stop(self):
        self.stopping.set()
        if self._tasks:  # they get some time: a handler that is cut off leaves its message out
            _, slow = await asyncio.wait(self._tasks, timeout=2)
            for task in slow:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def close(self):
        """Ends the apps, undoes the faults, deletes the streams of this case. Safe to run twice."""
        if self._closed:
            return
        self._closed = True
        await self._stop()
        await self._after.aclose()
        if self._streams_before is not None:
            own = await stream_names(self.lab.nc) - self._streams_before
            await delete_all(self.lab.nc, own)

    async def leave(self):
        """Runs close() when the lab closes and ignores errors, because the cluster may be gone."""
        with contextlib.suppress(Exception):
            await self.close()

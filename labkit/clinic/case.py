"""What all cases share: apps that run as tasks and are deployed anew, a log, the check, hints and
the repair."""

import asyncio
import collections
import contextlib
import inspect
import textwrap
import time

from labkit.cluster import connection
from labkit.cluster.streams import delete_all, stream_names
from labkit.errors import LabError
from labkit.exercises.engine import next_hint

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
    "consumer deleted",
    "max_deliver used up",
    "ack wait too short",
    "handler too slow",
    "network partition",
    "JetStream switched off",
]  # the last six are nobody's: guessing should not pay


class Unwell(Exception):
    """The system is not well: what was observed."""


class Case:
    """A system that is ill. `settings`: what a redeploy can change; `causes`: what it might have;
    `clients`: {app: its client}.

    A case defines: level, cause, report, hints, repair (source of a cell), wrong ({mistake:
    (source, words of the verdict)}); defaults() -> settings; setup(), on the servers; apps() ->
    {name: coroutine function}; strike(), what happens once the apps run; symptom() -> true if it
    shows; healthy(), which raises Unwell."""

    level, cause, report, hints, repair, wrong = 1, "", "", [], "", {}
    spoils = ()  # wrong repairs after which the documented one comes too late
    causes = sorted(CAUSES)
    patience = 5  # seconds for which a check waits for something good before it says what is wrong

    def __init__(self, lab):
        self.lab, self.settings = lab, {}
        self.name, self._log = type(self).__name__, collections.Counter()
        self.clients = {}  # app -> its client, as a debugger would show it
        self._tasks, self._stopping, self._closed = [], asyncio.Event(), False
        self._after = contextlib.AsyncExitStack()

    # --- what a learner calls

    async def redeploy(self, **changes):
        """Stops the programs in good order and starts them with these settings changed (none: a
        plain restart)."""
        if unknown := set(changes) - set(self.settings):
            raise LabError(
                f"{self.name} has no setting {', '.join(unknown)}; it has:"
                f" {', '.join(self.settings)}."
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

        rows = [
            {"app": app, "message": text, "times": times}
            for (app, text), times in self._log.items()
        ]
        return pd.DataFrame(rows, columns=["app", "message", "times"])

    async def check(self, cause):
        """Prints the verdict: passed if `cause` (one of case.causes) is right and the live system
        is well again."""
        print(await self.verdict(cause))

    async def verdict(self, cause):
        """The same as text."""
        if cause not in self.causes:
            return (
                f"{self.name}: not yet. {cause!r} is none of case.causes: {', '.join(self.causes)}."
            )
        if self._closed:
            return f"{self.name}: this case is closed. Open it again, with clinic.open(…)."
        right, wrong = (
            cause == self.cause,
            "" if cause == self.cause else f"{cause!r} is not what it had. ",
        )
        try:
            await asyncio.wait_for(self.healthy(), LIMIT)
        except Unwell as observed:
            return (
                f"{self.name}: not yet. {'The cause is right. ' if right else wrong}Still wrong:"
                f" {observed}"
            )
        except TimeoutError:
            return (
                f"{self.name}: not yet. {wrong}Still wrong: the system did not come to rest within"
                f" {LIMIT} s."
            )
        if wrong:
            return (
                f"{self.name}: not yet. The system is well again, but {wrong}What did you change,"
                " and why did it help?"
            )
        return f"{self.name}: healed. The cause was: {self.cause}. {self.well()}"

    def hint(self):
        """Prints the next hint; they get more telling."""
        print(next_hint(type(self), self.hints))

    def solution(self):
        """Shows the documented repair. It is not run: copy it into a cell."""
        print(f"# {self.cause}\n{inspect.cleandoc(self.repair)}")

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
        text = (
            error
            if isinstance(error, str)
            else f"{type(error).__name__}: {error}".removesuffix(": ")
        )
        self._log[app, text] += 1

    def last(self, app):
        """The latest kind of line in the log of this app (text)."""
        lines = [text for name, text in self._log if name == app]
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
            return self.clients[app]
        except LabError as error:
            raise ConnectionError(str(error).split(". ")[0]) from None

    async def until(self, condition, timeout):
        """True as soon as condition() is; False after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.01)
        return True

    def undo(self, call):
        """Calls call() (a coroutine function) when the case is closed."""
        self._after.push_async_callback(call)

    # --- how it runs

    async def begin(self):
        """Sets it up and returns when the symptom is there."""
        self._before = await stream_names(self.lab.nc)
        try:
            self.settings = self.defaults()
            await self.setup()
            await self._start()
            await self.strike()
            if not await self.until(self.symptom, 12):
                raise LabError(
                    f"The case {self.name} did not fall ill. Its log: {dict(self._log)}. Open it"
                    " again."
                )
        except BaseException:
            await self.close()
            raise

    async def setup(self): ...

    async def strike(self): ...

    async def _start(self):
        self._stopping.clear()
        self._tasks = [
            asyncio.create_task(self._keep_running(app, run)) for app, run in self.apps().items()
        ]
        await asyncio.sleep(0.05)

    async def _keep_running(self, app, run):
        """An app as its supervisor runs it: what ends with an error is noted, and started again."""
        while not self._stopping.is_set():
            try:
                await run()
            except Exception as error:
                if asyncio.current_task().cancelling():
                    raise  # the app met its end with an error: it is not to come back
                self.note(app, error)
                await asyncio.sleep(0.1)

    async def _stop(self):
        self._stopping.set()
        if self._tasks:
            _, slow = await asyncio.wait(
                self._tasks, timeout=2
            )  # a handler cut off leaves its message out
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
        await delete_all(self.lab.nc, await stream_names(self.lab.nc) - self._before)

    async def leave(self):
        """As close(), when the lab closes: its cluster may be broken for good, and what it holds
        goes with it."""
        with contextlib.suppress(Exception):
            await self.close()

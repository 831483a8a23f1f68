"""Exercises: a task, hints by degrees, a solution as runnable source, and a check that looks at the
live system.

A module per lesson, named like the lesson's account, defines them as

    @exercise(hints=[...], solution="...", wrong={"name of the mistake": ("source", "words of the
    verdict")}) async def name_of_it(lab, answer):
        "The task, in one sentence."
        ...                      # returns if the answer is right; raises NotYet("what was seen,
        what is wanted")
"""

import ast
import asyncio
import collections
import inspect
import itertools
import linecache
import textwrap
from types import SimpleNamespace

from labkit.errors import where
from labkit.processes import workers

# seconds that a check may take by default; an answer that never returns must not hang the notebook
LIMIT = 10
_shown = collections.Counter()  # owner of hints -> how many of them were shown
_pieces = itertools.count(1)  # numbers the sources that run_source() has run


class NotYet(Exception):
    """The answer is not right yet: what was observed, what is wanted."""


class Exercise:
    """One exercise, bound to an open lab. `await exercise(answer)` checks; `.hint()`;
    `.solution()`."""

    lab = None

    def __init__(self, check, hints, solution, wrong, limit=None):
        self.name, self.task, self.check = check.__name__, inspect.cleandoc(check.__doc__), check
        self.hints, self.source, self.wrong = hints, inspect.cleandoc(solution), wrong
        self.limit = limit  # seconds; None: LIMIT

    def bind(self, lab):
        bound = Exercise(self.check, self.hints, self.source, self.wrong, self.limit)
        bound.lab = lab
        return bound

    async def __call__(self, answer):
        """Prints one of: passed; not yet, with what was observed and what is wanted; not
        attempted."""
        print(await self.verdict(answer))

    async def verdict(self, answer):
        """The same as text."""
        if untouched(answer) or (
            isinstance(answer, str) and self.lab and workers.is_stub(self.lab.topic, answer)
        ):
            return (
                f"{self.name}: not attempted. Put your answer in place of the ... above, and run"
                " both cells again."
            )
        if inspect.iscoroutine(answer):
            answer.close()
            return (
                f"{self.name}: not yet. Pass the function itself, without calling it: no () behind"
                " its name."
            )
        if self.lab and self.lab.nc.is_closed:
            return (
                f"{self.name}: the lab is closed. Run the setup cell again, then your answer and"
                " this check."
            )
        limit = self.limit or LIMIT
        try:
            await asyncio.wait_for(self.check(self.lab, answer), limit)
            return f"{self.name}: passed."
        except NotYet as observed:
            said = str(observed)
        except TimeoutError as error:
            said = (
                f"It did not end within {limit} s: something waits for a message that never comes."
                if not str(error)
                else f"It ended with {type(error).__name__}: {error}."
            )
        except Exception as error:
            said = f"Your code raised {type(error).__name__}: {error}{where(error)}."
        more = " A hint is there: run .hint() on this exercise." if self.hints else ""
        return f"{self.name}: not yet. {said}{more}"

    def hint(self):
        """Prints the next hint; they get more telling."""
        print(next_hint(self.check, self.hints))

    def solution(self):
        """Shows a solution. It is not run: copy it into the cell above to try it."""
        print(self.source)


def exercise(hints, solution, wrong, limit=None):
    """Makes an Exercise of a check. wrong: {mistake: (source of a wrong answer, words that its
    verdict contains)};
    limit: seconds that the check may take (default: LIMIT), where it must wait out an election,
        say.
    """
    return lambda check: Exercise(check, hints, solution, wrong, limit)


def book(module, lab):
    """All exercises of a module, bound to this lab, as attributes of one object."""
    return SimpleNamespace(
        **{
            name: item.bind(lab)
            for name, item in vars(module).items()
            if isinstance(item, Exercise)
        }
    )


def next_hint(owner, hints):
    """The next of these hints, as text; the last one again once all were shown. owner: whose hints
    they are (hashable); those of one owner move on together, however many objects show them."""
    if not hints:
        return "There is no hint. See a solution with .solution()"
    number = min(_shown[owner], len(hints) - 1)
    over = _shown[owner] >= len(hints)
    _shown[owner] += 1
    hint = f"Hint {number + 1} of {len(hints)}: {hints[number]}"
    return f"{hint}\nThat was the last hint. See a solution with .solution()" if over else hint


def untouched(answer):
    """True for `...`, and for a function whose body is nothing but `...` (and a docstring). Its
    source decides, since Python compiles `...` and `pass` to the same code; a function without
    source counts as attempted."""
    if answer is ...:
        return True
    if not inspect.isfunction(answer):
        return False
    try:
        written = ast.parse(textwrap.dedent(inspect.getsource(answer))).body[0]
    except (OSError, SyntaxError):  # no source; or a lambda, in the middle of a line
        return False
    is_def = isinstance(written, (ast.FunctionDef, ast.AsyncFunctionDef))
    return is_def and workers.only_dots(written)


async def run_source(source, **names):
    """Runs a piece of notebook source, top-level await and all; returns its namespace (dict). For
    tests."""
    magic, _, body = source.partition("\n")
    if magic.startswith("%%worker "):
        workers.write(names["lab"].topic, magic.split()[1], body)
        return names
    name = f"<answer {next(_pieces)}>"
    # As IPython does with cells: untouched() reads the source from there.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    return names

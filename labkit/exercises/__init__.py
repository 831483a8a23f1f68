"""Exercises: a task, hints by degrees, a solution as runnable source, and a check that looks at the live system.

A module per lesson, named like the lesson's account, defines them as

    @exercise(hints=[...], solution="...", wrong={"name of the mistake": ("source", "words of the verdict")})
    async def name_of_it(lab, answer):
        "The task, in one sentence."
        ...                      # returns if the answer is right; raises NotYet("what was seen, what is wanted")
"""
import ast
import asyncio
import inspect
import traceback
from types import SimpleNamespace

from labkit import workers

LIMIT = 10  # seconds that a check may take by default; an answer that never returns must not hang the notebook


class NotYet(Exception):
    """The answer is not right yet: what was observed, what is wanted."""


class Exercise:
    """One exercise, bound to an open lab. `await exercise(answer)` checks; `.hint()`; `.solution()`."""

    lab = None

    def __init__(self, check, hints, solution, wrong, limit=None):
        self.name, self.task, self.check = check.__name__, inspect.cleandoc(check.__doc__), check
        self.hints, self.source, self.wrong, self.shown = hints, inspect.cleandoc(solution), wrong, 0
        self.limit = limit  # seconds; None: LIMIT

    def bind(self, lab):
        bound = Exercise(self.check, self.hints, self.source, self.wrong, self.limit)
        bound.lab = lab
        return bound

    async def __call__(self, answer):
        """Prints one of: passed; not yet, with what was observed and what is wanted; not attempted."""
        print(await self.verdict(answer))

    async def verdict(self, answer):
        """The same as text."""
        if untouched(answer) or (isinstance(answer, str) and self.lab and workers.is_stub(self.lab.topic, answer)):
            return f"{self.name}: not attempted. Put your answer in place of the ... above, and run both cells again."
        if inspect.iscoroutine(answer):
            answer.close()
            return f"{self.name}: not yet. Pass the function itself, without calling it: no () behind its name."
        if self.lab and self.lab.nc.is_closed:
            return f"{self.name}: the lab is closed. Run the setup cell again, then your answer and this check."
        limit = self.limit or LIMIT
        try:
            await asyncio.wait_for(self.check(self.lab, answer), limit)
            return f"{self.name}: passed."
        except NotYet as observed:
            said = str(observed)
        except TimeoutError as error:
            said = f"It did not end within {limit} s: something waits for a message that never comes." if not str(error) \
                else f"It ended with {type(error).__name__}: {error}."
        except Exception as error:
            said = f"Your code raised {type(error).__name__}: {error}{_line(error)}."
        more = " A hint is there: run .hint() on this exercise." if self.hints else ""
        return f"{self.name}: not yet. {said}{more}"

    def hint(self):
        """Prints the next hint; they get more telling."""
        number = min(self.shown, len(self.hints) - 1)
        self.shown += 1
        print(f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}")

    def solution(self):
        """Shows a solution. It is not run: copy it into the cell above to try it."""
        print(self.source)


def exercise(hints, solution, wrong, limit=None):
    """Makes an Exercise of a check. wrong: {mistake: (source of a wrong answer, words that its verdict contains)};
    limit: seconds that the check may take (default: LIMIT), where it must wait out an election, say."""
    return lambda check: Exercise(check, hints, solution, wrong, limit)


def book(module, lab):
    """All exercises of a module, bound to this lab, as attributes of one object."""
    return SimpleNamespace(**{name: item.bind(lab) for name, item in vars(module).items() if isinstance(item, Exercise)})


def untouched(answer):
    """True for `...`, and for a function whose body is nothing but `...` (and a docstring)."""
    if answer is ...:
        return True
    code = getattr(answer, "__code__", None)
    return bool(code) and code.co_code in EMPTY and not set(code.co_consts) - {None, answer.__doc__}


def _empty(): ...
def _told(): "A docstring."
async def _empty_coroutine(): ...
async def _told_coroutine(): "A docstring."


# What Python makes of a function that does nothing. The constants alone do not tell: from Python 3.14 on, small numbers
# are not among them. Nor does the code alone: it has a constant's place, not its value.
EMPTY = {function.__code__.co_code for function in (_empty, _told, _empty_coroutine, _told_coroutine)}


async def run_source(source, **names):
    """Runs a piece of notebook source, top-level await and all; returns its namespace (dict). For tests."""
    magic, _, body = source.partition("\n")
    if magic.startswith("%%worker "):
        workers.write(names["lab"].topic, magic.split()[1], body)
        return names
    code = compile(source, "<answer>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    return names


def _line(error):
    own = [frame for frame in traceback.extract_tb(error.__traceback__)
           if "site-packages" not in frame.filename and "labkit" not in frame.filename]
    return f" (in {own[-1].name}, line {own[-1].lineno})" if own else ""

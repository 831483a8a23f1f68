"""Exercises: a task, hints by degrees, a solution, and a check that looks at the live system.

A module for each lesson, named like the lesson's account, defines them as

    @exercise(hints=["the first", "one that tells more"])
    async def name_of_it(lab, answer):
        "The task, in one sentence."
        ...
        want(seen == 3, f"The stream keeps {seen} messages", "3")

    @name_of_it.solved_by
    async def name_of_it(nc):            # a real function: what a learner could write
        ...

The check returns if the answer is right. Else it raises NotYet with what was seen and what is
wanted; want() does that. Answers that are wrong, and answers that are right in another style,
stand in tests/answers.
"""

import ast
import asyncio
import collections
import copy
import inspect
import itertools
import linecache
import textwrap
import types
from collections.abc import Sequence

from labkit.errors import where
from labkit.processes import workers
from labkit.waiting import end_tasks

LIMIT = 10  # seconds that a check may take; an answer that never returns must not hang the notebook
NOT_ATTEMPTED = (
    "not attempted. Put your answer in place of the ... above, and run both cells again."
)
_shown = collections.Counter()  # owner of hints -> how many of them were shown
_pieces = itertools.count(1)  # numbers the sources that run_source() has run


class NotYet(Exception):
    """The answer is not right yet: what was seen, what is wanted."""


def want(ok, saw, wanted):
    """Raises NotYet("{saw}; wanted: {wanted}.") unless ok is true."""
    if not ok:
        raise NotYet(f"{saw}; wanted: {wanted}.")


class Helped:
    """What helps a learner on: `.hint()` and `.solution()`."""

    hints: Sequence[str] = ()
    hints_of = None  # objects with the same value here move through their hints together

    def hint(self):
        """Prints the next hint; each one tells more."""
        print(next_hint(self.hints_of, self.hints))

    def solution(self):
        """Prints a solution. It is not run: copy it into a cell to try it."""
        print(self.solution_text())


class Exercise(Helped):
    """One exercise, bound to an open lab: `await exercise(answer)` checks."""

    def __init__(self, check, hints, limit=LIMIT, file=None, variable=None):
        self.name = check.__name__
        self.task = inspect.cleandoc(check.__doc__)
        self.check = check
        self.hints = hints
        self.hints_of = check
        self.limit = limit
        self.file = file
        self.variable = variable
        self.answer = None  # a right one: what solved_by() was given
        self.lab = None
        self.report = None

    def solved_by(self, answer):
        """Takes a function or a value as the solution. For use as a decorator."""
        self.answer = answer
        return self

    def bind(self, lab, report=None):
        """The same exercise in an open lab. report(exercise, event) is called after each check that
        had an answer to look at, with "passed" or "not yet", and after each hint, with "hint".
        """
        bound = copy.copy(self)
        bound.lab = lab
        bound.report = report
        return bound

    async def __call__(self, answer):
        """Prints one of: passed; not yet, with what was seen and what is wanted; not attempted."""
        print(await self.verdict(answer))

    async def verdict(self, answer):
        """The same as text."""
        obstacle = self._obstacle(answer)
        if obstacle:
            return f"{self.name}: {obstacle}"
        said = await self._mistake(answer)
        self._report("not yet" if said else "passed")
        if not said:
            return f"{self.name}: passed."
        more = " A hint is there: run .hint() on this exercise." if self.hints else ""
        return f"{self.name}: not yet. {said}{more}"

    def _obstacle(self, answer):
        """Why there is nothing to check (text), or None."""
        if untouched(answer) or self._is_stub(answer):
            return NOT_ATTEMPTED
        if inspect.iscoroutine(answer):
            answer.close()
            return "not yet. Pass the function itself, without calling it: no () behind its name."
        if self.lab and self.lab.nc.is_closed:
            return "the lab is closed. Run the setup cell again, then your answer and this check."
        return None

    def _is_stub(self, answer):
        return isinstance(answer, str) and self.lab and workers.is_stub(self.lab.topic, answer)

    async def _mistake(self, answer):
        """What is not right yet about this answer (text), or None."""
        check = asyncio.ensure_future(self.check(self.lab, answer))
        try:
            await asyncio.wait([check], timeout=self.limit)
            if not check.done():
                return f"It did not end within {self.limit} s."
        finally:
            await end_tasks(check)  # an answer may swallow a cancel, but not hold up the notebook
        try:
            return check.result()  # None
        except NotYet as observed:
            return str(observed)
        except (Exception, asyncio.CancelledError) as error:
            words = f"{type(error).__name__}: {error}".rstrip(".: ")
            place = where(error)
            return f"Your code raised {words}{place}." if place else f"The check met {words}."

    def hint(self):
        """Prints the next hint; each one tells more."""
        super().hint()
        self._report("hint")

    def solution_text(self):
        """The solution as a learner would write it into the cell (text)."""
        if self.file:
            return f"%%worker {self.file}\n{source_of(self.answer)}"
        if not inspect.isfunction(self.answer):
            return source_of(self.answer, self.variable or self.name)
        if self.variable:
            return f"{source_of(self.answer)}\n\n\n{self.variable} = {self.answer.__name__}()"
        return source_of(self.answer)

    def _report(self, event):
        if self.report:
            self.report(self.name, event)


def exercise(hints, limit=LIMIT, file=None, variable=None):
    """Makes an Exercise of a check.

    limit: seconds that the check may take, where it must wait out an election, say. file: name of
    the file that a `%%worker` cell writes, if the answer is one. variable: what the notebook calls
    the answer, if it is a value; a function as the solution then returns that value."""
    return lambda check: Exercise(check, hints, limit, file, variable)


def book(module, lab, report=None):
    """All exercises of a module, bound to this lab, as attributes of one object."""
    return types.SimpleNamespace(
        **{
            name: item.bind(lab, report)
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


def source_of(answer, name="answer"):
    """An answer as it can stand in a cell of its own (text): of a function its source, behind the
    imports, constants and functions of its module that it uses; of a value `name = value`."""
    if not inspect.isfunction(answer):
        return f"{name} = {answer!r}"
    imports, parts = _sources(answer, set())
    lines = [f"import {name}" for module, name in sorted(imports) if not module]
    for module in sorted({module for module, _ in imports if module}):
        names = sorted(name for origin, name in imports if origin == module)
        lines.append(f"from {module} import {', '.join(names)}")
    return "\n\n\n".join(["\n".join(lines), *parts] if lines else parts)


def _sources(function, seen):
    """({(module or "", name) to import}, [source]), what is used before what uses it."""
    seen.add(function.__name__)
    source = textwrap.dedent(inspect.getsource(function)).rstrip()
    written = ast.parse(source).body[0]
    written.decorator_list = []  # they register it and are no part of it
    imports, parts = set(), []
    for name in _read_from_outside(written):
        if name in seen or name not in function.__globals__:
            continue
        value = function.__globals__[name]
        if inspect.isfunction(value) and value.__module__ == function.__module__:
            more, before = _sources(value, seen)
            imports |= more
            parts += before
        elif isinstance(value, types.ModuleType):
            package, _, leaf = value.__name__.rpartition(".")
            imports.add((package, leaf))
        elif inspect.isfunction(value) or inspect.isclass(value):
            imports.add((value.__module__, name))
        else:
            seen.add(name)
            parts.append(f"{name} = {value!r}")
    text = "\n".join(source.splitlines()[written.lineno - 1 :])
    return imports, [*parts, text]


def _read_from_outside(function):
    """Names that this function (ast node) reads and does not bind itself, in their order (list)."""
    bound = {part.arg for part in ast.walk(function) if isinstance(part, ast.arg)}
    for part in ast.walk(function):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(part.name)
        if isinstance(part, ast.ExceptHandler) and part.name:
            bound.add(part.name)
    names = [part for part in ast.walk(function) if isinstance(part, ast.Name)]
    bound |= {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    return list(dict.fromkeys(name.id for name in names if name.id not in bound))


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

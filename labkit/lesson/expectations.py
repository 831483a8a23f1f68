"""`lab.expect`: checks what the text below the cell claims. Put it at the end of the cell, so that
a reader who changed a number sees the result first, and then that the text describes the original.
"""

import ast
import contextlib
import inspect
import linecache
import os

from labkit import waiting
from labkit.errors import LabError

# Functions and methods that change nothing, so that they may be called once more.
HARMLESS = {"abs", "all", "any", "count", "float", "int", "len", "list", "max", "mean", "median"}
HARMLESS |= {"min", "round", "set", "sorted", "str", "sum", "tuple"}


def expect(text, condition, values, frame):
    """Does nothing if the condition is true. See Lab.expect; frame: of the cell that calls it."""
    if callable(condition) or inspect.isawaitable(condition):
        if inspect.iscoroutine(condition):
            condition.close()  # else Python warns that nobody awaits it
        raise LabError(
            f"The condition of {text!r} is a {type(condition).__name__}, which is always true. "
            "Wanted: its value, so call it (or await it)."
        )
    if condition:
        return
    source, found = _behind(frame)
    seen = ", ".join(
        f"{name} = {waiting.short(value)}" for name, value in {**found, **values}.items()
    )
    seen = f" Seen: {seen}." if seen else ""
    if os.environ.get("LABKIT_STRICT") == "1":
        false = f" `{source}` is false." if source else ""
        raise LabError(f"The cell does not show what the text says: {text}.{false}{seen}")
    print(f"This differs from the text below: {text} (you may have changed something).{seen}")


def _behind(frame):
    """The condition of the call that runs in this frame: (source, {name or call: value}), or (None,
    {}) where that cannot be found out."""
    with contextlib.suppress(Exception):  # a claim must not fail because of its own explanation
        condition = _condition(frame)
        if condition is not None:
            return ast.unparse(condition), _values(condition, frame)
    return None, {}


def _condition(frame):
    """The condition (ast node) in the source of the call that this frame is just making, or None.

    The code knows the place of each of its instructions, to the column (Python 3.11,
    code.co_positions); the cell's source is in linecache, where IPython puts it."""
    place = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.Call) and _place(node) == place:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "condition"]
            return (named or node.args[1:])[0]
    return None


def _place(node):
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _values(condition, frame):
    """{expression: value} of what the condition reads: names, also dotted ones, and harmless
    calls."""
    calls = [ast.unparse(call) for call in ast.walk(condition) if _is_harmless(call)]
    found = {}
    for text in [*calls, *waiting.names(condition)]:
        with contextlib.suppress(Exception):  # the variable of a comprehension, say
            found[text] = eval(text, {**frame.f_globals, **frame.f_locals})
    return {text: value for text, value in found.items() if waiting.is_data(value)}


def _is_harmless(node):
    """True for a call such as `len(got)` or `log.count("acked")` whose parts are harmless too."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "id", getattr(node.func, "attr", None))
    waits = (ast.Await, ast.NamedExpr, ast.Yield, ast.YieldFrom)
    inner = [part for child in ast.iter_child_nodes(node) for part in ast.walk(child)]
    return (
        name in HARMLESS
        and not any(isinstance(part, waits) for part in inner)
        and all(_is_harmless(part) for part in inner if isinstance(part, ast.Call))
    )

"""The one way to wait: until a condition is true. Where it does not come true, the error says what
was seen: the values behind the condition."""

import ast
import asyncio
import contextlib
import inspect
import linecache
import reprlib
import sys
import textwrap
import time
import types

from labkit.errors import LabError, check_timeout

UNFINISHED = object()  # in place of a value: the condition had not returned when time was over
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80  # characters


async def until(condition, timeout, describe=None, every=0.01):
    """Waits until condition() is true; returns what it returned.

    condition: a function, or one that returns an awaitable. timeout, every: seconds, in all and
    between two looks. describe: what is waited for, in words (default: the source of the
    condition); or a function, or coroutine function, that returns all that there is to say.
    Raises LabError when time is over, and what the condition itself raises at once.
    """
    check_timeout(timeout)
    end = time.monotonic() + timeout
    while True:
        value = condition()
        # Taken now: a coroutine that has ended no longer tells its frame.
        frame = getattr(value, "cr_frame", None)
        if inspect.isawaitable(value):
            value = await _within(value, end)
        if value and value is not UNFINISHED:
            return value
        if time.monotonic() >= end:
            what = await _told(describe, condition, value, frame)
            raise LabError(f"Timed out after {timeout:.3g} s waiting for {what}")
        await asyncio.sleep(every)


async def _within(awaitable, end):
    """What the condition returns, or UNFINISHED when time is over first."""
    try:
        return await asyncio.wait_for(awaitable, max(0.05, end - time.monotonic()))
    except TimeoutError:  # of this wait, or of what the condition asks
        if time.monotonic() < end:
            raise
        return UNFINISHED


async def _told(describe, condition, value, frame):
    """The words that stand behind "waiting for" (text)."""
    if callable(describe):
        words = describe()
        return await words if inspect.isawaitable(words) else words
    return what_it_saw(condition, value, frame, describe)


def what_it_saw(condition, value, frame=None, called=None):
    """'`len(got) >= 3`. Last seen: len(got) = 2, got = [1, 2] (2 items).'; of a def its source.

    value: what the condition returned last; frame: of its coroutine, if it had one (one that has
    ended still holds its variables). A plain function is called once more, and watched: nothing is
    left of a call that is over. called: words for the condition in place of its source."""
    code = getattr(condition, "__code__", None)
    if code and not frame:
        frame = _called_once_more(condition)
    text, node = _written(code) if code else (None, None)
    held = _held(condition, code, node, frame)
    seen = [f"{name} = {_short(what)}" for name, what in held.items()]
    if value is UNFINISHED:
        seen.append("it had not returned yet")
    elif value is not False or not seen:
        seen.append(f"it returned {_short(value)}")
    name, source = f"`{getattr(condition, '__name__', None) or _short(condition)}`", ""
    if called:
        name = called
    elif isinstance(node, ast.Lambda):
        name = f"`{text}`"
    elif text:
        source = f"\n\n{textwrap.indent(text, '    ')}"
    return f"{name}. Last seen: {', '.join(seen)}.{source}"


def _called_once_more(condition):
    """The frame of the condition's own function in one more call of it, or None."""
    frames = []

    def keep(frame, event, _):
        if event == "return" and frame.f_code is condition.__code__:
            frames.append(frame)

    before = sys.getprofile()
    sys.setprofile(keep)
    try:
        with contextlib.suppress(Exception):
            condition()
    finally:
        sys.setprofile(before)
    return frames[-1] if frames else None


def _written(code):
    """How this code stands in its file or cell: (text, ast node), or (None, None). The text of a
    lambda is its body."""
    source = "".join(linecache.getlines(code.co_filename))
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if _is_of(code, node)]
    except SyntaxError:
        return None, None
    if not nodes:
        return None, None
    node = nodes[-1]  # of lambdas in each other, the inner one
    if isinstance(node, ast.Lambda):
        text = ast.get_source_segment(source, node.body)
        return (text if "\n" not in text else ast.unparse(node.body)), node
    return textwrap.dedent(ast.get_source_segment(source, node, padded=True)), node


def _is_of(code, node):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = min(part.lineno for part in [node, *node.decorator_list])
        return (node.name, first) == (code.co_name, code.co_firstlineno)
    if not isinstance(node, ast.Lambda) or code.co_name != "<lambda>":
        return False
    places = [place for place in code.co_positions() if place[3]]  # the others are of no expression
    body = node.body
    first, last = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    return bool(places) and all(
        first <= (line, column) and (end_line, end) <= last
        for line, end_line, column, end in places
    )


def _held(condition, code, node, frame):
    """{expression: value} of the names that the condition reads, also dotted ones, and of the calls
    that it compares."""
    if not code:
        return {}
    scope = condition.__globals__ | inspect.getclosurevars(condition).nonlocals
    if frame:
        scope |= frame.f_locals
    if node:
        texts = [*_compared_calls(node), *_names(node)]
    else:
        texts = [*code.co_varnames, *code.co_freevars, *code.co_names]
    if frame and frame.f_code is not code:  # a lambda that calls an async def: that one's variables
        texts += frame.f_locals
    found = {}
    for text in texts:
        with contextlib.suppress(Exception):  # a comprehension's variable, or not set yet
            found[text] = eval(text, scope)
    return {text: value for text, value in found.items() if _tells(value)}


def _compared_calls(node):
    """Source of the calls whose results a lambda compares or combines: `len(got)` in `len(got) >
    3`. To make them once more does no harm: until() has called the condition over and over."""
    for part in ast.walk(node) if isinstance(node, ast.Lambda) else ():
        operands = getattr(part, "values", [])  # of `and` and `or`
        if isinstance(part, ast.Compare):
            operands = [part.left, *part.comparators]
        yield from (ast.unparse(operand) for operand in operands if isinstance(operand, ast.Call))


def _names(node):
    """The names that this piece of source reads, also dotted ones (`sub.delivered`); of a method
    that it calls, what the method belongs to."""
    dotted = isinstance(node, ast.Attribute) and ast.unparse(node)
    if isinstance(node, ast.Name):
        yield node.id
    elif dotted and all(map(str.isidentifier, dotted.split("."))):
        yield dotted
    else:
        for child in ast.iter_child_nodes(node):
            called = isinstance(node, ast.Call) and child is node.func
            yield from _names(child.value if called and isinstance(child, ast.Attribute) else child)


def _tells(value):
    """True for data: not for functions, classes and modules, nor for what has no words of its own
    (`<object at 0x…>`)."""
    if inspect.iscoroutine(value):
        value.close()  # nobody awaits it
        return False
    has_words = type(value).__repr__ is not object.__repr__
    return has_words and not callable(value) and not isinstance(value, types.ModuleType)


def _short(value):
    """The value as text of one line, shortened if it is long, and its size."""
    text = " ".join(SHORT.repr(value).split())
    try:
        size = len(value)
    except Exception:  # it has none; what has a size may still fail to tell it
        return text
    if isinstance(value, (str, bytes)):
        unit = "character" if isinstance(value, str) else "byte"
        return f"{text} ({size} {unit}s)" if size > SHORT.maxstring - 2 else text
    return f"{text} ({size} item{'s' * (size != 1)})"

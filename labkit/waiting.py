"""One function for all waiting: until a condition is true. If it does not become true, the error
says what was seen: the values behind the condition."""

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

UNFINISHED = object()  # instead of a value: the condition had not returned when the time was up
SHORT = reprlib.Repr()
SHORT.maxstring = 80  # characters
SHORT.maxother = 80


async def until(condition, timeout, describe=None, every=0.01):
    """Waits until condition() is true. Returns what it returned.

    condition: a function that returns a value or an awaitable. timeout: seconds, in all. every:
    seconds between two calls. describe: what the error says was waited for:
        None: the source of the condition and the values behind it.
        A text ("n1 to start"): stands in place of the source.
        A function (it may be async): returns the whole description.

    Raises LabError when the time is up. An exception of the condition ends the wait at once.
    """
    check_timeout(timeout)
    end = time.monotonic() + timeout
    while True:
        value = condition()
        frame = getattr(value, "cr_frame", None)  # a coroutine that has ended does not show it
        if inspect.isawaitable(value):
            value = await _before(end, value)
        if value and value is not UNFINISHED:
            return value
        if time.monotonic() >= end:
            words = await _words(describe, condition, value, frame)
            raise LabError(f"Timed out after {timeout:.3g} s waiting for {words}")
        await asyncio.sleep(every)


async def end_tasks(*tasks):
    """Cancels these tasks until they have ended, and looks at their errors, so that asyncio does
    not complain. Once may not do: Python 3.11 can swallow a cancel that meets an answer, and so can
    `except BaseException`. Gives up after 2.5 seconds, and raises nothing."""
    for _ in range(5):
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=0.5)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def _before(end, awaitable):
    """Returns what the condition returns, or UNFINISHED if it takes longer than until `end`."""
    left = max(0.05, end - time.monotonic())  # a very short timeout still lets it begin
    try:
        async with asyncio.timeout(left) as limit:
            return await awaitable
    except TimeoutError:
        if not limit.expired():  # a TimeoutError of the condition's own
            raise
        return UNFINISHED


async def _words(describe, condition, value, frame):
    """Returns what the error says behind "waiting for" (text)."""
    if not callable(describe):
        return what_it_saw(condition, value, frame, describe)
    words = describe()
    if inspect.isawaitable(words):
        words = await words
    return words


def what_it_saw(condition, value, frame=None, name=None):
    """Returns '`len(got) >= 3`. Last seen: len(got) = 2, got = [1, 2] (2 items).'

    The source of a function that is not a lambda follows on lines of its own.
    value: what the condition returned last. frame: of its coroutine, if it had one; it still holds
    its variables. A plain function leaves nothing behind, so it is called once more and watched.
    name: words to stand in place of the source.
    """
    code = getattr(condition, "__code__", None)
    if code and not frame:
        frame = _frame_of_another_call(condition)
    source, node = _source_of(code) if code else (None, None)
    seen = [
        f"{expression} = {short(found)}"
        for expression, found in _values(condition, code, node, frame).items()
    ]
    if value is UNFINISHED:
        seen.append("it had not returned yet")
    elif value is not False or not seen:
        seen.append(f"it returned {short(value)}")
    below = ""
    if not name and isinstance(node, ast.Lambda):
        name = f"`{source}`"
    elif not name:
        name = f"`{getattr(condition, '__name__', None) or short(condition)}`"
        if source:
            below = f"\n\n{textwrap.indent(source, '    ')}"
    return f"{name}. Last seen: {', '.join(seen)}.{below}"


def _frame_of_another_call(condition):
    """Calls the condition once more. Returns the frame of its own function, or None."""
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


# --- the source of a condition


def _source_of(code):
    """Returns what stands for this code in its file or cell: (text, ast node), or (None, None).

    The text of a lambda is its body."""
    source = "".join(linecache.getlines(code.co_filename))
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if _is_source_of(code, node)]
    except SyntaxError:
        return None, None
    if not nodes:
        return None, None
    node = nodes[-1]  # of two lambdas, one inside the other, this is the inner one
    if not isinstance(node, ast.Lambda):
        return textwrap.dedent(ast.get_source_segment(source, node, padded=True)), node
    text = ast.get_source_segment(source, node.body)
    if "\n" in text:
        text = ast.unparse(node.body)
    return text, node


def _is_source_of(code, node):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = min(part.lineno for part in [node, *node.decorator_list])
        return (node.name, first) == (code.co_name, code.co_firstlineno)
    if isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
        return _lies_within(code, node.body)
    return False


def _lies_within(code, body):
    """True if each instruction of the code comes from this piece of source. Positions tell apart
    two lambdas on one line."""
    # Instructions without a column belong to no expression.
    places = [place for place in code.co_positions() if place[3]]
    first = body.lineno, body.col_offset
    last = body.end_lineno, body.end_col_offset
    return bool(places) and all(
        first <= (line, column) and (end_line, end_column) <= last
        for line, end_line, column, end_column in places
    )


# --- the values behind a condition


def _values(condition, code, node, frame):
    """Returns {expression: value} of the names that the condition reads, also dotted ones, and of
    the calls that it compares."""
    if not code:
        return {}
    scope = condition.__globals__ | inspect.getclosurevars(condition).nonlocals
    if frame:
        scope |= frame.f_locals
    if node:
        expressions = [*_compared_calls(node), *names(node)]
    else:
        expressions = [*code.co_varnames, *code.co_freevars, *code.co_names]
    if frame and frame.f_code is not code:  # a lambda that calls an async def: what that one holds
        expressions += frame.f_locals
    found = {}
    for expression in expressions:
        with contextlib.suppress(Exception):  # a comprehension's variable, or one not set yet
            found[expression] = eval(expression, scope)
    return {expression: value for expression, value in found.items() if is_data(value)}


def _compared_calls(node):
    """Yields the source of calls whose results a lambda compares or combines: `len(got)` in
    `len(got) > 3`. One more call does no harm: until() has called the condition many times."""
    if not isinstance(node, ast.Lambda):
        return
    for part in ast.walk(node):
        operands = []
        if isinstance(part, ast.BoolOp):
            operands = part.values
        elif isinstance(part, ast.Compare):
            operands = [part.left, *part.comparators]
        for operand in operands:
            if isinstance(operand, ast.Call):
                yield ast.unparse(operand)


def names(node):
    """Yields the names that this piece of source reads, also dotted ones (`sub.delivered`). Of a
    call of a method, that is what the method belongs to."""
    if isinstance(node, ast.Name):
        yield node.id
        return
    if isinstance(node, ast.Attribute) and _is_dotted_name(ast.unparse(node)):
        yield ast.unparse(node)
        return
    for child in ast.iter_child_nodes(node):
        is_method = isinstance(node, ast.Call) and child is node.func
        if is_method and isinstance(child, ast.Attribute):
            child = child.value
        yield from names(child)


def _is_dotted_name(text):
    return all(part.isidentifier() for part in text.split("."))


def is_data(value):
    """True for data. False for functions, classes and modules, and for what only shows its address
    (`<object at 0x…>`)."""
    if inspect.iscoroutine(value):
        value.close()  # nobody awaits it
        return False
    if callable(value) or isinstance(value, types.ModuleType):
        return False
    return type(value).__repr__ is not object.__repr__


def short(value):
    """Returns the value as one line of text, with its size; shortened if it is long."""
    text = " ".join(SHORT.repr(value).split())
    try:
        size = len(value)
    except Exception:  # it has no size, or fails to tell it
        return text
    if not isinstance(value, (str, bytes)):
        return f"{text} ({size} item{'' if size == 1 else 's'})"
    if size <= SHORT.maxstring - 2:
        return text
    unit = "characters" if isinstance(value, str) else "bytes"
    return f"{text} ({size} {unit})"

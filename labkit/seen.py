"""Words for a condition that did not come true: its own source, and what its names held."""
import inspect
import reprlib


def what_it_saw(condition, value):
    """'`len(got) >= 3`. Last seen: got = [1, 2] (2 items)', from a function or lambda and its last value."""
    seen = ", ".join(f"{name} = {_short(held)}" for name, held in _held(condition).items()) or f"it returned {_short(value)}"
    return f"`{_source(condition)}`. Last seen: {seen}."


def _source(condition):
    try:
        text = " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return getattr(condition, "__name__", repr(condition))
    if "lambda" not in text:
        return condition.__name__
    body = text.split("lambda", 1)[1].split(":", 1)[1]
    depth = 0
    for i, letter in enumerate(body):  # the lambda ends where the call around it ends, or its next argument begins
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0 or (depth == 0 and letter == ","):
            return body[:i].strip()
    return body.strip()


def _held(condition):
    """The data that the condition's names refer to: {name: value}, without functions and modules."""
    code = getattr(condition, "__code__", None)
    if not code:
        return {}
    closure = inspect.getclosurevars(condition)
    found = {**closure.globals, **closure.nonlocals}
    return {name: held for name, held in found.items() if not callable(held) and not inspect.ismodule(held)}


def _short(value):
    size = f" ({len(value)} items)" if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else ""
    return reprlib.repr(value) + size

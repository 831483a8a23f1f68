"""The wait for a condition: when it ends, and what the error says if the condition does not become
true: its source, and the values behind it."""

import asyncio
import contextlib
import functools
import gc

import pytest

from labkit import Lab, LabError, Recorder
from labkit.waiting import end_tasks, until

got = [1, 2]


class Sub:
    delivered = 7

    def done(self):
        return False


sub = Sub()


async def said(condition):
    with pytest.raises(LabError) as error:
        await Lab().until(condition, timeout=0.01)
    return str(error.value)


def enough():
    """A docstring with the word lambda in it."""
    count = len(got) + 1
    return count > 5


async def all_there():
    told = {"seen": 3}
    await asyncio.sleep(0)
    told["seen"] += 1
    return told["seen"] == sub.delivered


async def test_of_a_function_it_tells_the_local_variables_at_its_end_and_the_source():
    text = await said(enough)
    assert text.startswith(
        "Timed out after 0.01 s waiting for `enough`. "
        "Last seen: count = 3, got = [1, 2] (2 items).\n\n    def enough():"
    )
    assert text.endswith("        return count > 5")


async def test_of_a_coroutine_function_too():
    text = await said(all_there)
    assert "`all_there`. Last seen: told = {'seen': 4} (1 item), sub.delivered = 7." in text
    assert "\n\n    async def all_there():" in text


async def test_of_one_that_a_lambda_calls():
    async def at_least(number):
        seen = len(got)
        return seen >= number

    assert "`at_least(3)`. Last seen: number = 3, seen = 2." in await said(lambda: at_least(3))


async def test_of_one_that_hangs_what_it_held_so_far():
    async def hangs():
        asked = 1
        await asyncio.sleep(60)
        return asked

    assert "`hangs`. Last seen: asked = 1, it had not returned yet." in await said(hangs)


async def test_of_a_lambda_exactly_its_own_text():
    log = Recorder()
    log("acked")
    pair = (lambda: "é" == "ü" and len(got) > 2), (lambda: sub.delivered == {"a": 1, "b": [2, 3]})
    first, second = [await said(condition) for condition in pair]
    assert """`"é" == "ü" and len(got) > 2`. Last seen: len(got) = 2, got = [1, 2]""" in first
    assert """`sub.delivered == {"a": 1, "b": [2, 3]}`. Last seen: sub.delivered = 7.""" in second
    third = await said(lambda: log.count("acked") == 4 and got)
    assert """`log.count("acked") == 4 and got`. Last seen: log.count('acked') = 1""" in third


@pytest.mark.parametrize(
    "condition, words",
    [
        (sub.done, "`done`. Last seen: it returned False."),
        (functools.partial(enough), "Last seen: it returned False."),
        (asyncio.Event().is_set, "`is_set`. Last seen: self._value = False."),
        (eval("lambda: len(got) == 3"), "Last seen: got = [1, 2] (2 items)."),
        (
            lambda start=9: sub.delivered > start,
            "`sub.delivered > start`. Last seen: sub.delivered = 7, start = 9.",
        ),
        (lambda: [x for x in got if x > 5], "it returned [] (0 items)."),
        (list, "`list`. Last seen: it returned [] (0 items)."),
    ],
)
async def test_whatever_the_condition_is(condition, words):
    assert words in await said(condition)


async def test_long_values_are_shortened_and_show_their_size():
    long = "x" * 5000
    many = list(range(5000))
    text = await said(lambda: long in many)
    assert "(5000 characters)" in text
    assert "[0, 1, 2, 3, 4, 5, ...] (5000 items)" in text
    assert len(text) < 400


async def test_a_condition_that_becomes_true_is_not_called_again():
    calls = []

    def third_call():
        calls.append(1)
        return "yes" if len(calls) == 3 else None

    assert await until(third_call, timeout=5) == "yes"
    assert len(calls) == 3


async def words_of_until(describe):
    with pytest.raises(LabError) as error:
        await until(lambda: len(got) > 2, 0.01, describe)
    return str(error.value).removeprefix("Timed out after 0.01 s waiting for ")


async def test_a_text_stands_in_place_of_the_source():
    assert await words_of_until("a third message") == (
        "a third message. Last seen: len(got) = 2, got = [1, 2] (2 items)."
    )


async def test_a_function_says_everything_when_the_time_is_up():
    seen = []

    def words():
        return f"a third message. Last seen: {seen}."

    async def words_that_are_asked_for():
        await asyncio.sleep(0)
        return words()

    seen.append("two")
    assert await words_of_until(words) == "a third message. Last seen: ['two']."
    assert await words_of_until(words_that_are_asked_for) == "a third message. Last seen: ['two']."


async def test_an_error_of_the_condition_ends_the_wait_at_once():
    calls = []

    async def fails(error):
        calls.append(error)
        await asyncio.sleep(0)
        raise error

    # A TimeoutError of the condition's own is no end of the time to wait.
    for error in (LabError("n1 ended"), TimeoutError("no answer"), asyncio.CancelledError()):
        with pytest.raises(type(error)) as raised:
            await until(lambda error=error: fails(error), timeout=60)
        assert raised.value is error
    assert len(calls) == 3


@pytest.mark.parametrize("timeout", [0, -1, None, "5"])
async def test_a_timeout_that_is_no_time_is_refused(timeout):
    with pytest.raises(LabError, match="wanted: a number of seconds above 0"):
        await until(lambda: True, timeout)


async def test_tasks_end_although_they_swallow_a_cancel_and_nobody_hears_of_their_errors(caplog):
    async def stubborn():
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def fails():
        raise ValueError("nobody wants to know")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    await end_tasks(*tasks)
    assert all(task.done() for task in tasks)
    del tasks
    gc.collect()
    assert not caplog.records

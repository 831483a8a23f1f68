"""What `lab.until` says of a condition that does not come true: its source, and the values behind
it."""

import asyncio
import functools

import pytest

from labkit import Lab, LabError, Recorder

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
    assert """`"é" == "ü" and len(got) > 2`. Last seen: len(got) = 2, got = [1, 2]""" in await said(
        pair[0]
    )
    words = """`sub.delivered == {"a": 1, "b": [2, 3]}`. Last seen: sub.delivered = 7."""
    assert words in await said(pair[1])
    assert "`log.count(\"acked\") == 4 and got`. Last seen: log.count('acked') = 1" in await said(
        lambda: log.count("acked") == 4 and got
    )


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
    assert (
        "(5000 characters)" in text
        and "[0, 1, 2, 3, 4, 5, ...] (5000 items)" in text
        and len(text) < 400
    )


async def test_a_condition_that_comes_true_is_not_looked_at_again():
    calls = []
    assert await Lab().until(lambda: calls.append(1) or len(calls) == 3) is True
    assert len(calls) == 3

"""Every case of the clinic, on one private cluster: ill, wrong repairs are flagged, the documented
one heals."""

import collections
import inspect

import pytest
import pytest_asyncio
from conftest import settle

from labkit import Lab, LabError, clinic, exercises
from labkit.cluster import streams

pytestmark = pytest.mark.asyncio(loop_scope="module")
FATAL = [(name, mistake) for name, kind in clinic.CASES.items() for mistake in kind.spoils]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(session_home):
    with pytest.MonkeyPatch.context() as monkeypatch:
        settle(monkeypatch, *session_home)
        lab = await Lab.open("troubleshooting_clinic", private=True)
        yield lab
        await lab.close()  # raises what callbacks and tasks of the cases swallowed


async def run(case, source):
    await exercises.run_source(
        inspect.cleandoc(source), case=case, lab=case.lab, js=case.lab.js, nc=case.lab.nc
    )


@pytest.mark.parametrize("name", clinic.CASES)
async def test_it_is_ill_wrong_repairs_are_flagged_and_the_documented_one_heals(lab, name):
    case = await clinic.open(lab, name)
    assert case.symptom()
    for mistake in (mistake for mistake in case.wrong if mistake not in case.spoils):
        await is_flagged(case, mistake)
    await run(case, case.repair)
    case.patience = 8  # on a busy machine a backlog takes its time
    verdict = await case.verdict(case.cause)
    assert verdict.startswith(f"{name}: healed. The cause was: {case.cause}. "), verdict


@pytest.mark.parametrize("name, mistake", FATAL)
async def test_a_repair_that_makes_it_worse_is_flagged(lab, name, mistake):
    await is_flagged(await clinic.open(lab, name), mistake)


async def is_flagged(case, mistake):
    source, words = case.wrong[mistake]
    await run(case, source)
    for case.patience in (
        1.2,
        6,
    ):  # short, since most wait for what never comes; once more where what flows flows slowly
        verdict = await case.verdict(case.cause)
        if words in verdict:
            break
    del case.patience
    assert (
        verdict.startswith(f"{case.name}: not yet. The cause is right. Still wrong: ")
        and words in verdict
    ), verdict


async def test_one_case_at_a_time_and_nothing_of_it_stays(lab):
    await (await clinic.open(lab, "nobody_knows_the_price")).close()
    mine = await lab.js.add_stream(name="MINE", subjects=["mine"])
    first = await clinic.open(lab, "shop_is_closed")
    second = await clinic.open(lab, "nobody_knows_the_price")
    assert "this case is closed" in await first.verdict(first.cause)
    await lab.until(lambda: streams_are(lab, [mine.config.name]), timeout=10)
    with pytest.raises(LabError, match="closed"):
        await first.redeploy()
    await second.close()
    await lab.until(lambda: no_connection_but_the_notebooks(lab))
    await lab.js.delete_stream("MINE")


async def test_a_case_is_closed_when_nobody_lists_its_stream_any_more(lab, monkeypatch):
    """Else the next case takes ORDERS for the learner's own, and leaves its own ORDERS behind."""
    case, asked, names = await clinic.open(lab, "shop_is_closed"), [], streams.stream_names

    async def late(client):  # as a meta leader that names a deleted stream for a moment more
        asked.append(await names(client))
        return asked[-1] | ({"ORDERS"} if len(asked) < 6 else set())

    monkeypatch.setattr(streams, "stream_names", late)
    await case.close()
    assert len(asked) >= 6 and not asked[-1]


async def streams_are(lab, names):  # a list that is made while a leader is silent lacks its stream
    return [info.config.name for info in await lab.js.streams_info()] == names


async def no_connection_but_the_notebooks(lab):
    return list((await lab.connections())["name"]) == ["troubleshooting_clinic"]


async def test_guesses_are_told_apart(lab):
    case = await clinic.open(lab, "nobody_knows_the_price")
    assert "is none of case.causes" in await case.verdict("gremlins")
    assert "'no stream' is not what it had. Still wrong: " in await case.verdict("no stream")
    await case.redeploy(request_subject="prices.get")
    assert (
        "well again, but 'no stream' is not what it had. What did you change"
        in await case.verdict("no stream")
    )
    with pytest.raises(LabError, match="no setting subjekt; it has: "):
        await case.redeploy(subjekt="x")
    with pytest.raises(LabError, match="There is no case 'flu'"):
        await clinic.open(lab, "flu")


async def test_hints_come_by_degrees_and_every_case_is_told(capsys, monkeypatch):
    monkeypatch.setattr(
        exercises, "_shown", collections.Counter(), raising=False
    )  # as in a new kernel
    table = clinic.cases()
    causes = {kind.cause for kind in clinic.CASES.values()}
    assert set(table.index) == set(clinic.CASES) and len(table) == len(causes) >= 14
    for kind in clinic.CASES.values():
        assert (
            kind.cause in clinic.CAUSES and 2 <= len(kind.hints) <= 4 and kind.wrong and kind.repair
        )
        assert kind.cause not in kind.report
        case = kind(None)
        for _ in range(len(kind.hints) + 1):
            kind(None).hint()  # the case opened again moves on too
        case.solution()
        shown = capsys.readouterr().out
        assert (
            f"Hint {len(kind.hints)} of {len(kind.hints)}: {kind.hints[-1]}\nThat was the last"
            " hint."
            in shown
            and kind.cause in shown
        )

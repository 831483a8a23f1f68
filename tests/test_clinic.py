"""Every case of the clinic, on one private cluster: it is ill, a relief is flagged, and its own
repair heals. All other wrong repairs, and right ones in another style, take minutes: soak."""

import collections

import pytest
import pytest_asyncio

import repairs
from conftest import settle
from labkit import Lab, LabError, clinic
from labkit.cluster import streams
from labkit.exercises import engine
from labkit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPOILS = [
    repair
    for name in clinic.CASES
    for repair in repairs.wrong_ones(name)
    if repair.spoils and not repair.teaches
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(session_home):
    with pytest.MonkeyPatch.context() as monkeypatch:
        settle(monkeypatch, *session_home)
        lab = await Lab.open("troubleshooting_clinic", private=True)
        yield lab
        await lab.close()  # raises what callbacks and tasks of the cases swallowed


@pytest.mark.parametrize("name", clinic.CASES)
async def test_it_is_ill_and_a_relief_is_flagged_and_its_own_repair_heals(lab, name):
    case = await clinic.open(lab, name)
    assert case.symptom()
    [relief] = [repair for repair in repairs.wrong_ones(name) if repair.teaches]
    await is_flagged(case, relief)
    if relief.spoils:
        case = await clinic.open(lab, name)
    await heals_by_its_own_repair(case)


@pytest.mark.soak
@pytest.mark.parametrize("name", clinic.CASES)
async def test_wrong_repairs_are_flagged_and_its_own_heals_after_them(lab, name):
    case = await clinic.open(lab, name)
    for repair in repairs.wrong_ones(name):
        if not repair.spoils and not repair.teaches:
            await is_flagged(case, repair)
    await heals_by_its_own_repair(case)


@pytest.mark.soak
@pytest.mark.parametrize("repair", SPOILS, ids=lambda it: it.name)
async def test_a_repair_that_makes_it_worse_is_flagged(lab, repair):
    await is_flagged(await clinic.open(lab, repair.case), repair)


@pytest.mark.soak
@pytest.mark.parametrize("repair", repairs.right_ones(), ids=lambda it: it.name)
async def test_a_right_repair_in_another_style_heals(lab, repair):
    case = await clinic.open(lab, repair.case)
    await repair.carry_out(case)
    await is_healed(case)


async def heals_by_its_own_repair(case):
    """Runs the cell that a learner is shown; its body is that of the function `repair`."""
    await engine.run_source(case.solution_text(), case=case, lab=case.lab, js=case.js)
    await is_healed(case)


async def is_healed(case):
    case.patience = 8  # on a busy machine it takes some time to work off a backlog
    verdict = await case.verdict(case.cause)
    assert verdict.startswith(f"{case.name}: healed. The cause was: {case.cause}. "), verdict


async def is_flagged(case, repair):
    """Carries out this wrong repair and looks again and again until the verdict has its words. Most
    verdicts wait for what never comes, so the patience is short at first; where orders flow slowly,
    it takes more to see what is wrong with them."""
    await repair.carry_out(case)
    case.patience = 0.6

    async def is_said():
        case.patience *= 2
        verdict = await case.verdict(case.cause)
        flagged = f"{case.name}: not yet. The cause is right. Still wrong: "
        assert verdict.startswith(flagged), verdict
        return repair.words in verdict

    await until(is_said, timeout=60)


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


async def streams_are(lab, names):
    # A list that is made while a leader is silent lacks its stream.
    return [info.config.name for info in await lab.js.streams_info()] == names


async def no_connection_but_the_notebooks(lab):
    return list((await lab.connections())["name"]) == ["troubleshooting_clinic"]


async def test_a_case_that_did_not_get_to_its_streams_deletes_none(lab, monkeypatch):
    mine = await lab.js.add_stream(name="MINE", subjects=["mine"])

    async def fails(client):
        raise LabError("JetStream does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("labkit.clinic.case.stream_names", fails)
        with pytest.raises(LabError, match="does not answer"):
            await clinic.open(lab, "shop_is_closed")
    await (await clinic.open(lab, "nobody_knows_the_price")).close()  # closes the one before, too
    await lab.until(lambda: streams_are(lab, [mine.config.name]), timeout=10)
    await lab.js.delete_stream("MINE")


async def test_a_case_is_closed_when_its_stream_is_no_longer_listed(lab, monkeypatch):
    """Else the next case takes ORDERS for the learner's own, and leaves its own ORDERS behind."""
    case = await clinic.open(lab, "shop_is_closed")
    asked = []
    names = streams.stream_names

    async def late(client):  # like a meta leader that still lists a deleted stream for a moment
        asked.append(await names(client))
        return asked[-1] | ({"ORDERS"} if len(asked) < 6 else set())

    monkeypatch.setattr(streams, "stream_names", late)
    await case.close()
    assert len(asked) >= 6 and not asked[-1]


async def test_guesses_are_told_apart(lab):
    case = await clinic.open(lab, "nobody_knows_the_price")
    assert "is none of case.causes" in await case.verdict("gremlins")
    assert "'no stream' is not what it had. Still wrong: " in await case.verdict("no stream")
    await case.redeploy(request_subject="prices.get")
    well_again = "well again, but 'no stream' is not what it had. What did you change"
    assert well_again in await case.verdict("no stream")
    with pytest.raises(LabError, match="no setting subjekt; it has: "):
        await case.redeploy(subjekt="x")
    with pytest.raises(LabError, match="There is no case 'flu'"):
        await clinic.open(lab, "flu")


async def test_hints_tell_more_and_more_and_every_case_is_complete(capsys, monkeypatch):
    monkeypatch.setattr(engine, "_shown", collections.Counter())  # as in a new kernel
    table = clinic.cases()
    causes = {kind.cause for kind in clinic.CASES.values()}
    assert set(table.index) == set(clinic.CASES)
    assert len(table) == len(causes) >= 14
    assert {repair.case for repair in repairs.EVERY} == set(clinic.CASES)
    for name, kind in clinic.CASES.items():
        assert kind.cause in clinic.CAUSES and kind.cause not in kind.report
        assert 2 <= len(kind.hints) <= 4
        mine = [repair for repair in repairs.EVERY if repair.case == name]
        assert len([repair for repair in mine if repair.words]) >= 3
        assert len([repair for repair in mine if not repair.words]) >= 1
        assert len([repair for repair in mine if repair.teaches]) == 1
        case = kind(None)
        for _ in range(len(kind.hints) + 1):
            kind(None).hint()  # the case opened again moves on too
        case.solution()
        shown = capsys.readouterr().out
        last = f"Hint {len(kind.hints)} of {len(kind.hints)}: {kind.hints[-1]}"
        assert f"{last}\nThat was the last hint." in shown
        assert f"# {kind.cause}\n" in shown

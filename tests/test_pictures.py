"""The recorder, and the pictures drawn from it."""

import matplotlib
import pandas as pd
import pytest

from labkit import Recorder
from labkit.pictures import charts, concepts, measurements, style, timelines, workers


@pytest.fixture
def log():
    log = Recorder()
    for number in range(1, 5):
        log("published", lane="publisher", msg=number)
        if number == 1:
            log("lost", lane="publisher", msg=number)
        else:
            log("delivered", lane=f"subscriber {'AB'[number % 2]}", msg=number)
    return log


LANES = ["publisher", "subscriber A", "subscriber B"]


def test_a_recorder_keeps_order_and_time_and_answers_questions(log):
    frame = log.frame()
    assert list(frame.columns) == ["at", "event", "lane", "msg"] and len(frame) == 8
    assert frame["at"].is_monotonic_increasing and frame["at"].between(0, 60).all()
    assert log.count("published") == 4 and log.count(msg=1) == 2
    assert log.last("delivered")["msg"] == 4 and log.last("acked") is None
    assert list(Recorder().frame().columns) == ["at", "event"]


def test_a_picture_carries_its_finding_in_words(log):
    picture = timelines.timeline(
        log, LANES, "One message had nobody to go to", "The first of four messages was lost."
    )
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == "Picture: The first of four messages was lost."
    assert metadata["image/png"]["alt"] == "The first of four messages was lost."
    assert picture.png.startswith(b"\x89PNG")


def test_the_same_record_draws_the_same_picture(log):
    assert len({timelines.timeline(log, LANES, "t", "a").png for _ in range(2)}) == 1


def test_a_lost_answer_is_drawn_on_its_way_back():
    def drawn(**answer):
        log = Recorder()
        for event, lane, fields in [
            ("published", "publisher", {}),
            ("acked", "stream", {}),
            ("lost", "stream", answer),
        ]:
            log(event, lane=lane, msg=1, **fields)["at"] = len(log.events)
        return timelines.timeline(log, ["publisher", "stream"], "t", "a").png

    assert drawn(answer=True) != drawn()


def test_drawing_leaves_the_learners_own_settings_alone(log):
    before = dict(matplotlib.rcParams)
    timelines.timeline(log, LANES, "t", "a")
    charts.bars({"A": 1, "B": 900}, "t", "a", "messages", expected=450)
    charts.ecdf({"idle": [0.1, 0.2], "loaded": [3, 4]}, "t", "a", "ms", limit=(1, "1 ms"))
    assert dict(matplotlib.rcParams) == before


def test_outcomes_differ_by_shape_as_well_as_by_colour():
    colours, shapes = zip(*style.OUTCOME.values())
    assert len(set(colours)) == len(colours) == len(set(shapes))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: timelines.timeline(Recorder(), LANES, "t", "a"),
        lambda: charts.bars({}, "t", "a", "messages"),
        lambda: charts.ecdf({}, "t", "a", "ms"),
        lambda: workers.lifelines(Recorder(), ["charged"], "t", "a", curves={"charged": "charged"}),
        concepts.two_steps,
    ],
)
def test_an_empty_record_draws_an_empty_picture(draw):
    assert draw().png


def test_lives_of_workers_in_lanes():
    log = Recorder()
    for at, event, worker, fields in [
        (0.1, "ordered", None, {"order": 1}),
        (0.2, "ready", "A1", {}),
        (0.3, "here", "A1", {"order": 1}),
        (0.4, "killed", "A1", {"point": "here"}),
        (0.5, "ready", "A2", {}),
        (0.6, "here", "A2", {"order": 1}),
        (0.9, "resumed", "A2", {}),
        (1, "ready", "B", {}),
    ]:
        log(event, worker=worker, **fields)["at"] = at
    drawn = workers.lifelines(
        log, ["here"], "t", "a", curves={"ordered": "ordered", "done": "here"}
    )
    assert (
        drawn.png
        == workers.lifelines(
            log, ["here"], "t", "a", curves={"ordered": "ordered", "done": "here"}
        ).png
    )
    assert workers.looks_of(log, ["here"], many=False).keys() == {"here", "killed at here"}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that plots drew, not the pictures made of them."""
    figures = []
    monkeypatch.setattr(measurements, "Picture", lambda figure, alt: figures.append(figure))
    return figures


def looks(figure):
    """{name in the legend: colour}, in its order."""
    legend = figure.legends[0]
    return {
        text.get_text(): handle.get_color()
        for text, handle in zip(legend.get_texts(), legend.legend_handles)
    }


NAMES = ["first", "second", "third"]
ROWS = pd.DataFrame(
    {
        "who": ["third", "first", "second"] * 2,
        "n": [1, 1, 1, 10, 10, 10],
        "ms": [1.0, 2, 3, 4, 5, 6],
    }
)


def test_a_thing_has_one_colour_whatever_order_its_trials_came_in_and_whoever_is_missing(drawn):
    few = ROWS[ROWS["who"] != "first"]
    for rows in (ROWS, ROWS[::-1], few):
        measurements.trials(rows, "n", "ms", "who", "t", "a", names=NAMES)
        measurements.quantiles(rows, {"ms": 0.5, "n": 0.99}, "who", "t", "a", "ms", names=NAMES)
    whole, *_ = found = [looks(figure) for figure in drawn]
    assert list(whole) == NAMES and len(set(whole.values())) == 3
    assert found == [whole] * 4 + [{name: whole[name] for name in NAMES[1:]}] * 2


def test_seven_things_have_seven_colours():
    assert len({measurements._look(index)[0] for index in range(7)}) == 7


def test_a_ring_stands_at_a_median_and_the_legend_says_what_it_is(drawn):
    measurements.trials(ROWS, "n", "ms", "who", "t", "a", rings={"second": 10})
    measurements.trials(ROWS, "n", "ms", "who", "t", "a", rings={})
    ringed, plain = drawn
    assert list(looks(ringed)) == [*NAMES, "knee"] and list(looks(plain)) == NAMES
    rings = [
        tuple(line.get_xydata()[0]) for line in ringed.axes[0].lines if line.get_markersize() == 14
    ]
    assert rings == [(10, 6)]


def test_quantiles_shade_only_whom_they_are_told_to(drawn):
    for shaded in (None, ["first"]):
        measurements.quantiles(ROWS, {"ms": 0.5, "n": 0.99}, "who", "t", "a", "ms", shaded=shaded)
    assert [len(figure.axes[0].collections) for figure in drawn] == [3, 1]


def test_strips_draw_every_trial_and_print_the_median(drawn):
    measurements.strips(
        {"quick": [1, 2, 3], "slow": [10, 2000, 3000]},
        "t",
        "a",
        "ms",
        limit=(5, "five"),
        band=(4, 9, "band"),
    )
    (ax,) = drawn[0].axes
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"] == [3, 3]
    assert {"2", "2,000", "five", "band"} <= {text.get_text() for text in ax.texts}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["quick", "slow"]


def test_samples_come_in_the_order_of_names_without_what_is_missing():
    rows = pd.DataFrame({"who": ["b", "a", "b"], "ms": [1, 2, None]})
    assert measurements.samples(rows, "ms", "who", ["a", "b"]) == {"a": [2], "b": [1]}

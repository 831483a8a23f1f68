"""The pictures of counts and measurements: each is drawn from a few numbers, and shows them."""

import pandas as pd
import pytest

from figures import (
    INK,
    MUTED,
    bars,
    colour,
    faults_not_seen,
    figure_of,
    labels,
    legend,
    limits,
    lines,
    marks,
    near,
    rectangles,
    shades,
    texts,
    ticks,
    title,
)
from labkit import pictures
from labkit.pictures import measurements
from labkit.pictures.style import SERIES

BLUE, ORANGE, GREEN = SERIES[:3]
NAMES = ["first", "second", "third"]
# Trials: who, at which n, took how many ms.
ROWS = pd.DataFrame(
    [
        ("third", 1, 1.0),
        ("first", 1, 2.0),
        ("second", 1, 3.0),
        ("third", 10, 4.0),
        ("first", 10, 5.0),
        ("second", 10, 6.0),
        ("second", 10, 8.0),
        ("second", 10, 100.0),
    ],
    columns=["who", "n", "ms"],
)


def counts():
    return pictures.bars({"A": 1, "B": 3000}, "B got all", "alt", "messages", expected=1500)


def shows_counts(figure):
    (ax,) = figure.axes
    assert bars(ax) == [(0, 1, 0, BLUE), (0, 3000, 1, BLUE)]
    assert ticks(ax.yaxis) == {"A": 0, "B": 1}
    bottom, top = limits(ax)[1]
    assert bottom > top, "A stands at the top"
    assert not [label for label in ticks(ax.xaxis) if "." in label], "there are no half messages"
    looks = {text.get_text().strip(): (text.get_ha(), text.get_color()) for text in ax.texts}
    assert looks["3,000"] == ("right", "white")
    assert colour(looks["1"][1]) == INK, "a short bar has its number behind it"
    assert looks["1"][0] == "left"
    assert [(text.get_text().strip(), text.xy) for text in ax.texts if text.get_visible()] == [
        ("1", (1, "A")),
        ("3,000", (3000, "B")),
        ("1,500 each, if shared evenly", (1500, 1)),
    ]
    assert lines(ax) == [(INK, [(1500, 0), (1500, 1)])]
    assert limits(ax)[0] == near(0, 3000 * 1.12)
    assert labels(ax) == ["messages", ""]
    assert title(figure) == "B got all"


def ecdf():
    samples = {"idle": [3, 1, 2, 4], "loaded": [20, 10]}
    return pictures.ecdf(samples, "Load costs", "alt", "ms", limit=(5, "5 ms"))


def shows_ecdf(figure):
    (ax,) = figure.axes
    assert lines(ax) == [
        (BLUE, [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1)]),
        (ORANGE, [(10, 0.5), (20, 1)]),
        (INK, [(5, 0), (5, 1)]),
    ]
    assert marks(ax) == [
        (3, 0.5, (BLUE, "o")),
        (4, 0.99, (BLUE, "o")),
        (20, 0.5, (ORANGE, "o")),
        (20, 0.99, (ORANGE, "o")),
    ]
    assert texts(ax) == [("5 ms", 5, 0.25)]
    assert ax.get_xscale() == "log"
    assert "10" in ticks(ax.xaxis), "not a power of ten"
    assert ticks(ax.yaxis) == {"0": 0, "p50": 0.5, "p99": 0.99}
    assert limits(ax)[1] == (0, 1.03)
    assert labels(ax) == ["ms", ""]
    assert legend(figure) == {
        "idle: p50 3, p99 4": (BLUE, "-"),
        "loaded: p50 20, p99 20": (ORANGE, "--"),
    }
    assert title(figure) == "Load costs"


def shares():
    groups = {"queue group": {"A": 3, "B": 0}, "pull": {"A": 1, "B": 2000}}
    return pictures.shares(groups, "A is slow", "alt", "jobs")


def shows_shares(figure):
    one, other = figure.axes
    assert bars(one) == [(0, 3, 0, BLUE), (0, 0, 1, BLUE)]
    assert bars(other) == [(0, 1, 0, ORANGE), (0, 2000, 1, ORANGE)]
    assert numbers(one) == [("3", (3, "A")), ("0", (0, "B"))]
    assert numbers(other) == [("1", (1, "A")), ("2,000", (2000, "B"))]
    assert ticks(one.yaxis) == {"A": 0, "B": 1}
    assert ticks(other.yaxis) == {}, "the names stand at the left only"
    for ax in figure.axes:
        assert limits(ax)[0] == (0, 2360), "both on one scale"
        assert limits(ax)[1][0] > 1, "A stands at the top"
        assert labels(ax) == ["jobs", ""]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["queue group", "pull"]
    assert title(figure) == "A is slow"


def numbers(ax):
    """The numbers at the ends of bars, which belong to a name: (text, (number, name))."""
    return [(text.get_text().strip(), text.xy) for text in ax.texts if text.get_visible()]


def spread():
    panels = {"rate": {"one": [1, 2, 40], "two": [30]}, "share": {"one": [0.5, 1], "two": [0]}}
    return pictures.spread(panels, "Two is faster", "alt")


def shows_spread(figure):
    rate, share = figure.axes
    dot = (BLUE, "o")
    assert marks(rate) == [(1, 0, dot), (2, 0, dot), (40, 0, dot), (30, 1, dot)]
    assert marks(share) == [(0.5, 0, dot), (1, 0, dot), (0, 1, dot)]
    assert bars(rate) == [(0, 2, 0, BLUE), (0, 30, 1, BLUE)], "the medians"
    assert bars(share) == [(0, 0.75, 0, BLUE), (0, 0, 1, BLUE)]
    assert texts(rate) == [("2", 1, 0), ("30", 1, 1), ("median", 1, 1)]
    assert texts(share) == [("0.0", 1, 1), ("0.8", 1, 0), ("median", 1, 1)]
    assert [ticks(ax.yaxis) for ax in figure.axes] == [{"one": 0, "two": 1}, {}]
    assert [labels(ax) for ax in figure.axes] == [["rate", ""], ["share", ""]]
    assert [limits(ax)[0] for ax in figure.axes] == [(0, 60), (0, 1.5)]
    assert limits(rate)[1][0] > 1, "one stands at the top"
    assert title(figure) == "Two is faster"


def trials():
    rings = {"second": 10}
    return pictures.trials(
        ROWS,
        "n",
        "ms",
        "who",
        "Third is fast",
        "alt",
        "how many",
        line=(7, "too slow"),
        rings=rings,
    )


def shows_trials(figure):
    (ax,) = figure.axes
    first, second, third = (BLUE, "o"), (ORANGE, "s"), (GREEN, "^")
    ring = ("none", "o")
    assert marks(ax) == [
        (1, 2, first),
        (10, 5, first),
        (1, 3, second),
        (10, 6, second),
        (10, 8, second),
        (10, 100, second),
        (10, 8, ring),
        (1, 1, third),
        (10, 4, third),
    ]
    assert lines(ax) == [  # through the medians
        (BLUE, [(1, 2), (10, 5)]),
        (ORANGE, [(1, 3), (10, 8)]),
        (GREEN, [(1, 1), (10, 4)]),
        (INK, [(0, 7), (1, 7)]),
    ]
    assert texts(ax) == [("too slow", 1, 7)]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ticks(ax.xaxis) == {"1": 1, "10": 10}
    assert list(ax.get_xticks(minor=True)) == [], "the values that were tried, and no other"
    assert labels(ax) == ["how many", "ms"]
    assert legend(figure) == {"first": first, "second": second, "third": third, "knee": ring}
    assert title(figure) == "Third is fast"


def strips():
    samples = {"quick": [1, 2, 3], "slow": [10, 2000, 3000]}
    limit = (4000, "too slow")
    band = (0.5, 9, "foreseen")
    return pictures.strips(samples, "Slow is slow", "alt", "ms", limit=limit, band=band)


def shows_strips(figure):
    (ax,) = figure.axes
    dot = (BLUE, "o")
    assert marks(ax) == [  # not at one height, so that equal ones can be seen
        (1, -0.2, dot),
        (2, -0.1, dot),
        (3, 0, dot),
        (10, 0.8, dot),
        (2000, 0.9, dot),
        (3000, 1, dot),
    ]
    assert lines(ax) == [
        (MUTED, [(4000, 0), (4000, 1)]),
        (INK, [(2, -0.36), (2, 0.36)]),  # the medians
        (INK, [(2000, 0.64), (2000, 1.36)]),
    ]
    assert bars(ax) == [(0.5, 9, 0.5, colour(measurements.BAND))]
    assert texts(ax) == [("2", 1, 0), ("2,000", 1, 1), ("foreseen", 0.5, 1), ("too slow", 4000, 1)]
    assert ax.get_xscale() == "log"
    assert limits(ax) == ((0.4, 5000), (1.5, -0.5)), "also what the band and the limit need"
    assert ticks(ax.yaxis) == {"quick": 0, "slow": 1}
    assert labels(ax) == ["ms", ""]
    assert title(figure) == "Slow is slow"


def quantiles():
    rows = pd.DataFrame(
        [("a", 1.0, 4.0), ("a", 2.0, 5.0), ("a", 3.0, 9.0), ("b", 10.0, 20.0)],
        columns=["who", "median", "slowest"],
    )
    columns = {"median": 0.5, "slowest": 0.99}
    return pictures.quantiles(
        rows, columns, "who", "a is faster", "alt", "ms", limit=(7, "late"), shaded=["a"]
    )


def shows_quantiles(figure):
    (ax,) = figure.axes
    half, most = 0.30103, 2.0  # nines: -log10(1 - 0.5), -log10(1 - 0.99)
    assert lines(ax) == [
        (BLUE, [(2, half), (5, most)]),  # the medians of the trials
        (ORANGE, [(10, half), (20, most)]),
        (INK, [(7, 0), (7, 1)]),
    ]
    least_and_most = {(1, half), (3, half), (4, most), (9, most)}
    assert shades(ax) == [(BLUE, least_and_most)]
    assert texts(ax) == [("late", 7, 0.03)]
    assert ticks(ax.yaxis) == {"0": 0, "p50": half, "p90": 1, "p99": 2, "p99.9": 3}
    assert limits(ax)[1] == (0, 3.1)
    assert ax.get_xscale() == "log"
    assert labels(ax) == ["ms", ""]
    assert legend(figure) == {"a": (BLUE, "-"), "b": (ORANGE, "--")}
    assert title(figure) == "a is faster"


def spans():
    rows = {"n1": [(1, 100, "on disk"), (101, 200, "in memory")], "n2": [(1, 100, "on disk")]}
    return pictures.spans(rows, "100 are lost", "alt", "sequence", mark=(200.5, "last ack"))


def shows_spans(figure):
    (ax,) = figure.axes
    assert bars(ax) == [
        (0.5, 100.5, 0, BLUE),
        (100.5, 200.5, 0, ORANGE),
        (0.5, 100.5, 1, BLUE),
    ]
    assert [bar.get_hatch() for bar in rectangles(ax)] == ["", "///", ""]
    assert lines(ax) == [(INK, [(200.5, 0), (200.5, 1)])]
    assert texts(ax) == [("last ack", 200.5, 1)]
    assert ticks(ax.yaxis) == {"n1": 0, "n2": 1}
    assert limits(ax)[1] == (1.5, -0.5)
    assert labels(ax) == ["sequence", ""]
    assert legend(figure) == {"on disk": (BLUE, ""), "in memory": (ORANGE, "///")}
    assert title(figure) == "100 are lost"


EXAMPLES = {  # name of the function: what draws it, what checks it
    "bars": (counts, shows_counts),
    "ecdf": (ecdf, shows_ecdf),
    "shares": (shares, shows_shares),
    "spread": (spread, shows_spread),
    "trials": (trials, shows_trials),
    "strips": (strips, shows_strips),
    "quantiles": (quantiles, shows_quantiles),
    "spans": (spans, shows_spans),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_shows_the_numbers(name):
    draw, shows = EXAMPLES[name]
    shows(figure_of(draw))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_fault_in_the_picture_is_seen(name):
    assert faults_not_seen(*EXAMPLES[name]) == []


def test_a_thing_has_one_colour_whatever_order_its_trials_came_in_and_whoever_is_missing():
    columns = {"ms": 0.5, "n": 0.99}
    found = []
    for rows in (ROWS, ROWS[::-1], ROWS[ROWS["who"] != "first"]):
        for figure in [
            figure_of(lambda: pictures.trials(rows, "n", "ms", "who", "t", "a", names=NAMES)),
            figure_of(
                lambda: pictures.quantiles(rows, columns, "who", "t", "a", "ms", names=NAMES)
            ),
        ]:
            found.append({name: look[0] for name, look in legend(figure).items()})
    whole = dict(zip(NAMES, SERIES))
    without_first = {name: whole[name] for name in NAMES[1:]}
    assert found == [whole] * 4 + [without_first] * 2


def test_seven_things_have_seven_colours():
    assert len({measurements.look_of(index)[0] for index in range(7)}) == 7


def test_a_knee_is_in_the_legend_only_where_there_is_one():
    figure = figure_of(lambda: pictures.trials(ROWS, "n", "ms", "who", "t", "a", rings={}))
    assert list(legend(figure)) == NAMES


@pytest.mark.parametrize(
    "values, labelled", [([10, 20], "2 3 4 5 6 7 8 9"), ([1, 10], "2 5"), ([1, 1000], "")]
)
def test_the_narrower_the_view_the_more_numbers_stand_between_the_powers_of_ten(values, labelled):
    (ax,) = figure_of(lambda: pictures.strips({"a": values}, "t", "a", "ms")).axes
    label = ax.xaxis.get_minor_formatter()
    assert " ".join(label(value) for value in range(2, 10)).split() == labelled.split()
    assert ax.xaxis.get_major_formatter()(10_000) == "10,000"


def test_samples_come_in_the_order_of_names_without_what_is_missing():
    rows = pd.DataFrame({"who": ["b", "a", "b"], "ms": [1, 2, None]})
    assert pictures.samples(rows, "ms", "who", ["a", "b"]) == {"a": [2], "b": [1]}
    assert pictures.samples(rows, "ms", "who") == {"b": [1], "a": [2]}

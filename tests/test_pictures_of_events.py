"""The pictures of what happened when: each is drawn from a few events, and shows them."""

import pytest

from figures import (
    GRID,
    INK,
    MUTED,
    arrows,
    at,
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
    record,
    rectangles,
    shades,
    texts,
    ticks,
    title,
)
from labkit import pictures
from labkit.pictures import gantt
from labkit.pictures.style import OUTCOME, SERIES

PALE = [colour(shade) for shade in gantt.SHADES]


def timeline():
    log = record(
        at(0.0, "published", lane="publisher", msg=1),
        at(0.1, "lost", lane="publisher", msg=1),
        at(0.5, "published", lane="publisher", msg=2),
        at(0.6, "delivered", lane="A", msg=2),
        at(0.7, "acked", lane="A", msg=2),
        at(0.9, "lost", lane="A", msg=2, answer=True),
        at(1.0, "redelivered", lane="B", msg=2),
        at(1.2, "duplicate", lane="B", msg=2),
        at(1.3, "delivered", lane="not a lane", msg=2),
        at(1.4, "of no outcome", lane="A", msg=2),
    )
    lanes = ["publisher", "A", "B"]
    return pictures.timeline(log, lanes, "Message 1 was lost", "alt", marks=[(0.4, "subscribed")])


def shows_timeline(figure):
    (ax,) = figure.axes
    assert marks(ax) == [
        (0.0, 0, OUTCOME["published"]),
        (0.1, -0.5, OUTCOME["lost"]),  # below its sender
        (0.5, 0, OUTCOME["published"]),
        (0.6, -1, OUTCOME["delivered"]),
        (0.7, -1, OUTCOME["acked"]),
        (0.9, -0.5, OUTCOME["lost"]),  # above who answered
        (1.0, -2, OUTCOME["redelivered"]),
        (1.2, -2, OUTCOME["duplicate"]),
    ]
    lost = OUTCOME["lost"][0]
    assert lines(ax) == [
        (GRID, [(0, 0), (1, 0)]),
        (GRID, [(0, -1), (1, -1)]),
        (GRID, [(0, -2), (1, -2)]),
        (lost, [(0, 0), (0.1, -0.5)]),  # from where it was sent
        (lost, [(0.6, -1), (0.9, -0.5)]),  # from where the message came to A
        (INK, [(0.4, 0), (0.4, 1)]),
    ]
    sent = (0.5, 0)
    assert arrows(ax) == [(sent, tip) for tip in [(0.6, -1), (0.7, -1), (1.0, -2), (1.2, -2)]]
    assert texts(ax) == [("1", 0, 0), ("2", 0.5, 0), ("subscribed", 0.4, 0)]
    assert ticks(ax.yaxis) == {"publisher": 0, "A": -1, "B": -2}
    assert limits(ax)[1] == (-2.9, 0.6)
    assert labels(ax) == ["seconds since start", ""]
    assert legend(ax) == OUTCOME
    assert title(figure) == "Message 1 was lost"


def deliveries():
    log = record(
        at(5.0, "delivered", msg=1, worker="A"),
        at(5.4, "acked", msg=1, worker="A"),
        at(5.4, "delivered", msg=2, worker="A"),
        at(5.7, "in progress", msg=2, worker="A"),
        at(6.4, "expired", msg=2, worker="A"),
        at(6.4, "delivered", msg=2, worker="B"),
        at(6.6, "nak", msg=2, worker="B"),
        at(6.7, "delivered", msg=2, worker="B"),
        at(7.0, "term", msg=2, worker="B"),
        at(6.8, "delivered", msg=3, worker="A"),
        at(7.0, "acked", msg=3, worker="B"),  # who does not hold it
        at(8.0, "seen", msg=3, worker="A"),  # is no part of a delivery
    )
    notes = [(6.4, 2, "ran out")]
    marks = [(1.0, "ack wait over")]
    return pictures.deliveries(log, "Message 2 came twice", "alt", notes=notes, marks=marks)


def shows_deliveries(figure):
    (ax,) = figure.axes
    edge = 2 * 1.12
    a, b = PALE[:2]
    assert bars(ax) == [
        (0, 0.4, 0, a),
        (0.4, 1.4, 1, a),
        (1.4, 1.6, 1, b),
        (1.7, 2.0, 1, b),
        (1.8, edge, 2, a),
    ]
    assert [bar.get_alpha() for bar in rectangles(ax)] == [1, 1, 1, 1, 0.5]  # the last is not over
    assert marks(ax) == [
        (0.4, 0, gantt.ENDING["acked"]),
        (0.7, 1, gantt.ENDING["in progress"]),
        (1.4, 1, gantt.ENDING["expired"]),
        (1.6, 1, gantt.ENDING["nak"]),
        (2.0, 1, gantt.ENDING["term"]),
    ]
    assert lines(ax) == [(INK, [(1, 0), (1, 1)])]
    names = [("A", 0, 0), ("A", 0.4, 1), ("A", 1.8, 2), ("B", 1.4, 1), ("B", 1.7, 1)]
    assert texts(ax) == [*names, ("ack wait over", 1, 1), ("ran out", 1.4, 1)]
    assert ticks(ax.yaxis) == {"message 1": 0, "message 2": 1, "message 3": 2}
    assert limits(ax) == (near(0, edge), (2.6, -0.6)), "the first one at the top"
    assert labels(ax) == ["seconds since the first delivery", ""]
    assert legend(ax) == gantt.ENDING
    assert title(figure) == "Message 2 came twice"


def deliveries_at_the_same_time():
    log = record(
        at(0.0, "delivered", msg="pack", worker="A"),
        at(0.0, "delivered", msg="ship", worker="C"),
        at(0.1, "acked", msg="ship", worker="C"),
        at(1.0, "delivered", msg="pack", worker="B"),
        at(1.6, "acked", msg="pack", worker="A"),
        at(2.0, "acked", msg="pack", worker="B"),
    )
    return pictures.deliveries(log, "Both pack", "alt", order=["pay", "ship", "pack"])


def shows_deliveries_at_the_same_time(figure):
    (ax,) = figure.axes
    a, c, b = PALE[:3]
    assert bars(ax) == [(0, 1.6, 1.81, a), (0, 0.1, 1, c), (1, 2, 2.19, b)]
    heights = [near(bar.get_height())[0] for bar in rectangles(ax)]
    assert heights == [0.34, 0.56, 0.34], "two bars share the row of pack"
    acked = gantt.ENDING["acked"]
    assert marks(ax) == [(1.6, 1.81, acked), (0.1, 1, acked), (2, 2.19, acked)]
    assert texts(ax) == [("A", 0, 1.81), ("B", 1, 2.19)], "C's bar is too short for a name"
    assert ticks(ax.yaxis) == {"pay": 0, "ship": 1, "pack": 2}
    assert labels(ax) == ["seconds since the first delivery", ""]
    assert legend(ax) == {"acked": acked}
    assert title(figure) == "Both pack"


def stream_log():
    stored = {3: "a", 4: "b", 5: "c"}
    cursors = {"all": (5, 3), "done": (4, 4), "idle": (2, 0)}
    return pictures.stream_log(stored, cursors, "Two wait", "alt", waiting={"all": [4, 5]})


def shows_stream_log(figure):
    (ax,) = figure.axes
    boxes = [(2.55, 3.45, 0, PALE[0]), (3.55, 4.45, 0, PALE[0]), (4.55, 5.45, 0, PALE[0])]
    assert bars(ax) == boxes
    floor = OUTCOME["acked"]
    given = (OUTCOME["published"][0], ">")
    waits = (OUTCOME["redelivered"][0], "D")
    assert marks(ax) == [
        (3, -1, floor),
        (4, -1, waits),
        (5, -1, waits),
        (5.15, -1, given),  # beside the diamond at 5
        (4, -2, floor),
        (4.15, -2, given),
    ]
    assert lines(ax) == [(SERIES[0], [(2.55, -1), (5, -1)]), (SERIES[0], [(2.55, -2), (4, -2)])]
    assert texts(ax) == [
        ("3\na", 3, 0),
        ("4\nb", 4, 0),
        ("5\nc", 5, 0),
        ("nothing delivered yet", 2.55, -3),
    ]
    assert ticks(ax.yaxis) == {"stream": 0, "all": -1, "done": -2, "idle": -3}
    assert legend(ax) == {
        "acked up to here": floor,
        "delivered, not acked": waits,
        "delivered up to here": given,
    }
    assert limits(ax) == ((2.4, 5.6), (-3.6, 0.6))
    assert ticks(ax.xaxis) == {}
    assert title(figure) == "Two wait"


def depths():
    log = record(
        at(0.0, "depth", stream="A", messages=0),
        at(0.1, "published", stream="A", text="one"),
        at(0.1, "depth", stream="A", messages=5),
        at(0.2, "published", stream="A", text="one"),
        at(0.3, "published", stream="A", text="two"),
        at(0.4, "published", stream="A"),
        at(0.5, "removed", stream="A", messages=3),
        at(0.5, "depth", stream="A", messages=2),
        at(0.6, "removed", stream="A", messages=1),
        at(0.6, "depth", stream="A", messages=1),
        at(0.2, "depth", stream="B", messages=8),
        at(0.9, "removed", stream="B"),
        at(0.9, "acked", stream="B"),  # is not asked for
    )
    return pictures.depths(log, ["A", "B"], "A is full", "alt", marks=("published", "removed"))


def shows_depths(figure):
    one, other = figure.axes
    removed = (INK, "x")
    # The rows of marks stand above the line: the first kind at 1.61, the last at 1.25 of its top.
    sent = [(seconds, 5 * 1.61, OUTCOME["published"]) for seconds in (0.1, 0.2, 0.3, 0.4)]
    assert marks(one) == [(0.5, 6.25, removed), (0.6, 6.25, removed), *sent]
    assert marks(other) == [(0.9, 10, removed)]
    assert lines(one) == [(SERIES[0], [(0, 0), (0.1, 5), (0.5, 2), (0.6, 1)])]
    assert one.lines[0].get_drawstyle() == "steps-post"
    assert lines(other) == [(SERIES[0], [(0.2, 8)])]
    assert texts(one) == [("one", 0.1, 8.05), ("two", 0.3, 8.05), ("×3", 0.5, 6.25)]
    assert texts(other) == []
    assert list(ticks(one.yaxis)) == ["0", "1", "2", "3", "4", "5"]
    assert list(ticks(other.yaxis)) == ["0", "2", "4", "6", "8"]
    assert [limits(ax)[1] for ax in figure.axes] == [(0, near(5 * 1.92)[0]), (0, 8 * 1.92)]
    assert [labels(ax) for ax in figure.axes] == [["", "A"], ["seconds since start", "B"]]
    assert legend(one) == {"published": OUTCOME["published"], "removed": removed}
    assert title(figure) == "A is full"


def attempts():
    log = record(
        at(0.1, "stored", id="a"),
        at(0.3, "refused", id="a"),
        at(0.5, "refused", id="b"),
        at(0.65, "stored", id="a"),
        at(0.7, "seen", id="c"),  # is no attempt
    )
    return pictures.attempts(log, 0.5, "One was refused", "alt")


def shows_attempts(figure):
    (ax,) = figure.axes
    stored, refused = OUTCOME["acked"], OUTCOME["duplicate"]
    assert bars(ax) == [(0.1, 0.6, 0, PALE[2]), (0.65, 1.15, 0, PALE[2])]
    assert marks(ax) == [(0.1, 0, stored), (0.65, 0, stored), (0.3, 0, refused), (0.5, 1, refused)]
    assert ticks(ax.yaxis) == {"a": 0, "b": 1}
    assert limits(ax) == (near(0.1 - 0.03 * 1.05, 1.15 + 0.03 * 1.05), (1.6, -0.6))
    assert labels(ax) == ["seconds since start (shaded: the window of 0.5 s)", ""]
    assert legend(ax) == {"stored": stored, "refused": refused}
    assert title(figure) == "One was refused"


def lag():
    log = record(
        at(2.0, "change", text="A comes"),
        at(2.1, "lag", pending=3, ack_pending=0, waiting=0, redelivered=0),
        at(3.1, "change", text="B comes"),
        at(4.1, "lag", pending=0, ack_pending=2, waiting=1, redelivered=1),
        at(22.1, "lag", pending=0, ack_pending=0, waiting=4, redelivered=0),
    )
    return pictures.lag(log, "B was enough", "alt")


def shows_lag(figure):
    numbers = {
        "pending\n(backlog)": (3, 0, 0),
        "ack_pending\n(in flight)": (0, 2, 0),
        "waiting\n(open requests)": (0, 1, 4),
        "redelivered\n(out once more)": (0, 1, 0),
    }
    changes = [(MUTED, [(0, 0), (0, 1)]), (MUTED, [(1, 0), (1, 1)])]
    assert len(figure.axes) == len(numbers)
    for ax, series, (name, values) in zip(figure.axes, SERIES, numbers.items()):
        assert lines(ax) == [(series, list(zip((0, 2, 20), values))), *changes]
        assert ax.lines[0].get_drawstyle() == "steps-post"
        first, second, third = values
        [(shade, corners)] = shades(ax)
        assert shade == series
        assert corners >= {(0, 0), (0, first), (2, first), (2, second), (20, second), (20, third)}
        assert labels(ax)[1] == name
        assert limits(ax) == ((0, 20), near(0, max(values) * 1.12))
        assert not [label for label in ticks(ax.yaxis) if "." in label], (
            "there are no half messages"
        )
    assert labels(ax)[0] == "seconds since start"
    top = figure.axes[0]
    assert texts(top) == [("A comes", 0, 1), ("B comes", 1, 1)]
    # The text of A would reach into B's line: it stands a line of 12 points higher.
    shifts = {text.get_text(): text.xyann for text in top.texts if text.get_text()}
    assert shifts == {"A comes": (3, 16), "B comes": (3, 4)}
    assert arrows(top) == [((0, 12), (1, 1)), ((0, 24), (0, 1))]
    assert title(figure) == "B was enough"


def lifelines():
    log = record(
        at(1.0, "ordered", order=1),
        at(1.2, "ready", worker="A1"),
        at(1.3, "before", worker="A1", order=1),
        at(1.4, "after", worker="A1", order=1),
        at(1.4, "killed", worker="A1", point="after"),
        at(1.5, "ready", worker="A2"),
        at(1.6, "before", worker="A2", order=1),
        at(1.9, "resumed", worker="A2"),
        at(2.0, "ready", worker="B"),
        at(2.2, "killed", worker="B"),
        at(3.0, "the end"),
    )
    return pictures.lifelines(log, ["before", "after"], "A died after its charge", "alt")


def shows_lifelines(figure):
    (ax,) = figure.axes
    white = "#FFFFFF"
    pale = PALE[0]
    assert bars(ax) == [
        (0.2, 0.4, 0, pale),
        (0.5, 2.0, 0, pale),  # to the end of the record
        (0.6, 0.9, 0, white),  # stood still
        (1.0, 1.2, -1, pale),
    ]
    assert [bar.get_hatch() for bar in rectangles(ax)] == [None, None, "////", None]
    before, after = (SERIES[0], "o"), (SERIES[1], "s")
    killed, killed_after = OUTCOME["lost"], (OUTCOME["lost"][0], "s")
    assert marks(ax) == [
        (0.3, 0.13, before),
        (0.4, -0.13, after),
        (0.4, 0, killed_after),
        (0.6, 0.13, before),
        (1.2, -1, killed),
    ]
    assert ticks(ax.yaxis) == {"A": 0, "B": -1}
    assert limits(ax) == (near(0, 2 * 1.03), (-1.6, 0.6))
    assert labels(ax) == ["seconds since the first event", ""]
    assert legend(ax) == {
        "before": before,
        "after": after,
        "killed": killed,
        "killed at after": killed_after,
    }
    assert title(figure) == "A died after its charge"


def lifelines_below_curves():
    orders = [at(n / 10, "charged", worker="A", order=n // 2) for n in range(41)]
    log = record(*orders, at(4.1, "killed", worker="A"), at(4.2, "noted"), at(4.3, "noted"))
    curves = {"orders": "charged", "notes": "noted"}
    return pictures.lifelines(log, ["charged"], "21 orders, 41 charges", "alt", curves=curves)


def shows_lifelines_below_curves(figure):
    top, ax = figure.axes
    assert bars(ax) == [(0, 4.1, 0, PALE[0])]
    strokes = [(n / 10, 0, (SERIES[0], "|")) for n in range(41)]
    assert marks(ax) == [*strokes, (4.1, 0, OUTCOME["lost"])]
    assert ticks(ax.yaxis) == {"A": 0}
    assert legend(ax) == {"charged": (SERIES[0], "|"), "killed": OUTCOME["lost"]}
    # Each order counts once, when it first came; what has no order counts each time.
    orders = [(0, 0), *((n / 5, n + 1) for n in range(21)), (4.3, 21)]
    notes = [(0, 0), (4.2, 1), (4.3, 2), (4.3, 2)]
    assert lines(top) == [(SERIES[0], orders), (SERIES[1], notes)]
    assert {line.get_drawstyle() for line in top.lines} == {"steps-post"}
    assert legend(top) == {"orders: 21": (SERIES[0], "-"), "notes: 2": (SERIES[1], "--")}
    assert labels(top) == ["", "so far"]
    assert ticks(top.xaxis) == {}, "the times stand below"
    assert labels(ax) == ["seconds since the first event", ""]
    assert title(figure) == "21 orders, 41 charges"


def answers():
    acked = [at(11 + n / 10, "acked", row="publish") for n in range(10)]
    log = record(
        *acked,
        at(12.5, "timeout", row="publish"),
        at(14.5, "timeout", row="publish"),
        at(14.6, "no response", row="publish"),
        at(15.0, "acked", row="publish"),
        at(13.0, "fetched", row="fetch"),
        at(13.05, "fetched", row="fetch"),
        at(13.2, "refused", row="fetch"),
        at(13.3, "acked", row="not a row"),
    )
    moments = [(12.0, "killed"), (12.1, "elected")]
    rows = ["publish", "fetch"]
    return pictures.answers(log, rows, "2 s without acks", "alt", marks=moments, start=12.0)


def shows_answers(figure):
    (ax,) = figure.axes
    acked, timeout = OUTCOME["acked"], OUTCOME["redelivered"]
    assert bars(ax) == [(-1, -0.1, 0, acked[0]), (0.5, 2.5, 0, timeout[0])]
    assert [bar.get_hatch() for bar in rectangles(ax)] == ["", "///"]
    assert marks(ax) == [
        (2.6, 0, OUTCOME["lost"]),
        (3.0, 0, acked),
        (1.0, 1, OUTCOME["delivered"]),
        (1.2, 1, OUTCOME["duplicate"]),
    ]
    assert lines(ax) == [
        (GRID, [(0, 0), (1, 0)]),
        (GRID, [(0, 1), (1, 1)]),
        (INK, [(0, 0), (0, 1)]),
        (INK, [(0.1, 0), (0.1, 1)]),
    ]
    assert texts(ax) == [("elected", 0.1, 0), ("killed", 0, 0)]
    sides = {text.get_text(): text.get_ha() for text in ax.texts}
    assert sides == {"killed": "right", "elected": "left"}, "no room between the two lines"
    assert limits(ax)[0][0] == -1.8, "room for the text at the left"
    assert limits(ax)[1] == (1.9, -0.6)
    assert ticks(ax.yaxis) == {"publish": 0, "fetch": 1}
    assert labels(ax) == ["seconds since the fault", ""]
    assert legend(ax) == {
        "acked": (acked[0], ""),  # a bar and a mark
        "fetched": OUTCOME["delivered"],
        "timeout": (timeout[0], "///"),
        "no response": OUTCOME["lost"],
        "refused": OUTCOME["duplicate"],
    }
    assert title(figure) == "2 s without acks"


def lines_between():
    came = [(0, 0), (1, 8), (2, 8)]
    went = [(0, 0), (1, 4), (2, 8)]
    between = ("came", "went", "4 behind")
    series = {"came": came, "went": went}
    return pictures.lines(series, "4 behind", "alt", "sequence", between=between)


def shows_lines_between(figure):
    (ax,) = figure.axes
    assert lines(ax) == [
        (SERIES[0], [(0, 0), (1, 8), (2, 8)]),
        (SERIES[1], [(0, 0), (1, 4), (2, 8)]),
    ]
    assert {line.get_drawstyle() for line in ax.lines} == {"steps-post"}
    low = {(0, 0), (1, 0), (1, 4), (2, 4), (2, 8)}
    high = {(0, 0), (1, 0), (1, 8), (2, 8)}
    assert shades(ax) == [(SERIES[4], low | high)]
    assert texts(ax) == [("4 behind", 1, 6)], "in the middle, where the gap is widest"
    assert labels(ax) == ["seconds since start", "sequence"]
    assert legend(ax) == {"came": (SERIES[0], "-"), "went": (SERIES[1], "--")}
    assert ax.get_ylim()[0] == 0
    assert title(figure) == "4 behind"


def lanes():
    log = record(
        at(0.5, "state", lane="health", word="ok"),
        at(1.0, "state", lane="health", word="ok"),
        at(4.0, "state", lane="health", word="unavailable"),
        at(8.0, "state", lane="health", word="no answer"),
        at(2.0, "state", lane="alert", word="ok"),
        at(9.9, "state", lane="alert", word="firing"),
        at(10.0, "the end"),
    )
    moments = [(3.0, "cut"), (7.0, "told")]
    return pictures.lanes(log, ["health", "alert", "silent"], "It saw it", "alt", marks=moments)


def shows_lanes(figure):
    (ax,) = figure.axes
    good, bad = OUTCOME["acked"][0], OUTCOME["lost"][0]
    assert bars(ax) == [
        (0.5, 4, 0, good),
        (4, 8, 0, bad),
        (8, 10, 0, "#FFFFFF"),
        (2, 9.9, 1, good),
        (9.9, 10, 1, bad),
    ]
    assert [bar.get_hatch() for bar in rectangles(ax)] == ["", "//", "..", "", "//"]
    assert texts(ax) == [
        ("cut", 3, -0.62),
        ("no answer", 8, 0),
        ("ok", 0.5, 0),
        ("ok", 2, 1),
        ("told", 7, -0.62),
        ("unavailable", 4, 0),
    ], "firing is too short for its word"
    assert lines(ax) == [(INK, [(3, 0), (3, 1)]), (INK, [(7, 0), (7, 1)])]
    sides = {text.get_text(): text.get_ha() for text in ax.texts}
    assert (sides["cut"], sides["told"]) == ("left", "right"), "no text leaves the picture"
    assert ticks(ax.yaxis) == {"health": 0, "alert": 1, "silent": 2}
    assert limits(ax) == ((0, 10), (2.5, -1))
    assert labels(ax) == ["seconds since start", ""]
    assert title(figure) == "It saw it"


EXAMPLES = {  # name of the function, and in what situation: what draws it, what checks it
    "timeline": (timeline, shows_timeline),
    "deliveries": (deliveries, shows_deliveries),
    "deliveries, at the same time": (
        deliveries_at_the_same_time,
        shows_deliveries_at_the_same_time,
    ),
    "stream_log": (stream_log, shows_stream_log),
    "depths": (depths, shows_depths),
    "attempts": (attempts, shows_attempts),
    "lag": (lag, shows_lag),
    "lifelines": (lifelines, shows_lifelines),
    "lifelines, below curves": (lifelines_below_curves, shows_lifelines_below_curves),
    "answers": (answers, shows_answers),
    "lines": (lines_between, shows_lines_between),
    "lanes": (lanes, shows_lanes),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_shows_the_events(name):
    draw, shows = EXAMPLES[name]
    shows(figure_of(draw))


def test_a_legend_names_what_is_drawn_only():
    figure = figure_of(lambda: pictures.stream_log({1: "a"}, {"all": (1, 1)}, "t", "a"))
    assert list(legend(figure.axes[0])) == ["acked up to here", "delivered up to here"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_fault_in_the_picture_is_seen(name):
    assert faults_not_seen(*EXAMPLES[name]) == []

"""The sketches at the head of lessons, the map of the cluster and the clinic's two drawings: each
says what the lesson says."""

import itertools

import pandas as pd
import pytest

from figures import (
    GRID,
    MUTED,
    arrows,
    bars,
    boxed,
    colour,
    faults_not_seen,
    figure_of,
    limits,
    lines,
    marks,
    near,
    shades,
    texts,
    ticks,
    title,
)
from labkit import pictures
from labkit.clinic import CASES, tree
from labkit.pictures.style import OUTCOME, SERIES, STATE


def shows_request_endings(figure):
    (ax,) = figure.axes
    requester, server, service = 2, 1, 0
    assert ticks(ax.yaxis) == {"requester": requester, "server": server, "service": service}
    assert marks(ax) == [
        (3, requester, OUTCOME["acked"]),
        (6.6, requester, OUTCOME["redelivered"]),
        (11.4, requester, OUTCOME["lost"]),
    ]
    assert arrows(ax) == [
        ((0, requester), (1.2, service)),
        ((1.8, service), (3, requester)),
        ((5, requester), (5.6, server)),
        ((6, server), (6.6, requester)),
        ((9, requester), (10.2, service)),
    ]
    working = OUTCOME["delivered"][0]
    assert bars(ax) == [(1.2, 1.8, service, working), (10.2, 12.8, service, working)]
    assert shades(ax) == [(GRID, {(-0.3, y), (12.9, y)}) for y in (0, 1, 2)]
    assert texts(ax) == [
        ("NoRespondersError", 6.6, 2.3),
        ("TimeoutError", 11.4, 2.3),
        ("_INBOX.k7p", 2.6, 0.5),
        ("nobody listens", 5, 0.55),
        ("reply", 3, 2.3),
        ("still working", 10.3, 0.3),
        ("user.profile", 0.55, 1.45),
    ]
    assert ticks(ax.xaxis) == {}
    assert title(figure) == "A request has three endings"


def shows_two_steps(figure):
    (ax,) = figure.axes
    assert ticks(ax.yaxis) == {"charge, then mark": 2, "mark, then charge": 1, "both at once": 0}
    charge, mark, both = (OUTCOME[name][0] for name in ("delivered", "redelivered", "acked"))
    assert bars(ax) == [
        (0, 2, 2, charge),
        (3.2, 5.2, 2, mark),
        (0, 2, 1, mark),
        (3.2, 5.2, 1, charge),
        (0, 5.2, 0, both),
    ]
    assert marks(ax) == [(2.6, 2, OUTCOME["lost"]), (2.6, 1, OUTCOME["lost"])], "between the two"
    assert texts(ax) == [
        ("charge", 1, 2),
        ("charge", 4.2, 1),
        ("charge + mark", 2.6, 0),
        ("dies here: charged, not marked;\nthe next worker charges again", 5.6, 2),
        ("dies here: marked, not charged;\nnobody ever charges", 5.6, 1),
        ("mark", 1, 1),
        ("mark", 4.2, 2),
        ("no place between them:\none charge", 5.6, 0),
    ]
    assert ticks(ax.xaxis) == {}
    assert title(figure) == "Between two steps there is a place to die"


def shows_settings_on_the_way(figure):
    (ax,) = figure.axes
    places = {
        "producer": "Nats-Msg-Id",
        "connection": "ping interval",
        "server": "permissions",
        "consumer": "max deliver",
        "worker": "heartbeat",
    }
    middles = [0.95, 2.95, 4.95, 6.95, 8.95]
    pale = colour("#cfe3f1")
    assert bars(ax) == [(*near(x - 0.66, x + 0.66), 0, pale) for x in middles]
    assert arrows(ax) == [(near(x - 1.38, 0), near(x - 0.62, 0)) for x in middles[1:]]
    written = texts(ax)
    assert len(written) == 2 * len(places)
    for x, (place, setting) in zip(middles, places.items()):
        assert (place, x, 0) in written
        assert [1 for text, *at in written if setting in text and at == [x, -0.5]]
    assert not ax.axison
    assert title(figure).startswith("Each place on the way breaks in its own manner")


def cluster_map():
    nodes = pd.DataFrame(
        [
            ("n1", "up", 4222, "leader"),
            ("n2", "up", 4223, "follower"),
            ("n3", "isolated", 4224, "follower"),
            ("n4", "dead", 4225, None),
        ],
        columns=["node", "state", "port", "meta"],
    ).set_index("node")
    notes = {"n3": "★ leads ORDERS"}
    return pictures.cluster_map(nodes, "2 of 4 nodes are up", "alt", notes=notes)


def shows_cluster_map(figure):
    (ax,) = figure.axes
    places = {"n1": (0, 1.15), "n2": (-1.7, 0), "n3": (0, -1.15), "n4": (1.7, 0)}
    states = {"n1": "up", "n2": "up", "n3": "isolated", "n4": "dead"}
    looks = [(colour(STATE[state][0]), STATE[state][2]) for state in states.values()]
    assert marks(ax) == [(*place, look) for place, look in zip(places.values(), looks)]
    whole, *broken = itertools.combinations(places.values(), 2)
    lost = OUTCOME["lost"][0]
    assert lines(ax) == [(MUTED, list(whole)), *((lost, list(ends)) for ends in broken)]
    assert [line.get_linestyle() for line in ax.lines[:6]] == ["-", *[":"] * 5]
    assert texts(ax) == sorted(
        [
            *[(name, *near(x, y + 0.1)) for name, (x, y) in places.items()],
            *[(states[name], *near(x, y - 0.2)) for name, (x, y) in places.items()],
            ("port 4222\n★ leads the cluster (meta)", 0.66, 1.15),
            ("port 4223", -2.36, 0),  # at the outer side
            ("port 4224\n★ leads ORDERS", 0.66, -1.15),
            ("port 4225", 2.36, 0),
        ]
    )
    assert limits(ax) == ((-3.9, 3.9), (-1.3, 1.8))
    assert not ax.axison
    assert title(figure) == "2 of 4 nodes are up"


def shows_chain(figure):
    (ax,) = figure.axes
    stations = dict(tree.WAY)
    assert list(stations) == ["program", "connection", "stream", "consumer", "handler"]
    middles = dict(zip(stations, [1, 3, 5, 7, 9]))
    assert boxed(ax) == dict.fromkeys(stations, SERIES[0])
    names = [(name, x, 0.25) for name, x in middles.items()]
    questions = [(stations[name], x, -0.35) for name, x in middles.items()]
    assert texts(ax) == sorted(names + questions)
    assert arrows(ax) == [((x, 0.25), (x + 2, 0.25)) for x in (1, 3, 5, 7)]
    assert not ax.axison
    assert title(figure) == "A message gets stuck at one of five stations"


def shows_decision_tree(figure):
    (ax,) = figure.axes
    written = [("complaint", 0.05, 0.75), ("what you see", 2.35, 0.75), ("cause", 6.8, 0.75)]
    ways = []
    stripes = []
    y = 0
    for complaint, seen in tree.TREE.items():
        middle = y - (len(seen) - 1) / 2
        stripes.append(middle)
        written.append((complaint, 0.05, middle))
        for sign, cause in seen.items():
            written += [(sign, 2.35, y), (f"→ {cause}", 6.8, y)]
            ways.append((MUTED, [(1.95, middle), (2.25, y)]))
            y -= 1
    assert texts(ax) == sorted(written)
    assert lines(ax) == ways
    assert bars(ax) == [(0, 1, y, fill) for y, fill in zip(stripes, ["#FFFFFF", GRID] * 2)]
    assert not ax.axison
    assert title(figure) == "Four complaints, eighteen causes: each has a sign of its own"


EXAMPLES = {  # name of the function: what draws it, what checks it
    "request_endings": (pictures.request_endings, shows_request_endings),
    "two_steps": (pictures.two_steps, shows_two_steps),
    "settings_on_the_way": (pictures.settings_on_the_way, shows_settings_on_the_way),
    "cluster_map": (cluster_map, shows_cluster_map),
}
CLINIC = {
    "chain": (tree.chain, shows_chain),
    "decision_tree": (tree.decision_tree, shows_decision_tree),
}
ALL = EXAMPLES | CLINIC


@pytest.mark.parametrize("name", ALL)
def test_it_shows_the_idea(name):
    draw, shows = ALL[name]
    shows(figure_of(draw))


@pytest.mark.parametrize("name", ALL)
def test_a_fault_in_the_picture_is_seen(name):
    assert faults_not_seen(*ALL[name]) == []


def test_each_cause_of_the_clinic_stands_in_the_tree_once_and_in_its_text():
    causes = [cause for seen in tree.TREE.values() for cause in seen.values()]
    assert len(causes) == len(set(causes)) == 18
    assert {case.cause for case in CASES.values()} <= set(causes)
    text = tree.tree_text()
    for complaint, seen in tree.TREE.items():
        assert " ".join(complaint.split()) in text.splitlines()
        for sign, cause in seen.items():
            assert f"    {sign}  →  {cause}" in text.splitlines()

"""The cockpit where nobody looks, and how it looks; test_browser.py presses its buttons."""

import asyncio
import re

import nbformat
import pandas as pd
import pytest

from labkit import Lab, LabError, notebooks
from labkit.cluster import faults
from labkit.cockpit import drawing, panel
from labkit.pictures import style

OPEN = """
from labkit import Lab
lab = await Lab.open("checks", private=True)
"""
STREAM = """
await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
await lab.wait_for_current("ORDERS")
"""
IS_LOADED = """
import sys
"ipywidgets" in sys.modules
"""
CELLS = [OPEN, STREAM, "lab.cockpit()", IS_LOADED, "await lab.close()"]


def looks(*states):
    """Tables as lab.nodes() and lab.replicas() return them, made up: nodes in these states, and a
    stream on two nodes, one on a node that does not answer."""
    nodes = pd.DataFrame(
        {
            "node": ["n1", "n2", "n3"],
            "state": states,
            "port": [4222, 4223, 4224],
            "meta": ["leader", "follower", "follower"],
        }
    )
    replicas = pd.DataFrame(
        [
            ("A<B", "n1", "leader", "current", 0, 1),
            ("A<B", "n2", "follower", "behind", 1200, 7),
            ("R1", "n3", "follower", "unknown", None, None),
        ],
        columns=["stream", "node", "role", "state", "lag", "messages"],
    )
    replicas = replicas.astype({"lag": "Int64", "messages": "Int64"})
    return nodes.set_index("node"), replicas.set_index(["stream", "node"])


async def test_where_a_program_runs_the_notebook_a_picture_is_left_and_no_trace_of_widgets(
    own, tmp_path
):
    path = tmp_path / "cockpit.ipynb"
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    book = nbformat.reads(await notebooks.execute(path), 4)
    (output,) = book.cells[2].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert "widgets" not in book.metadata
    assert output.data["text/plain"].startswith("Picture: Cockpit. 3 of 3 nodes are up: n1 up")
    assert "leads ORDERS" in output.metadata["image/png"]["alt"]
    assert book.cells[3].outputs[0].data["text/plain"] == "False"
    assert book.cells[4].outputs[0].text == "closed: nothing left behind\n"


def test_a_notebook_that_was_saved_with_widgets_is_written_without_them():
    data = {notebooks.WIDGETS: {"model_id": "x"}, "image/png": "", "text/plain": "Picture"}
    output = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell("lab.cockpit()", outputs=[output])
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    book = notebooks.normalise(book)
    assert set(book.cells[0].outputs[0].data) == {"image/png", "text/plain"}
    assert "widgets" not in book.metadata


async def test_leaders_of_streams_consumers_and_the_meta_group_can_be_asked_to_step_down(own):
    lab = await Lab.open("checks", private=True)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    before = await lab.wait_for_leader("ORDERS", "worker")
    live = panel.Cockpit(lab, None, *await panel.look(lab))
    assert list(dict(live.streams.options)) == ["ORDERS", "worker of ORDERS", panel.META]
    assert live.streams.label == "ORDERS"
    live.streams.label = "worker of ORDERS"
    await live._step_down()
    after = await lab.wait_for_leader("ORDERS", "worker", other_than=before)
    assert "step down of worker of ORDERS: done in" in live.log.value
    assert f"{after} leads now" in live.log.value
    live._draw(*await panel.look(lab))
    assert live.streams.label == "worker of ORDERS", "what was chosen stays chosen"
    await lab.close()


@pytest.fixture
async def live(shared):
    """A cockpit on the shared cluster; its buttons are not pressed."""
    lab = await Lab.open("checks")
    picture = drawing.picture(*(await panel.look(lab))[:2])
    yield panel.Cockpit(lab, picture, *await panel.look(lab))
    await lab.close()


async def test_it_shows_how_an_action_went(live):
    async def refused():
        raise LabError("n1 is <dead> already")

    async def broken():
        raise KeyError("n1")

    async def done():
        return "n2"

    await live._do("kill n1", refused)
    await live._do("stop n1", broken)
    await live._do("step down", done)
    said = live.log.value
    assert "<b>✕ kill n1: n1 is &lt;dead&gt; already</b>" in said
    assert "<b>✕ stop n1: KeyError(&#x27;n1&#x27;)</b>" in said
    assert re.search(r"step down: done in \d\.\d s, n2 leads now", said), said
    for _ in range(5):
        await live._do("heal all", done)
    assert "kill n1" not in live.log.value, "the latest five lines"


async def test_each_button_can_be_pressed_in_the_states_in_which_it_does_something(live):
    nodes, replicas = looks("up", "paused", "dead")
    live._draw(nodes, replicas, [])
    can = {node: usable(live, node) for node in nodes.index}
    assert can == {
        "n1": {"kill", "stop", "lame_duck", "pause", "isolate"},
        "n2": {"kill", "resume", "isolate"},
        "n3": {"start"},
    }
    live.lab.faults.isolated.add("n1")
    nodes.loc["n1", "state"] = "isolated"
    live._draw(nodes, replicas, [])
    assert usable(live, "n1") == {"kill", "stop", "lame_duck", "pause", "rejoin"}
    live.lab.faults.isolated.clear()


def usable(live, node):
    """The verbs whose buttons can be pressed for this node."""
    return {verb for verb in panel.VERBS if not live.buttons[node, verb].disabled}


async def test_it_notes_a_new_leader_and_how_long_there_was_none(live):
    nodes, replicas = looks("up", "up", "up")
    live._draw(nodes, replicas, [])
    assert "leads" not in live.log.value
    replicas["role"] = ["follower", "leader", "follower"]
    live._draw(nodes, replicas, [])
    said = live.log.value
    assert re.search(r"A&lt;B: n2 leads, \d\.\d s after n1 was last seen to lead", said), said


async def test_it_shows_widgets_and_the_picture_and_stands_still_at_the_end(live):
    data, metadata = live._repr_mimebundle_()
    assert {notebooks.WIDGETS, "image/png", "text/plain"} == set(data)
    assert metadata["image/png"]["alt"].startswith("Cockpit. 3 of 3 nodes are up")
    await live.lab.close()
    await asyncio.wait_for(live.task, timeout=5)
    assert "The lesson is closed: the map no longer moves." in live.log.value
    assert not usable(live, "n1")


async def test_a_look_that_fails_is_shown(live, monkeypatch):
    async def silent(lab):
        raise TimeoutError

    monkeypatch.setattr(panel, "look", silent)
    await live.lab.until(lambda: "the cluster could not be seen" in live.log.value, timeout=5)


async def test_on_the_shared_cluster_it_shows_what_there_is(shared):
    lab = await Lab.open("checks")
    picture = lab.cockpit()
    assert isinstance(picture, style.Picture)
    assert "3 of 3 nodes are up" in picture.alt
    await lab.close()


def test_there_is_a_button_for_each_fault_of_a_node():
    verbs = {
        verb
        for verb, what in vars(faults.Faults).items()
        if callable(what) and not verb.startswith("_")
    }
    assert set(panel.VERBS) == verbs - {"step_down", "heal"}  # of a stream, and of all nodes


def test_states_differ_by_shape_and_word_as_well_as_by_colour():
    page = drawing.page(*looks("dead", "paused", "isolated"))
    words = [
        "dead",
        "paused",
        "isolated",
        "★ leads A&lt;B",
        "▲ 1,200 behind",
        "1 message<",
        "✕ no leader",
        "no answer",
    ]
    for word in words:
        assert word in page, word
    assert "A<B" not in page
    assert len(set(drawing.SHAPES.values())) == len(drawing.SHAPES) == len(style.STATE)
    assert len({shape for *_, shape in style.STATE.values()}) == len(style.STATE)
    assert "n2 paused" in drawing.picture(*looks("up", "paused", "no answer")).alt


def test_a_stream_whose_only_node_is_dead_stays_in_sight_until_it_is_deleted():
    nodes, before = looks("up", "up", "dead")
    now = before.drop("R1")
    assert ("R1", "n3") in panel.with_silent(nodes, now, before).index
    nodes.loc["n3", "state"] = "up"
    assert ("R1", "n3") not in panel.with_silent(nodes, now, before).index


def test_on_a_cluster_of_the_users_own_it_says_that_it_sees_no_nodes():
    nodes, replicas = looks("up", "up", "up")
    page = drawing.page(nodes.iloc[:0], replicas.iloc[:0])
    assert "never breaks them" in page
    picture = drawing.picture(nodes.iloc[:0], replicas.iloc[:0])
    assert "does not see its nodes" in picture.alt

"""The cockpit where nobody sits in front, and its looks; test_browser.py presses its buttons."""

import nbformat
import pandas as pd

from labkit import Lab, notebooks
from labkit.cluster import faults
from labkit.cockpit import drawing, panel
from labkit.pictures import style

CELLS = [
    'from labkit import Lab\nlab = await Lab.open("checks", private=True)',
    (
        'await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)\nawait'
        ' lab.wait_for_current("ORDERS")'
    ),
    "lab.cockpit()",
    'import sys\n"ipywidgets" in sys.modules',
    "await lab.close()",
]


def looks(*states):
    """Tables as lab.nodes() and lab.replicas() return them, made up."""
    nodes = pd.DataFrame(
        [
            {
                "node": f"n{i}",
                "state": state,
                "port": 4221 + i,
                "meta": "leader" if i == 1 else "follower",
            }
            for i, state in enumerate(states, 1)
        ]
    ).set_index("node")
    replicas = pd.DataFrame(
        [
            {
                "stream": "A<B",
                "node": "n1",
                "role": "leader",
                "state": "current",
                "lag": 0,
                "messages": 1,
            },
            {
                "stream": "A<B",
                "node": "n2",
                "role": "follower",
                "state": "behind",
                "lag": 1200,
                "messages": 7,
            },
            {
                "stream": "R1",
                "node": "n3",
                "role": "follower",
                "state": "unknown",
                "lag": None,
                "messages": None,
            },
        ]
    )
    return nodes, replicas.astype({"lag": "Int64", "messages": "Int64"}).set_index(
        ["stream", "node"]
    )


async def test_where_a_program_runs_the_notebook_a_picture_is_left_and_no_trace_of_widgets(
    own, tmp_path
):
    path = tmp_path / "cockpit.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS]),
        path,
    )
    book = nbformat.reads(await notebooks.execute(path), 4)
    (output,) = book.cells[2].outputs
    assert set(output.data) == {"image/png", "text/plain"} and "widgets" not in book.metadata
    assert output.data["text/plain"].startswith("Picture: Cockpit. 3 of 3 nodes are up: n1 up")
    assert "leads ORDERS" in output.metadata["image/png"]["alt"]
    assert book.cells[3].outputs[0].data["text/plain"] == "False"
    assert book.cells[4].outputs[0].text == "closed: nothing left behind\n"


def test_a_notebook_that_was_saved_with_widgets_is_written_without_them():
    output = nbformat.v4.new_output(
        "display_data", {panel.WIDGETS: {"model_id": "x"}, "image/png": "", "text/plain": "Picture"}
    )
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("lab.cockpit()", outputs=[output])]
    )
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    book = notebooks.normalise(book)
    assert (
        set(book.cells[0].outputs[0].data) == {"image/png", "text/plain"}
        and "widgets" not in book.metadata
    )


async def test_leaders_of_streams_consumers_and_the_meta_group_can_be_asked_to_step_down(own):
    lab = await Lab.open("checks", private=True)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    before = await lab.wait_for_leader("ORDERS", "worker")
    live = panel.Cockpit(lab, None, await panel.look(lab))
    assert (
        list(dict(live.streams.options)) == ["ORDERS", "worker of ORDERS", panel.META]
        and live.streams.label == "ORDERS"
    )
    live.streams.label = "worker of ORDERS"
    await live._step_down()
    after = await lab.wait_for_leader("ORDERS", "worker", other_than=before)
    assert (
        "step down of worker of ORDERS: done in" in live.log.value
        and f"{after} leads now" in live.log.value
    )
    live._draw(*await panel.look(lab))
    assert live.streams.label == "worker of ORDERS", "what was chosen stays chosen"
    await lab.close()


async def test_on_the_shared_cluster_it_shows_what_there_is(shared):
    lab = await Lab.open("checks")
    picture = lab.cockpit()
    assert isinstance(picture, style.Picture) and "3 of 3 nodes are up" in picture.alt
    await lab.close()


def test_there_is_a_button_for_each_fault_of_a_node():
    verbs = {
        verb
        for verb, what in vars(faults.Faults).items()
        if callable(what) and not verb.startswith("_")
    }
    assert set(panel.VERBS) == verbs - {"step_down", "heal"}  # a stream's, and everybody's


def test_states_differ_by_shape_and_word_as_well_as_by_colour():
    page = drawing.page(*looks("dead", "paused", "isolated"))
    for word in (
        "dead",
        "paused",
        "isolated",
        "★ leads A&lt;B",
        "▲ 1,200 behind",
        "1 message<",
        "✕ no leader",
        "no answer",
    ):
        assert word in page, word
    assert "A<B" not in page
    assert (
        len(set(drawing.SHAPES.values()))
        == len(drawing.SHAPES)
        == len({shape for *_, shape in style.STATE.values()})
    )
    assert "n2 paused" in drawing.picture(*looks("up", "paused", "no answer")).alt


def test_a_stream_whose_only_node_is_dead_stays_in_sight_until_it_is_deleted():
    nodes, before = looks("up", "up", "dead")
    now = before.drop("R1")
    assert ("R1", "n3") in panel.with_silent(nodes, now, before).index
    nodes.loc["n3", "state"] = "up"
    assert ("R1", "n3") not in panel.with_silent(nodes, now, before).index


def test_without_nodes_to_see_it_says_so():
    nodes, replicas = looks("up", "up", "up")
    assert "never breaks them" in drawing.page(nodes.iloc[:0], replicas.iloc[:0])
    assert "does not see its nodes" in drawing.picture(nodes.iloc[:0], replicas.iloc[:0]).alt

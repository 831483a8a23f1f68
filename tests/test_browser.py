"""The lessons in a real browser: JupyterLab as the README's command starts it, Run All, and a look
at what stands there."""

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
import pytest

import lessons
from browsing import CELLS, READY, assert_a_lesson_went_well, jupyterlab, look, run_all
from labkit import notebooks, paths
from labkit.cluster import lifecycle

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    settings = tmp_path_factory.mktemp(
        "settings"
    )  # of JupyterLab: a slow Run All is not saved in the middle
    (settings / "@jupyterlab" / "docmanager-extension").mkdir(parents=True)
    (settings / "@jupyterlab" / "docmanager-extension" / "plugin.jupyterlab-settings").write_text(
        '{"autosave": false}', encoding="utf-8"
    )
    was_up = asyncio.run(lifecycle.find())
    options = ["--expose-app-in-browser", "--IdentityProvider.token=look"]
    with jupyterlab(settings, *options, JUPYTERLAB_SETTINGS_DIR=str(settings)) as (port, _):
        yield f"http://127.0.0.1:{port}"
    if not was_up:
        lifecycle.end_embedded()


LOOK = "LABKIT_SHOTS" in os.environ  # somebody wants to see all of them


def is_plain(path):
    """False for lessons that break nodes and for experiments, which look the same to a browser."""
    return not lessons.breaks_nodes(path) and not lessons.is_experiment(path)


@pytest.mark.parametrize(
    "lesson", [path.name for path in lessons.LESSONS if LOOK or is_plain(path)]
)
def test_run_all_in_jupyterlab(address, browser, shots, lesson):
    stored = (notebooks.FOLDER / lesson).read_bytes()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(f"{address}/lab/tree/notebooks/{lesson}?reset&token=look")
    assert_a_lesson_went_well(run_all(page))
    if LOOK:
        look(page, shots, lesson.removesuffix(".ipynb"))
    page.close()
    assert (notebooks.FOLDER / lesson).read_bytes() == stored, (
        "running must not write to the committed notebook"
    )


COCKPIT = [
    'from labkit import Lab\nlab = await Lab.open("checks", private=True)',
    (
        'await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)\nawait'
        ' lab.settled("ORDERS")\nfor number in range(12):\n    await lab.js.publish("orders.new",'
        ' b"")\nawait lab.wait_for_current("ORDERS")'
    ),
    "lab.cockpit()",
    "await lab.close()",
]


@pytest.fixture
def folder():
    """A folder below work/, where a learner's own notebooks are; it goes with the test."""
    work = paths.PROJECT / "work"
    work.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    yield folder
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # something else lies there
        work.rmdir()


def test_the_cockpit_kills_the_leader_and_shows_the_new_one(address, browser, folder, shots):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in COCKPIT])
    nbformat.write(notebooks.normalise(book), folder / "cockpit.ipynb")
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(90_000)
    page.goto(f"{address}/lab/tree/work/{folder.name}/cockpit.ipynb?reset&token=look")
    page.wait_for_function(READY)
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    for _ in COCKPIT[:3]:
        page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    cockpit = page.locator(".jp-OutputArea-output .widget-vbox")
    leader = cockpit.locator("td:has-text('★ leader')")
    leader.wait_for()

    def who():
        return ["n1", "n2", "n3"][leader.evaluate("cell => cell.cellIndex") - 1]

    def is_in(node, state):
        cockpit.locator(f"g[data-node={node}][data-state={state}]").wait_for()

    def press(words):
        cockpit.get_by_role("button", name=words, exact=True).click()

    before = who()
    shot(page, cockpit, shots / "cockpit-1-whole.png")
    cockpit.locator(f"button.labkit-kill-{before}").click()
    is_in(before, "dead")
    page.wait_for_function(
        """before => { const cells = [...document.querySelectorAll('.widget-vbox td')];
        const leader = cells.find(cell => cell.innerText.includes('★ leader'));
        return leader && 'n' + leader.cellIndex !== before }""",
        arg=before,
    )
    after = who()
    assert after != before
    cockpit.get_by_text(re.compile(rf"ORDERS: {after} leads, [0-9.]+ s after {before}")).wait_for()
    shot(page, cockpit, shots / "cockpit-2-killed.png")
    third = ({"n1", "n2", "n3"} - {before, after}).pop()
    cockpit.locator(f"button.labkit-isolate-{third}").click()
    is_in(third, "isolated")
    cockpit.locator(f"button.labkit-pause-{after}").click()
    is_in(after, "paused")
    shot(page, cockpit, shots / "cockpit-3-three-faults.png")
    press("heal all")
    for node in ("n1", "n2", "n3"):
        is_in(node, "up")
    cockpit.get_by_text(re.compile("heal all: done in")).wait_for()
    cockpit.locator("select").select_option("ORDERS")
    press("step down")
    cockpit.get_by_text(re.compile("step down of ORDERS: done in .* leads now")).wait_for()
    shot(page, cockpit, shots / "cockpit-4-healed.png")
    page.evaluate(
        "() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 3 }"
    )  # a click chose the cockpit's
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    page.get_by_text("closed: nothing left behind").wait_for()
    assert "image/png" in page.evaluate(CELLS)[2]["outputs"][0]["data"], (
        "what stays where no kernel runs"
    )
    cockpit.get_by_text("The lesson is closed").wait_for()
    page.close()


def shot(page, cockpit, path):
    page.wait_for_timeout(800)  # the map is drawn twice a second
    cockpit.screenshot(path=path)

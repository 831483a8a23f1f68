"""The lessons in a real browser: JupyterLab as the README's command starts it, Run All, and a look at what stands there."""
import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from labkit import cluster as clusters
from labkit import nodes, notebook

pytestmark = pytest.mark.browser
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
READY = """() => { const w = window.jupyterapp?.shell?.currentWidget;
    return w?.context?.isReady && w.sessionContext?.session?.kernel?.status === 'idle' }"""
DONE = """() => { const w = jupyterapp.shell.currentWidget;
    const cells = w.content.model.toJSON().cells.filter(c => c.cell_type === 'code' && c.source.trim());
    return w.sessionContext.session.kernel.status === 'idle' && (cells.every(c => c.execution_count)
        || cells.some(c => c.outputs.some(o => o.output_type === 'error'))) }"""
CELLS = "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(c => c.cell_type === 'code')"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    settings = tmp_path_factory.mktemp("settings")  # of JupyterLab: a slow Run All is not saved in the middle
    (settings / "@jupyterlab" / "docmanager-extension").mkdir(parents=True)
    (settings / "@jupyterlab" / "docmanager-extension" / "plugin.jupyterlab-settings").write_text('{"autosave": false}', encoding="utf-8")
    was_up = asyncio.run(clusters.find())
    port = next(port for port in range(18888, 18988) if nodes.is_free(port))
    command = [sys.executable, "-m", "labkit", "lab", "--no-browser", "--port", str(port), "--expose-app-in-browser",
               "--IdentityProvider.token=look"]
    lab = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                           env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings)})
    end = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
            break
        except OSError:
            assert lab.poll() is None and time.monotonic() < end, "the lab did not start: python -m labkit lab --no-browser"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    os.killpg(lab.pid, signal.SIGTERM)
    lab.wait(timeout=30)
    if not was_up:
        clusters.end_embedded()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium on the PATH (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield browser
        browser.close()


# To a browser, lessons that break nodes and experiments are no different from these; who looks, sees all.
LOOK = "LABKIT_SHOTS" in os.environ


@pytest.mark.parametrize("lesson", [path.name for path in notebook.find() if LOOK or path.name < "09"])
def test_run_all_in_jupyterlab(address, browser, shots, lesson):
    stored = (notebook.FOLDER / lesson).read_bytes()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(f"{address}/lab/tree/notebooks/{lesson}?reset&token=look")
    page.wait_for_function(READY)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(DONE, timeout=400_000)
    cells = page.evaluate(CELLS)
    bad = [(cell["id"], output.get("ename") or output["text"]) for cell in cells for output in cell["outputs"]
           if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not bad
    assert re.search("closed: nothing left behind", str(cells[-1]["outputs"]))
    if LOOK:
        look(page, shots, lesson.removesuffix(".ipynb"))
    page.close()
    assert (notebook.FOLDER / lesson).read_bytes() == stored, "running must not write to the committed notebook"


COCKPIT = [
    'from labkit import Lab\nlab = await Lab.open("checks", private=True)',
    'await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)\n'
    'await lab.settled("ORDERS")\nfor number in range(12):\n    await lab.js.publish("orders.new", b"")\nawait lab.wait_for_current("ORDERS")',
    "lab.cockpit()",
    "await lab.close()"]


@pytest.fixture
def folder():
    """A folder below work/, where a learner's own notebooks are; it goes with the test."""
    work = nodes.PROJECT / "work"
    work.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    yield folder
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # something else lies there
        work.rmdir()


def test_the_cockpit_kills_the_leader_and_shows_the_new_one(address, browser, folder, shots):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in COCKPIT])
    nbformat.write(notebook.normalise(book), folder / "cockpit.ipynb")
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
    page.wait_for_function("""before => { const cells = [...document.querySelectorAll('.widget-vbox td')];
        const leader = cells.find(cell => cell.innerText.includes('★ leader'));
        return leader && 'n' + leader.cellIndex !== before }""", arg=before)
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
    page.evaluate("() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 3 }")  # a click chose the cockpit's
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    page.get_by_text("closed: nothing left behind").wait_for()
    assert "image/png" in page.evaluate(CELLS)[2]["outputs"][0]["data"], "what stays where no kernel runs"
    cockpit.get_by_text("The lesson is closed").wait_for()
    page.close()


def shot(page, cockpit, path):
    page.wait_for_timeout(800)  # the map is drawn twice a second
    cockpit.screenshot(path=path)


def look(page, folder, name):
    """Screenshots of the whole notebook, a screen at a time, into this folder."""
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    for number in range(40):
        page.evaluate(f"""() => {{ const outer = document.querySelector('.jp-WindowedPanel-outer');
            outer.scrollTop = {number} * 850 }}""")
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{name}-{number:02}.png")
        if page.evaluate("""() => { const outer = document.querySelector('.jp-WindowedPanel-outer');
            return outer.scrollTop + outer.clientHeight >= outer.scrollHeight - 2 }"""):
            return

"""The lessons in a real browser: JupyterLab as the README's command starts it, Run All, and a look at what stands there."""
import asyncio
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

import pytest

from labkit import cluster as clusters
from labkit import nodes, notebook

pytestmark = pytest.mark.browser
SHOTS = Path(os.environ.get("LABKIT_SHOTS") or Path(tempfile.gettempdir()) / "labkit-screenshots")
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
def address():
    was_up = asyncio.run(clusters.find())
    port = next(port for port in range(18888, 18988) if nodes.is_free(port))
    command = [sys.executable, "-m", "labkit", "lab", "--no-browser", "--port", str(port), "--expose-app-in-browser",
               "--IdentityProvider.token=look"]
    lab = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
            break
        except OSError:
            assert lab.poll() is None, "the lab did not start: python -m labkit lab --no-browser"
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


@pytest.mark.parametrize("lesson", [path.name for path in notebook.find()])
def test_run_all_in_jupyterlab(address, browser, lesson):
    stored = (notebook.FOLDER / lesson).read_bytes()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(f"{address}/lab/tree/notebooks/{lesson}?reset&token=look")
    page.wait_for_function(READY)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(DONE, timeout=120_000)
    cells = page.evaluate(CELLS)
    bad = [(cell["id"], output.get("ename") or output["text"]) for cell in cells for output in cell["outputs"]
           if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not bad
    assert re.search("closed: nothing left behind", str(cells[-1]["outputs"]))
    look(page, lesson.removesuffix(".ipynb"))
    page.close()
    assert (notebook.FOLDER / lesson).read_bytes() == stored, "running must not write to the committed notebook"


def look(page, name):
    """Screenshots of the whole notebook, a screen at a time, into SHOTS."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    for number in range(40):
        page.evaluate(f"""() => {{ const outer = document.querySelector('.jp-WindowedPanel-outer');
            outer.scrollTop = {number} * 850 }}""")
        page.wait_for_timeout(400)
        page.screenshot(path=SHOTS / f"{name}-{number:02}.png")
        if page.evaluate("""() => { const outer = document.querySelector('.jp-WindowedPanel-outer');
            return outer.scrollTop + outer.clientHeight >= outer.scrollHeight - 2 }"""):
            return

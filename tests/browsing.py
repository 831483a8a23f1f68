"""JupyterLab as `labkit lab` starts it, and a notebook in it as a browser sees it: what tests of
both share."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error

from conftest import free_base
from labkit.cluster import nodes

READY = """() => { const w = window.jupyterapp?.shell?.currentWidget;
    return w?.context?.isReady && w.sessionContext?.session?.kernel?.status === 'idle' }"""
DONE = """() => { const w = jupyterapp.shell.currentWidget;
    const cells = w.content.model.toJSON().cells.filter(
        c => c.cell_type === 'code' && c.source.trim());
    return w.sessionContext.session.kernel.status === 'idle' && (cells.every(c => c.execution_count)
        || cells.some(c => c.outputs.some(o => o.output_type === 'error'))) }"""
CELLS = (
    "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(c => c.cell_type ==="
    " 'code')"
)


@contextlib.contextmanager
def jupyterlab(folder, *options, become=(), **environment):
    """Runs `labkit lab --no-browser` until the block ends. Yields (port, path of what it says) once
    JupyterLab answers.

    folder: for what it says; options: of JupyterLab; become: words before the command, such as
        those that change the user.
    """
    port = free_base()  # nobody else's: JupyterLab would take the next one in silence
    command = [
        *become,
        sys.executable,
        "-m",
        "labkit",
        "lab",
        "--no-browser",
        "--port",
        str(port),
        *options,
    ]
    said = folder / f"labkit-lab-{port}.log"
    with open(said, "wb") as log:
        detached = {} if sys.platform == "win32" else {"start_new_session": True}
        lab = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}, **detached
        )
    try:
        wait_until_it_answers(port, lab)
        yield port, said
    except AssertionError as error:
        error.add_note(said.read_text(encoding="utf-8"))
        raise
    finally:
        lab.terminate()
        lab.wait(timeout=30)


def wait_until_it_answers(port, lab, timeout=180):
    """Returns when JupyterLab, started by this process, answers on this port. timeout: seconds."""
    end = time.monotonic() + timeout
    while not answers(port):
        assert lab.poll() is None, "it ended before it answered"
        assert time.monotonic() < end, f"JupyterLab did not answer within {timeout} s"
        time.sleep(0.1)


def answers(port):
    """True if a web server answers here, if only that it knows no such page. That somebody listens
    is not enough: jupyter_server opens its port, closes it again, and resets whoever came
        meanwhile, before it opens it for good.
    """
    try:
        nodes.DIRECT.open(f"http://127.0.0.1:{port}/api", timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run_all(page):
    """Runs all cells of the notebook in front, by the menu, as a reader does. Returns its code
    cells (list of dict)."""
    page.wait_for_function(READY)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(DONE, timeout=400_000)
    return page.evaluate(CELLS)


def assert_a_lesson_went_well(cells):
    bad = [
        (cell["id"], output.get("ename") or output["text"])
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert not bad, bad
    assert "closed: nothing left behind" in str(cells[-1]["outputs"]), cells[-1]["outputs"]


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

"""A cell that fails or is interrupted leaves nothing running, and a name that is not there yet is
named with the cell that makes it."""

import re
import sys

import nbformat
import psutil
import pytest
from nbclient.exceptions import CellExecutionError

import kernels
from labkit.lesson.missing_names import code_cells, names_made, where_made
from labkit.waiting import until
from lessons import lesson

OPEN = "import asyncio\nfrom labkit import Lab\nlab = await Lab.open('checks')"
FOREVER = """
async def forever():
    while True:
        await asyncio.sleep(0.01)

async def note(message):
    got.append(message.data)

got = []
"""


async def failed(client, run, source, error="ZeroDivisionError"):
    """Runs a cell that ends with this error. Returns what it printed."""
    with pytest.raises(CellExecutionError, match=error):
        await run(source)
    return printed(client)


def printed(client):
    """What the last cell printed."""
    return "".join(output.get("text", "") for output in client.nb.cells[-1].outputs)


def traceback(client):
    """The traceback of the last cell, without colours."""
    shown = "\n".join(client.nb.cells[-1].outputs[0].traceback)
    return re.sub(r"\x1b\[[\d;]*m", "", shown)


async def test_what_a_failed_cell_started_is_ended_and_said(shared):
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run(FOREVER)
        said = await failed(
            client,
            run,
            """
            task = asyncio.create_task(forever())
            other = asyncio.create_task(asyncio.sleep(600))
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, forever())
            sub = await lab.nc.subscribe("orders", cb=note)
            await asyncio.sleep(0.1)
            1 / 0
            """,
        )
        assert said == (
            "This cell did not finish: 3 tasks and 1 subscription that it had started were ended.\n"
        )
        assert await run("print(task.cancelled(), other.cancelled(), sub._closed)") == (
            "True True True\n"
        )
        await run("await lab.nc.publish('orders', b'1')\nawait lab.nc.flush()\nassert got == []")
        assert await failed(client, run, "asyncio.create_task(forever())\n1 / 0") == (
            "This cell did not finish: 1 task that it had started was ended.\n"
        )
        assert await failed(client, run, "sub = await lab.js.subscribe('no.stream')", "Error") == ""
        assert await failed(client, run, "1 / 0") == ""
        await run("await lab.close()")


async def test_the_stop_button_ends_what_the_cell_started(shared):
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run(FOREVER)
        begin = "sub = await lab.nc.subscribe('a')\ntask = asyncio.create_task(forever())\n"
        with pytest.raises(CellExecutionError, match="CancelledError"):
            await kernels.interrupt(client, run, f"{begin}await asyncio.sleep(600)")
        assert "1 task and 1 subscription that it had started were ended" in printed(client)
        assert await run("print(task.cancelled(), sub._closed)") == "True True\n"
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await kernels.interrupt(
                client, run, "task = asyncio.create_task(forever())\nimport time\ntime.sleep(600)"
            )
        assert "1 task that it had started was ended" in printed(client)
        assert await run("print(task.cancelled())") == "True\n"
        await run("await lab.close()")


async def test_what_a_cell_that_succeeded_started_goes_on(shared):
    """A responder in the background, which makes a task and a subscription for each request."""
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run(
            """
            async def answer(message):
                await asyncio.sleep(0.2)
                await message.respond(b"done")

            async def take(message):
                tasks.append(asyncio.create_task(answer(message)))

            tasks = []
            await lab.nc.subscribe("jobs", cb=take)
            inbox = lab.nc.new_inbox()
            answers = await lab.nc.subscribe(inbox)
            """
        )
        said = await failed(
            client,
            run,
            """
            await lab.nc.publish("jobs", reply=inbox)
            await lab.until(lambda: tasks)
            1 / 0
            """,
        )
        assert said == ""
        assert await run("print((await answers.next_msg(timeout=5)).data)") == "b'done'\n"
        await run("await lab.nc.request('jobs', timeout=5)")
        await run("await lab.close()")


async def test_what_nats_py_and_labkit_started_goes_on(shared):
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run("async def ok(message):\n    await message.respond(b'ok')\n")
        await run("await lab.nc.subscribe('service', cb=ok)")
        await run(
            """%%worker ticks.py
            import asyncio
            async def work(nc, js, point):
                while True:
                    await point("tick")
                    await asyncio.sleep(0.01)
            """.replace("            ", "")
        )
        await run("from labkit import Recorder\nlog = Recorder()")
        said = await failed(
            client,
            run,
            """
            await lab.nc.request("service")                    # the first one makes an inbox
            await lab.js.add_stream(name="ORDERS", subjects=["orders"])
            await lab.settled("ORDERS")
            await (await lab.js.publish_async("orders"))       # so does this one
            other = await lab.connect(name="other")
            back = asyncio.Event()
            async def noted(): back.set()
            other._reconnected_cb = noted
            await other.force_reconnect()                      # and this makes new tasks
            worker = await lab.worker("ticks.py", "A", log)
            await back.wait()
            1 / 0
            """,
        )
        assert said == ""
        await run(
            """
            await lab.nc.request("service", timeout=5)
            await other.request("service", timeout=5)
            await asyncio.wait_for(await lab.js.publish_async("orders"), 5)
            ticks = log.count("tick")
            await lab.until(lambda: log.count("tick") > ticks + 3)
            await lab.close()
            """
        )


async def test_a_client_without_a_server_and_a_task_that_will_not_end_hold_up_nothing(
    shared, server
):
    port, process = server()
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run(f"alone = await lab.connect(servers=['nats://127.0.0.1:{port}'])")
        await run(
            """
            async def stubborn():
                for _ in range(2):
                    try:
                        await asyncio.sleep(600)
                    except asyncio.CancelledError:
                        cancels.append(1)

            cancels = []
            """
        )
        said = await failed(
            client,
            run,
            f"""
            import os, signal
            sub = await alone.subscribe("orders")
            asyncio.create_task(stubborn())
            os.kill({process.pid}, signal.SIGTERM)
            await lab.until(lambda: not alone.is_connected)
            1 / 0
            """,
        )
        assert "1 task and 1 subscription that it had started were ended" in said
        await run("await lab.until(lambda: len(cancels) == 2 and sub._closed, timeout=10)")
        # Else a reconnect that fails in this moment is one more error.
        await run("await alone.close()\nlab._net.take()\nawait lab.close()")


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
async def test_a_client_whose_flush_was_interrupted_still_hears_the_server(shared, server):
    """nats-py alone stops reading when the answer to a cancelled flush() arrives."""
    port, process = server()
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await run(f"alone = await lab.connect(servers=['nats://127.0.0.1:{port}'])")
        await run("sub = await alone.subscribe('orders')\nawait alone.flush()")
        process.suspend()
        await until(lambda: process.status() == psutil.STATUS_STOPPED, 10)
        with pytest.raises(CellExecutionError, match="CancelledError"):
            await kernels.interrupt(client, run, "await alone.flush()")
        process.resume()
        await run("await alone.publish('orders', b'1')\nawait sub.next_msg(timeout=5)")
        await run("await lab.close()")


async def test_the_cell_that_opens_the_lab_counts_and_after_the_end_all_is_as_before(shared):
    async with kernels.kernel() as (client, run):
        await run("import asyncio\nbefore = asyncio.get_running_loop().get_task_factory()")
        begin = f"{OPEN}\n{FOREVER}\ntask = asyncio.create_task(forever())\n1 / 0"
        assert "1 task that it had started was ended" in await failed(client, run, begin)
        await run("other = await Lab.open('mine')")
        await run("await lab.close()")
        again = "task = asyncio.create_task(forever())\n1 / 0"
        assert "1 task that it had started was ended" in await failed(client, run, again)
        await run("await other.close()")
        assert await failed(client, run, again) == ""
        assert await run("print(task.done())") == "False\n"
        await run("task.cancel()")
        await failed(client, run, "crew", "NameError")
        assert await run("print(get_ipython().custom_exceptions)") == "()\n"


# --- a name that is not there yet

MADE = [
    ("crew = [1]", {"crew"}),
    ("a, (b, *c) = f()\nd: int = 1\ne += 1", {"a", "b", "c", "d", "e"}),
    ("async def f():\n    inner = 1\nclass C:\n    x = 1", {"f", "C"}),
    ("import a.b, c as d\nfrom e import f as g", {"a", "d", "g"}),
    ("for i, j in x: pass\nasync with y as z: pass", {"i", "j", "z"}),
    ("x = await y\n[k for k in x]\nprint(q)", {"x"}),
    ("box['key'] = 1\nbox.value = 2", set()),
    ("x = 1\ny = 2\ndel x", {"y"}),
    ("this is no Python", set()),
]


@pytest.mark.parametrize("source, names", MADE)
def test_which_names_a_cell_makes(source, names):
    assert names_made(source) == names


def book(*cells):
    """A notebook; cells that begin with # are text."""
    new = nbformat.v4
    return new.new_notebook(
        cells=[
            new.new_markdown_cell(source) if source[0] == "#" else new.new_code_cell(source)
            for source in cells
        ]
    )


LESSON = book(
    "# A lesson",
    "lab = await Lab.open('checks')",
    "## 1. Workers\nA text.",
    "%matplotlib inline\nprint(1)",
    "# a comment\ncrew = [1, 2]".replace("# a", "'a'  # a"),
    "## 2. Again",
    "crew.append(3)\ntotal = sum(crew)",
    "crew = [4]",
    "print(crew, total)",
    "total = total + 1",
    "## Recap",
    "async def last():\n    return crew",
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lesson.ipynb"
    nbformat.write(LESSON, path)
    return path


@pytest.mark.parametrize(
    "name, running, place",
    [
        ("lab", "print(lab)", "above the first section, code cell 1"),
        ("crew", "crew.append(3)\ntotal = sum(crew)", "in section 1, code cell 2"),
        ("crew", "print(crew, total)", "in section 2, code cell 2"),
        ("crew", "of no notebook", "in section 2, code cell 2"),
        ("total", "total = total + 1", "in section 2, code cell 1"),
        ("last", "%matplotlib inline\nprint(1)", 'in the section "Recap", code cell 1'),
        ("nobody", "print(1)", None),
    ],
)
def test_the_cell_to_run_first_is_the_last_one_above(path, name, running, place):
    found = where_made(name, code_cells(path), (None, running))
    assert (found and found.place) == place


def test_a_cell_that_was_changed_is_known_by_its_id(path):
    cell = next(cell for cell in LESSON.cells if cell.source == "total = total + 1")
    cells = code_cells(path)
    assert (
        where_made("total", cells, (cell.id, "total += 100")).place == "in section 2, code cell 1"
    )
    assert where_made("total", cells, (None, "total += 100")).place == "in section 2, code cell 4"


async def test_a_name_error_says_which_cell_makes_the_name(shared, path, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))  # as JupyterLab does
    async with kernels.kernel() as (client, run):
        await run(OPEN)
        await failed(client, run, "def f():\n    return crew\n\nf()", "NameError")
        shown = traceback(client)
        assert "----> 4 f()" in shown and "----> 2     return crew" in shown
        assert shown.endswith(
            "NameError: name 'crew' is not defined\n"
            "`crew` is made in section 2, code cell 2 (`crew = [4]`): run that cell first."
        )
        for source, last in [
            ("nobody", "NameError: name 'nobody' is not defined"),
            ("def f():\n    crew += 1\n\nf()", "is not associated with a value"),
            ("import json\neval('crew', vars(json).copy())", "is not defined"),
        ]:
            await failed(client, run, source, "Error")
            assert last in traceback(client).splitlines()[-1], source
        path.write_text("{", encoding="utf-8")
        await failed(client, run, "crew", "NameError")
        assert traceback(client).endswith("NameError: name 'crew' is not defined")
        await run("await lab.close()")


async def test_where_the_front_end_does_not_tell_the_notebook_it_is_the_open_lessons(shared):
    maker = next(cell for cell in code_cells(lesson("core_nats")) if "in section 2" in cell.place)
    name = min(names_made(maker.source))
    async with kernels.kernel() as (client, run):
        await run(OPEN.replace("checks", "core_nats"))
        await failed(client, run, name, "NameError")
        assert f"`{name}` is made in section" in traceback(client)
        await run("await lab.close()")

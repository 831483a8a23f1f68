"""Jupyter kernels without a browser: what the tests share that run cells in one."""

import asyncio
import contextlib

import nbformat
from nbclient import NotebookClient

from labkit.waiting import until


@contextlib.asynccontextmanager
async def kernel(folder=None, timeout=120):
    """Starts a Jupyter kernel that ends with the block. Yields (client, run).

    client: its NotebookClient; `client.nb.cells` holds what it has run, `client.km` manages it.
    run: `await run(source)` runs a cell and returns the text that it printed. It raises
    CellExecutionError if the cell does not end well, or takes longer than `timeout` seconds.
    folder: where the kernel works (default: where this process does).
    """
    client = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=timeout,
        startup_timeout=180,  # seven at once on a busy machine
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)} if folder else {}},
        extra_arguments=["--log-level=ERROR"],  # not its notice about TCP on loopback
    )

    async def run(source):
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        await client.async_execute_cell(cell, len(client.nb.cells) - 1)
        return "".join(output.get("text", "") for output in cell.outputs)

    async with client.async_setup_kernel():
        yield client, run


async def interrupt(client, run, source):
    """Runs a cell and, once it has begun, presses the stop button: SIGINT to the kernel's process
    group. Raises what ended the cell (CellExecutionError)."""
    number = len(client.nb.cells)
    running = asyncio.create_task(run(f"print('it has begun')\n{source}"))
    await until(lambda: len(client.nb.cells) > number and client.nb.cells[number].outputs, 60)
    await client.km.interrupt_kernel()
    await running

"""A password or token in NATS_URL is shown to nobody: not printed, not logged, not written."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

import lessons
from labkit import Lab, LabError
from labkit.processes import workers
from labkit.processes.programs import program

SECRET = "SEC-RET"
JETSTREAM = 'server_name: theirs\njetstream { store_dir: "store" }\n'
LOGINS = {
    "password": (f"me:{SECRET}", f"user: me, password: {SECRET}"),
    "token": (SECRET, f"token: {SECRET}"),
}
CELLS = [
    """
repeats = 1
out = "."
""",
    """
from labkit import Lab
from labkit.experiments import sweep
lab = await Lab.open("checks")
print(lab.cluster, lab.about, lab)
lab.cluster
""",
    """
print(lab.cluster.servers, lab.nc.connected_url, lab.nc.servers, lab.nc.discovered_servers)
""",
    """
async def trial(n):
    raise OSError(lab.nc.connected_url.netloc)

path = f"{out}/rows.csv"
rows = await sweep(trial, {"n": [1]}, repeats=repeats, path=path, about=lab.about)
rows.attrs
""",
    "await lab.close()",
]
FAILS = """
async def work(nc, js, point, fail=True):
    await point("here", url=str(nc.connected_url))
    print(nc.servers)
    if fail:
        raise OSError(f"{nc.connected_url.netloc} {nc.servers}")
"""


@pytest.fixture
def url(request, server, shared, monkeypatch, tmp_path):
    """NATS_URL names a server of one's own, with this login in it."""
    login, rule = LOGINS[getattr(request, "param", "password")]
    port, process = server(f"{JETSTREAM}authorization {{ {rule} }}")
    monkeypatch.delenv("LABKIT_BACKEND")
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NATS_URL", f"nats://{login}@127.0.0.1:{port}")
    return os.environ["NATS_URL"], process


@pytest.fixture
def told(tmp_path, capfd):
    """Everything that was printed and written since, but for the server's own files (text)."""

    def everything(*said):
        paths = [
            Path(folder, name)
            for folder, _, names in os.walk(tmp_path)  # servers remove folders meanwhile
            for name in names
        ]
        files = [path for path in paths if path.is_file() and not _is_the_servers(path)]
        contents = [path.read_bytes().decode(errors="replace") for path in files]
        return "\n".join([*map(str, said), *capfd.readouterr(), *map(str, files), *contents])

    return everything


def _is_the_servers(path):
    return path.parent.name.startswith("server-") or "store" in path.parts


def wrong(url):
    return url.replace(SECRET, f"{SECRET}-changed")


def tiny(folder, name, parameters=False):
    """A notebook that says whatever the lab tells of itself."""
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in CELLS]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    if parameters:
        book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("url", LOGINS, indirect=True)
def test_the_commands_do_not_tell_it(url, command, told):
    said = [command(verb) for verb in ("up", "status", "reset", "doctor")]
    assert [code for code, _ in said] == [0, 0, 1, 0], said
    assert "attached" in said[1][1] and "nats://127.0.0.1" in said[1][1]
    said.append(command("down", "--yes"))
    assert SECRET not in told(said)


def test_nor_does_a_notebook_of_ones_own(url, command, told, tmp_path):
    said = [
        command("execute", tiny(tmp_path, "one.ipynb")),
        command("experiment", tiny(tmp_path, "two.ipynb", True), "--out", str(tmp_path / "out")),
    ]
    assert [code for code, _ in said] == [0, 0], said
    text = told(said)
    assert "lab open: checks on your own cluster" in text and SECRET not in text
    assert (tmp_path / "out" / "rows.csv").exists()


@pytest.mark.parametrize("trouble", ["refused", "gone", "malformed"])
def test_nor_when_nobody_gets_in(url, command, told, tmp_path, trouble, monkeypatch):
    url, process = url
    if trouble == "refused":
        monkeypatch.setenv("NATS_URL", wrong(url))
    elif trouble == "malformed":
        monkeypatch.setenv("NATS_URL", url.replace(SECRET, f"{SECRET}/x"))
    else:
        process.kill()
    said = [command("doctor"), command("execute", tiny(tmp_path, "one.ipynb"))]
    assert all(code == 1 and "No connection to nats://127.0.0.1" in text for code, text in said)
    assert SECRET not in told(said)


def test_nor_does_a_lesson(url, command, told, tmp_path):
    shutil.copy(lessons.lesson("core_nats"), tmp_path / "lesson.ipynb")
    code, said = command("execute", "--refresh", str(tmp_path / "lesson.ipynb"))
    assert code == 0, said
    text = told(said)
    assert "your own cluster (NATS_URL)" in text and SECRET not in text


async def test_nor_do_workers(url, told):
    workers.write("checks", "fails.py", FAILS)
    lab = await Lab.open("checks")
    print(lab, lab.cluster)
    worker = await lab.worker("fails.py", "A")
    with pytest.raises(LabError, match="127.0.0.1") as failed:
        await worker.ended()
    fine = await lab.worker("fails.py", "B", fail=False)
    await fine.ended()
    files = told(failed.value)
    await lab.close()
    assert SECRET not in files + told()


@pytest.mark.parametrize("file", ["producer.py", "consumer.py"])
async def test_nor_do_the_programs(url, told, file):
    url, process = url
    lab = await Lab.open("checks")
    running = program(lab, file, REPLICAS=1)
    refused = program(lab, file, "refused", NATS_URL=wrong(url), NATS_PASSWORD=f"{SECRET}-changed")
    malformed = program(lab, file, "malformed", NATS_URL=url.replace(SECRET, f"{SECRET}/x"))
    assert await refused.ended(20) == 1 and "127.0.0.1" in refused.log()[-1]
    assert await malformed.ended(20) == 1 and not any(
        "Traceback" in line for line in malformed.log()
    )
    lost = program(lab, file, "lost", NATS_URL=url.replace("127.0.0.1:", "127.0.0.1:1"))
    await lab.until(lambda: lost.log(), timeout=20)
    if file == "producer.py":
        await lab.until(lambda: running.lines(), timeout=20)
    process.kill()
    await lab.until(
        lambda: any("again in" in line or "nats:" in line for line in running.log()), timeout=20
    )
    lost.end()
    running.stop()
    files = told(*(one.log() for one in (running, refused, malformed, lost)))
    lab._net.take()
    await lab._end()
    assert SECRET not in files + told()


async def test_several_logins_stay_apart_and_are_not_shown(url, monkeypatch, told):
    url, _ = url
    monkeypatch.setenv("NATS_URL", f"{url},{wrong(url)}")
    lab = await Lab.open("checks")
    print(lab, lab.cluster, lab.cluster.shown)
    await lab.close()
    text = told()
    assert "nats://127.0.0.1" in text and SECRET not in text

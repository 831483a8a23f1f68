"""JupyterLab behind a proxy of others, and the lab on a machine that reaches the web through a
proxy of others."""

import contextlib
import http.client
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme

import lessons
from browsing import READY, assert_a_lesson_went_well, jupyterlab, run_all
from conftest import STRANGER, as_root, free_base, settle
from labkit import jupyter_options, notebooks, paths
from labkit.cluster import nodes
from labkit.system import ports

LESSON = notebooks.FOLDER / "00_start_here.ipynb"
NAME = "lab.example.test"
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem;
        client_max_body_size 0;
        location /user/x/ {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
            proxy_set_header Host {host};
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 1d;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder, port, behind, host):
    """Serves /user/x/ of the program on port `behind` as https://lab.example.test:PORT until the
    block ends."""
    folder.mkdir()
    certificate = trustme.CA().issue_cert(NAME)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "pem"))
    text = NGINX.format(folder=folder, port=port, behind=behind, host=host)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert program, "no nginx (Debian: apt-get install nginx-light)"
    proxy = subprocess.Popen(
        [program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    )
    try:
        while not ports.listens(port):
            assert proxy.poll() is None, "nginx ended"
            time.sleep(0.05)
        yield
    finally:
        proxy.terminate()
        proxy.wait()


@pytest.fixture
def stranger(monkeypatch):
    """The folder of another user, who has a lab of their own there. Ends that lab."""
    assert sys.platform == "linux", "see as_root"
    folder = Path(
        tempfile.mkdtemp(prefix="stranger-", dir="/var/tmp")
    )  # tmp_path lies in a folder for root alone
    os.chown(folder, 54321, 54321)
    settle(monkeypatch, folder / "lab", free_base())
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield folder
    done = subprocess.run(
        [*STRANGER, sys.executable, "-m", "labkit", "down", "--yes"],
        capture_output=True,
        encoding="utf-8",
    )
    shutil.rmtree(folder)
    assert "3 processes ended" in done.stdout, done.stdout + done.stderr


def read_only(folder):
    """Words before a command, for which this folder is then mounted read-only. No words where this
    system lets nobody mount; a stranger may not write to it in any case."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        return []
    return words


@pytest.mark.browser
@as_root
@pytest.mark.parametrize(
    "host", ["$http_host", "localhost"], ids=["keeps the name", "says localhost"]
)
def test_a_lesson_runs_behind_a_base_url_as_another_user_with_a_read_only_checkout(
    stranger, tmp_path, browser, shots, host
):
    stored = LESSON.read_bytes()
    outside = free_base()
    address = f"https://{NAME}:{outside}"
    allowed = "allow_remote_access=True" if host == "$http_host" else f"allow_origin={address}"
    options = [
        "--ServerApp.base_url=/user/x/",
        f"--ServerApp.custom_display_url={address}",
        f"--ServerApp.{allowed}",
        "--expose-app-in-browser",
    ]
    become = [*read_only(paths.PROJECT), *STRANGER]
    with (
        jupyterlab(tmp_path, *options, become=become) as (port, said),
        nginx(tmp_path / "nginx", outside, port, host),
    ):
        link, local = printed_addresses(said)
        assert link.startswith(f"{address}/user/x/lab/tree/notebooks/00_start_here.ipynb?token=")
        assert local.startswith(f"http://127.0.0.1:{port}/user/x/lab/")
        with nodes.DIRECT.open(local, timeout=10) as answer:
            assert answer.status == 200
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, ignore_https_errors=True)
        page.set_default_timeout(90_000)
        asked = []
        answers = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url.replace("wss", "https")))
        page.on("response", lambda answer: answers.append((answer.status, answer.url)))
        page.goto(link)
        page.wait_for_function(READY)
        insert_before_the_last_cell(page, "lab.cockpit()")
        assert_a_lesson_went_well(run_all(page))
        page.get_by_text("The lesson is closed: the map no longer moves.").wait_for()
        page.screenshot(path=shots / f"behind-{allowed.partition('=')[0]}.png")
        assert broken_pictures(page) == []
        assert_it_can_be_saved(page, stranger)
        page.locator(".jp-RenderedMarkdown a", has_text="lesson 01").first.click()
        page.get_by_role("tab", name="01_core_nats.ipynb").wait_for()
        page.get_by_role("heading", name="01. Core NATS").wait_for()
        page.close()
        web = [url for url in asked if url.startswith("http")]
        assert [url for url in web if not url.startswith(f"{address}/user/x/")] == []
        assert [answer for answer in answers if answer[0] >= 400] == []
        assert any("/channels" in url for url in asked), (
            "a kernel's websocket was among what was looked at"
        )
    assert LESSON.read_bytes() == stored


def printed_addresses(said, count=2):
    """The addresses that JupyterLab tells people to open (list): the one for the browser, and the
    one on this machine. said: path of what it says."""
    end = time.monotonic() + 20
    while True:
        found = re.findall(r"https?://\S+\?token=\w{40,}", said.read_text(encoding="utf-8"))
        if len(found) >= count:
            return found[:count]
        assert time.monotonic() < end, said.read_text(encoding="utf-8")
        time.sleep(0.1)


def insert_before_the_last_cell(page, source):
    page.evaluate(
        """source => { const book = jupyterapp.shell.currentWidget.content;
        book.activeCellIndex = book.widgets.length - 1;
        return jupyterapp.commands.execute('notebook:insert-cell-above').then(
            () => book.activeCell.model.sharedModel.setSource(source)) }""",
        source,
    )


def broken_pictures(page):
    """Scrolls through the notebook. Returns the sources of pictures that did not load (list)."""
    return page.evaluate(
        """async () => {
            const broken = new Set();
            const outer = document.querySelector('.jp-WindowedPanel-outer');
        for (let top = 0; top < outer.scrollHeight; top += 500) {
            outer.scrollTop = top;
            await new Promise(resolve => setTimeout(resolve, 300));
            for (const image of outer.querySelectorAll('img'))
                if (!image.complete || !image.naturalWidth) broken.add(image.src.slice(0, 200));
        }
        outer.scrollTop = 0;
        return [...broken] }"""
    )


def assert_it_can_be_saved(page, stranger):
    page.keyboard.press("Control+s")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    kept = stranger / "lab" / "work" / "notebooks" / LESSON.name
    assert "lab.cockpit()" in kept.read_text(encoding="utf-8") and kept.stat().st_uid == 54321
    assert not page.locator(".jp-Dialog").count()
    assert not page.get_by_text("read-only").count()


def test_a_copy_of_a_read_only_lesson_is_made_once_and_then_is_the_learners(own, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    said = []
    assert jupyter_options.folder(said.append) == own / "work"
    assert str(own / "work" / "notebooks") in said[0]
    copy = own / "work" / "notebooks" / LESSON.name
    assert copy.read_bytes() == LESSON.read_bytes()
    copy.write_text("mine", encoding="utf-8")
    other = copy.with_name("timeline.png")
    other.unlink()
    jupyter_options.folder(said.append)
    assert copy.read_text(encoding="utf-8") == "mine" and other.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a codespace is Linux")
def test_in_a_codespace_the_browser_is_answered_whatever_its_proxy_makes_of_the_names(
    own, tmp_path, monkeypatch
):
    monkeypatch.setenv("CODESPACE_NAME", "fluffy-doodle-x7")
    monkeypatch.setenv("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN", "app.github.dev")
    with jupyterlab(tmp_path) as (port, said):
        name = f"fluffy-doodle-x7-{port}.app.github.dev"
        link = printed_addresses(said)[0]
        assert link.startswith(f"https://{name}/lab/tree/notebooks/00_start_here.ipynb?token=")
        page = link.removeprefix(f"https://{name}")
        for host in (name, f"localhost:{port}"):
            status, cookies = ask(port, page, Host=host)
            assert status == 200, host
            for origin in (f"https://{name}", f"http://localhost:{port}"):
                assert open_websocket(port, host, origin, cookies) == 101, (host, origin)
            assert (
                open_websocket(port, host, f"https://other-{port}.app.github.dev", cookies) == 403
            )


def ask(port, path, **headers):
    """(HTTP status, cookies that it sets as a header of later requests) of the answer to a request
    with just these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    for key, value in headers.items():
        connection.putheader(key.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    connection.close()
    return answer.status, "; ".join(
        cookie.split(";")[0] for cookie in answer.headers.get_all("Set-Cookie", [])
    )


def open_websocket(port, host, origin, cookies):
    """The HTTP status that JupyterLab answers to a browser that wants a websocket: 101 if it gets
    it."""
    wanted = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    return ask(port, "/api/events/subscribe", Host=host, Origin=origin, Cookie=cookies, **wanted)[0]


def test_what_the_user_wants_of_jupyterlab_replaces_what_the_lab_wants(own, tmp_path):
    """JupyterLab ends with an error when an option is there twice."""
    options = [
        "--ip=127.0.0.2",
        f"--notebook-dir={tmp_path}",
        "--LabApp.default_url=/lab/tree/mine.ipynb",
    ]
    line = jupyter_options.options(8888, False, options, pytest.fail)
    assert line[-3:] == options and "--ServerApp.port=8888" in line
    assert not [
        word
        for word in line
        if "127.0.0.1" in word or "root_dir" in word or "00_start_here" in word
    ]
    with jupyterlab(
        tmp_path, "--ServerApp.ip=127.0.0.1", "--ServerApp.root_dir", str(tmp_path), *options[2:]
    ) as (port, said):
        assert "/lab/tree/mine.ipynb?token=" in printed_addresses(said, 1)[0]


@pytest.mark.parametrize("name", ["CODESPACE_NAME", "REMOTE_CONTAINERS"])
def test_no_browser_is_opened_where_there_is_none(monkeypatch, name):
    for other in ("CODESPACE_NAME", "REMOTE_CONTAINERS"):
        monkeypatch.delenv(other, raising=False)
    assert "--no-browser" not in jupyter_options.options(8888, True, [], print)
    monkeypatch.setenv(name, "true")
    assert "--no-browser" in jupyter_options.options(8888, True, [], print)


@pytest.fixture
def recorder(monkeypatch):
    """All programs from here on are told to ask the web through one proxy. Returns the list of what
    it was asked."""
    asked = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            asked.append(self.rfile.readline().decode(errors="replace").strip())
            self.wfile.write(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
            monkeypatch.setenv(name.lower(), os.environ[name])
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield asked
        proxy.shutdown()


PRIVATE = """
import asyncio
from labkit import Lab
async def main():
    lab = await Lab.open("checks", private=True)
    await lab.faults.kill("n2")
    print(await lab.nodes(), await lab.connections())
    await lab.close()
asyncio.run(main())
"""


def test_what_is_on_this_machine_is_not_asked_through_a_proxy(own, labkit, python, recorder):
    with pytest.raises(urllib.error.HTTPError, match="502"):
        urllib.request.urlopen(f"http://127.0.0.1:{nodes.first_port() + 4000}/varz", timeout=10)
    assert [line.split()[0] for line in recorder] == ["GET"], "a plain request asks the proxy"
    recorder.clear()
    books = [str(lessons.lesson(name)) for name in ("start_here", "monitoring")]
    for verb in (["up"], ["status"], ["doctor"], ["execute", "--check", *books]):
        code, said = labkit(*verb)
        assert code == 0 or verb == ["doctor"], said
    assert "The lab's cluster is up" in labkit("doctor")[1]
    assert "closed: nothing left behind" in python(PRIVATE).communicate(timeout=120)[0]
    assert recorder == []

"""One plain nats-server beside the cluster: it starts, pauses, stops and ends with the lesson, and
says why it does not start."""

import nats
import psutil
import pytest

from labkit import Lab, LabError
from labkit.cluster.standalone import start_server


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab._end()


async def test_it_answers_stops_starts_and_ends_with_the_lesson(lab):
    server = await start_server(lab, 'authorization { token: "s3cr3t" }')
    client = await nats.connect(
        server.url, token="s3cr3t", reconnect_time_wait=0.05, max_reconnect_attempts=-1
    )
    server.stop()
    await lab.until(lambda: not client.is_connected)
    await server.start()
    await lab.until(lambda: client.is_connected)
    await client.close()
    process = psutil.Process(server.child.pid)
    await lab.close()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_paused_server_stands_still_and_ends_with_the_lesson_too(lab):
    server = await start_server(lab)
    server.pause()
    assert not await server._answers()
    server.resume()
    await lab.until(server._answers)
    server.pause()
    await lab.close()
    assert server.child.returncode is not None


@pytest.mark.parametrize(
    "config, words", [("jetstream {", "Unexpected EOF"), ("max_payload: lots", "server.conf")]
)
async def test_a_refused_configuration_is_reported_with_the_servers_words(lab, config, words):
    with pytest.raises(LabError, match=f"^The server with this configuration ended.*{words}"):
        await start_server(lab, config)


async def test_a_server_that_does_not_answer_is_ended_and_its_words_are_shown(lab, monkeypatch):
    server = await start_server(lab)
    server.stop()

    async def no():
        return False

    monkeypatch.setattr(server, "_answers", no)
    with pytest.raises(
        LabError, match="Timed out after 0.2 s waiting for the server to answer. It"
    ):
        await server.start(timeout=0.2)
    assert server.child.returncode is not None


async def test_two_servers_run_side_by_side(lab):
    one, two = await start_server(lab), await start_server(lab)
    assert one.port != two.port and await one._answers() and await two._answers()

"""What lesson 00 says and a first lesson has no room to show."""

import asyncio
import os

import nats
import pytest

from labkit import Lab
from labkit.cluster import nodes
from labkit.cluster.standalone import start_server

pytestmark = pytest.mark.soak


async def raises_a_timeout(request):
    try:
        await request
        return False
    except TimeoutError:
        return True


async def test_the_meta_leader_answers_what_concerns_all_streams(lab):
    """While it stands still and is still the leader, nobody else answers; a stream led elsewhere
    takes messages all the same."""
    leader = await lab.wait_for_leader()
    client = await lab.connect(
        node=next(node.name for node in lab.cluster.nodes if node.name != leader)
    )
    js = client.jetstream(timeout=1)
    for number in range(20):
        await js.add_stream(name=f"S{number}", subjects=[f"s{number}"])
        await lab.settled(f"S{number}")
        if await lab.wait_for_leader(f"S{number}") != leader:
            break
    name, subject = f"S{number}", f"s{number}"
    await js.add_consumer(name, durable_name="kept")
    await lab.faults.pause(leader)
    asked = [
        js.add_stream(name="NEW", subjects=["new"]),
        js.update_stream(name=name, subjects=[subject, "more"]),
        js.delete_consumer(name, "kept"),
        js.add_consumer(name, durable_name="another"),
        js.streams_info(),
        js.consumers_info(name),
    ]
    assert await asyncio.gather(*map(raises_a_timeout, asked)) == [True] * len(asked)
    assert (await js.publish(subject, b"kept all the same")).stream == name


async def test_plain_messages_need_no_leader_and_the_other_two_elect_a_new_one(lab):
    leader = await lab.wait_for_leader()
    others = [node.name for node in lab.cluster.nodes if node.name != leader]
    alice, bob = [await lab.connect(node=name) for name in others]
    heard = await bob.subscribe("greetings.*")
    while not heard.pending_msgs:  # until the node of alice knows of bob
        await alice.publish("greetings.bob", b"before")
        await asyncio.sleep(0.02)
    await lab.faults.kill(leader)
    await alice.publish("greetings.bob", b"without a leader")
    while (await heard.next_msg(timeout=2)).data != b"without a leader":
        pass
    assert await lab.wait_for_leader(other_than=leader) in others


async def test_reconnects_are_limited_by_the_option_that_looks_like_one_for_the_start(calm):
    server = await start_server(calm)
    client = await nats.connect(
        server.url, max_reconnect_attempts=2, reconnect_time_wait=0.1, error_cb=note_nothing
    )
    server.stop()
    await calm.until(lambda: client.is_closed, timeout=5)
    await server.start()
    assert client.is_closed


async def note_nothing(error):
    pass


async def test_left_alone_the_first_connection_is_tried_some_sixty_times():
    tries = []

    async def note(error):
        tries.append(error)

    with pytest.raises(nats.errors.NoServersError):
        await nats.connect("nats://127.0.0.1:1", error_cb=note, reconnect_time_wait=0.01)
    assert len(tries) == 61


async def test_after_the_end_no_connection_of_the_lesson_is_listed(shared):
    lab = await Lab.open("checks")
    assert len(await lab.connections()) == 1
    await lab.close()
    assert len(await lab.connections()) == 0


def test_the_server_is_one_binary_of_about_20_mb():
    assert 10e6 < os.stat(nodes.server_binary()).st_size < 30e6


def test_after_nest_asyncio_a_loop_runs_inside_a_loop(python):
    source = """
import asyncio, nest_asyncio

async def ran():
    return "ran"

async def cell():
    nest_asyncio.apply()
    print(asyncio.run(ran()))

asyncio.run(cell())
"""
    assert python(source).communicate(timeout=30)[0] == "ran\n"

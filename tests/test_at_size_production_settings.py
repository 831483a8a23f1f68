"""What lesson 43 says where showing it would take too long, or needs a server of its own."""

import asyncio
import contextlib

import nats
import pytest

from labkit.cluster.standalone import start_server
from labkit.waiting import until

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("another_leads, stored", [(False, 5), (True, 0)])
async def test_with_three_replicas_a_timeout_may_mean_stored_or_lost(lab, another_leads, stored):
    """The leader stands still while five publishes time out. It goes on at once, or when another
    node has taken over."""
    await lab.js.add_stream(name="PAYMENTS", subjects=["payments.*"], num_replicas=3)
    await lab.settled("PAYMENTS")
    leader = await lab.wait_for_current("PAYMENTS")
    far = next(node.name for node in lab.cluster.nodes if node.name != leader)
    js = (await lab.connect(node=far)).jetstream()

    async def answered(question):
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            return await question
        return None

    async def leads_another():
        info = await answered(js.stream_info("PAYMENTS"))
        return info and info.cluster.leader not in (None, leader)

    await lab.faults.pause(leader)
    try:
        for number in range(5):
            with pytest.raises(nats.errors.TimeoutError):
                await js.publish(f"payments.{number}", timeout=0.1)
        if another_leads:
            await until(leads_another, timeout=30)
    finally:
        await lab.faults.resume(leader)

    async def marked():  # what was under way before has its fate now
        return await answered(js.publish("payments.mark", headers={"Nats-Msg-Id": "mark"}))

    mark = await until(marked, timeout=20)
    assert mark.seq == stored + 1


@pytest.mark.parametrize("messages", [1, 20])
async def test_a_client_leaves_a_frozen_server_unless_that_has_not_read_all(lab, messages):
    """A message takes 0.9 MB."""
    frozen, well = await start_server(lab), await start_server(lab)
    client = await nats.connect(
        [frozen.url, well.url],
        dont_randomize=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        ping_interval=0.2,
        connect_timeout=1,
    )

    def has_left():
        return client.is_connected and client.connected_url.netloc in well.url

    frozen.pause()
    try:
        for _ in range(messages):
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(client.publish("unread", bytes(900_000)), 0.2)
        if messages == 1:
            await until(has_left, timeout=10)
        else:
            await until(lambda: client.is_reconnecting, timeout=10)
            await asyncio.sleep(5)  # ten times what the other takes
            assert client.is_reconnecting
    finally:
        frozen.resume()
    await until(lambda: client.is_connected, timeout=10)
    await client.close()


@pytest.mark.parametrize("limit", ["max_subscriptions: 3", "limits: { max_subs: 3 }"])
async def test_too_many_subscriptions_close_the_connection_for_good(lab, limit):
    config, login = limit, {}
    if limit.startswith("limits"):
        config = f"accounts {{ A: {{ {limit}, users: [ {{ user: a, password: p }} ] }} }}"
        login = {"user": "a", "password": "p"}
    server = await start_server(lab, config)
    client = await nats.connect(server.url, max_reconnect_attempts=-1, **login)
    for number in range(8):
        await client.subscribe(f"subject.{number}")
    await until(lambda: client.is_closed, timeout=10)


@pytest.mark.parametrize("unsubscribes", [True, False])
async def test_what_empty_fetches_leave_behind_holds_up_drain(lab, unsubscribes):
    """Also if the next fetch has thrown it away."""
    heard = []

    async def error_cb(error):
        heard.append(type(error).__name__)

    await lab.js.add_stream(name="JOBS", subjects=["jobs"])
    await lab.js.add_consumer("JOBS", durable_name="worker", ack_policy="explicit")
    await lab.settled("JOBS")
    client = await lab.connect(drain_timeout=1, error_cb=error_cb)
    sub = await client.jetstream().pull_subscribe_bind("worker", "JOBS")
    while not sub.pending_msgs:
        with contextlib.suppress(TimeoutError):
            await sub.fetch(5, timeout=0.2)
        await client.flush()
    await lab.js.publish("jobs")
    [msg] = await sub.fetch(1, timeout=5)
    await msg.ack()
    assert sub.pending_msgs == 0
    if unsubscribes:
        await sub.unsubscribe()
    await client.drain()
    assert heard == ([] if unsubscribes else ["DrainTimeoutError"])

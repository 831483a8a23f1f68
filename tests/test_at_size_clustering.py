"""What lesson 30 says of a cluster under failure, where showing it would take too long: a cut that
lasts, a first connection's limit that ends a later one."""

import asyncio
import time

import nats
import pytest

from labkit.cluster import raft
from labkit.cluster.standalone import start_server
from labkit.exercises import clustering

pytestmark = pytest.mark.soak


async def answer_of(publishing):
    """What became of a publish (text)."""
    try:
        await publishing
        return "acked"
    except Exception as error:
        return f"{type(error).__name__} {getattr(error, 'err_code', None) or ''}".strip()


async def test_in_a_cut_10158_lasts_until_the_leader_steps_down(lab):
    """A timeout, then 10158 for that id, then 503. stream_info answers all the time, at first with
    the old leader, then with none; js-server-only stays ok."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.settled("ORDERS")
    await lab.js.publish("orders.new", b"before")
    leader = await lab.wait_for_current("ORDERS")
    other = next(node.name for node in lab.cluster.nodes if node.name != leader)
    await lab.faults.step_down(to=other)
    js = (await lab.connect(node=leader)).jetstream(timeout=2)
    await lab.faults.isolate(leader)
    cut = time.monotonic()
    headers = {"Nats-Msg-Id": "one"}
    answers, leaders, health = [], [], []
    while answers[-1:] != ["NoStreamResponseError"]:
        assert time.monotonic() < cut + 25, answers
        answers.append(await answer_of(js.publish("orders.new", timeout=0.3, headers=headers)))
        info = await js.stream_info("ORDERS")
        leaders.append(info.cluster.leader)
        health.append(bool(await lab.node(leader).ask("healthz?js-server-only=true", timeout=5)))
        assert info.state.messages == 1
        await asyncio.sleep(0.1)
    assert time.monotonic() > cut + 9
    assert list(dict.fromkeys(answers)) == [
        "TimeoutError",
        "APIError 10158",
        "NoStreamResponseError",
    ]
    assert leaders[0] == leader and not (await js.stream_info("ORDERS")).cluster.leader
    # The server allows itself one millisecond, so on a busy machine it says no now and then.
    assert sum(health) > 0.8 * len(health) and any(health[-5:])


async def test_two_tries_at_once_get_10158_on_a_healthy_cluster(lab):
    """On one connection, in one write: of two connections, a busy machine may serve the first until
    its message is committed, and then both get an ack."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    await lab.settled("ORDERS")
    publishes = [
        lab.js.publish("orders.new", timeout=5, headers={"Nats-Msg-Id": f"order {number}"})
        for number in range(50)
        for _ in range(2)
    ]
    answers = await asyncio.gather(*map(answer_of, publishes))
    assert set(answers) == {"acked", "APIError 10158"}


async def test_with_two_attempts_a_live_client_is_closed_some_six_seconds_into_an_outage(lab):
    server = await start_server(lab)
    closed = asyncio.Event()

    async def note():
        closed.set()

    async def quiet(error):
        pass

    client = await nats.connect(
        server.url, max_reconnect_attempts=2, error_cb=quiet, closed_cb=note
    )
    server.stop()
    begin = time.monotonic()
    await asyncio.wait_for(closed.wait(), 20)
    assert 4 < time.monotonic() - begin < 12 and client.is_closed


async def test_a_busy_publisher_is_away_as_long_as_its_server_hangs(lab):
    """is_connected is False in time. But the client dials no other server before the dead
    connection has taken the rest of its data; an idle one does."""
    servers = [lab.node(name).url for name in ("n1", "n2", "n3")]
    options = {"ping_interval": 0.5, "max_outstanding_pings": 1, "max_reconnect_attempts": -1}
    idle = await lab.connect(servers=servers, **options)
    busy = await lab.connect(servers=servers, **options)
    await lab.faults.pause("n1")

    async def publish():
        for _ in range(100):
            await busy.publish("x", bytes(500_000))

    publishing = asyncio.create_task(publish())
    await lab.until(lambda: not busy.is_connected, timeout=5)
    await lab.until(lambda: idle.is_connected and idle.connected_url.port != lab.node("n1").port)
    await asyncio.sleep(5)
    assert busy.is_reconnecting and busy.stats["reconnects"] == 0
    await lab.faults.resume("n1")
    await lab.until(lambda: busy.is_connected, timeout=15)
    publishing.cancel()


async def test_a_deleted_consumer_s_fetch_answers_as_one_without_a_leader(lab):
    """ServiceUnavailableError, each time."""
    await lab.js.add_stream(name="JOBS", subjects=["jobs.*"], num_replicas=3)
    jobs = await lab.js.pull_subscribe("jobs.*", durable="worker", stream="JOBS")
    await lab.settled("JOBS")
    await lab.js.delete_consumer("JOBS", "worker")
    answers = [await answer_of(jobs.fetch(1, timeout=1)) for _ in range(4)]
    assert answers[1:] == ["ServiceUnavailableError"] * 3


async def test_an_update_that_names_one_field_resets_the_others(lab):
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], max_age=600)
    await lab.js.update_stream(name="ORDERS", num_replicas=3)
    config = (await lab.js.stream_info("ORDERS")).config
    assert (config.subjects, config.max_age, config.num_replicas) == (["ORDERS"], 0, 3)


async def test_a_new_replica_can_be_called_current_before_it_holds_the_messages(lab):
    """The update to three replicas returns before the copies are there. At first the leader may
    name no replicas, and then, for some milliseconds, call one current, lag 0, that holds little
    or nothing."""
    end = time.monotonic() + 30
    seen = set()
    while len(seen) < 2:
        assert time.monotonic() < end, seen
        seen |= await too_early(lab)


async def too_early(lab):
    """Which of "no replicas" and "current" stream_info said before the copies were complete."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await lab.settled("ORDERS")
    for number in range(6000):
        await lab.js.publish_async("orders.new", bytes(10_000))
        if number % 1000 == 999:
            await lab.js.publish_async_completed()
    config = (await lab.js.stream_info("ORDERS")).config
    await lab.js.update_stream(config, num_replicas=3)
    held = await held_by(lab)
    assert sorted(held.values()) != [6000] * 3
    early = set()
    while sorted(held.values()) != [6000] * 3:
        replicas = (await lab.js.stream_info("ORDERS")).cluster.replicas or []
        current = [replica.name for replica in replicas if replica.current and not replica.lag]
        held = await held_by(lab)  # asked later, so it would be complete
        if not replicas and sorted(held.values()) != [6000] * 3:
            early.add("no replicas")
        if len(replicas) == 2 and any(held[name] < 6000 for name in current):
            early.add("current")
    await lab.js.delete_stream("ORDERS")
    return early


async def held_by(lab):
    """{node: how many messages of ORDERS it holds}"""
    views = await raft.seen(lab.cluster, lab.topic)
    streams = {name: view["streams"].get("ORDERS", {}) for name, view in views.items()}
    return {name: stream.get("state", {}).get("messages", 0) for name, stream in streams.items()}


async def test_a_refused_password_is_tried_again_with_the_usual_pause(lab):
    server = await start_server(lab, "authorization { user: shop, password: secret }")
    refused = []

    async def note(error):
        refused.append(time.monotonic())

    connecting = nats.connect(
        server.url, user="shop", password="wrong", error_cb=note, reconnect_time_wait=0.5
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connecting, 3.2)
    rounds = [at for at, before in zip(refused, [0, *refused]) if at - before > 0.4]
    assert 5 <= len(rounds) <= 7


async def test_a_kill_of_a_node_that_did_not_lead_proves_nothing(lab, monkeypatch):
    """As when another node is elected while the exercise looks for the leader."""
    wait_for_leader = lab.wait_for_leader

    async def a_follower(stream=None, **options):
        leader = await wait_for_leader(stream, **options)
        return [name for name in ("n1", "n2", "n3") if name != leader][-1]  # the first is its node

    async def publish_all(js, subject, orders):
        for order, body in orders.items():
            await js.publish(subject, body, timeout=90, headers={"Nats-Msg-Id": order})

    monkeypatch.setattr(lab, "wait_for_leader", a_follower)
    assert not await clustering._survives(lab, publish_all, 15000)

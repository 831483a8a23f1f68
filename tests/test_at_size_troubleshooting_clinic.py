"""What lesson 44 says of lists and numbers, where showing it would take a failover or a restart."""

import contextlib
import json

import pytest
from nats.js.errors import APIError

from labkit.cluster.readiness import until_answered

pytestmark = pytest.mark.soak


async def test_a_list_leaves_out_consumers_whose_leader_is_gone(lab):
    """For some seconds; nobody raises, and names and count are complete."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    for number in range(9):
        await lab.js.add_consumer("ORDERS", durable_name=f"C{number}")
    await lab.settled("ORDERS")
    await lab.wait_for_current("ORDERS")
    mine = lab.node_of(lab.nc)
    victim = next(node.name for node in lab.cluster.nodes if node.name != mine)
    await lab.faults.step_down(to=mine)
    await lab.faults.step_down("ORDERS", to=mine)
    await lab.faults.step_down("ORDERS", "C0", to=victim)
    await lab.faults.kill(victim)
    js = lab.nc.jetstream(timeout=10)
    listed = {info.name for info in await js.consumers_info("ORDERS")}
    names = json.loads((await lab.nc.request("$JS.API.CONSUMER.NAMES.ORDERS", timeout=5)).data)
    assert "C0" not in listed and len(listed) < 9
    assert len(names["consumers"]) == 9
    assert (await js.stream_info("ORDERS")).state.consumer_count == 9
    await lab.faults.start(victim)


async def refused(lab, name, **limits):
    """The words of the server for the message that is too much (text)."""
    await lab.js.add_stream(name=name, subjects=[name.lower()], discard="new", **limits)
    await lab.settled(name)
    with pytest.raises(APIError) as caught:
        for _ in range(3):
            await lab.js.publish(name.lower(), b"x" * 50)
    assert caught.value.err_code == 10077
    return caught.value.description


async def test_10077_names_the_limit_that_is_reached(lab):
    assert await refused(lab, "COUNT", max_msgs=2) == "maximum messages exceeded"
    assert await refused(lab, "BYTES", max_bytes=200) == "maximum bytes exceeded"
    each = {"max_msgs_per_subject": 2, "discard_new_per_subject": True}
    assert await refused(lab, "EACH", **each) == "maximum messages per subject exceeded"


@pytest.mark.parametrize("replicas", [1, 3])
async def test_what_given_up_messages_leave_behind_outlives_a_restart(lab, replicas):
    """num_redelivered with max_deliver=2; nothing with 1. Lifting max_deliver brings nothing back,
    a reset does."""
    heard = []

    async def note(msg):
        heard.append(json.loads(msg.data)["consumer"])

    await lab.nc.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", cb=note)
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=replicas)
    for most in (1, 2):
        await lab.js.add_consumer(
            "ORDERS", durable_name=f"MOST{most}", max_deliver=most, ack_wait=0.7
        )
    await lab.settled("ORDERS")
    for number in range(2):
        await lab.js.publish(f"orders.{number}")
    for most in (1, 2):
        await lab.until(lambda: is_given_up(lab, f"MOST{most}", heard), timeout=40)
    for node in lab.cluster.nodes:
        await lab.faults.kill(node.name)
        await lab.faults.start(node.name)
        await lab.wait_for_leader("ORDERS")
    await lab.wait_for_current("ORDERS")
    await lab.settled("ORDERS")
    infos = [await patiently(lab.js.consumer_info, "ORDERS", f"MOST{most}") for most in (1, 2)]
    assert [(info.num_pending, info.num_ack_pending) for info in infos] == [(0, 0), (0, 0)]
    assert infos[0].num_redelivered == 0 and infos[1].num_redelivered >= 1
    await patiently(lab.js.add_consumer, "ORDERS", infos[1].config.evolve(max_deliver=-1))
    sub = await lab.js.pull_subscribe_bind("MOST2", "ORDERS")
    with pytest.raises(TimeoutError):
        await sub.fetch(1, timeout=1)
    await patiently(lab.js.reset_consumer, "ORDERS", "MOST2", 1)
    assert len(await sub.fetch(2, timeout=5)) >= 1


async def patiently(call, *arguments):
    """Calls again what nobody answers: the nodes have just been started."""
    return await until_answered(lambda: call(*arguments), 20, "ORDERS")


async def is_given_up(lab, name, heard):
    """Takes what comes, and acks all but the first message. Returns True at the end."""
    sub = await lab.js.pull_subscribe_bind(name, "ORDERS")
    try:
        for msg in await sub.fetch(2, timeout=1):
            if msg.metadata.sequence.stream > 1:
                await msg.ack()
    except TimeoutError:
        pass
    info = await lab.js.consumer_info("ORDERS", name)
    return name in heard and info.num_pending + info.num_ack_pending == 0


async def test_where_a_consumer_stands_that_finds_nothing(lab):
    """With three replicas it goes along with the stream, also without an order for it; with one it
    stays at 0. Neither has handed out anything."""
    for replicas in (1, 3):
        name = f"R{replicas}"
        await lab.js.add_stream(name=name, subjects=[f"{name}.*"], num_replicas=replicas)
        await lab.js.add_consumer(name, durable_name="typo", filter_subject="typo.*")
        await lab.settled(name)
        for number in range(300):
            await lab.js.publish(f"{name}.{number}")
        await lab.wait_for_current(name)  # the consumer's leader may hold one message less
        sub = await lab.js.pull_subscribe_bind("typo", name)
        with pytest.raises(TimeoutError):
            await sub.fetch(1, timeout=1)
        delivered = (await lab.js.consumer_info(name, "typo")).delivered
        expected = 0 if replicas == 1 else 300
        assert (delivered.consumer_seq, delivered.stream_seq) == (0, expected)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_what_a_right_filter_brings_back(lab, replicas):
    """What nobody has asked for since; and with one replica all of it, after a restart."""
    await lab.js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=replicas)
    for name in ("ASKED", "IDLE", "RESTARTED"):
        await lab.js.add_consumer("ORDERS", durable_name=name, filter_subject="order.*")
    await lab.settled("ORDERS")
    for number in range(300):
        await lab.js.publish(f"orders.{number}")
    await lab.wait_for_current("ORDERS")  # a consumer's leader may hold one message less
    for name in ("ASKED", "RESTARTED"):
        assert await brought(lab, name) == 0
    for name in ("ASKED", "IDLE"):
        await set_filter_right(lab, name)
    assert [await brought(lab, name) for name in ("ASKED", "IDLE")] == [0, 300]
    leader = (await lab.js.consumer_info("ORDERS", "RESTARTED")).cluster.leader
    restarted = [node.name for node in lab.cluster.nodes] if replicas == 3 else [leader]
    for name in restarted:
        await lab.faults.kill(name)
        await lab.faults.start(name)
        await lab.wait_for_leader("ORDERS")
    await lab.wait_for_current("ORDERS")
    await lab.settled("ORDERS")
    await set_filter_right(lab, "RESTARTED")
    assert await brought(lab, "RESTARTED") == (300 if replicas == 1 else 0)


async def set_filter_right(lab, name):
    config = (await patiently(lab.js.consumer_info, "ORDERS", name)).config
    await patiently(lab.js.add_consumer, "ORDERS", config.evolve(filter_subject="orders.*"))


async def brought(lab, name):
    """How many messages this consumer hands out (int)."""
    sub = await lab.js.pull_subscribe_bind(name, "ORDERS")
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            count += len(await sub.fetch(300, timeout=1))
    return count

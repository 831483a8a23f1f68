"""What lesson 15 says of ids and expectations, with three replicas, after restarts and at size."""

import asyncio
import uuid

import pytest
from nats.errors import TimeoutError as NoAnswer
from nats.js.errors import BadRequestError, NoStreamResponseError

from labkit.cluster import raft
from labkit.cluster.standalone import start_server
from labkit.waiting import until

STREAMS = {"kept": {}, "purged": {}, "acked": {"retention": "workqueue"}, "pushed": {"max_msgs": 1}}


async def expected(error):
    """Takes what a client reports when its server goes away."""


async def publish_to_each(js, key):
    """What each stream did with this id: {name: "stored" or "refused"}."""
    did = {}
    for name in STREAMS:

        async def answered():
            try:
                return await js.publish(f"{name}.job", headers={"Nats-Msg-Id": key}, timeout=2)
            except (NoAnswer, NoStreamResponseError):
                return None

        ack = await until(answered, 20)
        did[name] = "refused" if ack.duplicate else "stored"
    return did


@pytest.mark.soak
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_one_restarted_node_that_leads_frees_the_ids_of_messages_that_are_gone(lab, how):
    for name, config in STREAMS.items():
        await lab.js.add_stream(
            name=name, subjects=[f"{name}.*"], duplicate_window=600, num_replicas=3, **config
        )
        await lab.settled(name)
    assert set((await publish_to_each(lab.js, "order-7")).values()) == {"stored"}
    await lab.js.purge_stream("purged")
    worker = await lab.js.pull_subscribe("acked.*", "worker", stream="acked")
    await lab.settled("acked")
    [job] = await worker.fetch(1, timeout=5)
    await job.ack_sync(timeout=5)
    await lab.js.publish("pushed.job", headers={"Nats-Msg-Id": "order-8"})
    for name in STREAMS:
        await lab.faults.step_down(stream=name)  # another leader knows the ids as well
    assert set((await publish_to_each(lab.js, "order-7")).values()) == {"refused"}
    await getattr(lab.faults, how)("n2")
    await lab.faults.start("n2")
    await raft.wait_for_whole(lab, 30)
    for name in STREAMS:
        await lab.wait_for_current(stream=name)
        if (await lab.js.stream_info(name)).cluster.leader != "n2":
            await lab.faults.step_down(stream=name, to="n2")
    assert await publish_to_each(lab.js, "order-7") == {
        "kept": "refused",
        "purged": "stored",
        "acked": "stored",
        "pushed": "stored",
    }


@pytest.mark.soak
async def test_a_restart_reads_the_ids_of_fifty_thousand_stored_messages(calm):
    server = await start_server(calm, 'jetstream { store_dir: "." }')

    async def published():
        """How many of 50,000 ids were refused."""
        client = await calm.connect(servers=[server.url])
        js = client.jetstream(timeout=10)
        await js.add_stream(name="MANY", subjects=["many"], duplicate_window=600)
        refused = 0
        for first in range(0, 50_000, 1000):
            acks = await asyncio.gather(
                *[
                    await js.publish_async("many", headers={"Nats-Msg-Id": f"{number}"})
                    for number in range(first, first + 1000)
                ]
            )
            refused += sum(bool(ack.duplicate) for ack in acks)
        await client.close()
        return refused

    assert await published() == 0
    server.stop()
    await server.start()
    assert await published() == 50_000


@pytest.mark.soak
@pytest.mark.parametrize("replicas", [1, 3])
async def test_one_wrong_last_id_leaves_three_replicas_without_a_leader(lab, replicas):
    await lab.js.add_stream(name="LAST", subjects=["last"], num_replicas=replicas)
    await lab.settled("LAST")
    await lab.js.publish("last", headers={"Nats-Msg-Id": "first"})
    with pytest.raises(BadRequestError) as refused:
        await lab.js.publish("last", headers={"Nats-Expected-Last-Msg-Id": "another"})
    assert refused.value.err_code == 10070
    if replicas == 1:
        assert (await lab.js.publish("last")).seq == 2
        return
    for _ in range(3):
        with pytest.raises(NoAnswer):
            await lab.js.publish("last", timeout=3)
    assert not (await lab.js.stream_info("LAST")).cluster.leader


@pytest.mark.soak
@pytest.mark.parametrize("replicas", [1, 3])
async def test_sixty_deposits_from_three_nodes_lose_nothing(calm, replicas):
    await calm.js.add_stream(name="SAVINGS", subjects=["savings"], num_replicas=replicas)
    clients = [await calm.connect(node=name) for name in ("n1", "n2", "n3")]
    await calm.settled("SAVINGS")
    await calm.js.publish("savings", b"100")
    codes = set()

    async def deposit(js):
        """Each attempt carries the id of the deposit: one that was refused leaves no trace."""
        headers = {"Nats-Msg-Id": str(uuid.uuid4())}
        while True:
            last = await js.get_last_msg("SAVINGS", "savings")
            headers["Nats-Expected-Last-Subject-Sequence"] = str(last.seq)
            try:
                return await js.publish("savings", b"%d" % (int(last.data) + 1), headers=headers)
            except BadRequestError as error:
                codes.add(error.err_code)

    await asyncio.gather(*(deposit(clients[n % 3].jetstream(timeout=15)) for n in range(60)))
    assert (await calm.js.get_last_msg("SAVINGS", "savings")).data == b"160"
    assert codes == ({10071} if replicas == 1 else {10071, 10164})


@pytest.mark.soak
async def test_what_a_client_sends_too_early_after_a_restart_is_not_stored(lab):
    """Its node is back before that has heard of the stream again. Tried until it happens: in most
    tries it does."""
    await lab.js.add_stream(name="PAYMENTS", subjects=["payments.*"], num_replicas=3)
    await lab.settled("PAYMENTS")
    url = lab.node("n1").url
    login = lab.cluster.login("checks")
    for _ in range(6):
        await lab.js.purge_stream("PAYMENTS")
        client = await lab.connect(
            **{**login, "servers": [url]},
            error_cb=expected,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.005,
        )
        client._server_pool[:] = [client._current_server]  # not those that n1 tells of
        await lab.faults.kill("n1")
        await until(lambda: client.is_reconnecting, 10)
        calls = [client.jetstream().publish("payments.new", timeout=0.3) for _ in range(3)]
        raised = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in raised] == [NoAnswer] * 3
        await lab.faults.start("n1")
        await until(lambda: client.is_connected, 10)
        await client.flush()
        await raft.wait_for_whole(lab, 30)
        await lab.wait_for_current(stream="PAYMENTS")
        await client.close()

        async def counted():
            return (await lab.js.stream_info("PAYMENTS")).state.messages + 1

        if await until(counted, 10) == 1:
            return
    pytest.fail("six times of six something was stored")

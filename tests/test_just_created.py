"""A stream that was just created can answer 503 for a moment. settled() waits until it is over.

Why it does so is told in labkit/cluster/readiness.py.
"""

import asyncio
from collections import Counter

from nats.errors import NoRespondersError
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from labkit.cluster import nodes, readiness


async def test_after_settling_no_node_answers_503(calm):
    """On a real cluster, which answers 503 now and then: without settling, one run of this test in
    two fails."""
    clients = [await calm.connect(node=node.name) for node in calm.cluster.nodes]
    refused = []

    async def create_and_use(number):
        name = f"S{number}"
        await calm.js.add_stream(
            name=name, subjects=[f"s.{number}"], num_replicas=1 + 2 * (number % 2)
        )
        await calm.js.add_consumer(name, durable_name="worker", ack_policy="explicit")
        await calm.settled(name)
        for client in clients:
            js = client.jetstream()
            try:
                await js.publish(f"s.{number}", b"")
                sub = await js.pull_subscribe_bind("worker", name)
                for message in await sub.fetch(1, timeout=5):
                    await message.ack_sync(timeout=5)
            except (NoStreamResponseError, ServiceUnavailableError) as error:
                refused.append((name, error))

    for start in range(0, 36, 6):  # six at a time, as in a classroom
        await asyncio.gather(*(create_and_use(number) for number in range(start, start + 6)))
    assert not refused


async def test_settling_asks_each_leader_until_it_answers(calm, monkeypatch):
    """Here the first two requests on each subject find no responders."""
    await calm.js.add_stream(name="ORDERS", subjects=["orders.*"])
    await calm.js.add_consumer("ORDERS", durable_name="worker", ack_policy="explicit")
    await calm.settled("ORDERS")
    request = calm.nc.request
    asked = Counter()

    async def nobody_at_first(subject, *arguments, **options):
        asked[subject] += 1
        if asked[subject] <= 2:
            raise NoRespondersError
        return await request(subject, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(calm.nc, "request", nobody_at_first)
        await readiness.settled(calm.nc, "ORDERS")
    assert asked == {
        "$JS.API.STREAM.INFO.ORDERS": 3,
        "orders.x": 3,  # the probe
        "$JS.API.STREAM.NAMES": 3,
        "$JS.API.CONSUMER.LIST.ORDERS": 3,
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.worker": 3,
    }


async def test_whether_a_cluster_is_ready_is_tried_in_an_account_in_which_nobody_works(
    lab, monkeypatch
):
    """If an account loses its last stream, each node removes the folder of its streams. It refuses
    a stream that is created in that moment (10049)."""
    login = lab.cluster.login
    accounts = []

    def note_and_log_in(account):
        accounts.append(account)
        return login(account)

    monkeypatch.setattr(lab.cluster, "login", note_and_log_in)
    await readiness.can_create(lab.cluster)
    assert len(accounts) == 1 and accounts[0] not in nodes.accounts()

"""What lesson 32 says of power failures and of nodes with an empty disk, where showing it would
take too long."""

import asyncio
import contextlib
import shutil
import time
from pathlib import Path

import nats
import pytest
from nats.errors import Error

from labkit.cluster import private, raft
from labkit.waiting import until

pytestmark = pytest.mark.soak


@pytest.fixture
async def cluster(shared):
    cluster = await private.start()
    yield cluster
    await asyncio.to_thread(cluster.end)


@pytest.fixture
async def js(cluster):
    """A client that outlives its servers, with a stream of three replicas."""

    async def quiet(error):
        pass

    client = await nats.connect(
        **cluster.login("checks"),
        error_cb=quiet,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
    )
    js = client.jetstream(timeout=5)
    await js.add_stream(name="ORDERS", subjects=["orders.*"], num_replicas=3)
    yield js
    with contextlib.suppress(OSError, TypeError):
        await client.close()


async def acked(js, numbers, patience=40, subject="orders.new"):
    """Publishes these orders, each until it is acked. Returns the last sequence, or None if the
    patience (seconds, for all) ends before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            for number in numbers:
                while True:
                    with contextlib.suppress(Error):
                        headers = {"Nats-Msg-Id": str(number)}
                        ack = await js.publish(subject, timeout=1, headers=headers)
                        break
                    await asyncio.sleep(0.05)
            return ack.seq


async def all_hold(cluster, last, nodes):
    views = await raft.seen(cluster, "checks")
    # A node that was started a moment ago may not know the stream.
    known = [views[node]["streams"].get("ORDERS") for node in nodes if node in views]
    return [stream and stream["state"]["last_seq"] for stream in known] == [last] * len(nodes)


@pytest.mark.parametrize("other", ["stale", "whole"])
async def test_an_empty_node_beside_one_other_is_no_majority(cluster, js, other):
    """Two of three are up, and nothing is acked, until the third is back."""
    one, two, three = cluster.nodes
    await acked(js, range(100))
    await until(lambda: all_hold(cluster, 100, ["n1", "n2", "n3"]), 20)
    if other == "stale":
        three.end()  # it misses what comes now
    assert await acked(js, range(100, 150)) == 150
    held_by = ["n1", "n2"] if other == "stale" else ["n1", "n2", "n3"]
    await until(lambda: all_hold(cluster, 150, held_by), 20)
    for node in cluster.nodes:
        node.end()
    shutil.rmtree(one.store)
    cluster.spawn(one)
    cluster.spawn(three)
    assert await acked(js, [150], patience=16) is None
    cluster.spawn(two)
    assert await acked(js, [150]) == 151
    await until(lambda: all_hold(cluster, 151, ["n1", "n2", "n3"]), 30)


async def test_a_durable_that_was_further_on_gets_none_of_the_new_orders_up_to_its_place(
    cluster, js
):
    """200 orders handled, then two nodes come back with the first 100: of 110 new ones, the
    durable gets those above sequence 200."""
    begin = time.monotonic()
    worker = await js.pull_subscribe("orders.*", durable="worker", stream="ORDERS")
    await acked(js, range(100))
    await until(lambda: all_hold(cluster, 100, ["n1", "n2", "n3"]), 20)
    files = [path for node in cluster.nodes[:2] for path in Path(node.store).rglob("*.blk")]
    disk = {path: path.read_bytes() for path in files}
    await acked(js, range(100, 200))
    orders = await fetched(worker, 200)
    for order in orders[:-1]:
        await order.ack_sync(timeout=5)
    since = time.time()
    await orders[-1].ack_sync(timeout=5)
    places = [path for node in cluster.nodes[:2] for path in Path(node.store).rglob("worker/o.dat")]
    await until(lambda: all(path.stat().st_mtime > since for path in places), 20)
    for node in cluster.nodes:
        node.end()
    for path in {path for node in cluster.nodes[:2] for path in Path(node.store).rglob("*.blk")}:
        path.unlink()
    for path, content in disk.items():
        path.write_bytes(content)
    for node in cluster.nodes[:2]:
        cluster.spawn(node)
    assert await acked(js, range(200, 310)) == 210
    late = await fetched(worker, 10)
    assert [order.metadata.sequence.stream for order in late] == list(range(201, 211))
    info = await js.consumer_info("ORDERS", "worker")
    assert (info.num_pending, info.delivered.stream_seq) == (0, 210), time.monotonic() - begin


async def test_with_one_replica_a_consumer_that_was_further_on_is_set_back(cluster, js):
    """As above, with one replica: each new order is delivered, from sequence 101 on."""
    await js.add_stream(name="ONE", subjects=["one"], num_replicas=1)
    worker = await js.pull_subscribe("one", durable="worker", stream="ONE")
    for _ in range(100):
        await js.publish("one", b"before")

    def files():
        return [path for node in cluster.nodes for path in Path(node.store).rglob("ONE/**/*.blk")]

    disk = {path: path.read_bytes() for path in files()}
    for _ in range(100):
        await js.publish("one", b"lost")
    orders = await fetched(worker, 200)
    places = [path for node in cluster.nodes for path in Path(node.store).rglob("worker/o.dat")]
    for order in orders[:-1]:
        await order.ack_sync(timeout=5)
    since = time.time()
    await orders[-1].ack_sync(timeout=5)
    await until(lambda: all(path.stat().st_mtime > since for path in places), 20)
    for node in cluster.nodes:
        node.end()
    for path in {*files(), *disk}:
        if path in disk:
            path.write_bytes(disk[path])
        else:
            path.unlink()
    for node in cluster.nodes:
        cluster.spawn(node)
    for number in range(10):
        await acked(js, [number], subject="one")
    late = await fetched(worker, 10)
    assert [order.metadata.sequence.stream for order in late] == list(range(101, 111))


@pytest.mark.parametrize("survivor", ["leader", "follower"])
async def test_one_of_three_in_memory_that_lives_on_is_enough(cluster, js, survivor):
    await js.add_stream(name="MEMORY", subjects=["m"], num_replicas=3, storage="memory")
    assert await acked(js, range(100), subject="m") == 100

    async def all_have_it():
        views = await raft.seen(cluster, "checks")
        streams = [view["streams"].get("MEMORY", {}) for view in views.values()]
        return [stream.get("state", {}).get("messages") for stream in streams] == [100] * 3

    await until(all_have_it, 20)
    leader = await raft.leader(cluster, "checks", "MEMORY")
    lives = next(n for n in cluster.nodes if (n.name == leader) == (survivor == "leader"))
    dead = [node for node in cluster.nodes if node is not lives]
    for node in dead:
        node.end()
    for node in dead:
        cluster.spawn(node)
    assert await acked(js, [100], subject="m") == 101
    assert (await js.stream_info("MEMORY")).state.messages == 101


async def fetched(worker, count):
    orders = []
    async with asyncio.timeout(40):
        while len(orders) < count:
            with contextlib.suppress(Error, TimeoutError):
                orders += await worker.fetch(count - len(orders), timeout=2)
    return orders


async def test_deny_delete_and_deny_purge_do_not_guard_the_stream(cluster, js):
    await js.add_stream(name="KEPT", subjects=["kept"], deny_delete=True, deny_purge=True)
    assert await js.delete_stream("KEPT")


async def test_persist_mode_async_is_refused_with_replicas(cluster, js):
    with pytest.raises(nats.js.errors.APIError) as refused:
        await js.add_stream(name="ASYNC", subjects=["a"], num_replicas=3, persist_mode="async")
    assert refused.value.err_code == 10052
    info = await js.add_stream(name="ASYNC", subjects=["a"], persist_mode="async")
    assert info.config.num_replicas == 1

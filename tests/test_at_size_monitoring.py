"""What lesson 40 tells of messages that were given up, where its cells show the short case."""

import asyncio
import contextlib
import json
import re
import urllib.request

import pytest

from labkit.cluster.standalone import start_server

pytestmark = pytest.mark.soak


async def give_up(lab, stream, consumer):
    """Takes the only message of this stream until its deliveries are used up; the consumer's
    numbers then: (redelivered, ack pending, pending)."""
    info = await lab.js.consumer_info(stream, consumer)
    sub = await lab.js.pull_subscribe_bind(consumer, stream)
    for _ in range(info.config.max_deliver):
        [msg] = await sub.fetch(1, timeout=5)
        await msg.nak()
    await nobody_gets_it(sub)
    await sub.unsubscribe()
    return await numbers(lab, stream, consumer)


async def nobody_gets_it(sub):
    with contextlib.suppress(asyncio.TimeoutError):
        assert not await sub.fetch(1, timeout=1)


async def numbers(lab, stream, consumer):
    info = await lab.js.consumer_info(stream, consumer)
    return info.num_redelivered, info.num_ack_pending, info.num_pending


async def queue(lab, max_deliver, replicas=3):
    await lab.js.add_stream(name="MAILS", subjects=["mails"], num_replicas=replicas)
    await lab.js.add_consumer(
        "MAILS", durable_name="mailer", ack_policy="explicit", max_deliver=max_deliver
    )
    await lab.settled("MAILS")
    await lab.js.publish("mails")


async def test_redelivered_stays_over_step_downs_and_restarts_until_the_message_is_gone(lab):
    await queue(lab, max_deliver=2)
    assert await give_up(lab, "MAILS", "mailer") == (1, 0, 0)
    await lab.faults.step_down("MAILS", "mailer")
    await lab.faults.step_down("MAILS")
    assert await numbers(lab, "MAILS", "mailer") == (1, 0, 0)
    for node in ("n1", "n2", "n3"):
        await lab.faults.stop(node)
        await lab.faults.heal()
        await lab.settled("MAILS")
    assert await numbers(lab, "MAILS", "mailer") == (1, 0, 0)
    await asyncio.gather(*(lab.faults.kill(node) for node in ("n1", "n2", "n3")))
    await lab.faults.heal()
    await lab.settled("MAILS")
    assert await numbers(lab, "MAILS", "mailer") == (1, 0, 0)
    await lab.js.purge_stream("MAILS")

    async def forgotten():
        return await numbers(lab, "MAILS", "mailer") == (0, 0, 0)

    await lab.until(forgotten, timeout=10)


async def test_with_a_single_delivery_redelivered_stays_0(calm):
    await queue(calm, max_deliver=1)
    assert await give_up(calm, "MAILS", "mailer") == (0, 0, 0)


async def test_a_larger_max_deliver_brings_nothing_back(calm):
    await queue(calm, max_deliver=2)
    assert await give_up(calm, "MAILS", "mailer") == (1, 0, 0)
    await calm.js.add_consumer("MAILS", durable_name="mailer", ack_policy="explicit", max_deliver=9)
    sub = await calm.js.pull_subscribe_bind("mailer", "MAILS")
    await nobody_gets_it(sub)
    assert await numbers(calm, "MAILS", "mailer") == (1, 0, 0)
    await calm.js.reset_consumer("MAILS", "mailer", seq=1)
    [msg] = await sub.fetch(1, timeout=5)
    await msg.ack_sync(timeout=5)


async def test_the_node_that_leads_the_meta_group_says_ok_until_it_gives_up(lab):
    await lab.faults.step_down(to="n1")
    leader = lab.node("n1")

    async def is_ok():  # ask() returns None for the status 503 that /healthz answers with
        return await leader.ask("healthz?js-meta-only=true", timeout=3) is not None

    async def is_unwell():
        return not await is_ok()

    await lab.until(is_ok)
    await lab.faults.isolate("n2", "n3")
    loop = asyncio.get_running_loop()
    cut = loop.time()
    await lab.until(is_unwell, timeout=40)
    assert await leader.ask("varz", timeout=3)
    assert loop.time() - cut > 8
    await lab.faults.heal()


async def test_a_server_without_jetstream_is_well_in_every_degree(calm):
    server = await start_server(calm, 'http: "127.0.0.1:-1"')
    log = server.log.read_text(encoding="utf-8")
    port = re.search(r"http monitor on 127\.0\.0\.1:(\d+)", log)[1]
    for degree in ("js-server-only", "js-enabled-only", "js-meta-only"):
        assert await asyncio.to_thread(health, port, degree) == "ok"


def health(port, degree):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/healthz?{degree}=true", timeout=5) as answer:
        return json.load(answer)["status"]


async def test_a_message_in_flight_for_the_first_time_hides_one_that_was_given_up(calm):
    """So does its ack: the ack floor jumps over the one that was given up."""
    await queue(calm, max_deliver=2)
    assert await give_up(calm, "MAILS", "mailer") == (1, 0, 0)
    await calm.js.publish("mails")
    sub = await calm.js.pull_subscribe_bind("mailer", "MAILS")
    [msg] = await sub.fetch(1, timeout=5)
    assert await numbers(calm, "MAILS", "mailer") == (1, 1, 0)
    assert (await sub.consumer_info()).ack_floor.stream_seq == 0
    await msg.ack_sync(timeout=5)
    assert (await sub.consumer_info()).ack_floor.stream_seq == 2

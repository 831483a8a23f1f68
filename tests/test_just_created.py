"""A stream that was just created can answer 503 for a moment. When, why, and what a program does
about it.

The leader of the new stream subscribes to its subjects and answers the create request. The two
travel to the other nodes on different route connections (the API's answer on the system account's,
the interest on the one of the stream's account), so the answer can come first. Until the interest
has arrived, that node tells a publisher "no responders", which nats-py raises as
NoStreamResponseError; for a fetch from a new consumer it is ServiceUnavailableError. A client on
the leader's own node never sees it. nats-py does not try again by itself.
"""

import asyncio

from nats.js.errors import NoStreamResponseError

from labkit import Lab
from labkit.cluster import nodes, readiness


async def publish_ready(js, subject, payload, msg_id, tries=200):
    """The idiom: 503 means that nobody has stored it, so publishing again is safe."""
    for attempt in range(1, tries + 1):
        try:
            return attempt, await js.publish(subject, payload, headers={"Nats-Msg-Id": msg_id})
        except NoStreamResponseError:
            if attempt == tries:
                raise
            await asyncio.sleep(0.05)


async def test_publishing_with_a_retry_survives_the_moment_after_creation_on_every_node(shared):
    lab = await Lab.open("checks")
    publishers = [(await lab.connect(node=node.name)).jetstream() for node in lab.cluster.nodes]
    attempts = []

    async def create_and_publish(number):
        name = f"S{number}"
        await lab.js.add_stream(name=name, subjects=[f"s.{number}.*"], num_replicas=3)
        answers = await asyncio.gather(
            *(publish_ready(js, f"s.{number}.{i}", b"", f"{i}") for i, js in enumerate(publishers))
        )
        attempts.extend(attempt for attempt, _ in answers)
        assert sorted(ack.seq for _, ack in answers) == [1, 2, 3]
        await lab.js.delete_stream(name)

    for start in range(0, 60, 6):  # six at a time, as in a classroom
        await asyncio.gather(*(create_and_publish(number) for number in range(start, start + 6)))
    print(
        f"{sum(a > 1 for a in attempts)} of {len(attempts)} first publishes met the moment; most"
        f" tries: {max(attempts)}"
    )
    await lab.close()


async def test_whether_a_cluster_is_ready_is_tried_in_an_account_in_which_nobody_works(
    lab, monkeypatch
):
    """Where an account loses its last stream, each node removes the folder of its streams, and
    refuses a stream that is created in that moment (10049)."""
    login, accounts = lab.cluster.login, []

    def asked(account):
        accounts.append(account)
        return login(account)

    monkeypatch.setattr(lab.cluster, "login", asked)
    await readiness.can_create(lab.cluster)
    assert len(accounts) == 1 and accounts[0] not in nodes.accounts()

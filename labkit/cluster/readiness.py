"""When is a stream that was just created known on the node that a client talks to?

The leader of a new stream (or consumer) subscribes to its subjects and answers the create request.
The two travel to other nodes on different route connections, so the answer can come first. Until
the interest has arrived there, that node answers "no responders" (503): nats-py raises
NoStreamResponseError on publish, ServiceUnavailableError on fetch. Measured on 2.15.1: in 0 to 4 of
100 cases on the creating connection, more on other nodes, for 4 to 200 ms; never on the leader's
own node. The mechanism: server/jetstream_cluster.go (leader change: subscribe, then reply) and
server/opts.go (the system account, which carries the reply, has a route of its own).

The meta leader answers who has a subject. Seen once on a busy machine (and not in 1,200 tries): it
did not name a stream whose creation had just been answered. nats-py's subscribe() and
pull_subscribe() ask it, and raise NotFoundError.
"""

import asyncio
import time

from nats.errors import Error, NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from labkit.cluster.connection import close_client, connect
from labkit.errors import LabError

REFUSED = (
    10060,
)  # "expected stream does not match": said by the leader itself, so it is known here
NOWHERE = {
    "Nats-Expected-Stream": "no-such-stream"
}  # the leader refuses such a message, so a probe stores nothing


async def can_create(cluster, timeout=40):
    """Returns when an R3 stream was created on this cluster (and is gone again): the proof that it
    is ready.

    A meta leader that sees all replicas is no proof: it places streams on servers whose statistics
    it has (else 10005, "no suitable peers"). It lacks them for milliseconds after a boot (3 of 160
    times), and for up to ten seconds once its routes to a server were lost and made anew, as by a
    partition (route.go forgets them; 4 of 27 times). The stream is created in an account of its
    own: a node that loses an account's last stream removes the folder of all its streams, and a
        stream that is created in that moment is refused (10049; 3 of 547 times). timeout: seconds;
        raises LabError.
    """
    client, end = await connect(**cluster.login("readiness")), time.monotonic() + timeout
    js = client.jetstream(timeout=1)
    try:
        while True:
            try:
                await js.add_stream(
                    name="READY", subjects=["labkit.ready"], num_replicas=3, storage="memory"
                )
                return await js.delete_stream("READY")
            except (
                Error,
                TimeoutError,
            ) as error:  # once more, also after an answer that was lost: it is the same stream
                if time.monotonic() > end:
                    raise LabError(
                        f"No R3 stream could be created after {timeout} s: {error!r}."
                    ) from None
                await asyncio.sleep(0.02)
    finally:
        await close_client(client, drain=False)


async def settled(client, stream, timeout=20):
    """Returns when the stream's leader, and the leader of each of its pull consumers, answer this
    client's node, and the stream is found by its subject.

    timeout: seconds. Raises LabError if one stays silent. A program in production has no such call:
    it publishes or fetches again after a 503, which says that nobody has got the message."""
    js, end = client.jetstream(timeout=1), time.monotonic() + timeout
    info = await until_answered(lambda: js.stream_info(stream), end, f"stream {stream}")
    if info.config.subjects:  # a mirror has none
        subject = info.config.subjects[0].replace("*", "x").replace(">", "x")
        await until_answered(
            lambda: js.publish(subject, headers=dict(NOWHERE)), end, f"stream {stream}"
        )
        await until_answered(lambda: _found(js, subject), end, "the list of streams")

    async def listed():
        found = await js.consumers_info(stream)
        if len(found) < min(256, info.state.consumer_count):  # 256: a page of the list
            raise TimeoutError("a consumer that was just made is not in the list yet")
        return found

    for consumer in await until_answered(listed, end, f"the list of consumers of {stream}"):
        if (
            not consumer.config.deliver_subject
        ):  # a pull consumer: its leader refuses a request that is no request
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}"
            await until_answered(
                lambda: client.request(subject, b"{", timeout=0.25),
                end,
                f"consumer {consumer.name}",
            )


async def _found(js, subject):
    try:
        await js.find_stream_name_by_subject(subject)
    except NotFoundError:
        raise TimeoutError("a stream that was just made is not in the list yet") from None


async def until_answered(ask, end, who):
    """Asks (a coroutine function) again while nobody answers. A request that meets a change of
    leaders is answered by none of them. end: of time.monotonic(); raises LabError after it."""
    while True:
        try:
            return await ask()
        except (
            NoStreamResponseError,
            NoRespondersError,
            ServiceUnavailableError,
            TimeoutError,
        ) as error:
            if time.monotonic() > end:
                raise LabError(f"The leader of {who} did not answer in time: {error!r}.") from None
            await asyncio.sleep(0.005)
        except APIError as error:
            if error.err_code in REFUSED:
                return None
            raise

"""Waits until a cluster, or a stream that was just created, can be used.

The leader of a new stream (or consumer) subscribes to its subjects and answers the create request.
The two travel to other nodes on different route connections, so the answer can arrive first. Until
the subscription has arrived at a node, that node answers "no responders" (503): nats-py raises
NoStreamResponseError on publish, ServiceUnavailableError on fetch. Measured on 2.15.1: 0 to 4 times
in 100 on the creating connection, more often on other nodes, for 4 to 200 ms; never on the leader's
own node. The mechanism: server/jetstream_cluster.go (leader change: subscribe, then reply) and
server/opts.go (the system account, which carries the reply, has a route of its own).

The meta leader answers which stream has a subject. Seen once on a busy machine (and not in 1,200
tries): it did not name a stream whose creation had just been answered. nats-py's subscribe() and
pull_subscribe() ask it, and raise NotFoundError.
"""

from nats.errors import Error, NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from labkit.cluster.connection import close_client, connect
from labkit.waiting import until

UNANSWERED = (NoStreamResponseError, NoRespondersError, ServiceUnavailableError, TimeoutError)
# A header with which a stream's leader refuses a message, and the code of that refusal ("expected
# stream does not match"): it answers, and stores nothing.
REFUSED_HEADER = {"Nats-Expected-Stream": "no-such-stream"}
REFUSED = 10060
PAGE = 256  # consumers on one page of the list


async def can_create(cluster, timeout=40):
    """Waits until an R3 stream could be created on this cluster, and deletes it: the proof that the
    cluster is ready. timeout: seconds; raises LabError.

    A meta leader that sees all replicas is no proof: it places streams on servers whose statistics
    it has (else 10005, "no suitable peers"). It lacks them for milliseconds after a boot (3 of 160
    times), and for up to ten seconds after its routes to a server were lost and made again, as by a
    partition (route.go forgets them; 4 of 27 times). The stream is created in an account of its
    own: a node that loses an account's last stream removes the folder of all its streams, and it
    refuses a stream that is created in that moment (10049; 3 of 547 times).
    """
    client = await connect(**cluster.login("readiness"))
    js = client.jetstream(timeout=1)
    last_seen = "no answer"

    async def created():
        nonlocal last_seen
        try:
            await js.add_stream(
                name="READY", subjects=["labkit.ready"], num_replicas=3, storage="memory"
            )
            await js.delete_stream("READY")
            return True
        except (Error, TimeoutError) as error:
            # If only the answer was lost, the next try finds the same stream.
            last_seen = repr(error)
            return False

    try:
        await until(
            created, timeout, lambda: f"an R3 stream to be created. Last seen: {last_seen}."
        )
    finally:
        await close_client(client, drain=False)


async def settled(client, stream, timeout=20):
    """Waits until the stream's leader, and the leader of each of its pull consumers, answer on this
    client's node, and the stream is found by its subject.

    timeout: seconds, for each of them. Raises LabError if one does not answer. A program in
    production has no such call: after a 503 it publishes or fetches again, because a 503 says that
    nobody has got the message.
    """
    js = client.jetstream(timeout=1)
    info = await until_answered(lambda: js.stream_info(stream), timeout, f"stream {stream}")
    if info.config.subjects:  # a mirror has none
        subject = info.config.subjects[0].replace("*", "x").replace(">", "x")
        await until_answered(lambda: _probe(js, subject), timeout, f"stream {stream}")
        await until_answered(lambda: _find(js, subject), timeout, "the meta group")
    count = min(PAGE, info.state.consumer_count)
    consumers = await until_answered(
        lambda: _list_consumers(js, stream, count), timeout, f"stream {stream}"
    )
    for consumer in consumers:
        if not consumer.config.deliver_subject:  # it is a pull consumer
            # Malformed on purpose: the leader answers with an error and delivers nothing.
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}"
            await until_answered(
                lambda: client.request(subject, b"{", timeout=0.25),
                timeout,
                f"consumer {consumer.name} of {stream}",
            )


async def _probe(js, subject):
    """Publishes a message that the stream's leader refuses, so that it stores nothing."""
    try:
        await js.publish(subject, headers=dict(REFUSED_HEADER))
    except APIError as error:
        if error.err_code != REFUSED:
            raise


async def _find(js, subject):
    try:
        await js.find_stream_name_by_subject(subject)
    except NotFoundError:
        raise TimeoutError(f"no stream with subject {subject} is listed yet") from None


async def _list_consumers(js, stream, count):
    found = await js.consumers_info(stream)
    if len(found) < count:
        raise TimeoutError(f"{len(found)} of {count} consumers are listed yet")
    return found


async def until_answered(ask, timeout, who):
    """Calls ask() (a coroutine function) until it is answered. Returns the answer.

    A request sent during an election gets no answer. timeout: seconds; raises LabError. who: whose
    leader is asked, in words."""
    answers = []
    last_seen = "no answer"

    async def answered():
        nonlocal last_seen
        try:
            answers.append(await ask())
        except UNANSWERED as error:
            last_seen = repr(error)
        return answers

    await until(
        answered, timeout, lambda: f"an answer of the leader of {who}. Last seen: {last_seen}."
    )
    return answers[0]

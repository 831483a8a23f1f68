"""Exercises of lesson 00: how exercises work."""

import asyncio

from labkit.exercises import NotYet, exercise


@exercise(
    hints=[
        "A cluster decides by majority. How many of three are a majority?",
        "Two of three are a majority. So how many may be missing?",
    ],
    solution="answer = 1",
    wrong={
        "half is not a majority": (
            "answer = 2",
            "With 2 nodes gone, 1 of 3 is left; a majority is 2",
        ),
        "too careful": ("answer = 0", "With 1 node gone, 2 of 3 are left"),
        "not a number": ("answer = 'one'", "is a str; wanted: a whole number"),
    },
)
async def first_check(lab, answer):
    """How many nodes of the cluster may die while the rest can still elect a leader?"""
    if not isinstance(answer, int):
        raise NotYet(f"{answer!r} is a {type(answer).__name__}; wanted: a whole number.")
    size, majority = await _votes(lab)
    if answer > size - majority:
        raise NotYet(
            f"With {answer} nodes gone, {size - answer} of {size} is left; a majority is"
            f" {majority}, say the nodes."
        )
    if answer < size - majority:
        raise NotYet(
            f"With {answer + 1} node gone, {size - answer - 1} of {size} are left, and {majority}"
            f" are enough. So more than {answer} may die."
        )


async def _votes(lab):
    """(cluster size, votes needed), as the first node that answers tells on /varz; 3 and 2 on a
    foreign cluster."""
    for node in lab.cluster.nodes:
        if facts := await node.ask():
            meta = facts["jetstream"]["meta"]
            return meta["cluster_size"], meta["quorum_needed"]
    return 3, 2


@exercise(
    hints=[
        "A client publishes with `await client.publish(subject, payload)`.",
        'The payload is bytes: b"hello", or "hello".encode().',
    ],
    solution="""
        async def say_hello(nc):
            await nc.publish("greetings.lab", b"hello")
        answer = say_hello""",
    wrong={
        "another subject": (
            "async def answer(nc): await nc.publish('greetings', b'hello')",
            "came on 'greetings'; wanted: 'greetings.lab'",
        ),
        "another text": (
            "async def answer(nc): await nc.publish('greetings.lab', b'Hello!')",
            "carried b'Hello!'; wanted: b'hello'",
        ),
        "payload is text": (
            "async def answer(nc): await nc.publish('greetings.lab', 'hello')",
            "raised TypeError",
        ),
        "nothing sent": ("async def answer(nc): nc.is_connected", "No message arrived"),
    },
)
async def first_message(lab, say_hello):
    """Publish the text `hello` on the subject `greetings.lab`, with the client that you are
    given."""
    if not callable(say_hello):
        raise NotYet(
            f"{say_hello!r} is a {type(say_hello).__name__}; wanted: an async function that takes a"
            " client."
        )
    client = await lab.connect(name="exercise")
    try:
        everything = await client.subscribe(">")
        result = say_hello(client)
        if not hasattr(result, "__await__"):
            raise NotYet("Your function is not a coroutine; wanted: async def.")
        await result
        await asyncio.sleep(
            0
        )  # flush alone would overtake what was just published: lesson 01 shows it
        await client.flush()
        got = [await everything.next_msg(timeout=1) for _ in range(everything.pending_msgs)]
    finally:
        await client.close()
    seen = [msg for msg in got if not msg.subject.startswith(("_INBOX", "$"))]
    if not seen:
        raise NotYet("No message arrived; wanted: one on 'greetings.lab'.")
    if seen[0].subject != "greetings.lab":
        raise NotYet(f"The message came on {seen[0].subject!r}; wanted: 'greetings.lab'.")
    if seen[0].data != b"hello":
        raise NotYet(f"The message carried {seen[0].data!r}; wanted: b'hello'.")

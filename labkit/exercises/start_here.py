"""Exercises of lesson 00: how exercises work."""

import asyncio
import numbers

from labkit.exercises import exercise, want
from labkit.exercises.helpers import comes_true, wants_function


@exercise(
    hints=[
        "A cluster decides by majority. How many of three are a majority?",
        "Two of three are a majority. So how many may be missing?",
    ],
    variable="answer",
)
async def first_check(lab, answer):
    """How many nodes of the cluster may die while the rest can still elect a leader?"""
    whole = isinstance(answer, numbers.Integral) and not isinstance(answer, bool)
    want(whole, f"{answer!r} is a {type(answer).__name__}", "a whole number")
    size, majority = await _votes(lab)
    wanted = f"a number from 0 to {size}"
    want(0 <= answer <= size, f"You say that {answer} of {size} nodes may die", wanted)
    saw = f"With {answer} nodes gone, {size - answer} of {size} is left, and the nodes say that a"
    enough = size - answer >= majority
    want(enough, f"{saw} majority is {majority}", "a number that leaves a majority")
    saw = f"With {answer + 1} node gone, {size - answer - 1} of {size} are left, and {majority}"
    largest = size - (answer + 1) < majority
    want(largest, f"{saw} are enough, so more than {answer} may die", "the largest such number")


first_check.solved_by(1)


async def _votes(lab):
    """(number of nodes, votes that a leader needs), as the first node that answers tells on /varz;
    3 and 2 on a cluster that does not belong to the lab."""
    for node in lab.cluster.nodes:
        if facts := await node.ask():
            meta = facts["jetstream"]["meta"]
            return meta["cluster_size"], meta["quorum_needed"]
    return 3, 2


@exercise(
    hints=[
        "A client publishes with `await client.publish(subject, payload)`.",
        'The payload is bytes: b"hello", or "hello".encode().',
    ]
)
async def first_message(lab, answer):
    """Publish the text `hello` on the subject `greetings.lab`, with the client that you are
    given."""
    wants_function(answer, "nc")
    messages, sent = await _published_by(lab, answer)
    wanted = "one on 'greetings.lab', sent with the client that your function is given"
    want(messages, "No message arrived", wanted)
    want(len(messages) == 1, f"{len(messages)} messages arrived", wanted)
    first = messages[0]
    saw = f"The message came on {first.subject!r}"
    want(first.subject == "greetings.lab", saw, "'greetings.lab'")
    want(first.data == b"hello", f"The message carried {first.data!r}", "b'hello'")
    want(sent, "The client that your function was given sent nothing; another one did", wanted)


async def say_hello(nc):
    await nc.publish("greetings.lab", b"hello")


first_message.solved_by(say_hello)


async def _published_by(lab, answer):
    """(messages that arrive when the answer is called with a client, how many the client sent)."""
    everything = await lab.nc.subscribe(">")
    client = await lab.connect(name="exercise")
    try:
        await answer(client)
        await comes_true(lambda: everything.pending_msgs, timeout=1)
        await asyncio.sleep(0.05)  # for a second one
        got = [await everything.next_msg(timeout=1) for _ in range(everything.pending_msgs)]
    finally:
        await everything.unsubscribe()
        await client.close()
    messages = [msg for msg in got if not msg.subject.startswith(("_INBOX", "$"))]
    return messages, client.stats["out_msgs"]

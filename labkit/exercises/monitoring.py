"""Exercises of lesson 40: what a consumer has given up, and what is stored, counted once."""

import asyncio
import copy
import itertools
import random

from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import fetch, fresh_stream, wants_function

GIVEN_UP = {"gave-up": 2, "moved-on": 1, "both": 1}  # story -> messages that were given up
STORY = {  # story -> what became of the three messages of a consumer
    "idle": "three messages pending, nobody has asked for them",
    "trying": "all acked but message 2, which failed once and is in flight again",
    "gave-up": "message 1 was acked, messages 2 and 3 have used up their deliveries",
    "moved-on": "message 2 has used up its deliveries, message 3 was acked after that: "
    "the ack floor has jumped over 2",
    "both": "message 2 has used up its deliveries, message 3 is in flight for the second time",
}
NUMBERS = {  # story -> (num_redelivered, num_ack_pending) at its end
    "idle": (0, 0),
    "trying": (1, 1),
    "gave-up": (2, 0),
    "moved-on": (1, 0),
    "both": (2, 1),
}
# A replicated stream cannot be made anew at once, so the streams have new names each time.
_numbers = itertools.count(1)


@exercise(
    hints=[
        "Section 3, last row of the small table: what do redelivered and ack pending say together?",
        "Each message that is tried again is ack pending and redelivered; "
        "one that was given up is redelivered only.",
        "For each info in await js.consumers_info(stream): "
        "num_redelivered - num_ack_pending, if that is above 0.",
    ],
    limit=30,
)
async def given_up(lab, answer):
    """Return how many messages each consumer of the stream has given up: {consumer: number}, those
    with none left out."""
    wants_function(answer, "js, stream")
    letters = random.sample("ABCDEFGHKLMNP", len(STORY))  # so nobody can know them beforehand
    names = {story: f"worker-{letter}" for story, letter in zip(STORY, letters)}
    try:
        await _five_consumers(lab, names)
        before = await _deliveries(lab.js)
        found = await answer(lab.js, "EX_GIVEN_UP")
        after = await _deliveries(lab.js)
    finally:
        await delete(lab.js, "EX_GIVEN_UP")
    touched = sorted(name for name in before | after if before.get(name) != after.get(name))
    saw = f"Deliveries, acks or settings changed while it ran, at {', '.join(touched)}"
    want(not touched, saw, "it only looks")
    saw = f"given_up returned a {type(found).__name__}"
    want(isinstance(found, dict), saw, "a dict, consumer → number")
    strangers = sorted(str(name) for name in set(found) - set(names.values()))
    consumers = ", ".join(sorted(names.values()))
    saw = f"It names {', '.join(strangers)}, which the stream does not have"
    want(not strangers, saw, f"some of its consumers, {consumers}")
    for story, name in names.items():
        number, wanted = found.get(name, 0), GIVEN_UP.get(story, 0)
        saw = f"It says that {name} has given up {number}"
        want(number == wanted, saw, f"{wanted}. {name}: {STORY[story]}")
    extra = sorted(set(found) - {names[story] for story in GIVEN_UP})
    saw = f"It names {', '.join(extra)} too"
    want(not extra, saw, "only consumers that have given up a message")


@given_up.solved_by
async def given_up(js, stream):
    found = {}
    for info in await js.consumers_info(stream):
        lost = info.num_redelivered - info.num_ack_pending
        if lost > 0:
            found[info.name] = lost
    return found


async def _five_consumers(lab, names):
    """Makes EX_GIVEN_UP with three messages, and brings its consumers to the end of their STORY.
    names: {story: consumer}."""
    js = lab.js
    await fresh_stream(lab, "EX_GIVEN_UP", subjects=["ex_given_up.*"])
    for name in names.values():
        await js.add_consumer(
            "EX_GIVEN_UP", durable_name=name, ack_policy="explicit", ack_wait=60, max_deliver=2
        )
    await lab.settled("EX_GIVEN_UP")
    for number in (1, 2, 3):
        await js.publish("ex_given_up.new", b"%d" % number)
    plans = {
        "trying": {1: ["ack"], 2: ["nak", "hold"], 3: ["ack"]},
        "gave-up": {1: ["ack"], 2: ["nak", "nak"], 3: ["nak", "nak"]},
        "moved-on": {1: ["ack"], 2: ["nak", "nak"], 3: ["ack at the end"]},
        "both": {1: ["ack"], 2: ["nak", "nak"], 3: ["nak", "hold"]},
    }
    await asyncio.gather(*(_handle_as(js, names[story], plan) for story, plan in plans.items()))
    wanted = {names[story]: numbers for story, numbers in NUMBERS.items()}

    async def at_the_end():
        infos = await js.consumers_info("EX_GIVEN_UP")
        return {info.name: (info.num_redelivered, info.num_ack_pending) for info in infos} == wanted

    await lab.until(at_the_end, timeout=15)


async def _deliveries(js):
    """{consumer: its settings, and how far its deliveries and acks are}, of EX_GIVEN_UP."""
    return {
        info.name: (
            info.config,
            info.delivered.consumer_seq,
            info.num_ack_pending,
            info.num_pending,
        )
        for info in await js.consumers_info("EX_GIVEN_UP")
    }


async def _handle_as(js, name, plan):
    """Fetches as this consumer. plan: {message: what to do with each of its deliveries}. The server
    chooses in which order they come after a nak. It gives up a message when it is asked for one
    more, so one more is asked for."""
    sub = await js.pull_subscribe_bind(name, "EX_GIVEN_UP")
    late = []
    while any(plan.values()):
        [msg] = await sub.fetch(1, timeout=5)
        what = plan[int(msg.data)].pop(0)
        if what == "ack":
            await msg.ack_sync(timeout=3)
        elif what == "nak":
            await msg.nak()
        elif what == "ack at the end":
            late.append(msg)
    await fetch(sub)
    for msg in late:
        await msg.ack_sync(timeout=3)


@exercise(
    hints=[
        "Section 2: who reports a stream, and whose report counts?",
        'answers[node]["account_details"] is a list: find the account by its name, '
        "then go through its stream_detail.",
        'Count stream["state"]["messages"] where stream["cluster"]["leader"] == node, and '
        'consumer["num_pending"] where consumer["cluster"]["leader"] == node. '
        "The two leaders may be different nodes.",
    ],
    limit=60,
)
async def count_once(lab, answer):
    """Return (messages, pending) of all streams and consumers of the account, each counted once,
    from three /jsz."""
    wants_function(answer, "answers, account", coroutine=False)
    number = next(_numbers)
    streams = [f"EX_COUNT_{number}_THREE", f"EX_COUNT_{number}_ONE"]
    try:
        answers = await _spread(lab, *streams)
    finally:
        for name in streams:
            await delete(lab.js, name)
    account = lab.topic.upper()
    _is_counted(answer(copy.deepcopy(answers), account), 8, 4, TWO_STREAMS)
    more = random.randint(2, 9)
    later = _with_more(answers, streams, more)
    story = (
        f"These are the same answers, as if {more} more messages had come to each stream. Of the"
        " two followers one lacks them, and one still holds a message that its leader has deleted"
    )
    _is_counted(answer(later, account), 8 + 2 * more, 4 + more, story)


def _is_counted(found, messages, pending, story):
    """Raises NotYet unless found are these two numbers."""
    is_pair = isinstance(found, (tuple, list)) and len(found) == 2
    want(is_pair, f"count_once returned {found!r}", "two numbers, messages and pending")
    for seen, wanted, what in zip(found, (messages, pending), ("messages", "pending")):
        shown = f"{seen:.3g}" if isinstance(seen, float) else repr(seen)
        want(seen == wanted, f"It counted {shown} {what}", f"{wanted}. {story}")


def _with_more(answers, streams, more):
    """The answers with so many more messages in these streams, and as many more pending at the
    leader of each consumer. One follower is behind, one ahead; their nodes come first and last."""
    later, followers = copy.deepcopy(answers), iter((0, more + 1))
    leader = None
    for node, answer in later.items():
        told = [stream for entry in answer["account_details"] for stream in entry["stream_detail"]]
        for stream in told:
            if stream["name"] not in streams:
                continue
            if stream["cluster"]["leader"] == node:
                leader = node if stream["name"] == streams[0] else leader
                stream["state"]["messages"] += more
            else:
                stream["state"]["messages"] += next(followers)
            for consumer in stream.get("consumer_detail") or []:
                if consumer["cluster"]["leader"] == node:
                    consumer["num_pending"] += more
    first, last = (node for node in later if node != leader)
    return {node: later[node] for node in (first, leader, last)}


TWO_STREAMS = (
    "There are two streams, one with 4 messages on three nodes and one with 4 on one node; "
    "a consumer of the first, which another node leads, has 4 pending"
)


@count_once.solved_by
def count_once(answers, account):
    messages = pending = 0
    for node, answer in answers.items():
        for entry in answer["account_details"]:
            if entry["name"] != account:
                continue
            for stream in entry.get("stream_detail") or []:
                if stream["cluster"]["leader"] == node:
                    messages += stream["state"]["messages"]
                for consumer in stream.get("consumer_detail") or []:
                    if consumer["cluster"]["leader"] == node:
                        pending += consumer["num_pending"]
    return messages, pending


async def _spread(lab, three, one):
    """Makes a stream with three copies and a stream with one, led by different nodes, with 4
    messages each, and a consumer of the first, led by another node than its stream. Returns {node:
    what it tells of them (dict)}."""
    await lab.js.add_stream(name=three, subjects=[f"{three}.new"], num_replicas=3)
    await lab.js.add_stream(name=one, subjects=[f"{one}.new"])
    await lab.js.add_consumer(three, durable_name="late", ack_policy="explicit")
    for name in (three, one):
        await lab.settled(name)
        for _ in range(4):
            await lab.js.publish(f"{name}.new")
    leader = await lab.wait_for_leader(three)
    if leader == await lab.wait_for_leader(one):
        leader = await lab.faults.step_down(three)
    if leader == await lab.wait_for_leader(three, "late"):
        await lab.faults.step_down(three, "late")
    return await lab.until(lambda: _all_told(lab, three, one), timeout=15)


async def _all_told(lab, three, one):
    """What the three /jsz tell once they show all that _spread() has made: each copy with its
    messages, each with its leader. Else None."""
    answers = await _jsz_of_all(lab, [three, one])
    told = [
        stream
        for answer in answers.values()
        for stream in answer["account_details"][0]["stream_detail"]
    ]
    led = [
        *told,
        *(consumer for stream in told for consumer in stream.get("consumer_detail") or []),
    ]
    copies = sorted((stream["name"], stream["state"]["messages"]) for stream in told)
    if copies != [(one, 4), *[(three, 4)] * 3] or not all("leader" in x["cluster"] for x in led):
        return None
    is_whole = count_once.answer(answers, lab.topic.upper()) == (8, 4)
    return answers if is_whole else None


async def _jsz_of_all(lab, streams):
    """{node: what it tells of these streams (dict)}."""
    account = lab.topic.upper()
    return {node.name: await _jsz(node, account, streams) for node in lab.cluster.nodes}


async def _jsz(node, account, streams):
    """The node's /jsz (dict), with these streams of the account only, and with an account that is
    somebody else's."""
    answer = await node.ask("jsz?accounts=true&streams=true&consumers=true", timeout=3)
    [own] = [entry for entry in answer["account_details"] if entry["name"] == account]
    told = own.get("stream_detail") or []
    own["stream_detail"] = [stream for stream in told if stream["name"] in streams]
    theirs = {
        "name": "THEIRS",
        "state": {"messages": 100},
        "cluster": {"leader": "n1"},
        "consumer_detail": [],
    }
    other = {"name": "SOMEBODY_ELSE", "stream_detail": [theirs] if node.name == "n1" else []}
    answer["account_details"] = [own, other]
    return answer

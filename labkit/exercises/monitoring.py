"""Exercises of lesson 11: what a consumer has given up, and what is stored, counted once."""

import asyncio
import contextlib
import inspect

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

GIVEN_UP = """
async def given_up(js, stream):
    found = {}
    for info in await js.consumers_info(stream):
        lost = info.num_redelivered - info.num_ack_pending
        if lost > 0:
            found[info.name] = lost
    return found
answer = given_up"""

COUNT_ONCE = """
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
answer = count_once"""


@exercise(
    hints=[
        "Section 3, last row of the small table: what do redelivered and ack pending say together?",
        (
            "Each message that is tried again is ack pending and redelivered; one that was given up"
            " is redelivered only."
        ),
        (
            "For each info in await js.consumers_info(stream): num_redelivered - num_ack_pending,"
            " if that is above 0."
        ),
    ],
    solution=GIVEN_UP,
    wrong={
        "redelivered is not given up": (
            GIVEN_UP.replace(" - info.num_ack_pending", ""),
            "'trying' has given up 1; wanted: 0",
        ),
        "looks at the ack floor": (
            GIVEN_UP.replace(
                "info.num_redelivered - info.num_ack_pending",
                "info.delivered.stream_seq - info.ack_floor.stream_seq "
                "if not info.num_ack_pending else 0",
            ),
            "'moved-on' has given up 0; wanted: 1",
        ),
        "nothing may be in flight": (
            GIVEN_UP.replace(
                "info.num_redelivered - info.num_ack_pending",
                "0 if info.num_ack_pending else info.num_redelivered",
            ),
            "'both' has given up 0; wanted: 1",
        ),
        "names only": (
            GIVEN_UP.replace("return found", "return list(found)"),
            "a list; wanted: a dict",
        ),
        "says how many are behind": (
            GIVEN_UP.replace("info.num_redelivered - info.num_ack_pending", "info.num_pending"),
            "'idle' has given up 3; wanted: 0",
        ),
    },
    limit=30,
)
async def given_up(lab, answer):
    """Return how many messages each consumer of the stream has given up: {consumer: number}, those
    with none left out."""
    _wants(answer, "js, stream", coroutine=True)
    wanted = {"gave-up": 1, "moved-on": 1, "both": 1}
    await _given_up(lab)
    try:
        found = await answer(lab.js, "EX_GIVEN_UP")
        if not isinstance(found, dict):
            raise NotYet(
                f"given_up returned a {type(found).__name__}; wanted: a dict, consumer → number."
            )
        for name in ("idle", "trying", *wanted):
            if found.get(name, 0) != wanted.get(name, 0):
                raise NotYet(
                    f"It says that {name!r} has given up {found.get(name, 0)}; wanted:"
                    f" {wanted.get(name, 0)}. {name!r}: {WHAT[name]}"
                )
        if extra := set(found) - set(wanted):
            raise NotYet(
                f"It names {', '.join(sorted(extra))} too; wanted: only consumers that have given"
                " up a message."
            )
    finally:
        await delete(lab.js, "EX_GIVEN_UP")


WHAT = {
    "idle": "three messages pending, nobody has asked for them.",
    "trying": "all acked but message 2, which failed once and is in flight again.",
    "gave-up": "all acked but message 3, which has used up its deliveries.",
    "moved-on": (
        "message 2 has used up its deliveries, message 3 was acked after that: the ack floor has"
        " jumped over 2."
    ),
    "both": "message 2 has used up its deliveries, message 3 is in flight for the second time.",
}


async def _given_up(lab):
    """EX_GIVEN_UP with three messages and the five consumers of WHAT."""
    js = lab.js
    await delete(js, "EX_GIVEN_UP")
    await js.add_stream(name="EX_GIVEN_UP", subjects=["ex_given_up.*"])
    for name in WHAT:
        await js.add_consumer(
            "EX_GIVEN_UP", durable_name=name, ack_policy="explicit", ack_wait=60, max_deliver=2
        )
    await lab.settled("EX_GIVEN_UP")
    for number in range(1, 4):
        await js.publish("ex_given_up.new", b"%d" % number)

    async def run(name, plan):
        """plan: {message: what to do with each of its deliveries}. At last one more is asked for,
        then "later" is acked."""
        sub, later = await js.pull_subscribe_bind(name, "EX_GIVEN_UP"), []
        while any(plan.values()):  # in which order they come, after a nak, is the server's choice
            [msg] = await sub.fetch(1, timeout=5)
            what = plan[int(msg.data)].pop(0)
            later += [msg] * (what == "later")
            await (
                msg.ack_sync(timeout=3)
                if what == "ack"
                else msg.nak()
                if what == "nak"
                else asyncio.sleep(0)
            )
        with contextlib.suppress(asyncio.TimeoutError):
            await sub.fetch(1, timeout=1)
        for msg in later:
            await msg.ack_sync(timeout=3)

    done, lost, again = ["ack"], ["nak", "nak"], ["nak", "hold"]
    await asyncio.gather(
        run("trying", {1: [*done], 2: [*again], 3: [*done]}),
        run("gave-up", {1: [*done], 2: [*done], 3: [*lost]}),
        run("moved-on", {1: [*done], 2: [*lost], 3: ["later"]}),
        run("both", {1: [*done], 2: [*lost], 3: [*again]}),
    )

    async def there():
        seen = {
            info.name: (info.num_redelivered, info.num_ack_pending)
            for info in await js.consumers_info("EX_GIVEN_UP")
        }
        return seen == {
            "idle": (0, 0),
            "trying": (1, 1),
            "gave-up": (1, 0),
            "moved-on": (1, 0),
            "both": (2, 1),
        }

    await lab.until(there, timeout=15)


@exercise(
    hints=[
        "Section 2: who reports a stream, and whose report counts?",
        (
            'answers[node]["account_details"] is a list: find the account by its name, then go'
            " through its stream_detail."
        ),
        (
            'Count stream["state"]["messages"] where stream["cluster"]["leader"] == node, and'
            ' consumer["num_pending"] where consumer["cluster"]["leader"] == node. The two leaders'
            " may be different nodes."
        ),
    ],
    solution=COUNT_ONCE,
    wrong={
        "adds up all copies": (
            COUNT_ONCE.replace('if stream["cluster"]["leader"] == node:', "if True:"),
            "16 messages; wanted: 8",
        ),
        "divides by three": (
            COUNT_ONCE.replace('if stream["cluster"]["leader"] == node:', "if True:").replace(
                "return messages,", "return messages / 3,"
            ),
            "5.33 messages; wanted: 8",
        ),
        "trusts the stream's leader with consumers": (
            COUNT_ONCE.replace(
                'consumer["cluster"]["leader"] == node', 'stream["cluster"]["leader"] == node'
            ),
            "0 pending; wanted: 4",
        ),
        "all accounts": (
            COUNT_ONCE.replace('entry["name"] != account', "False"),
            "108 messages; wanted: 8",
        ),
        "asks one node": (
            COUNT_ONCE.replace("in answers.items()", "in list(answers.items())[:1]"),
            "messages; wanted: 8",
        ),
    },
    limit=60,
)
async def count_once(lab, answer):
    """Return (messages, pending) of all streams and consumers of the account, each counted once,
    from three /jsz."""
    _wants(answer, "answers, account", coroutine=False)
    made = await _spread(lab)
    try:
        answers = {
            node.name: await _jsz(node, lab.topic.upper(), made) for node in lab.cluster.nodes
        }
        found = answer(answers, lab.topic.upper())
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise NotYet(
                f"count_once returned {found!r}; wanted: two numbers, messages and pending."
            )
        for seen, wanted, what in zip(found, (8, 4), ("messages", "pending")):
            if seen != wanted:
                raise NotYet(
                    f"It counted {seen:.3g} {what}; wanted: {wanted}. There are two streams, one"
                    " with 4 messages on three nodes and one with 4 on one node; a consumer of the"
                    " first, which another node leads, has 4 pending."
                )
    finally:
        for name in made:
            await delete(lab.js, name)


_made = 0


async def _spread(lab):
    """Makes a stream with three copies, a stream with one, on another node than the first one's
    leader, and a consumer of the first, led by another node than it. Returns the two names."""
    global _made
    _made += 1  # names of their own each time: a replicated stream cannot be made anew at once
    three, one = names = [f"EX_COUNT_{_made}_THREE", f"EX_COUNT_{_made}_ONE"]
    await lab.js.add_stream(name=three, subjects=[f"ex_count_{_made}.three"], num_replicas=3)
    await lab.js.add_stream(name=one, subjects=[f"ex_count_{_made}.one"])
    await lab.js.add_consumer(three, durable_name="late", ack_policy="explicit")
    for name in names:
        await lab.settled(name)
    for _ in range(4):
        await lab.js.publish(f"ex_count_{_made}.three")
        await lab.js.publish(f"ex_count_{_made}.one")
    leader = await lab.wait_for_leader(three)
    if leader == await lab.wait_for_leader(one):
        leader = await lab.faults.step_down(three)
    if leader == await lab.wait_for_leader(three, "late"):
        await lab.faults.step_down(three, "late")

    async def told():
        answers = {
            node.name: await _jsz(node, lab.topic.upper(), names) for node in lab.cluster.nodes
        }
        return count(answers, lab.topic.upper()) == (8, 4) and all(
            [
                stream["state"]["messages"]
                for stream in answer["account_details"][0]["stream_detail"]
                if stream["name"] == three
            ]
            == [4]
            for answer in answers.values()
        )

    await lab.until(told, timeout=15)
    return names


async def _jsz(node, account, names):
    """What this node tells of these streams, as /jsz tells it; and of an account that is somebody
    else's."""
    answer = await node.ask("jsz?accounts=true&streams=true&consumers=true", timeout=3)
    [own] = [entry for entry in answer["account_details"] if entry["name"] == account]
    own["stream_detail"] = [
        stream for stream in own.get("stream_detail") or [] if stream["name"] in names
    ]
    theirs = [
        {
            "name": "THEIRS",
            "state": {"messages": 100},
            "cluster": {"leader": "n1"},
            "consumer_detail": [],
        }
    ]
    answer["account_details"] = [
        own,
        {"name": "SOMEBODY_ELSE", "stream_detail": theirs if node.name == "n1" else []},
    ]
    return answer


def count(answers, account):
    """The right answer, for the check itself."""
    scope = {}
    exec(COUNT_ONCE, scope)
    return scope["count_once"](answers, account)


def _wants(answer, arguments, coroutine):
    kind = "async def" if coroutine else "def"
    if not callable(answer):
        raise NotYet(
            f"What you pass is a {type(answer).__name__}; wanted: a function, {kind}"
            f" …({arguments})."
        )
    if inspect.iscoroutinefunction(answer) != coroutine:
        raise NotYet(
            f"What you pass is {'no' if coroutine else 'a'} coroutine function; wanted: {kind}"
            f" …({arguments})."
        )

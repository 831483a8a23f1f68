"""Exercises of lesson 44: tell broken consumers apart, and say what became of a publish."""

import asyncio
import datetime

from nats.js.errors import APIError, NoStreamResponseError
from nats.nuid import NUID

from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import fetch, fresh_stream, wants_function
from labkit.waiting import until

WARD, EMPTY, WARD3 = "EX_WARD", "EX_EMPTY", "EX_WARD3"
PATIENTS = {  # what a consumer is: (stream, settings, how many it takes, what it has)
    "one whose filter matches nothing": (WARD, {"filter_subject": "ex.word.*"}, 0, "filter"),
    "one with 2 of 2 out": (WARD, {"max_ack_pending": 2}, 2, "ack pending"),
    "one that is paused": (WARD, {}, 0, "paused"),
    "one whose pause is over": (WARD, {}, 0, "fine"),
    "one with a backlog, 3 of 4 out": (WARD, {"max_ack_pending": 4}, 3, "fine"),
    "one that has done everything": (WARD, {}, 6, "fine"),
    "one with 3 out and no limit (-1)": (WARD, {"max_ack_pending": -1}, 3, "fine"),
    "one with ack_policy none": (WARD, {"ack_policy": "none"}, 3, "fine"),
    "one for new messages, before the first": (WARD, {"deliver_policy": "new"}, 0, "fine"),
    "one that has given up a message": (WARD, {"max_deliver": 2}, 6, "given up"),
    "one at work on a redelivered message": (WARD, {"max_deliver": 9}, 6, "fine"),
    "one in an empty stream": (EMPTY, {"filter_subject": "ex.ward.*"}, 0, "fine"),
    "one with R3 whose filter matches nothing": (WARD3, {"filter_subject": "ex.x"}, 0, "filter"),
    "one with R3 for new messages": (WARD3, {"deliver_policy": "new"}, 0, "fine"),
}
BAD_FIRST = {"one that has given up a message": 2, "one at work on a redelivered message": 1}


@exercise(
    hints=[
        "Nearly all that you need stands in one answer: "
        "info = await js.consumer_info(stream, consumer).",
        "info.paused; info.num_ack_pending beside info.config.max_ack_pending, which may be -1 or "
        "None (no limit); info.num_redelivered while nothing is pending and nothing is out.",
        "A filter is found out by what the stream holds. "
        "state = (await js.stream_info(stream, subjects_filter=…)).state: "
        "its subjects are those that match, its messages are all.",
    ],
)
async def diagnose(lab, answer):
    """Tell broken consumers apart: "paused", "ack pending", "filter" or "given up"; and "fine" for
    the others."""
    wants_function(answer, "js, stream, consumer")
    try:
        names = await _patients(lab)
        for what in [*PATIENTS, *reversed(PATIENTS)]:  # a list of words in their order is no look
            stream, _, _, word = PATIENTS[what]
            before = await _numbers(lab.js, stream, names[what])
            said = await answer(lab.js, stream, names[what])
            want(said == word, f"diagnose said {said!r} of {what}", f"{word!r}. {before}")
            after = await _numbers(lab.js, stream, names[what])
            want(
                after == before,
                f"diagnose changed {what}. Before: {before}. Since then: {after}",
                "a look that takes nothing",
            )
        left = (await lab.js.stream_info(WARD)).state.consumer_count
        made = [stream for stream, *_ in PATIENTS.values()].count(WARD)
        want(left == made, f"{WARD} has {left} consumers, and had {made} before", "a look only")
    finally:
        for stream in (WARD, EMPTY, WARD3):
            await delete(lab.js, stream)


@diagnose.solved_by
async def diagnose(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    limit = info.config.max_ack_pending or -1  # -1: none
    if info.num_ack_pending >= limit > 0:
        return "ack pending"
    wanted = info.config.filter_subject or ">"
    state = (await js.stream_info(stream, subjects_filter=wanted)).state
    if state.messages and not state.subjects:
        return "filter"
    if info.num_redelivered and info.num_pending == info.num_ack_pending == 0:
        return "given up"
    return "fine"


async def _patients(lab):
    """Makes the streams with six messages each (EMPTY has none), and the consumers. Returns
    {what it is: its name}; the names say nothing."""
    js = lab.js
    await fresh_stream(lab, WARD, subjects=["ex.ward.*"])
    await fresh_stream(lab, WARD3, subjects=["ex.ward3.*"], num_replicas=3)
    await js.add_stream(name=EMPTY, subjects=["ex.empty.*"])
    for number in range(6):
        await js.publish(f"ex.ward.{number}")
        await js.publish(f"ex.ward3.{number}")
    names = {what: NUID().next().decode() for what in PATIENTS}
    for what, (stream, settings, *_) in PATIENTS.items():
        defaults = {"max_ack_pending": 9, "ack_policy": "explicit", "ack_wait": 30}
        if settings.get("ack_policy") == "none":
            defaults = {}
        await js.add_consumer(stream, durable_name=names[what], **{**defaults, **settings})
    for stream in (WARD, EMPTY, WARD3):
        await lab.settled(stream)
    await until(lambda: _passed_by(js, names["one with R3 whose filter matches nothing"]), 8)
    for what, (stream, _, messages, _) in PATIENTS.items():
        await _take(js, stream, names[what], messages, what)
    paused, over = names["one that is paused"], names["one whose pause is over"]
    now = datetime.datetime.now(datetime.UTC)
    await js.pause_consumer(WARD, over, f"{now + datetime.timedelta(seconds=0.5):%FT%T.%fZ}")
    await js.pause_consumer(WARD, paused, "2099-01-01T00:00:00Z")

    async def are_ready():  # the answer to a pause comes before the consumer knows of it
        infos = [await js.consumer_info(WARD, name) for name in (paused, over)]
        return [bool(info.paused) for info in infos] == [True, False]

    await asyncio.sleep(0.5)
    await lab.until(are_ready)
    return names


async def _passed_by(js, consumer):
    """Asks like a waiting worker. Returns True once the consumer has seen that nothing is for it:
    with three replicas its stream sequence then goes along with the stream's."""
    await fetch(await js.pull_subscribe_bind(consumer, WARD3), timeout=0.2)
    return (await js.consumer_info(WARD3, consumer)).delivered.stream_seq


async def _take(js, stream, consumer, messages, what):
    """Fetches so many messages, one by one, and answers as this consumer's worker would."""
    if not messages:
        return
    sub = await js.pull_subscribe_bind(consumer, stream)
    if what in BAD_FIRST:
        await until(lambda: _nak_the_first(js, sub, stream, consumer, BAD_FIRST[what]), 8)
        return
    acks = 6 if "everything" in what else 1 if "backlog" in what else 0
    for number in range(messages):
        [msg] = await sub.fetch(1, timeout=5)
        if number < acks:
            await msg.ack_sync()


async def _nak_the_first(js, sub, stream, consumer, naks):
    """Takes one message: naks the first of the stream so many times and then keeps it; acks the
    others. Returns True once nothing is left to take."""
    for msg in await fetch(sub, timeout=0.3):
        if msg.metadata.sequence.stream > 1:
            await msg.ack_sync()
        elif msg.metadata.num_delivered <= naks:
            await msg.nak()
    info = await js.consumer_info(stream, consumer)
    out = 1 if naks == 1 else 0
    return info.num_redelivered == 1 and (info.num_pending, info.num_ack_pending) == (0, out)


async def _numbers(js, stream, consumer):
    """What the server says of this consumer (text)."""
    info = await js.consumer_info(stream, consumer)
    paused = "paused" if info.paused else "not paused"
    return (
        f"It has {info.num_pending} pending, {info.num_ack_pending} out "
        f"(limit {info.config.max_ack_pending}), {info.delivered.consumer_seq} handed out, "
        f"{info.num_redelivered} redelivered, {paused}"
    )


@exercise(
    hints=[
        "Two ways to hear of it: an exception, and the PubAck that js.publish returns.",
        "NoStreamResponseError is no APIError; an APIError has an err_code, and 10077 is that of a "
        "limit. What you cannot name you raise again.",
        "No exception is not enough: ack.duplicate is True when nothing new was stored.",
    ],
)
async def fate(lab, answer):
    """Publish once with a message id, and say what became of it: "stored", "duplicate", "full" or
    "no stream"; any other error passes on."""
    wants_function(answer, "js, subject, msg_id")
    new, old, last, over = (NUID().next().decode() for _ in range(4))
    heard = []  # the id of each message that the check's subjects got; none listens to `nowhere`
    names = "new", "sealed", "mute"
    subs = [await lab.nc.subscribe(f"ex.fate.{name}", cb=_keep(heard)) for name in names]
    try:
        await fresh_stream(lab, "EX_FATE", subjects=["ex.fate.new"], max_msgs=3, discard="new")
        await fresh_stream(lab, "EX_SEALED", subjects=["ex.fate.sealed"])
        sealed = (await lab.js.stream_info("EX_SEALED")).config
        await lab.js.update_stream(sealed.evolve(sealed=True))
        await lab.js.add_stream(name="EX_MUTE", subjects=["ex.fate.mute"], no_ack=True)
        await lab.js.publish("ex.fate.new", headers={"Nats-Msg-Id": old})
        for name, msg_id, word, what in [
            ("new", new, "stored", "a new message"),
            ("nowhere", over, "no stream", "a subject of no stream"),
            ("new", new, "duplicate", "an id that was there"),
            ("new", old, "duplicate", "an id that somebody else has used"),
            ("new", last, "stored", "a new message"),
            ("new", over, "full", "a full stream"),
            ("new", last, "duplicate", "an id that is in the full stream"),
        ]:
            said, error = await _said(answer, lab.js, f"ex.fate.{name}", msg_id, heard)
            said = f"fate raised {error!r}" if error else f"fate said {said!r}"
            held = (await lab.js.stream_info("EX_FATE")).state.messages
            wanted = f"{word!r}. The stream holds {held} messages, limit 3"
            want(said == f"fate said {word!r}", f"{said} of {what}", wanted)
        for name, kind, what in [
            ("sealed", APIError, "a stream that is sealed (400, err_code 10109)"),
            ("mute", TimeoutError, "a stream that never answers (TimeoutError: nobody knows)"),
        ]:
            js = lab.nc.jetstream(timeout=0.3)
            said, error = await _said(answer, js, f"ex.fate.{name}", over, heard)
            said = f"fate raised {error!r}" if error else f"fate said {said!r}"
            want(isinstance(error, kind), f"{said} of {what}", "the error itself, passed on")
    finally:
        for sub in subs:
            await sub.unsubscribe()
        for stream in ("EX_FATE", "EX_SEALED", "EX_MUTE"):
            await delete(lab.js, stream)


def _keep(heard):
    async def keep(msg):
        heard.append((msg.headers or {}).get("Nats-Msg-Id"))

    return keep


async def _said(answer, js, subject, msg_id, heard):
    """(what the answer said, the error that it raised). Raises NotYet unless it has published once,
    with this id."""
    await js._nc.flush()
    heard.clear()
    said = error = None
    try:
        said = await answer(js, subject, msg_id)
    except Exception as raised:
        error = raised
    await js._nc.flush()
    want(
        heard == [msg_id] or subject.endswith("nowhere"),
        f"fate published {len(heard)} messages to {subject}, with these ids: {heard}",
        f"one, with the id {msg_id!r}",
    )
    return said, error


@fate.solved_by
async def fate(js, subject, msg_id):
    try:
        ack = await js.publish(subject, b"probe", headers={"Nats-Msg-Id": msg_id})
    except NoStreamResponseError:
        return "no stream"
    except APIError as error:
        if error.err_code == 10077:
            return "full"
        raise
    return "duplicate" if ack.duplicate else "stored"

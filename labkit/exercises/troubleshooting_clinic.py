"""Exercises of lesson 44: tell broken consumers apart, and say what became of a publish."""

from nats.js.errors import APIError, NoStreamResponseError

from labkit.cluster.streams import delete
from labkit.exercises import exercise, want
from labkit.exercises.helpers import fresh_stream, wants_function

DIAGNOSES = {  # consumer -> what it has
    "BLIND": "filter",
    "STUCK": "ack pending",
    "HELD": "paused",
    "BUSY": "fine",
    "DONE": "fine",
}


@exercise(
    hints=[
        "All that you need stands in one answer: info = await js.consumer_info(stream, consumer).",
        "info.paused; info.num_ack_pending beside info.config.max_ack_pending; "
        "info.num_pending and info.delivered.stream_seq.",
        "A backlog alone is no illness: somebody may be at work on it. "
        "And a limit counts only when it is reached.",
    ],
)
async def diagnose(lab, answer):
    """Tell three broken consumers apart: "filter", "ack pending" or "paused"; and "fine" for the
    others."""
    wants_function(answer, "js, stream, consumer")
    try:
        await _five_consumers(lab)
        for name, word in DIAGNOSES.items():
            said = await answer(lab.js, "EX_WARD", name)
            numbers = await _numbers(lab.js, name)
            want(said == word, f"diagnose said {said!r} of {name}", f"{word!r}. {numbers}")
    finally:
        await delete(lab.js, "EX_WARD")


@diagnose.solved_by
async def diagnose(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending >= info.config.max_ack_pending:
        return "ack pending"
    if info.num_pending == 0 and info.delivered.stream_seq == 0:
        return "filter"
    return "fine"


async def _five_consumers(lab):
    """Makes EX_WARD with six messages, and the consumers of DIAGNOSES."""
    js = lab.js
    await fresh_stream(lab, "EX_WARD", subjects=["ex.ward.*"])
    for name in DIAGNOSES:
        subjects = "ex.word.*" if name == "BLIND" else "ex.ward.*"
        await js.add_consumer(
            "EX_WARD", durable_name=name, max_ack_pending=3, ack_wait=30, filter_subject=subjects
        )
    await lab.settled("EX_WARD")
    for number in range(6):
        await js.publish(f"ex.ward.{number}")
    await _take(js, "STUCK", messages=3, acks=0)
    await _take(js, "BUSY", messages=3, acks=1)
    await _take(js, "DONE", messages=6, acks=6)
    await js.pause_consumer("EX_WARD", "HELD", "2099-01-01T00:00:00Z")

    async def is_held():  # the answer to a pause comes before the consumer knows of it
        return (await js.consumer_info("EX_WARD", "HELD")).paused

    await lab.until(is_held)


async def _take(js, consumer, messages, acks):
    """Fetches so many messages, one by one, and acks the first so many of them."""
    sub = await js.pull_subscribe_bind(consumer, "EX_WARD")
    for number in range(messages):
        [msg] = await sub.fetch(1, timeout=5)
        if number < acks:
            await msg.ack_sync()


async def _numbers(js, consumer):
    """What the server says of this consumer of EX_WARD (text)."""
    info = await js.consumer_info("EX_WARD", consumer)
    paused = "paused" if info.paused else "not paused"
    return (
        f"It has {info.num_pending} pending, {info.num_ack_pending} out (limit 3), "
        f"delivered up to {info.delivered.stream_seq}, {paused}"
    )


@exercise(
    hints=[
        "Two ways to hear of it: an exception, and the PubAck that js.publish returns.",
        "NoStreamResponseError is no APIError; an APIError has an err_code, "
        "and 10077 is maximum messages exceeded.",
        "No exception is not enough: ack.duplicate is True when nothing new was stored.",
    ],
)
async def fate(lab, answer):
    """Publish once with a message id, and say what became of it: "stored", "duplicate", "full" or
    "no stream"."""
    wants_function(answer, "js, subject, msg_id")
    try:
        await fresh_stream(lab, "EX_FATE", subjects=["ex.fate"], max_msgs=2, discard="new")
        for subject, msg_id, word, what in [
            ("ex.fate", "a", "stored", "a new message"),
            ("ex.nowhere", "b", "no stream", "a subject of no stream"),
            ("ex.fate", "a", "duplicate", "an id that was there"),
            ("ex.fate", "c", "stored", "a new message"),
            ("ex.fate", "d", "full", "a full stream"),
        ]:
            said = await answer(lab.js, subject, msg_id)
            held = (await lab.js.stream_info("EX_FATE")).state.messages
            wanted = f"{word!r}. The stream holds {held} messages, limit 2"
            want(said == word, f"fate said {said!r} of {what}", wanted)
    finally:
        await delete(lab.js, "EX_FATE")


@fate.solved_by
async def fate(js, subject, msg_id):
    try:
        ack = await js.publish(subject, b"probe", headers={"Nats-Msg-Id": msg_id})
    except NoStreamResponseError:
        return "no stream"
    except APIError as error:
        return "full" if error.err_code == 10077 else f"refused: {error.err_code}"
    return "duplicate" if ack.duplicate else "stored"

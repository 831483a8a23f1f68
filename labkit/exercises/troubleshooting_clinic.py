"""Exercises of lesson 12: tell broken consumers apart, and say what became of a publish."""

import inspect

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise

DIAGNOSE = """
async def answer(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending >= info.config.max_ack_pending:
        return "ack pending"
    if info.num_pending == 0 and info.delivered.stream_seq == 0:
        return "filter"
    return "fine\""""

FATE = """
from nats.js.errors import APIError, NoStreamResponseError

async def answer(js, subject, msg_id):
    try:
        ack = await js.publish(subject, b"probe", headers={"Nats-Msg-Id": msg_id})
    except NoStreamResponseError:
        return "no stream"
    except APIError as error:
        return "full" if error.err_code == 10077 else f"refused: {error.err_code}"
    return "duplicate" if ack.duplicate else "stored\""""


def _wants(answer, arguments):
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(f"Your answer is {type(answer).__name__}; wanted: async def …({arguments}).")


async def _fresh(lab, name, **config):
    """A new stream of this name; on the slate that is cleaned at the end."""
    await delete(lab.js, name)
    await lab.js.add_stream(name=name, **config)
    await lab.settled(name)


@exercise(
    hints=[
        "All that you need stands in one answer: info = await js.consumer_info(stream, consumer).",
        (
            "info.paused; info.num_ack_pending beside info.config.max_ack_pending; info.num_pending"
            " and info.delivered.stream_seq."
        ),
        (
            "A backlog alone is no illness: somebody may be at work on it. And a limit counts only"
            " when it is reached."
        ),
    ],
    solution=DIAGNOSE.replace("answer", "diagnose"),
    wrong={
        "a backlog is an illness": (
            DIAGNOSE.replace(
                "    if info.num_ack_pending >= info.config.max_ack_pending:",
                "    if info.num_pending > 0:",
            ),
            "diagnose said 'ack pending' of BUSY; wanted: 'fine'",
        ),
        "anything out is an illness": (
            DIAGNOSE.replace(">= info.config.max_ack_pending", "> 0"),
            "diagnose said 'ack pending' of BUSY; wanted: 'fine'",
        ),
        "nothing pending is a filter": (
            DIAGNOSE.replace(" and info.delivered.stream_seq == 0", ""),
            "diagnose said 'filter' of DONE; wanted: 'fine'",
        ),
        "pause not looked at": (
            DIAGNOSE.replace("info.paused", "False"),
            "of HELD; wanted: 'paused'",
        ),
    },
)
async def diagnose(lab, answer):
    """Tell three broken consumers apart: "filter", "ack pending" or "paused"; and "fine" for the
    others."""
    _wants(answer, "js, stream, consumer")
    js = lab.js
    await _fresh(lab, "EX_WARD", subjects=["ex.ward.*"])
    wanted = {
        "BLIND": "filter",
        "STUCK": "ack pending",
        "HELD": "paused",
        "BUSY": "fine",
        "DONE": "fine",
    }
    try:
        for name in wanted:
            await js.add_consumer(
                "EX_WARD",
                durable_name=name,
                max_ack_pending=3,
                ack_wait=30,
                filter_subject="ex.word.*" if name == "BLIND" else "ex.ward.*",
            )
        for number in range(6):
            await js.publish(f"ex.ward.{number}", b"")
        await lab.settled("EX_WARD")
        for name, acks in [("STUCK", 0), ("BUSY", 1), ("DONE", 6)]:
            sub = await js.pull_subscribe_bind(name, "EX_WARD")
            for taken in range(max(3, acks)):
                msg = (await sub.fetch(1, timeout=5))[0]
                if taken < acks:
                    await msg.ack_sync()
        await js.pause_consumer("EX_WARD", "HELD", "2099-01-01T00:00:00Z")

        async def held():  # the answer to a pause comes before the consumer knows of it
            return (await js.consumer_info("EX_WARD", "HELD")).paused

        await lab.until(held)
        for name, word in wanted.items():
            said = await answer(js, "EX_WARD", name)
            if said != word:
                info = await js.consumer_info("EX_WARD", name)
                raise NotYet(
                    f"diagnose said {said!r} of {name}; wanted: {word!r}. It has {info.num_pending}"
                    f" pending, {info.num_ack_pending} out (limit 3), delivered up to"
                    f" {info.delivered.stream_seq}, {'paused' if info.paused else 'not paused'}."
                )
    finally:
        await delete(js, "EX_WARD")


@exercise(
    hints=[
        "Two ways to hear of it: an exception, and the PubAck that js.publish returns.",
        (
            "NoStreamResponseError is no APIError; an APIError has an err_code, and 10077 is"
            " maximum messages exceeded."
        ),
        "No exception is not enough: ack.duplicate is True when nothing new was stored.",
    ],
    solution=FATE.replace("answer", "fate"),
    wrong={
        "one name for all": (
            FATE.replace(
                '"full" if error.err_code == 10077 else f"refused: {error.err_code}"', '"no stream"'
            ),
            "said 'no stream' of a full stream; wanted: 'full'",
        ),
        "ack not read": (
            FATE.replace('"duplicate" if ack.duplicate else "stored"', '"stored"'),
            "said 'stored' of an id that was there; wanted: 'duplicate'",
        ),
        "no id sent": (
            FATE.replace(', headers={"Nats-Msg-Id": msg_id}', ""),
            "wanted: 'duplicate'",
        ),
    },
)
async def fate(lab, answer):
    """Publish once with a message id, and say what became of it: "stored", "duplicate", "full" or
    "no stream"."""
    _wants(answer, "js, subject, msg_id")
    await _fresh(lab, "EX_FATE", subjects=["ex.fate"], max_msgs=2, discard="new")
    try:
        for subject, msg_id, word, what in [
            ("ex.fate", "a", "stored", "a new message"),
            ("ex.nowhere", "b", "no stream", "a subject of no stream"),
            ("ex.fate", "a", "duplicate", "an id that was there"),
            ("ex.fate", "c", "stored", "a new message"),
            ("ex.fate", "d", "full", "a full stream"),
        ]:
            said = await answer(lab.js, subject, msg_id)
            if said != word:
                raise NotYet(
                    f"fate said {said!r} of {what}; wanted: {word!r}. The stream holds "
                    f"{(await lab.js.stream_info('EX_FATE')).state.messages} messages, limit 2."
                )
    finally:
        await delete(lab.js, "EX_FATE")

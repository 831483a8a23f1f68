"""Exercises of lesson 12: the newest of each, a work queue with owners, an interest stream that
loses nothing."""

import collections
import contextlib
import datetime
import json
import uuid

from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, wants_function

READINGS = {"sensors.b": 5, "sensors.c": 3, "sensors.a": 9}
OWNED = ["office.letters.1", "office.letters.b", "office.calls.1", "office.calls.b"]
TO_DO = b"to do"  # what each message says
ALERTS = ["fire", "flood", "fire", "flood", "fire", "frost", "frost"]
LIMITS = ("max_msgs", "max_bytes", "max_age")


@exercise(
    hints=[
        "`max_msgs` counts the whole stream. Which limit counts each subject by itself?",
        "A dict with three keys: name, subjects (a list), and max_msgs_per_subject.",
    ],
    variable="config",
)
async def last_three(lab, config):
    """Give the config of a stream that keeps the last three readings of each sensor."""
    saw = f"{config!r} is a {type(config).__name__}"
    want(isinstance(config, dict), saw, "a dict of add_stream's arguments")
    name = config.get("name")
    want(name, "The config has no name", "a name, subjects and a limit")
    await delete(lab.js, name)
    try:
        _removes_by_number_alone(await _created(lab.js, config))
        await lab.settled(name)
        for subject, count in READINGS.items():
            await _send_readings(lab.js, subject, count)
        kept = (await lab.js.stream_info(name, subjects_filter=">")).state.subjects or {}
        for subject in READINGS:
            saw = f"The stream keeps {kept.get(subject, 0)} readings of {subject}"
            want(kept.get(subject) == 3, saw, "its last 3")
    finally:
        await delete(lab.js, name)


last_three.solved_by({"name": "SENSORS", "subjects": ["sensors.*"], "max_msgs_per_subject": 3})


async def _created(js, config):
    """The config of the new stream as the server has it."""
    try:
        return (await js.add_stream(**config)).config
    except APIError as error:
        raise NotYet(
            f"The server refused the stream: {error.err_code} {error.description}; wanted: a config"
            " that it takes."
        ) from None


def _removes_by_number_alone(config):
    saw = f"The stream listens to {_listed(config.subjects)}"
    want(config.subjects in (["sensors.*"], ["sensors.>"]), saw, "'sensors.*'")
    retention = _word(config.retention)
    wanted = "limits, so that no reader and no ack removes a reading"
    want(retention == "limits", f"The stream's retention is {retention}", wanted)
    saw = f"Readings expire after {config.max_age or 0:,.15g} s"
    want(not config.max_age, saw, "kept until three newer ones come")
    for limit in ("max_msgs", "max_bytes"):
        value = getattr(config, limit) or -1
        saw = f"{limit}={value} counts the readings of all sensors together"
        want(value < 0, saw, "no such limit, however many sensors there are")
    _is_on_disk(config)


def _is_on_disk(config):
    """On disk, and its publishers hear of it."""
    saw = f"{config.name} is stored in {_word(config.storage)}, which a restart empties"
    want(_word(config.storage) == "file", saw, "file storage")
    saw = f"With persist_mode=async, {config.name} answers before the message is on disk"
    want(_word(config.persist_mode) != "async", saw, "on disk first")
    saw = f"With no_ack, {config.name} answers no publish: nobody hears what it has taken"
    want(not config.no_ack, saw, "a stream that acks")


async def _send_readings(js, subject, count):
    for reading in range(1, count + 1):
        try:
            await js.publish(subject, b"%d" % reading)
        except APIError as error:
            raise NotYet(
                f"The stream refused reading {reading} of {subject} ({error.err_code}"
                f" {error.description}); wanted: it takes each, and the oldest one goes."
            ) from None


@exercise(
    hints=[
        "A stream may listen to several subjects: subjects is a list. "
        "`*` stands for one token, `>` for one or more.",
        '`js.add_consumer(stream, durable_name=…, filter_subject=…, ack_policy="explicit")`, '
        "once for each.",
    ]
)
async def two_owners(lab, answer):
    """Create the work queue OFFICE with two durable owners, letters and calls, and no message
    without an owner."""
    wants_function(answer, "js")
    await _clear(lab.js, OWNED)
    try:
        await answer(lab.js)
        config = await _config(lab.js, "OFFICE", retention="workqueue")
        _loses_nothing(config)
        for consumer in await _durable_consumers(lab, "OFFICE", ["calls", "letters"]):
            _stays_and_never_gives_up(consumer)
        await lab.settled("OFFICE")
        for number, subject in enumerate(OWNED):
            took = await _took(lab.js, "OFFICE", subject)
            want(took, f"OFFICE is full after {number} messages", "room for more")
        for owner in ("letters", "calls"):
            wanted = [subject for subject in OWNED if owner in subject]
            got = await _read_and_ack(lab.js, owner, "OFFICE", len(wanted))
            subjects = [msg.subject for msg in got]
            want(subjects == wanted, f"{owner} got {_listed(subjects)}", _listed(wanted))
            _are_whole(got, owner)
        for subject in ("office.visits.1", "office.letters.a.b", "office.calls.a.b", "office.x"):
            await _refuses(subject, lab.js)
    finally:
        await _clear(lab.js, OWNED)


async def set_up(js):
    subjects = ["office.letters.*", "office.calls.*"]
    await js.add_stream(name="OFFICE", subjects=subjects, retention="workqueue")
    for kind in ("letters", "calls"):
        await js.add_consumer(
            "OFFICE",
            durable_name=kind,
            filter_subject=f"office.{kind}.*",
            ack_policy="explicit",
        )


two_owners.solved_by(set_up)


async def _clear(js, subjects):
    """Deletes OFFICE, and every other stream that an answer has made for these subjects."""
    await delete(js, "OFFICE")
    for subject in subjects:
        with contextlib.suppress(NotFoundError):
            await delete(js, await js.find_stream_name_by_subject(subject))


def _are_whole(messages, reader):
    bodies = {msg.data for msg in messages}
    saw = f"{reader} got the bodies {_listed(bodies)} of messages that say {TO_DO!r}"
    want(bodies == {TO_DO}, saw, "whole messages")


async def _refuses(subject, js):
    try:
        await js.publish(subject, TO_DO, timeout=2)
    except NoStreamResponseError:
        return
    waiting = [info.name for info in await js.consumers_info("OFFICE") if info.num_pending]
    if waiting:
        raise NotYet(
            f"{subject!r} was stored for {_listed(waiting)}; wanted: OFFICE takes nothing but"
            " office.letters.* and office.calls.*."
        )
    raise NotYet(
        f"{subject!r} was stored and has no owner, so it would stay for ever; wanted: no stream"
        " takes it."
    )


def _loses_nothing(config):
    """No limit of the stream removes a message, and it is on disk."""
    for limit in LIMITS:
        value = getattr(config, limit) or -1
        saw = f"With {limit}={value:.15g}, discard {_word(config.discard)}, {config.name}"
        stays = value < 0 or (limit != "max_age" and _word(config.discard) == "new")
        want(stays, f"{saw} drops what nobody has acked", "kept until the ack")
    _keeps_each_of_a_subject(config)
    _is_on_disk(config)


def _keeps_each_of_a_subject(config):
    value = config.max_msgs_per_subject or -1
    saw = f"With max_msgs_per_subject={value}, {config.name} drops the older ones of a subject"
    stays = value < 0 or (_word(config.discard) == "new" and config.discard_new_per_subject)
    want(stays, saw, "kept until the ack")


def _stays_and_never_gives_up(consumer):
    name, config = consumer.name, consumer.config
    saw = f"{name} is a push consumer"
    want(not config.deliver_subject, saw, "a pull consumer, without deliver_subject")
    seconds = config.inactive_threshold or 0
    saw = f"{name} vanishes when nobody has asked for {seconds:g} s, and its claim with it"
    want(not seconds, saw, "it stays: no inactive_threshold")
    tries = config.max_deliver or -1
    saw = f"{name} gives a message up after max_deliver={tries}"
    want(tries < 0, saw, "it tries until somebody has acked: no max_deliver")
    saw = f"{name} keeps its acks in memory alone"
    want(not config.mem_storage, saw, "on disk, without mem_storage")


@exercise(
    hints=[
        "An interest stream keeps a message only for consumers that exist when it comes.",
        "With discard old, the sixth message pushes the first one out, read or not. "
        "Who should hear of it instead?",
        '`max_msgs=5, discard="new"`, then `js.add_consumer` for each reader, with explicit acks.',
    ]
)
async def keep_all(lab, answer):
    """Create the interest stream ALERTS, of at most 5 messages, that loses none before pager and
    archive have acked."""
    wants_function(answer, "js")
    await delete(lab.js, "ALERTS")
    try:
        await answer(lab.js)
        returned = await _clock(lab.nc, "ALERTS")
        config = await _config(lab.js, "ALERTS", retention="interest")
        subjects = f"ALERTS listens to {_listed(config.subjects)}"
        want(config.subjects == ["alerts.*"], subjects, "'alerts.*'")
        saw = f"Alerts expire after {config.max_age or 0:.15g} s, read or not"
        want(not config.max_age, saw, "kept until both have acked")
        _is_on_disk(config)
        for consumer in await _durable_consumers(lab, "ALERTS", ["archive", "pager"]):
            _was_there(consumer, returned)
            _needs_acks(consumer)
            _stays_and_never_gives_up(consumer)
        await lab.settled("ALERTS")
        await _refuses_the_sixth(lab.js)
        _keeps_each_of_a_subject(config)
        want(config.max_msgs == 5, f"The stream's max_msgs is {config.max_msgs}", "5")
        for reader, left in (("pager", 5), ("archive", 0)):
            await _keeps_after_the_acks_of(reader, left, lab.js)
        took = await _took(lab.js, "ALERTS", "alerts.after")
        want(took, "ALERTS is empty and refuses the next alert", "room")
    finally:
        await delete(lab.js, "ALERTS")


async def prepare(js):
    await js.add_stream(
        name="ALERTS",
        subjects=["alerts.*"],
        retention="interest",
        max_msgs=5,
        discard="new",
    )
    for name in ("pager", "archive"):
        await js.add_consumer("ALERTS", durable_name=name, ack_policy="explicit")


keep_all.solved_by(prepare)


async def _clock(client, stream):
    """What the clock of the stream's leader says now (datetime): in containers it may be another
    one than ours. None if there is no such stream."""
    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)
    now = json.loads(answer.data).get("ts")
    return now and datetime.datetime.fromisoformat(now)


def _was_there(consumer, returned):
    late = (consumer.created - returned).total_seconds()
    saw = f"{consumer.name} was created {late:.2f} s after prepare had returned"
    want(late <= 0, saw, "both are there before, for an alert that comes at once")


def _needs_acks(consumer):
    policy = _word(consumer.config.ack_policy)
    acks = "needs no acks" if policy == "none" else f"acks with {policy!r}"
    want(policy == "explicit", f"{consumer.name} {acks}", "explicit acks")


async def _refuses_the_sixth(js):
    """Publishes all alerts while nobody reads; the first one on a subject that nobody knew."""
    new, *others = ALERTS
    words = [f"{new}-{uuid.uuid4().hex[:4]}", *others]
    subjects = [f"alerts.{word}" for word in words]
    taken = [subject for subject in subjects if await _took(js, "ALERTS", subject)]
    state = (await js.stream_info("ALERTS", subjects_filter=">")).state
    saw = f"ALERTS took {len(taken)} of 7 messages and holds {state.messages}"
    want(state.messages <= 5, saw, "at most 5")
    gone = collections.Counter(taken) - collections.Counter(state.subjects or {})
    saw = f"{saw}: gone before anybody has read are {_listed(gone)}"
    wanted = "what it takes is kept for both readers, and the sixth is refused"
    want(not gone, saw, wanted)
    want(state.messages == 5, f"ALERTS takes no more than {state.messages} messages", "5")


async def _took(js, stream, subject):
    """Publishes a message; False if the stream is full and refuses it. Raises NotYet if no stream
    takes it, or the stream refuses it for another reason."""
    try:
        await js.publish(subject, TO_DO)
        return True
    except NoStreamResponseError:
        raise NotYet(f"Nobody stores {subject!r}; wanted: {stream} does.") from None
    except APIError as error:
        if error.err_code == 10077:  # maximum messages exceeded
            return False
        raise NotYet(
            f"{stream} refused {subject!r}, of {len(TO_DO)} bytes ({error.err_code}"
            f" {error.description}); wanted: it takes it."
        ) from None


async def _keeps_after_the_acks_of(reader, left, js):
    """Reads and acks all; so many messages must be left."""
    got = await _read_and_ack(js, reader, "ALERTS", 5)
    held = None

    async def only_those_left():
        nonlocal held
        held = (await js.stream_info("ALERTS")).state.messages
        return held == left

    as_wanted = await comes_true(only_those_left, timeout=2)
    saw = f"{reader} got {len(got)} of 5 messages, and {held} are held after its acks"
    want(len(got) == 5 and as_wanted, saw, f"5 and {left}")
    _are_whole(got, reader)


async def _config(js, stream, retention):
    """The stream's config; raises NotYet unless it is there and has this retention."""
    try:
        config = (await js.stream_info(stream)).config
    except NotFoundError:
        raise NotYet(
            f"There is no stream {stream!r}; wanted: one with retention {retention}."
        ) from None
    found = _word(config.retention)
    want(found == retention, f"The stream's retention is {found}", retention)
    return config


async def _durable_consumers(lab, stream, names):
    """The stream's consumers, in the order of their names (list); raises NotYet unless they are
    those of these names (sorted), and durable. A list that is asked for just after a create may
    lack the new one: settled() waits for those that the stream's leader counts."""
    await lab.settled(stream)
    consumers = []

    async def all_listed():
        consumers[:] = await lab.js.consumers_info(stream)
        return len(consumers) >= len(names)

    await comes_true(all_listed, timeout=1)
    consumers.sort(key=lambda consumer: consumer.name)
    found = [consumer.name for consumer in consumers]
    wanted = ", ".join(names)
    want(found, f"{stream} has no consumers", wanted)
    want(found == names, f"{stream} has the consumers {', '.join(found)}", wanted)
    for consumer in consumers:
        saw = f"{consumer.name} is not durable: the server removes it when nobody asks"
        want(consumer.config.durable_name, saw, f"durable_name={consumer.name!r}")
    return consumers


async def _read_and_ack(js, consumer, stream, count):
    """All that a pull consumer has to give (list of messages): so many, or what it has after a
    second. With three replicas it may hear of a message a moment after the publisher."""

    async def has_them():
        return (await js.consumer_info(stream, consumer)).num_pending >= count

    await comes_true(has_them, timeout=1)
    sub = await js.pull_subscribe_bind(consumer, stream)
    got = []
    try:
        while pending := (await js.consumer_info(stream, consumer)).num_pending:
            [msg] = await sub.fetch(1, timeout=2)
            await msg.ack_sync()
            got.append(msg)
    except TimeoutError:
        raise NotYet(
            f"{consumer} has {pending} messages waiting, and a fetch got none within 2 s; wanted:"
            " whoever asks gets the next one."
        ) from None
    finally:
        await sub.unsubscribe()
    return got


def _word(value):
    """A setting as text: some come as members of an enum."""
    return getattr(value, "value", value)


def _listed(words):
    return ", ".join(map(repr, words)) or "nothing"

"""Exercises of lesson 12: the newest of each, a work queue with owners, an interest stream that
loses nothing."""

from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise, want
from labkit.exercises.helpers import comes_true, wants_function

# The busy sensor comes last, so that a limit of the whole stream shows in the others.
READINGS = {"sensors.b": 5, "sensors.c": 3, "sensors.a": 9}
OWNED = ["office.letters.1", "office.letters.b", "office.calls.1", "office.calls.b"]
ALERTS = ["fire", "flood", "fire", "flood", "fire", "frost", "frost"]


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
    want(config.subjects == ["sensors.*"], saw, "'sensors.*'")
    retention = _word(config.retention)
    wanted = "limits, so that no reader and no ack removes a reading"
    want(retention == "limits", f"The stream's retention is {retention}", wanted)
    saw = f"Readings expire after {config.max_age or 0:g} s"
    want(not config.max_age, saw, "kept until three newer ones come")


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
        "The stream need not listen to `office.>`: subjects is a list, "
        "and may name what has an owner.",
        '`js.add_consumer(stream, durable_name=…, filter_subject=…, ack_policy="explicit")`, '
        "once for each.",
    ]
)
async def two_owners(lab, answer):
    """Create the work queue OFFICE with two durable owners, letters and calls, and no message
    without an owner."""
    wants_function(answer, "js")
    await delete(lab.js, "OFFICE")
    try:
        await answer(lab.js)
        await _config(lab.js, "OFFICE", retention="workqueue")
        await _durable_consumers(lab.js, "OFFICE", ["calls", "letters"])
        await lab.settled("OFFICE")
        for subject in OWNED:
            await _publish(lab.js, "OFFICE", subject)
        for owner in ("letters", "calls"):
            subjects = [msg.subject for msg in await _read(lab.js, owner, "OFFICE")]
            wanted = [subject for subject in OWNED if owner in subject]
            want(subjects == wanted, f"{owner} got {_listed(subjects)}", _listed(wanted))
        await _refuses_what_nobody_owns(lab.js)
    finally:
        await delete(lab.js, "OFFICE")


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


async def _refuses_what_nobody_owns(js):
    try:
        await js.publish("office.visits.1", b"", timeout=2)
    except NoStreamResponseError:
        return
    raise NotYet(
        "'office.visits.1' was stored and has no owner, so it would stay for ever; wanted: no"
        " stream takes it."
    )


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
        config = await _config(lab.js, "ALERTS", retention="interest")
        saw = f"Alerts expire after {config.max_age or 0:g} s, read or not"
        want(not config.max_age, saw, "kept until both have acked")
        for consumer in await _durable_consumers(lab.js, "ALERTS", ["archive", "pager"]):
            _needs_acks(consumer)
        await lab.settled("ALERTS")
        await _refuses_the_sixth(lab.js)
        for reader, left in (("pager", 5), ("archive", 0)):
            await _keeps_after_the_acks_of(reader, left, lab.js)
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


def _needs_acks(consumer):
    policy = _word(consumer.config.ack_policy)
    acks = "needs no acks" if policy == "none" else f"acks with {policy!r}"
    want(policy == "explicit", f"{consumer.name} {acks}", "explicit acks")


async def _refuses_the_sixth(js):
    """Publishes all alerts while nobody reads."""
    taken = [await _took(js, word) for word in ALERTS].count(True)
    held = (await js.stream_info("ALERTS")).state.messages
    saw = f"ALERTS took {taken} of 7 messages and holds {held}"
    want(held <= 5, saw, "at most 5")
    pushed_out = taken > held == 5
    wanted = "the sixth is refused, so that the publisher knows"
    want(not pushed_out, f"{saw}: unread ones were pushed out", wanted)
    want(held == 5, f"{saw} of the 5 that it should keep", "each kept for both readers")


async def _took(js, word):
    """Publishes an alert; False if the stream is full and refuses it."""
    try:
        await _publish(js, "ALERTS", f"alerts.{word}")
        return True
    except APIError as error:
        if error.err_code != 10077:  # maximum messages exceeded
            raise
        return False


async def _keeps_after_the_acks_of(reader, left, js):
    """Reads and acks all; so many messages must be left."""
    got = await _read(js, reader, "ALERTS")
    for msg in got:
        await msg.ack_sync()
    held = None

    async def only_those_left():
        nonlocal held
        held = (await js.stream_info("ALERTS")).state.messages
        return held == left

    as_wanted = await comes_true(only_those_left, timeout=2)
    saw = f"{reader} got {len(got)} of 5 messages, and {held} are held after its acks"
    want(len(got) == 5 and as_wanted, saw, f"5 and {left}")


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


async def _durable_consumers(js, stream, names):
    """The stream's consumers, in the order of their names (list); raises NotYet unless they are
    those of these names (sorted), and durable. A list that is asked for just after a create may
    lack the new one, so it is asked for again."""
    consumers = []

    async def all_listed():
        consumers[:] = await js.consumers_info(stream)
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


async def _publish(js, stream, subject):
    """Raises NotYet if no stream takes it."""
    try:
        await js.publish(subject, b"")
    except NoStreamResponseError:
        raise NotYet(f"Nobody stores {subject!r}; wanted: {stream} does.") from None


async def _read(js, consumer, stream):
    """All that a pull consumer has to give now (list of messages)."""
    sub = await js.pull_subscribe_bind(consumer, stream)
    got = []
    try:
        while pending := (await js.consumer_info(stream, consumer)).num_pending:
            got += await sub.fetch(pending, timeout=2)
    finally:
        await sub.unsubscribe()
    return got


def _word(value):
    """A setting as text: some come as members of an enum."""
    return getattr(value, "value", value)


def _listed(words):
    return ", ".join(map(repr, words)) or "nothing"

"""Exercises of lesson 04: the newest of each, a work queue with owners, an interest stream that
loses nothing."""

import asyncio

from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from labkit.cluster.streams import delete
from labkit.exercises import NotYet, exercise


async def _without(js, *names):
    for name in names:
        await delete(js, name)


async def _read(js, consumer, stream):
    """All that a pull consumer has to give now (list of messages)."""
    sub, got = await js.pull_subscribe_bind(consumer, stream), []
    try:
        while (await js.consumer_info(stream, consumer)).num_pending:
            got += await sub.fetch(10, timeout=2)
    finally:
        await sub.unsubscribe()
    return got


async def _consumers(js, stream, wanted):
    """The stream's consumers; a list asked for just after a create may lack the new one, so it is
    asked for again."""
    for _ in range(20):
        found = await js.consumers_info(stream)
        if len(found) >= wanted:
            break
        await asyncio.sleep(0.05)
    return found


async def _held(lab, stream, wanted):
    """How many messages the stream holds; it is given a moment to get to what is wanted."""
    for _ in range(40):
        held = (await lab.js.stream_info(stream)).state.messages
        if held == wanted:
            break
        await asyncio.sleep(0.05)
    return held


def _wants_durable(consumers):
    for consumer in sorted(consumers, key=lambda consumer: consumer.name):
        if not consumer.config.durable_name:
            raise NotYet(
                f"{consumer.name} is not durable: the server removes it when nobody asks. Wanted: "
                f"durable_name={consumer.name!r}."
            )


def _listed(words):
    return ", ".join(map(repr, words)) or "nothing"


@exercise(
    hints=[
        "`max_msgs` counts the whole stream. Which limit counts each subject by itself?",
        "A dict with three keys: name, subjects (a list), and max_msgs_per_subject.",
    ],
    solution="""
        config = {"name": "SENSORS", "subjects": ["sensors.*"], "max_msgs_per_subject": 3}""",
    wrong={
        "limits the whole stream": (
            'config = {"name": "S", "subjects": ["sensors.*"], "max_msgs": 3}',
            "keeps 0 readings of sensors.b; wanted: its last 3",
        ),
        "counts that fit by chance": (
            'config = {"name": "S", "subjects": ["sensors.*"], "max_msgs": 9}',
            "keeps 0 readings of sensors.b; wanted: its last 3",
        ),
        "acks remove them": (
            (
                'config = {"name": "S", "subjects": ["sensors.*"], "max_msgs_per_subject": 3, '
                '"retention": "workqueue"}'
            ),
            "retention is workqueue; wanted: limits",
        ),
        "age removes them": (
            (
                'config = {"name": "S", "subjects": ["sensors.*"], "max_msgs_per_subject": 3, '
                '"max_age": 60}'
            ),
            "expire after 60 s; wanted: kept until three newer ones come",
        ),
        "no name": (
            'config = {"subjects": ["sensors.*"], "max_msgs_per_subject": 3}',
            "has no name",
        ),
        "keeps everything": (
            'config = {"name": "S", "subjects": ["sensors.*"]}',
            "keeps 5 readings of sensors.b; wanted: its last 3",
        ),
        "keeps the first three": (
            (
                'config = {"name": "S", "subjects": ["sensors.*"], "max_msgs_per_subject": 3, '
                '"discard": "new", "discard_new_per_subject": True}'
            ),
            "refused reading 4",
        ),
        "forgot the subjects": (
            'config = {"name": "S", "max_msgs_per_subject": 3}',
            "listens to 'S'; wanted: 'sensors.*'",
        ),
        "no dict": ('config = "SENSORS"', "is a str; wanted: a dict"),
    },
)
async def last_three(lab, config):
    """Give the config of a stream that keeps the last three readings of each sensor."""
    if not isinstance(config, dict):
        raise NotYet(
            f"{config!r} is a {type(config).__name__}; wanted: a dict of add_stream's arguments."
        )
    name = config.get("name")
    if not name:
        raise NotYet("The config has no name; wanted: a name, subjects and a limit.")
    await _without(lab.js, name)
    try:
        try:
            info = await lab.js.add_stream(**config)
        except APIError as error:
            raise NotYet(
                f"The server refused the stream: {error.err_code} {error.description}."
            ) from None
        if info.config.subjects != ["sensors.*"]:
            raise NotYet(
                f"The stream listens to {', '.join(map(repr, info.config.subjects))}; wanted:"
                " 'sensors.*'."
            )
        retention = getattr(info.config.retention, "value", info.config.retention)
        if retention != "limits":
            raise NotYet(
                f"The stream's retention is {retention}; wanted: limits, which no reader and no ack"
                " empties."
            )
        if info.config.max_age:
            raise NotYet(
                f"Readings expire after {info.config.max_age:g} s; wanted: kept until three newer"
                " ones come."
            )
        await lab.settled(name)
        for sensor, readings in (
            ("b", 5),
            ("c", 3),
            ("a", 9),
        ):  # the busy one last: a limit of the whole stream is seen
            for reading in range(1, readings + 1):
                try:
                    await lab.js.publish(f"sensors.{sensor}", b"%d" % reading)
                except APIError as error:
                    raise NotYet(
                        f"The stream refused reading {reading} of sensors.{sensor}"
                        f" ({error.err_code} {error.description}); wanted: the oldest one goes."
                    ) from None
        kept = (await lab.js.stream_info(name, subjects_filter=">")).state.subjects or {}
        for sensor in ("sensors.b", "sensors.c", "sensors.a"):
            if kept.get(sensor, 0) != 3:
                raise NotYet(
                    f"The stream keeps {kept.get(sensor, 0)} readings of {sensor}; wanted: its"
                    " last 3."
                )
    finally:
        await _without(lab.js, name)


OWNED = ["office.letters.1", "office.letters.b", "office.calls.1", "office.calls.b"]

SET_UP = """
async def set_up(js):
    await js.add_stream(name="OFFICE", subjects=SUBJECTS, retention="workqueue")
    for kind in ("letters", "calls"):
        await js.add_consumer("OFFICE", durable_name=kind, filter_subject=f"office.{kind}.*", ack_policy="explicit")
"""


@exercise(
    hints=[
        (
            "The stream need not listen to `office.>`: subjects is a list, and may name what has an"
            " owner."
        ),
        (
            '`js.add_consumer(stream, durable_name=…, filter_subject=…, ack_policy="explicit")`,'
            " once for each."
        ),
    ],
    solution=SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
        "\n", "\n        "
    ),
    wrong={
        "takes what nobody owns": (
            SET_UP.replace("SUBJECTS", '["office.>"]'),
            "'office.visits.1' was stored and has no owner",
        ),
        "limits": (
            SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
                "workqueue", "limits"
            ),
            "retention is limits; wanted: workqueue",
        ),
        "one consumer for all": (
            """
async def set_up(js):
    await js.add_stream(name="OFFICE", subjects=["office.letters.*", "office.calls.*"], retention="workqueue")
    await js.add_consumer("OFFICE", durable_name="letters", ack_policy="explicit")
""",
            "consumers letters; wanted: calls, letters",
        ),
        "filters swapped": (
            SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
                "office.{kind}.*", "office.{'calls' if kind == 'letters' else 'letters'}.*"
            ),
            "letters got 'office.calls.1', 'office.calls.b'; wanted: 'office.letters.1'",
        ),
        "one letter only": (
            SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
                "office.{kind}.*", "office.{kind}.1"
            ),
            "letters got 'office.letters.1'; wanted: 'office.letters.1', ",
        ),
        "overlap": (
            SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
                "office.{kind}.*", "office.*.*"
            ),
            "10100",
        ),
        "ephemeral": (
            SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
                "durable_name=", "name="
            ),
            "calls is not durable",
        ),
    },
)
async def two_owners(lab, set_up):
    """Create the work queue OFFICE with two durable owners, letters and calls, and no message
    without an owner."""
    await _without(lab.js, "OFFICE")
    try:
        await set_up(lab.js)
        try:
            info = await lab.js.stream_info("OFFICE")
        except NotFoundError:
            raise NotYet(
                "There is no stream 'OFFICE'; wanted: one with retention workqueue."
            ) from None
        if info.config.retention != "workqueue":
            raise NotYet(
                "The stream's retention is"
                f" {getattr(info.config.retention, 'value', info.config.retention)}; wanted:"
                " workqueue."
            )
        consumers = await _consumers(lab.js, "OFFICE", 2)
        names = sorted(consumer.name for consumer in consumers)
        if names != ["calls", "letters"]:
            raise NotYet(
                f"OFFICE has the consumers {', '.join(names) or 'none'}; wanted: calls, letters."
            )
        _wants_durable(consumers)
        await lab.settled("OFFICE")
        for subject in OWNED:
            try:
                await lab.js.publish(subject, b"")
            except NoStreamResponseError:
                raise NotYet(f"Nobody stores {subject!r}; wanted: OFFICE does.") from None
        for kind in ("letters", "calls"):
            wanted = [subject for subject in OWNED if kind in subject]
            got = await _read(lab.js, kind, "OFFICE")
            if [msg.subject for msg in got] != wanted:
                raise NotYet(
                    f"{kind} got {_listed(msg.subject for msg in got)}; wanted: {_listed(wanted)}."
                )
        try:
            await lab.js.publish("office.visits.1", b"", timeout=2)
        except NoStreamResponseError:
            return
        raise NotYet(
            "'office.visits.1' was stored and has no owner: it would stay for ever. Wanted: no"
            " stream takes it."
        )
    finally:
        await _without(lab.js, "OFFICE")


PREPARE = """
async def prepare(js):
    await js.add_stream(name="ALERTS", subjects=["alerts.*"], retention="interest", max_msgs=5, discard="new")
    for name in ("pager", "archive"):
        await js.add_consumer("ALERTS", durable_name=name, ack_policy="explicit")
"""


@exercise(
    hints=[
        "An interest stream keeps a message only for consumers that exist when it comes.",
        (
            "With discard old, the sixth message pushes the first one out, read or not. Who should"
            " hear of it instead?"
        ),
        '`max_msgs=5, discard="new"`, then `js.add_consumer` for each reader, with explicit acks.',
    ],
    solution=PREPARE.replace("\n", "\n        "),
    wrong={
        "no consumers": (
            PREPARE[: PREPARE.index("    for")],
            "has the consumers none; wanted: archive, pager",
        ),
        "one reader": (
            PREPARE.replace('("pager", "archive")', '("pager",)'),
            "has the consumers pager; wanted",
        ),
        "discard old": (PREPARE.replace(', discard="new"', ""), "took 7 of 7 messages and holds 5"),
        "no limit": (
            PREPARE.replace(', max_msgs=5, discard="new"', ""),
            "holds 7; wanted: at most 5",
        ),
        "limits": (
            PREPARE.replace('"interest"', '"limits"'),
            "retention is limits; wanted: interest",
        ),
        "no acks": (PREPARE.replace('"explicit"', '"none"'), "needs no acks; wanted: explicit"),
        "hears a part": (
            PREPARE.replace(
                "durable_name=name,", 'durable_name=name, filter_subject="alerts.fire",'
            ),
            "holds 3 of the 5",
        ),
        "ephemeral": (PREPARE.replace("durable_name=", "name="), "archive is not durable"),
        "age removes them": (
            PREPARE.replace("max_msgs=5", "max_msgs=5, max_age=60"),
            "Alerts expire after 60 s",
        ),
    },
)
async def keep_all(lab, prepare):
    """Create the interest stream ALERTS, of at most 5 messages, that loses none before pager and
    archive have acked."""
    await _without(lab.js, "ALERTS")
    try:
        await prepare(lab.js)
        try:
            config = (await lab.js.stream_info("ALERTS")).config
        except NotFoundError:
            raise NotYet(
                "There is no stream 'ALERTS'; wanted: one with retention interest."
            ) from None
        retention = getattr(config.retention, "value", config.retention)
        if retention != "interest":
            raise NotYet(f"The stream's retention is {retention}; wanted: interest.")
        if config.max_age:
            raise NotYet(
                f"Alerts expire after {config.max_age:g} s, read or not; wanted: kept until both"
                " have acked."
            )
        consumers = await _consumers(lab.js, "ALERTS", 2)
        names = sorted(consumer.name for consumer in consumers)
        if names != ["archive", "pager"]:
            raise NotYet(
                f"ALERTS has the consumers {', '.join(names) or 'none'}; wanted: archive, pager."
            )
        _wants_durable(consumers)
        for consumer in consumers:
            policy = getattr(consumer.config.ack_policy, "value", consumer.config.ack_policy)
            if policy != "explicit":
                raise NotYet(
                    f"{consumer.name}"
                    f" {'needs no acks' if policy == 'none' else f'acks with {policy!r}'}; wanted:"
                    " explicit acks."
                )
        await lab.settled("ALERTS")
        taken = await _alert(lab.js, ["fire", "flood", "fire", "flood", "fire", "frost", "frost"])
        held = (await lab.js.stream_info("ALERTS")).state.messages
        if taken > 5 and held > 5:
            raise NotYet(f"ALERTS took {taken} of 7 messages and holds {held}; wanted: at most 5.")
        if taken > held and held == 5:
            raise NotYet(
                f"ALERTS took {taken} of 7 messages and holds {held}: unread ones were pushed out."
                " Wanted: the sixth is refused, so that the publisher knows."
            )
        if held != 5:
            raise NotYet(
                f"ALERTS took {taken} messages and holds {held} of the 5 that it should keep;"
                " wanted: each kept for both readers."
            )
        for left, name in ((5, "pager"), (0, "archive")):
            got = await _read(lab.js, name, "ALERTS")
            for msg in got:
                await msg.ack_sync()
            held = await _held(lab, "ALERTS", left)
            if len(got) != 5 or held != left:
                raise NotYet(
                    f"{name} got {len(got)} of 5 messages, and {held} are held after its acks;"
                    f" wanted: 5 and {left}."
                )
    finally:
        await _without(lab.js, "ALERTS")


async def _alert(js, words):
    """Publishes an alert for each word; returns how many the stream took."""
    taken = 0
    for word in words:
        try:
            await js.publish(f"alerts.{word}", b"")
            taken += 1
        except APIError as error:
            if error.err_code != 10077:
                raise
        except NoStreamResponseError:
            raise NotYet(
                f"Nobody stores 'alerts.{word}'; wanted: ALERTS, on 'alerts.*', does."
            ) from None
    return taken

"""Exercises of lesson 04: a stream that keeps the newest of each, and a work queue without gaps or overlaps."""
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from labkit.exercises import NotYet, exercise


async def _without(js, *names):
    for name in names:
        try:
            await js.delete_stream(name)
        except NotFoundError:
            pass


@exercise(
    hints=["`max_msgs` counts the whole stream. Which limit counts each subject by itself?",
           "A dict with three keys: name, subjects (a list), and max_msgs_per_subject."],
    solution="""
        config = {"name": "SENSORS", "subjects": ["sensors.*"], "max_msgs_per_subject": 3}""",
    wrong={"limits the whole stream": ('config = {"name": "S", "subjects": ["sensors.*"], "max_msgs": 3}',
                                       "keeps 0 readings of sensors.a; wanted: its last 3"),
           "keeps everything": ('config = {"name": "S", "subjects": ["sensors.*"]}',
                                "keeps 5 readings of sensors.a; wanted: its last 3"),
           "keeps the first three": ('config = {"name": "S", "subjects": ["sensors.*"], "max_msgs_per_subject": 3, '
                                     '"discard": "new", "discard_new_per_subject": True}', "refused reading 4"),
           "forgot the subjects": ('config = {"name": "S", "max_msgs_per_subject": 3}', "listens to 'S'; wanted: 'sensors.*'"),
           "no dict": ('config = "SENSORS"', "is a str; wanted: a dict")})
async def last_three(lab, config):
    """Give the config of a stream that keeps the last three readings of each sensor."""
    if not isinstance(config, dict):
        raise NotYet(f"{config!r} is a {type(config).__name__}; wanted: a dict of add_stream's arguments.")
    name = config.get("name") or "without a name"
    await _without(lab.js, name, "READINGS")
    try:
        try:
            info = await lab.js.add_stream(**config)
        except APIError as error:
            raise NotYet(f"The server refused the stream: {error.err_code} {error.description}.") from None
        if info.config.subjects != ["sensors.*"]:
            raise NotYet(f"The stream listens to {', '.join(map(repr, info.config.subjects))}; wanted: 'sensors.*'.")
        await lab.settled(name)
        for reading in range(1, 6):
            for sensor in ("a", "b"):
                try:
                    await lab.js.publish(f"sensors.{sensor}", b"%d" % reading)
                except APIError as error:
                    raise NotYet(f"The stream refused reading {reading} of sensors.{sensor} ({error.err_code} "
                                 f"{error.description}); wanted: the oldest one goes.") from None
        for _ in range(3):
            await lab.js.publish("sensors.c", b"")
        kept = (await lab.js.stream_info(name, subjects_filter=">")).state.subjects or {}
        for sensor in ("sensors.a", "sensors.b", "sensors.c"):
            if kept.get(sensor, 0) != 3:
                raise NotYet(f"The stream keeps {kept.get(sensor, 0)} readings of {sensor}; wanted: its last 3.")
    finally:
        await _without(lab.js, name)


SET_UP = """
async def set_up(js):
    await js.add_stream(name="OFFICE", subjects=SUBJECTS, retention="workqueue")
    for kind in ("letters", "calls"):
        await js.add_consumer("OFFICE", durable_name=kind, filter_subject=f"office.{kind}.*", ack_policy="explicit")
"""


@exercise(
    hints=["The stream need not listen to `office.>`: subjects is a list, and may name what has an owner.",
           "`js.add_consumer(stream, durable_name=…, filter_subject=…, ack_policy=\"explicit\")`, once for each."],
    solution=SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace("\n", "\n        "),
    wrong={"takes what nobody owns": (SET_UP.replace("SUBJECTS", '["office.>"]'),
                                      "'office.visits.1' was stored and has no owner"),
           "limits": (SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace("workqueue", "limits"),
                      "retention is limits; wanted: workqueue"),
           "one consumer for all": ("""
async def set_up(js):
    await js.add_stream(name="OFFICE", subjects=["office.letters.*", "office.calls.*"], retention="workqueue")
    await js.add_consumer("OFFICE", durable_name="letters", ack_policy="explicit")
""", "consumers letters; wanted: calls, letters"),
           "filters swapped": (SET_UP.replace("SUBJECTS", '["office.letters.*", "office.calls.*"]').replace(
               "office.{kind}.*", "office.{'calls' if kind == 'letters' else 'letters'}.*"),
               "letters got 'office.calls.1'; wanted: 'office.letters.1'")})
async def two_owners(lab, set_up):
    """Create the work queue OFFICE with two durable owners, letters and calls, and no message without an owner."""
    await _without(lab.js, "OFFICE")
    try:
        await set_up(lab.js)
        try:
            info = await lab.js.stream_info("OFFICE")
        except NotFoundError:
            raise NotYet("There is no stream 'OFFICE'; wanted: one with retention workqueue.") from None
        if info.config.retention != "workqueue":
            raise NotYet(f"The stream's retention is {getattr(info.config.retention, 'value', info.config.retention)}; "
                         "wanted: workqueue.")
        names = sorted(consumer.name for consumer in await lab.js.consumers_info("OFFICE"))
        if names != ["calls", "letters"]:
            raise NotYet(f"OFFICE has the consumers {', '.join(names) or 'none'}; wanted: calls, letters.")
        await lab.settled("OFFICE")
        for kind in ("letters", "calls"):
            try:
                await lab.js.publish(f"office.{kind}.1", b"")
            except NoStreamResponseError:
                raise NotYet(f"Nobody stores 'office.{kind}.1'; wanted: OFFICE does.") from None
        for kind in ("letters", "calls"):
            sub = await lab.js.pull_subscribe_bind(kind, "OFFICE")
            got = [msg.subject for msg in await sub.fetch(1, timeout=5)]
            if got != [f"office.{kind}.1"]:
                raise NotYet(f"{kind} got {got[0]!r}; wanted: 'office.{kind}.1'.")
        try:
            await lab.js.publish("office.visits.1", b"", timeout=2)
        except NoStreamResponseError:
            return
        raise NotYet("'office.visits.1' was stored and has no owner: it would stay for ever. Wanted: no stream takes it.")
    finally:
        await _without(lab.js, "OFFICE")

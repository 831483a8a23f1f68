"""Answers to the exercises of retention."""

from nats.js import api

from answers import answers_to

right, wrong = answers_to("retention")


def sensors(**more):
    return {"name": "S", "subjects": ["sensors.*"], **more}


@wrong("last_three", "keeps 0 readings of sensors.b; wanted: its last 3")
def three_in_the_whole_stream():
    return sensors(max_msgs=3)


@wrong("last_three", "keeps 0 readings of sensors.b; wanted: its last 3")
def nine_that_fit_by_chance():
    return sensors(max_msgs=9)


@wrong("last_three", "retention is workqueue; wanted: limits")
def acks_remove_readings():
    return sensors(max_msgs_per_subject=3, retention="workqueue")


@wrong("last_three", "expire after 60 s; wanted: kept until three newer ones come")
def age_removes_readings():
    return sensors(max_msgs_per_subject=3, max_age=60)


@wrong("last_three", "has no name")
def no_name():
    return {"subjects": ["sensors.*"], "max_msgs_per_subject": 3}


@wrong("last_three", "keeps 5 readings of sensors.b; wanted: its last 3")
def keeps_everything():
    return sensors()


@wrong("last_three", "refused reading 4")
def keeps_the_first_three():
    return sensors(max_msgs_per_subject=3, discard="new", discard_new_per_subject=True)


@wrong("last_three", "listens to 'S'; wanted: 'sensors.*'")
def no_subjects():
    return {"name": "S", "max_msgs_per_subject": 3}


wrong("last_three", "is a str; wanted: a dict")("SENSORS")


@right("last_three")
def a_limit_of_each_subject_and_a_wide_one_of_all():
    return sensors(max_msgs_per_subject=3, max_msgs=1000, discard="old")


async def office(js, subjects=("office.letters.*", "office.calls.*"), retention="workqueue"):
    await js.add_stream(name="OFFICE", subjects=list(subjects), retention=retention)


async def owners(js, letters="office.letters.*", calls="office.calls.*"):
    """letters, calls: the subject that each filters."""
    for name, subject in {"letters": letters, "calls": calls}.items():
        await js.add_consumer(
            "OFFICE", durable_name=name, filter_subject=subject, ack_policy="explicit"
        )


@wrong("two_owners", "'office.visits.1' was stored and has no owner")
async def takes_what_nobody_owns(js):
    await office(js, subjects=["office.>"])
    await owners(js)


@wrong("two_owners", "retention is limits; wanted: workqueue")
async def keeps_what_is_acked(js):
    await office(js, retention="limits")
    await owners(js)


@wrong("two_owners", "consumers letters; wanted: calls, letters")
async def one_consumer_for_all(js):
    await office(js)
    await js.add_consumer("OFFICE", durable_name="letters", ack_policy="explicit")


@wrong(
    "two_owners",
    "letters got 'office.calls.1', 'office.calls.b'; wanted: 'office.letters.1'",
)
async def swaps_the_filters(js):
    await office(js)
    await owners(js, letters="office.calls.*", calls="office.letters.*")


@wrong("two_owners", "letters got 'office.letters.1'; wanted: 'office.letters.1', ")
async def one_letter_and_one_call(js):
    await office(js)
    await owners(js, letters="office.letters.1", calls="office.calls.1")


@wrong("two_owners", "10100")
async def filters_overlap(js):
    await office(js)
    await owners(js, letters="office.*.*", calls="office.*.*")


@wrong("two_owners", "calls is not durable")
async def ephemeral_owners(js):
    await office(js)
    for kind in ("letters", "calls"):
        await js.add_consumer(
            "OFFICE", name=kind, filter_subject=f"office.{kind}.*", ack_policy="explicit"
        )


@right("two_owners")
async def with_config_objects(js):
    await js.add_stream(
        api.StreamConfig(
            name="OFFICE",
            subjects=["office.letters.*", "office.calls.*"],
            retention=api.RetentionPolicy.WORK_QUEUE,
        )
    )
    for kind in ("letters", "calls"):
        config = api.ConsumerConfig(durable_name=kind, filter_subjects=[f"office.{kind}.*"])
        await js.add_consumer("OFFICE", config, ack_policy=api.AckPolicy.EXPLICIT)


async def alerts(js, retention="interest", max_msgs=5, discard="new", **more):
    await js.add_stream(
        name="ALERTS",
        subjects=["alerts.*"],
        retention=retention,
        max_msgs=max_msgs,
        discard=discard,
        **more,
    )


async def readers(js, ack_policy="explicit", **more):
    for name in ("pager", "archive"):
        await js.add_consumer("ALERTS", durable_name=name, ack_policy=ack_policy, **more)


@wrong("keep_all", "has no consumers; wanted: archive, pager")
async def no_consumers(js):
    await alerts(js)


@wrong("keep_all", "has the consumers pager; wanted")
async def one_reader(js):
    await alerts(js)
    await js.add_consumer("ALERTS", durable_name="pager", ack_policy="explicit")


@wrong("keep_all", "took 7 of 7 messages and holds 5")
async def pushes_out_the_oldest(js):
    await alerts(js, discard="old")
    await readers(js)


@wrong("keep_all", "holds 7; wanted: at most 5")
async def no_limit(js):
    await alerts(js, max_msgs=-1, discard="old")
    await readers(js)


@wrong("keep_all", "retention is limits; wanted: interest")
async def keeps_what_both_have_acked(js):
    await alerts(js, retention="limits")
    await readers(js)


@wrong("keep_all", "needs no acks; wanted: explicit")
async def readers_that_need_no_acks(js):
    await alerts(js)
    await readers(js, ack_policy="none")


@wrong("keep_all", "holds 3 of the 5")
async def readers_of_fire_alone(js):
    await alerts(js)
    await readers(js, filter_subject="alerts.fire")


@wrong("keep_all", "archive is not durable")
async def ephemeral_readers(js):
    await alerts(js)
    for name in ("pager", "archive"):
        await js.add_consumer("ALERTS", name=name, ack_policy="explicit")


@wrong("keep_all", "Alerts expire after 60 s")
async def age_removes_alerts(js):
    await alerts(js, max_age=60)
    await readers(js)


@right("keep_all")
async def readers_by_pull_subscribe(js):
    await alerts(js)
    for name in ("pager", "archive"):
        sub = await js.pull_subscribe("alerts.*", durable=name, stream="ALERTS")
        await sub.unsubscribe()

"""Answers to the exercises of retention."""

import asyncio
import json

from nats.js import api

from answers import answers_to

right, wrong = answers_to("retention")


def sensors(**more):
    return {"name": "S", "subjects": ["sensors.*"], **more}


@wrong("last_three", "max_msgs=3 counts the readings of all sensors together")
def three_in_the_whole_stream():
    return sensors(max_msgs=3)


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


@wrong("last_three", "max_msgs=9 counts the readings of all sensors together")
def and_nine_for_the_three_that_there_are():
    return sensors(max_msgs_per_subject=3, max_msgs=9)


@wrong("last_three", "max_bytes=100000 counts the readings of all sensors together")
def and_a_limit_of_bytes():
    return sensors(max_msgs_per_subject=3, max_bytes=100_000)


@wrong("last_three", "is stored in memory, which a restart empties")
def in_memory():
    return sensors(max_msgs_per_subject=3, storage="memory")


@wrong("last_three", "S answers before the message is on disk; wanted: on disk first")
def on_disk_a_little_later():
    return sensors(max_msgs_per_subject=3, persist_mode=api.PersistMode.ASYNC)


@right("last_three")
def on_three_nodes_with_an_enum():
    return sensors(
        max_msgs_per_subject=3, num_replicas=3, storage=api.StorageType.FILE, max_msgs=-1
    )


@right("last_three")
def by_way_of_a_config_object():
    config = api.StreamConfig(name="LAST", subjects=["sensors.>"], max_msgs_per_subject=3)
    return {"config": config, "name": "LAST", "discard": "new"}


async def office(
    js, subjects=("office.letters.*", "office.calls.*"), retention="workqueue", **more
):
    await js.add_stream(name="OFFICE", subjects=list(subjects), retention=retention, **more)


async def owners(js, letters="office.letters.*", calls="office.calls.*", **more):
    """letters, calls: the subject that each filters."""
    for name, subject in {"letters": letters, "calls": calls}.items():
        await js.add_consumer(
            "OFFICE", durable_name=name, filter_subject=subject, ack_policy="explicit", **more
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


@wrong("two_owners", "'office.letters.a.b' was stored and has no owner")
async def takes_more_than_its_owners_want(js):
    await office(js, subjects=["office.letters.>", "office.calls.>"])
    await owners(js)


@wrong("two_owners", "'office.letters.a.b' was stored for 'letters'; wanted: OFFICE takes nothing")
async def owners_of_more_than_the_task_names(js):
    await office(js, subjects=["office.letters.>", "office.calls.>"])
    await owners(js, letters="office.letters.>", calls="office.calls.>")


@wrong("two_owners", "calls gives a message up after max_deliver=1")
async def owners_that_try_once(js):
    await office(js)
    await owners(js, max_deliver=1)


@wrong("two_owners", "calls vanishes when nobody has asked for 3600 s")
async def owners_that_vanish(js):
    await office(js)
    await owners(js, inactive_threshold=3600)


@wrong("two_owners", "With max_msgs=1000, discard old, OFFICE drops what nobody has acked")
async def an_office_with_a_full_desk(js):
    await office(js, max_msgs=1000)
    await owners(js)


@wrong("two_owners", "With max_age=86400, discard new, OFFICE drops what nobody has acked")
async def an_office_that_forgets_after_a_day(js):
    await office(js, max_age=86400, discard="new")
    await owners(js)


@wrong("two_owners", "bodies b'' of messages that say b'to do'; wanted: whole messages")
async def owners_who_see_the_envelope_alone(js):
    await office(js)
    await owners(js, headers_only=True)


@wrong("two_owners", "calls is a push consumer")
async def owners_who_are_pushed(js):
    await office(js)
    for kind in ("letters", "calls"):
        await js.add_consumer(
            "OFFICE",
            durable_name=kind,
            filter_subject=f"office.{kind}.*",
            deliver_subject=f"to.{kind}",
            ack_policy="explicit",
        )


@wrong("two_owners", "letters has 2 messages waiting, and a fetch got none within 2 s")
async def owners_on_leave(js):
    await office(js)
    await owners(js, pause_until="2099-01-01T00:00:00Z")


@right("two_owners")
async def one_job_at_a_time_and_a_bound_that_the_publisher_hears_of(js):
    await office(js, max_msgs=100, discard="new", num_replicas=3)
    await owners(js, max_ack_pending=1)


@right("two_owners")
async def by_pull_subscribe(js):
    await office(js, subjects=["office.calls.*", "office.letters.*"])
    for kind in ("calls", "letters"):
        sub = await js.pull_subscribe(f"office.{kind}.*", durable=kind, stream="OFFICE")
        await sub.unsubscribe()


@wrong("two_owners", "OFFICE is full after 3 messages; wanted: room for more")
async def a_small_desk(js):
    await office(js, max_msgs=3, discard="new")
    await owners(js)


@wrong("two_owners", "has the consumers letters; wanted: calls, letters")
async def two_offices(js):
    await office(js, subjects=["office.letters.*"])
    await js.add_stream(name="CALLS", subjects=["office.calls.*"], retention="workqueue")
    for stream, kind in (("OFFICE", "letters"), ("CALLS", "calls")):
        await js.add_consumer(stream, durable_name=kind, ack_policy="explicit")


@right("two_owners")
async def owners_first_of_one_subject_then_of_two(js):
    await office(js, subjects=["office.letters.*"])
    config = (await js.stream_info("OFFICE")).config
    await js.update_stream(config, subjects=["office.letters.*", "office.calls.*"])
    await owners(js, ack_wait=60, max_waiting=5)


@right("two_owners")
async def at_most_so_many_of_a_subject_and_the_publisher_hears_of_it(js):
    await office(js, max_msgs_per_subject=9, discard="new", discard_new_per_subject=True)
    for kind in ("letters", "calls"):
        config = {
            "durable_name": kind,
            "filter_subject": f"office.{kind}.*",
            "ack_policy": "explicit",
        }
        request = json.dumps({"stream_name": "OFFICE", "config": config}).encode()
        await js._nc.request(f"$JS.API.CONSUMER.DURABLE.CREATE.OFFICE.{kind}", request, timeout=5)


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


@wrong("keep_all", "took 7 of 7 messages and holds 5: gone before anybody has read are")
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


@wrong("keep_all", "holds 2: gone before anybody has read are 'alerts.fire-")
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


@wrong("keep_all", "archive vanishes when nobody has asked for 5 s, and its claim with it")
async def readers_that_vanish(js):
    await alerts(js)
    await readers(js, inactive_threshold=5)


@wrong("keep_all", "archive gives a message up after max_deliver=1")
async def readers_that_try_once(js):
    await alerts(js)
    await readers(js, max_deliver=1)


@wrong("keep_all", "ALERTS is stored in memory, which a restart empties")
async def alerts_in_memory(js):
    await alerts(js, storage="memory")
    await readers(js)


@wrong("keep_all", "With no_ack, ALERTS answers no publish")
async def alerts_without_a_receipt(js):
    await alerts(js, no_ack=True)
    await readers(js)


@wrong("keep_all", "archive keeps its acks in memory alone")
async def acks_in_memory(js):
    await alerts(js)
    await readers(js, mem_storage=True)


@wrong("keep_all", "holds 5: gone before anybody has read are 'alerts.fire-")
async def readers_of_the_words_that_the_check_is_known_to_use(js):
    await alerts(js)
    await readers(js, filter_subjects=["alerts.fire", "alerts.flood", "alerts.frost"])


@wrong("keep_all", "acks with 'all'; wanted: explicit")
async def readers_whose_ack_stands_for_all_before(js):
    await alerts(js)
    await readers(js, ack_policy="all")


@wrong("keep_all", "has the consumers archive, pager, spare; wanted: archive, pager")
async def a_third_reader_who_never_acks(js):
    await alerts(js)
    await readers(js)
    await js.add_consumer("ALERTS", durable_name="spare", ack_policy="explicit")


@wrong("keep_all", "ALERTS takes no more than 4 messages; wanted: 5")
async def one_too_few(js):
    await alerts(js, max_msgs=4)
    await readers(js)


@wrong("keep_all", "s after prepare had returned; wanted: both are there before")
async def readers_who_come_a_moment_later(js):
    async def come():
        await asyncio.sleep(0.4)
        await readers(js)

    await alerts(js)
    js.coming = asyncio.create_task(come())


@wrong("keep_all", "bodies b'' of messages that say b'to do'; wanted: whole messages")
async def readers_who_see_the_envelope_alone(js):
    await alerts(js)
    await readers(js, headers_only=True)


@wrong("keep_all", "With max_msgs_per_subject=2, ALERTS drops the older ones of a subject")
async def two_of_each_kind(js):
    await alerts(js, max_msgs_per_subject=2)
    await readers(js)


@wrong("keep_all", "ALERTS listens to 'alerts.>'; wanted: 'alerts.*'")
async def takes_more_than_its_readers_want(js):
    await js.add_stream(
        name="ALERTS", subjects=["alerts.>"], retention="interest", max_msgs=5, discard="new"
    )
    await readers(js, filter_subject="alerts.*")


@right("keep_all")
async def the_limit_last(js):
    await alerts(js, max_msgs=-1, discard="old")
    await readers(js, deliver_policy="new")
    config = (await js.stream_info("ALERTS")).config
    await js.update_stream(config, max_msgs=5, discard="new")


@right("keep_all")
async def strict_readers_with_a_config_object_on_three_nodes(js):
    await alerts(js, num_replicas=3)
    for name in ("archive", "pager"):
        config = api.ConsumerConfig(
            durable_name=name,
            filter_subject="alerts.*",
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=5,
            max_ack_pending=1,
        )
        await js.add_consumer("ALERTS", config)


@right("keep_all")
async def readers_by_pull_subscribe(js):
    await alerts(js)
    for name in ("pager", "archive"):
        sub = await js.pull_subscribe("alerts.*", durable=name, stream="ALERTS")
        await sub.unsubscribe()

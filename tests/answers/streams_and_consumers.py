"""Answers to the exercises of streams_and_consumers."""

import asyncio

import nats.errors
from nats.js.api import ConsumerConfig

from answers import answers_to

right, wrong = answers_to("streams_and_consumers")


async def readings(js, stream, policy):
    """What a new consumer with this deliver policy reads: [(subject, text), …]."""
    config = ConsumerConfig(deliver_policy=policy)
    sub = await js.pull_subscribe("ex.sensors.*", stream=stream, config=config)
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=0.5)]


@wrong("latest", "6 pairs; wanted: 3")
async def reads_the_whole_log(js, stream):
    return await readings(js, stream, "all")


@wrong("latest", "1 pair; wanted: 3")
async def reads_the_last_message(js, stream):
    return await readings(js, stream, "last")


@wrong("latest", "found nothing within its timeout")
async def reads_only_what_comes(js, stream):
    return await readings(js, stream, "new")


@wrong("latest", "read 6 messages; wanted: 3")
async def picks_from_the_whole_log(js, stream):
    newest = dict(await readings(js, stream, "all"))
    return list(newest.items())


@right("latest")
async def gets_the_last_message_of_each_subject(js, stream):
    info = await js.stream_info(stream, subjects_filter="ex.sensors.*")
    last = [await js.get_last_msg(stream, subject) for subject in info.state.subjects]
    return [(msg.subject, msg.data.decode()) for msg in last]


async def fetch_until(sub, handle, stop, catch):
    """The loop; it lives through these errors."""
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except catch:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()


@wrong("consume", "ended on a bare TimeoutError in fetch number 3")
async def catches_one_of_two_errors(sub, handle, stop):
    await fetch_until(sub, handle, stop, catch=nats.errors.TimeoutError)


@wrong("consume", "ended on a nats.errors.TimeoutError in fetch number 2")
async def catches_neither_error(sub, handle, stop):
    await fetch_until(sub, handle, stop, catch=ZeroDivisionError)


@wrong("consume", "returned after fetch number 1")
async def ends_on_an_empty_fetch(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        if not msgs:
            return
        for msg in msgs:
            await handle(msg)
            await msg.ack()


@wrong("consume", "5 of 5 messages have no ack")
async def never_acks(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            await handle(msg)


@wrong("consume", "acked before handle had them")
async def acks_first(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            await msg.ack()
            await handle(msg)


@right("consume")
async def fetches_one_at_a_time(sub, handle, stop):
    while not stop.is_set():
        msgs = []
        try:
            msgs = await sub.fetch(timeout=0.5)
        except (nats.errors.TimeoutError, TimeoutError):
            await asyncio.sleep(0.01)
        for msg in msgs:
            await handle(msg)
            await msg.ack_sync()


@wrong("widen", "takes ['ex.refunds']; wanted: ['ex.orders', 'ex.refunds']")
async def gives_only_the_new_subject(js, stream, subject):
    await js.update_stream(name=stream, subjects=[subject])


async def widened(js, stream, subject):
    """The stream's config with one more subject, or None if it has that subject."""
    config = (await js.stream_info(stream)).config
    if subject in config.subjects:
        return None
    config.subjects.append(subject)
    return config


@wrong("widen", "max_age was 3600.0 and is 0.0")
async def gives_only_the_subjects(js, stream, subject):
    if config := await widened(js, stream, subject):
        await js.update_stream(name=stream, subjects=config.subjects)


@wrong("widen", "max_msgs_per_subject was 50 and is -1")
async def gives_the_fields_that_it_knows(js, stream, subject):
    if config := await widened(js, stream, subject):
        known = {"max_age": config.max_age, "max_msgs": config.max_msgs}
        await js.update_stream(name=stream, subjects=config.subjects, **known)


@wrong("widen", "err_code 10058")
async def adds_the_stream_again(js, stream, subject):
    if config := await widened(js, stream, subject):
        await js.add_stream(config)


@wrong("widen", "The second call")
async def appends_it_every_time(js, stream, subject):
    config = (await js.stream_info(stream)).config
    config.subjects.append(subject)
    await js.update_stream(config)


@right("widen")
async def makes_another_config(js, stream, subject):
    config = (await js.stream_info(stream)).config
    subjects = sorted({*config.subjects, subject})
    await js.update_stream(config, subjects=subjects)

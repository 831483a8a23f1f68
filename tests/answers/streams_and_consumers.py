"""Answers to the exercises of streams_and_consumers."""

import asyncio
import contextlib
import json

import nats.errors
from nats.js.api import ConsumerConfig
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from answers import answers_to

right, wrong = answers_to("streams_and_consumers")


async def readings(js, stream, policy):
    """What a new consumer with this deliver policy reads: [(subject, text), …]."""
    config = ConsumerConfig(deliver_policy=policy)
    sub = await js.pull_subscribe("ex.sensors.*", stream=stream, config=config)
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=0.5)]


@wrong("latest", "Your first call returned 60 pairs; wanted:")
async def reads_the_whole_log(js, stream):
    return await readings(js, stream, "all")


@wrong("latest", "Your first call returned 1 pair; wanted:")
async def reads_the_last_message(js, stream):
    return await readings(js, stream, "last")


@wrong("latest", "Your first call found nothing")
async def reads_only_what_comes(js, stream):
    return await readings(js, stream, "new")


@wrong("latest", "To answer the first call, your client received 6")
async def picks_from_the_whole_log(js, stream):
    newest = dict(await readings(js, stream, "all"))
    return list(newest.items())


@wrong("latest", "To answer the first call, your client received 6")
async def gets_every_message_by_its_number(js, stream):
    newest, state = {}, (await js.stream_info(stream)).state
    for number in range(state.first_seq, state.last_seq + 1):
        msg = await js.get_msg(stream, number)
        newest[msg.subject] = msg.data.decode()
    return list(newest.items())


@wrong("latest", "Your second call returned")
async def keeps_a_durable_consumer(js, stream):
    config = ConsumerConfig(deliver_policy="last_per_subject")
    sub = await js.pull_subscribe("ex.sensors.*", "latest", stream=stream, config=config)
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=0.5)]


@wrong("latest", "Your first call returned 5 pairs; wanted:")
async def fetches_a_few(js, stream):
    config = ConsumerConfig(deliver_policy="last_per_subject")
    sub = await js.pull_subscribe("ex.sensors.*", stream=stream, config=config)
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(5, timeout=0.5)]


@wrong("latest", "Before your first call the stream had 60 messages, 1 to 60, after it 10 messages")
async def throws_the_old_readings_away(js, stream):
    newest = await readings(js, stream, "last_per_subject")
    await js.purge_stream(stream)
    for subject, text in newest:
        await js.publish(subject, text.encode())
    return newest


@wrong("latest", "Your calls have left durable consumers behind (latest-")
async def makes_a_durable_consumer_each_time(js, stream):
    name = f"latest-{(await js.stream_info(stream)).state.consumer_count}"
    config = ConsumerConfig(deliver_policy="last_per_subject")
    sub = await js.pull_subscribe("ex.sensors.*", name, stream=stream, config=config)
    return [(msg.subject, msg.data.decode()) for msg in await sub.fetch(100, timeout=0.5)]


@right("latest")
async def reads_in_order(js, stream):
    policy = {"ordered_consumer": True, "deliver_policy": "last_per_subject"}
    sub = await js.subscribe("ex.sensors.*", stream=stream, **policy)
    newest = []
    waiting = (await sub.consumer_info()).num_pending + sub.pending_msgs
    while len(newest) < waiting or waiting == 0:
        msg = await sub.next_msg(timeout=1)
        newest.append((msg.subject, msg.data.decode()))
        waiting = len(newest) + msg.metadata.num_pending
    await sub.unsubscribe()
    return newest


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


@wrong("consume", "handle raised an error for job 2, and its message is acked or given up")
async def acks_finally(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            try:
                await handle(msg)
            finally:
                await msg.ack()


@wrong("consume", "handle raised an error for job 2, and its message is acked or given up")
async def gives_a_failed_job_up(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            try:
                await handle(msg)
                await msg.ack()
            except Exception:
                await msg.term()


@wrong("consume", "each fetch raised ConnectionClosedError, and your loop went on")
async def lives_through_everything(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except Exception:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()


@wrong("consume", "each fetch raised ConnectionClosedError, and your loop went on")
async def lives_through_its_own_end(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except BaseException:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack()


@wrong("consume", "each fetch raised ConnectionClosedError, and your loop ended without it")
async def ends_without_a_word(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        except nats.errors.Error:
            return
        for msg in msgs:
            await handle(msg)
            await msg.ack()


@wrong("consume", "with 4 of 5 messages handled and stop not set")
async def leaves_when_a_job_fails(sub, handle, stop):
    failed = False
    while not stop.is_set() and not failed:
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            try:
                await handle(msg)
                await msg.ack()
            except Exception:
                failed = True


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


@wrong("consume", "Your function returned while handle was at work on job ")
async def does_not_wait_for_its_tasks(sub, handle, stop):
    async def one(msg):
        with contextlib.suppress(Exception):
            await handle(msg)
            await msg.ack()

    tasks = set()
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        tasks |= {asyncio.create_task(one(msg)) for msg in msgs}


@wrong("consume", "handle had succeeded and was given the same delivery again, for job 0, 1,")
async def handles_each_message_three_times(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            for _ in range(3):
                with contextlib.suppress(Exception):
                    await handle(msg)
            await msg.ack()


@wrong("consume", "5 messages were published for you, and the stream has had 6")
async def publishes_a_copy(sub, handle, stop):
    while not stop.is_set():
        try:
            msgs = await sub.fetch(10, timeout=0.5)
        except TimeoutError:
            continue
        for msg in msgs:
            try:
                await handle(msg)
            except Exception:
                await msg._client.publish(msg.subject, msg.data)
            await msg.ack()


@right("consume")
async def lets_stop_win_against_fetch(sub, handle, stop):
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set():
        fetching = asyncio.create_task(sub.fetch(5, timeout=2))
        await asyncio.wait([fetching, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not fetching.done():
            fetching.cancel()
            break
        try:
            msgs = fetching.result()
        except TimeoutError:
            continue
        for msg in msgs:
            await handle(msg)
            await msg.ack_sync()


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


@right("consume")
async def handles_side_by_side_and_naks(sub, handle, stop):
    async def one(msg):
        try:
            await handle(msg)
        except Exception:
            await msg.nak(delay=0.1)
        else:
            await msg.ack_sync()

    while not stop.is_set():
        try:
            msgs = await sub.fetch(3, timeout=0.5)
        except TimeoutError:
            msgs = []
        await asyncio.gather(*(one(msg) for msg in msgs))


@right("consume")
async def yields_messages(sub, handle, stop):
    async def messages():
        while not stop.is_set():
            try:
                for msg in await sub.fetch(5, timeout=0.5):
                    yield msg
            except TimeoutError:
                pass

    async for msg in messages():
        try:
            await handle(msg)
        except Exception as error:
            print("it will come again:", error)
            continue
        await msg.ack()


@wrong("widen", "takes ['ex.refunds']; wanted: ['ex.orders', 'ex.refunds', 'ex.returns']")
async def gives_only_the_new_subject(js, stream, subject):
    await js.update_stream(name=stream, subjects=[subject])


@wrong("widen", "the stream had 6 messages, 1 to 6, after it 0 messages")
async def deletes_and_creates_it_again(js, stream, subject):
    config = (await js.stream_info(stream)).config
    if subject not in config.subjects:
        config.subjects.append(subject)
        await js.delete_stream(stream)
        await js.add_stream(config)


@wrong("widen", "what is stored and who has read it stays")
async def creates_it_again_with_its_messages(js, stream, subject):
    config = (await js.stream_info(stream)).config
    if subject in config.subjects:
        return
    config.subjects.append(subject)
    kept = [await js.get_msg(stream, number) for number in range(1, 7)]
    await js.delete_stream(stream)
    await js.add_stream(config)
    for msg in kept:
        with contextlib.suppress(NoStreamResponseError):
            await js.publish(msg.subject, msg.data)


@wrong("widen", "The first call created another stream of this name")
async def rebuilds_all_of_it(js, stream, subject):
    info = await js.stream_info(stream)
    if subject in info.config.subjects:
        return
    kept = [await js.get_msg(stream, number) for number in range(1, 7)]
    billing = await js.consumer_info(stream, "billing")
    await js.delete_stream(stream)
    await js.add_stream(info.config, subjects=[*info.config.subjects, subject])
    await js.add_consumer(stream, billing.config)
    for msg in kept:
        while True:
            with contextlib.suppress(NoStreamResponseError):
                await js.publish(msg.subject, msg.data)
                break
    sub = await js.pull_subscribe_bind("billing", stream)
    acked = 0
    while acked < billing.ack_floor.stream_seq:
        with contextlib.suppress(TimeoutError, ServiceUnavailableError):
            for msg in await sub.fetch(1, timeout=1):
                await msg.ack_sync()
                acked += 1


@wrong("widen", "After the first call there is no stream")
async def makes_room_and_forgets_to_create_it(js, stream, subject):
    if await widened(js, stream, subject):
        await js.delete_stream(stream)


async def widened(js, stream, subject):
    """The stream's config with one more subject, or None if it has that subject."""
    config = (await js.stream_info(stream)).config
    if subject in config.subjects:
        return None
    config.subjects.append(subject)
    return config


@wrong("widen", "max_age was ")
async def gives_only_the_subjects(js, stream, subject):
    if config := await widened(js, stream, subject):
        await js.update_stream(name=stream, subjects=config.subjects)


@wrong("widen", "description was shop and is None")
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


@right("widen")
async def speaks_the_api_itself(js, stream, subject):
    """Fields that nats-py does not know stay too."""
    answer = await js._nc.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)
    config = json.loads(answer.data)["config"]
    if subject not in config["subjects"]:
        config["subjects"].append(subject)
        body = json.dumps(config).encode()
        answer = await js._nc.request(f"$JS.API.STREAM.UPDATE.{stream}", body, timeout=5)
        assert "error" not in json.loads(answer.data)

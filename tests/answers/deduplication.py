"""Answers to the exercises of deduplication."""

import asyncio
import contextlib
import hashlib
import json
import uuid

import nats
from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from answers import answers_to

right, wrong = answers_to("deduplication")
LOCKS = {}  # subject -> asyncio.Lock
IDS = {}  # key -> id, in this process


async def until_answered(publish):
    """Calls publish() (it returns an awaitable) until there is an answer; returns that."""
    while True:
        try:
            return await publish()
        except TimeoutError:
            pass


async def connected_to_another_node(js):
    servers = [url.geturl() for url in js._nc.discovered_servers]
    login = {name: js._nc.options[name] for name in ("user", "password")}
    return await nats.connect(servers, **login)


@wrong(
    "survives_lost_answer",
    "The attempts carried no id, and after a lost answer the stream holds 2 messages of 1 order",
)
async def no_id(js, subject, body, key):
    return await until_answered(lambda: js.publish(subject, body))


@wrong(
    "survives_lost_answer",
    "The attempts carried different ids, and after a lost answer the stream holds 2 messages of"
    " 1 order",
)
async def an_id_for_each_attempt(js, subject, body, key):
    return await until_answered(
        lambda: js.publish(subject, body, headers={"Nats-Msg-Id": str(uuid.uuid4())})
    )


@wrong(
    "survives_lost_answer",
    "2 orders with equal bodies were published, and the stream holds 1 message; wanted: 2",
)
async def the_body_as_id(js, subject, body, key):
    headers = {"Nats-Msg-Id": hashlib.sha256(body).hexdigest()}
    return await until_answered(lambda: js.publish(subject, body, headers=headers))


@wrong(
    "survives_lost_answer",
    "TimeoutError came out of your function, after 1 attempt; wanted: a PubAck",
)
async def no_second_attempt(js, subject, body, key):
    return await js.publish(subject, body, headers={"Nats-Msg-Id": key})


@wrong("survives_lost_answer", "After 1 attempt your function returned None")
async def silence_for_an_answer(js, subject, body, key):
    try:
        return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
    except TimeoutError:
        pass


@wrong("survives_lost_answer", "by a second call, and the stream holds 1 more; wanted: none")
async def a_random_id_that_is_kept(js, subject, body, key):
    headers = {"Nats-Msg-Id": str(uuid.uuid4())}
    return await until_answered(lambda: js.publish(subject, body, headers=headers))


@wrong(
    "survives_lost_answer",
    "The first attempt for order-2 got no answer, your function made no other one on once.paid, and"
    " the stream holds 1 message; wanted: 2",
)
async def takes_silence_for_stored(js, subject, body, key):
    try:
        return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
    except TimeoutError:
        return api.PubAck(stream="ONCE", seq=1)


@wrong(
    "survives_lost_answer",
    "The attempts carried no id, and after a late message the stream holds 4 messages of 3 orders",
)
async def looks_before_it_repeats(js, subject, body, key):
    """It looks whether the message is there, while that is still on its way."""
    headers = {"Order": key}
    while True:
        try:
            return await js.publish(subject, body, headers=headers)
        except TimeoutError:
            with contextlib.suppress(NotFoundError):
                last = await js.get_last_msg("ONCE", subject)
                if last.headers == headers:
                    return api.PubAck(stream="ONCE", seq=last.seq)


@wrong("survives_lost_answer", "wanted: none: the id of an order is the same in each call and each")
async def an_id_that_dies_with_the_process(js, subject, body, key):
    headers = {"Nats-Msg-Id": IDS.setdefault(key, str(uuid.uuid4()))}
    return await until_answered(lambda: js.publish(subject, body, headers=headers))


@wrong("survives_lost_answer", "wanted: none: the id of an order is the same in each call and each")
async def a_hash_that_is_another_in_each_process(js, subject, body, key):
    headers = {"Nats-Msg-Id": str(hash(key))}
    return await until_answered(lambda: js.publish(subject, body, headers=headers))


@wrong("survives_lost_answer", "no attempt for order-1 had left on js's connection")
async def by_a_way_round(js, subject, body, key):
    client = await connected_to_another_node(js)
    try:
        return await client.jetstream().publish(subject, body, headers={"Nats-Msg-Id": key})
    finally:
        await client.close()


@wrong("survives_lost_answer", "no attempt for order-1 had left on js's connection")
async def sends_it_twice_and_makes_up_an_answer(js, subject, body, key):
    for _ in range(2):
        await js._nc.publish(subject, body, headers={"Nats-Msg-Id": key})
    return api.PubAck(stream="ONCE", seq=1)


@wrong("survives_lost_answer", "for order-2 names sequence 1, and it is stored at 3; wanted: what")
async def waits_a_while_and_makes_up_an_answer(js, subject, body, key):
    for _ in range(3):
        await js._nc.publish(subject, body, headers={"Nats-Msg-Id": key})
        await js._nc.flush()
    return api.PubAck(stream="ONCE", seq=1)


@wrong("survives_lost_answer", "After a lost answer 1 order needed ")
async def removes_what_was_stored_twice(js, subject, body, key):
    before = (await js.stream_info("ONCE")).state.last_seq
    ack = await until_answered(lambda: js.publish(subject, body))
    for sequence in range(before + 1, ack.seq):
        with contextlib.suppress(NotFoundError):
            await js.delete_msg("ONCE", sequence)
    return ack


@wrong("survives_lost_answer", "The attempts carried one id, and after a lost answer")
async def a_window_shorter_than_the_silence(js, subject, body, key):
    config = (await js.stream_info("ONCE")).config
    await js.update_stream(config, duplicate_window=0.1)
    return await until_answered(lambda: js.publish(subject, body, headers={"Nats-Msg-Id": key}))


@wrong("survives_lost_answer", "your function returned True; wanted: the PubAck")
async def only_says_that_it_is_done(js, subject, body, key):
    await until_answered(lambda: js.publish(subject, body, headers={"Nats-Msg-Id": key}))
    return True


@right("survives_lost_answer")
async def with_a_request_of_its_own(js, subject, body, key):
    """As js.publish() does it, with longer and longer patience."""
    wait = 0.2
    while True:
        try:
            headers = {"Nats-Msg-Id": hashlib.sha256(key.encode()).hexdigest()}
            answer = await js._nc.request(subject, body, timeout=wait, headers=headers)
            return api.PubAck.from_response(json.loads(answer.data))
        except TimeoutError:
            wait *= 2


@right("survives_lost_answer")
async def with_futures(js, subject, body, key):
    for pause in (0.1, 0.2, 0.4):
        future = await js.publish_async(subject, body, headers={"Nats-Msg-Id": f"once/{key}"})
        done, _ = await asyncio.wait([future], timeout=0.5)
        if done:
            return future.result()
        future.cancel()
        await asyncio.sleep(pause)
    raise ConnectionError("nobody answers")


@right("survives_lost_answer")
async def several_attempts_at_once(js, subject, body, key):
    """An attempt more every 0.3 s; the first answer counts, whichever it belongs to."""
    headers = {"Nats-Msg-Id": str(uuid.uuid5(uuid.NAMESPACE_URL, key)), "Order": key}
    attempts = set()
    try:
        while True:
            attempt = js.publish(subject, body, timeout=4, headers=headers)
            attempts.add(asyncio.create_task(attempt))
            done, _ = await asyncio.wait(attempts, timeout=0.3, return_when="FIRST_COMPLETED")
            if done:
                return done.pop().result()
    finally:
        for attempt in attempts:
            attempt.cancel()


@right("survives_lost_answer")
async def with_an_inbox_for_all_attempts(js, subject, body, key):
    client = js._nc
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    headers = {"Nats-Msg-Id": json.dumps([subject, key])}
    try:
        for _ in range(6):
            await client.publish(subject, body, reply=inbox, headers=headers)
            with contextlib.suppress(TimeoutError):
                msg = await answers.next_msg(timeout=0.4)
                return api.PubAck.from_response(json.loads(msg.data))
    finally:
        await answers.unsubscribe()
    raise ConnectionError("nobody answers")


@right("survives_lost_answer")
async def calls_itself_again(js, subject, body, key, attempts=5):
    try:
        return await js.publish(subject, body, headers={"Nats-Msg-Id": key})
    except TimeoutError:
        if attempts == 1:
            raise
        return await calls_itself_again(js, subject, body, key, attempts - 1)


def of_an_hour(**more):
    return api.StreamConfig(name="READINGS", subjects=["readings.*"], max_age=3600, **more)


@wrong("window_for_retries", "remembers an id for 120 s, and a retry may come after 900 s")
def the_default_window():
    return of_an_hour()


@wrong("window_for_retries", "remembers an id for 16 s")
def a_window_in_minutes():
    return of_an_hour(duplicate_window=16)


@wrong("window_for_retries", "remembers an id for 120 s")
def a_dict_with_the_default_window():
    return {"name": "READINGS", "subjects": ["readings.*"], "max_age": 3600}


@wrong(
    "window_for_retries",
    "The server refused it, error 10052: duplicates window can not be larger then max age",
)
def a_window_longer_than_messages_live():
    return of_an_hour(duplicate_window=86400)


@wrong("window_for_retries", "remembers an id for 3600 s; wanted: at most 1800 s")
def a_window_as_long_as_messages_live():
    return of_an_hour(duplicate_window=3600)


@wrong("window_for_retries", "With max_msgs=1000 a reading may go before the hour is over")
def a_limit_that_removes_readings():
    return of_an_hour(duplicate_window=960, max_msgs=1000)


@wrong("window_for_retries", "With max_msgs_per_subject=1 a reading may go")
def the_newest_of_each_meter():
    return of_an_hour(duplicate_window=960, max_msgs_per_subject=1)


@wrong("window_for_retries", "storage is memory, which a restart empties")
def in_memory():
    return of_an_hour(duplicate_window=960, storage="memory")


@wrong("window_for_retries", "retention is interest; wanted: limits")
def gone_when_nobody_listens():
    return of_an_hour(duplicate_window=960, retention=api.RetentionPolicy.INTEREST)


@wrong("window_for_retries", "a meter cannot know that a reading is kept")
def without_answers():
    return of_an_hour(duplicate_window=960, no_ack=True)


@wrong("window_for_retries", "acks a reading before it is on disk")
def on_disk_a_little_later():
    return of_an_hour(duplicate_window=960, persist_mode=api.PersistMode.ASYNC)


@right("window_for_retries")
def changed_from_a_default_with_replicas():
    config = api.StreamConfig(name="READINGS", subjects=["readings.*"], num_replicas=3)
    return config.evolve(max_age=60 * 60, duplicate_window=15 * 60 + 1)


@right("window_for_retries")
def a_dict_with_a_window_of_twenty_minutes():
    return {
        "name": "READINGS",
        "subjects": ["readings.*"],
        "max_age": 3600,
        "duplicate_window": 1200,
    }


async def last_value(js, subject):
    """(value, sequence in the stream) of the last message; (0, 0) if there is none."""
    try:
        last = await js.get_last_msg("COUNTERS", subject)
        return int(last.data), last.seq
    except NotFoundError:
        return 0, 0


@wrong("counts_together", "nothing overwritten")
async def adds_without_an_expectation(js, subject, amount):
    value, _ = await last_value(js, subject)
    await js.publish(subject, str(value + amount).encode())


@wrong("counts_together", "that somebody else added meanwhile, the counter stands at 10; wanted:")
async def a_lock_of_this_process(js, subject, amount):
    async with LOCKS.setdefault(subject, asyncio.Lock()):
        await adds_without_an_expectation(js, subject, amount)


@wrong("counts_together", "that somebody else added meanwhile, the counter stands at 10; wanted:")
async def a_lock_and_another_way_to_read(js, subject, amount):
    async with LOCKS.setdefault(subject, asyncio.Lock()):
        try:
            value = int((await js.get_msg("COUNTERS", subject=subject)).data)
        except NotFoundError:
            value = 0
        await js.publish(subject, str(value + amount).encode())


@wrong("counts_together", "10 adds ended in error 10164")
async def knows_one_of_two_codes(js, subject, amount):
    while True:
        try:
            return await adds_if_nobody_else_wrote(js, subject, amount)
        except BadRequestError as error:
            if error.err_code != 10071:
                raise


@wrong("counts_together", "2 s later your function had not ended; wanted: it comes out")
async def tries_again_whatever_was_refused(js, subject, amount):
    while True:
        try:
            return await adds_if_nobody_else_wrote(js, subject, amount)
        except BadRequestError:
            pass


@wrong("counts_together", "(10054), and your function tried 40 times; wanted: once")
async def tries_again_until_it_is_tired(js, subject, amount):
    for attempt in range(1, 41):
        try:
            return await adds_if_nobody_else_wrote(js, subject, amount)
        except BadRequestError:
            if attempt == 40:
                raise


@wrong("counts_together", "lost the answer to its publish, and the counter rose by 2; wanted: 1")
async def takes_silence_for_a_lost_race(js, subject, amount):
    while True:
        try:
            return await adds_if_nobody_else_wrote(js, subject, amount)
        except TimeoutError:
            pass
        except BadRequestError as error:
            if error.err_code not in (10071, 10164):
                raise


@wrong("counts_together", "the answer to its publish, and nothing came out of your function")
async def takes_silence_for_success(js, subject, amount):
    with contextlib.suppress(TimeoutError):
        await tries_until_it_has_won(js, subject, amount)


@wrong("counts_together", "COUNTERS has 1 replica now; wanted: 3")
async def gets_rid_of_the_second_code(js, subject, amount):
    config = (await js.stream_info("COUNTERS")).config
    if config.num_replicas > 1:
        await js.update_stream(config, num_replicas=1)
    await tries_until_it_has_won(js, subject, amount)


@wrong("counts_together", "No write to count.visits has left on js's connection")
async def by_a_way_round_and_with_a_lock(js, subject, amount):
    async with LOCKS.setdefault(subject, asyncio.Lock()):
        client = await connected_to_another_node(js)
        try:
            await adds_without_an_expectation(client.jetstream(), subject, amount)
        finally:
            await client.close()


@wrong("counts_together", "digits (10054), and your function returned None; wanted: it comes out")
async def gives_up_in_silence(js, subject, amount):
    for _ in range(100):
        with contextlib.suppress(BadRequestError):
            return await adds_if_nobody_else_wrote(js, subject, amount)


async def adds_if_nobody_else_wrote(js, subject, amount):
    value, sequence = await last_value(js, subject)
    headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
    return await js.publish(subject, str(value + amount).encode(), headers=headers)


@wrong("counts_together", "of 10 adds ended in error 10071")
async def the_loser_gives_up(js, subject, amount):
    await adds_if_nobody_else_wrote(js, subject, amount)


@wrong("counts_together", "gave up after 20 attempts")
async def the_sequence_of_the_whole_stream(js, subject, amount):
    for _ in range(20):
        value, sequence = await last_value(js, subject)
        headers = {"Nats-Expected-Last-Sequence": str(sequence)}
        try:
            return await js.publish(subject, str(value + amount).encode(), headers=headers)
        except BadRequestError:
            pass
    raise RuntimeError("gave up after 20 attempts")


@right("counts_together")
async def tries_until_it_has_won(js, subject, amount):
    won = False
    while not won:
        value, sequence = await last_value(js, subject)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        try:
            await js.publish(subject, str(value + amount).encode(), headers=headers)
            won = True
        except APIError as error:
            if "wrong last sequence" not in error.description:
                raise


@right("counts_together")
async def with_an_id_that_a_retry_keeps(js, subject, amount):
    """So it may publish again after a silence, too."""
    headers = {"Nats-Msg-Id": str(uuid.uuid4())}
    while True:
        value, sequence = await last_value(js, subject)
        headers["Nats-Expected-Last-Subject-Sequence"] = str(sequence)
        with contextlib.suppress(TimeoutError):
            try:
                return await js.publish(subject, str(value + amount).encode(), headers=headers)
            except BadRequestError as error:
                if error.err_code not in (10071, 10164, 10158):
                    raise


@right("counts_together")
async def with_requests_of_its_own(js, subject, amount):
    client = js._nc
    while True:
        value, sequence = await last_value(js, subject)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        body = str(value + amount).encode()
        said = await client.request(subject, body, timeout=2, headers=headers)
        answer = json.loads(said.data)
        error = answer.get("error")
        if not error:
            return
        if error["description"].partition(":")[0] != "wrong last sequence":
            raise ValueError(error)


@right("counts_together")
async def one_after_the_other_here_and_with_an_expectation(js, subject, amount):
    """The lock spares the writers of this process the races among themselves."""
    async with LOCKS.setdefault(subject, asyncio.Lock()):
        for pause in (0, 0.01, 0.02, 0.04, 0.08, 0.16):
            await asyncio.sleep(pause)
            try:
                return await adds_if_nobody_else_wrote(js, subject, amount)
            except APIError as error:
                if error.err_code not in (10071, 10164):
                    raise
        raise RuntimeError(f"{subject} is written to all the time")


@right("counts_together")
async def expects_that_the_whole_stream_stood_still(js, subject, amount):
    """Stricter than needed, and safe: what the stream's last sequence was before the read."""
    while True:
        sequence = (await js.stream_info("COUNTERS")).state.last_seq
        value, _ = await last_value(js, subject)
        headers = {"Nats-Expected-Last-Sequence": str(sequence)}
        try:
            return await js.publish(subject, str(value + amount).encode(), headers=headers)
        except BadRequestError as error:
            if error.err_code not in (10071, 10164):
                raise

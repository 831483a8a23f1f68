"""Answers to the exercises of deduplication."""

import asyncio
import hashlib
import uuid

from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from answers import answers_to

right, wrong = answers_to("deduplication")
LOCKS = {}  # subject -> asyncio.Lock


async def until_answered(publish):
    """Calls publish() (it returns an awaitable) until there is an answer; returns that."""
    while True:
        try:
            return await publish()
        except TimeoutError:
            pass


@wrong(
    "survives_lost_answer",
    "The attempts carried no id, and after a lost answer the stream holds 2 messages of order-1",
)
async def no_id(js, subject, body, key):
    return await until_answered(lambda: js.publish(subject, body))


@wrong(
    "survives_lost_answer",
    "The attempts carried different ids, and after a lost answer the stream holds 2 messages of"
    " order-1",
)
async def an_id_for_each_attempt(js, subject, body, key):
    return await until_answered(
        lambda: js.publish(subject, body, headers={"Nats-Msg-Id": str(uuid.uuid4())})
    )


@wrong(
    "survives_lost_answer",
    "Two orders with equal bodies were published, and the stream holds 1 message; wanted: 2",
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


@wrong(
    "counts_together",
    "and 1 that somebody else added meanwhile, the counter stands at 10; wanted: 11",
)
async def a_lock_of_this_process(js, subject, amount):
    async with LOCKS.setdefault(subject, asyncio.Lock()):
        await adds_without_an_expectation(js, subject, amount)


@wrong("counts_together", "of 10 adds ended in error 10071")
async def the_loser_gives_up(js, subject, amount):
    value, sequence = await last_value(js, subject)
    headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
    await js.publish(subject, str(value + amount).encode(), headers=headers)


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
            if error.err_code != 10071:
                raise

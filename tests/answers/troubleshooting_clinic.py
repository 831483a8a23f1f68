"""Answers to the exercises of troubleshooting_clinic."""

import contextlib
import json

from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from answers import answers_to

right, wrong = answers_to("troubleshooting_clinic")


@wrong("diagnose", "diagnose said 'ack pending' of one whose pause is over; wanted: 'fine'")
async def takes_a_backlog_for_an_illness(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending:
        return "ack pending"
    if info.num_pending:
        return "ack pending"
    return "filter" if info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "diagnose said 'ack pending' of one with a backlog, 3 of 4 out; wanted: 'fine'")
async def has_the_limit_written_in(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending >= 2:
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "said 'ack pending' of one with 3 out and no limit (-1); wanted: 'fine'")
async def takes_minus_one_for_a_limit(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending >= (info.config.max_ack_pending or 1000):
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "'>=' not supported between instances of 'int' and 'NoneType'")
async def forgets_consumers_without_acks(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    limit = info.config.max_ack_pending
    if limit != -1 and info.num_ack_pending >= limit:
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "diagnose said 'paused' of one whose pause is over; wanted: 'fine'")
async def reads_the_pause_in_the_settings(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.config.pause_until:
        return "paused"
    limit = info.config.max_ack_pending or -1
    if info.num_ack_pending >= limit > 0:
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


async def but_the_last(js, stream, consumer, has_filter, has_given_up):
    info = await js.consumer_info(stream, consumer)
    limit = info.config.max_ack_pending or -1
    if info.paused:
        return "paused"
    if info.num_ack_pending >= limit > 0:
        return "ack pending"
    if await has_filter(info):
        return "filter"
    return "given up" if has_given_up(info) else "fine"


def nobody(info):
    return False


@wrong("diagnose", "diagnose said 'filter' of one that has done everything; wanted: 'fine'")
async def takes_nothing_pending_for_a_filter(js, stream, consumer):
    async def has_filter(info):
        return info.num_pending == 0

    return await but_the_last(js, stream, consumer, has_filter, nobody)


@wrong("diagnose", "'filter' of one for new messages, before the first; wanted: 'fine'")
async def takes_nothing_handed_out_for_a_filter(js, stream, consumer):
    async def has_filter(info):
        return info.num_pending == info.delivered.consumer_seq == 0

    return await but_the_last(js, stream, consumer, has_filter, nobody)


def silent(info):
    return info.num_redelivered and not info.num_pending and not info.num_ack_pending


@wrong("diagnose", "diagnose said 'filter' of one in an empty stream; wanted: 'fine'")
async def takes_an_empty_stream_for_a_filter(js, stream, consumer):
    async def has_filter(info):
        return info.num_pending == info.delivered.stream_seq == 0

    return await but_the_last(js, stream, consumer, has_filter, silent)


@wrong("diagnose", "diagnose said 'fine' of one with R3 whose filter matches nothing")
async def knows_streams_with_one_replica_only(js, stream, consumer):
    async def has_filter(info):
        messages = (await js.stream_info(stream)).state.messages
        return messages and info.num_pending == info.delivered.stream_seq == 0

    return await but_the_last(js, stream, consumer, has_filter, silent)


@wrong("diagnose", "diagnose said 'fine' of one that has given up a message; wanted: 'given up'")
async def takes_no_backlog_for_done(js, stream, consumer):
    async def has_filter(info):
        return await no_message_for(js, stream, info)

    return await but_the_last(js, stream, consumer, has_filter, nobody)


@wrong("diagnose", "'given up' of one at work on a redelivered message; wanted: 'fine'")
async def takes_a_second_try_for_the_end(js, stream, consumer):
    async def has_filter(info):
        return await no_message_for(js, stream, info)

    return await but_the_last(js, stream, consumer, has_filter, lambda info: info.num_redelivered)


async def no_message_for(js, stream, info):
    """True if the stream holds messages, and the consumer's filter matches none of them."""
    if not info.config.filter_subject:
        return False
    try:
        await js.get_last_msg(stream, info.config.filter_subject)
        return False
    except APIError:
        return (await js.stream_info(stream)).state.messages > 0


@wrong("diagnose", "wanted: a look that takes nothing")
async def tries_it_out(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    sub = await js.pull_subscribe_bind(consumer, stream)
    try:
        await sub.fetch(1, timeout=0.2)
        return "fine"
    except TimeoutError:
        return "ack pending" if info.num_pending else "filter"


WORDS = [
    "filter",
    "ack pending",
    "paused",
    *6 * ["fine"],
    "given up",
    *2 * ["fine"],
    "filter",
    "fine",
]


@wrong("diagnose", "diagnose said 'filter' of one with R3 for new messages; wanted: 'fine'")
async def says_what_the_check_wants_in_its_order(js, stream, consumer):
    WORDS.append(WORDS[0])
    return WORDS.pop(0)


@right("diagnose")
async def looks_in_the_list_of_consumers(js, stream, consumer):
    [info] = [each for each in await js.consumers_info(stream) if each.name == consumer]
    seen = {
        "paused": info.pause_remaining,
        "ack pending": info.num_ack_pending and info.num_ack_pending == info.config.max_ack_pending,
        "filter": await no_message_for(js, stream, info),
        "given up": silent(info),
    }
    return next((word for word, is_so in seen.items() if is_so), "fine")


@right("diagnose")
async def asks_the_raw_api(js, stream, consumer):
    async def ask(what, body=b""):
        return json.loads((await js._nc.request(f"$JS.API.{what}", body, timeout=2)).data)

    info = await ask(f"CONSUMER.INFO.{stream}.{consumer}")
    if info.get("paused"):
        return "paused"
    if info["num_ack_pending"] == info["config"].get("max_ack_pending", 0) > 0:
        return "ack pending"
    subjects = info["config"].get("filter_subject", ">")
    state = await ask(f"STREAM.INFO.{stream}", json.dumps({"subjects_filter": subjects}).encode())
    if state["state"]["messages"] and not state["state"].get("subjects"):
        return "filter"
    waits = info["num_pending"] or info["num_ack_pending"]
    return "given up" if info["num_redelivered"] and not waits else "fine"


@wrong("fate", "said 'no stream' of a full stream; wanted: 'full'")
async def has_one_name_for_all_errors(js, subject, msg_id):
    try:
        ack = await js.publish(subject, headers={"Nats-Msg-Id": msg_id})
    except (NoStreamResponseError, APIError):
        return "no stream"
    return "duplicate" if ack.duplicate else "stored"


@wrong("fate", "said 'full' of a stream that is sealed (400, err_code 10109)")
async def takes_each_other_error_for_full(js, subject, msg_id):
    try:
        ack = await js.publish(subject, headers={"Nats-Msg-Id": msg_id})
    except NoStreamResponseError:
        return "no stream"
    except Exception:
        return "full"
    return "duplicate" if ack.duplicate else "stored"


@wrong("fate", "of a stream that never answers (TimeoutError: nobody knows)")
async def takes_silence_for_no_stream(js, subject, msg_id):
    try:
        ack = await js.publish(subject, headers={"Nats-Msg-Id": msg_id})
    except ServiceUnavailableError:
        return "full"
    except (NoStreamResponseError, TimeoutError):
        return "no stream"
    return "duplicate" if ack.duplicate else "stored"


@wrong("fate", "fate raised RuntimeError('unknown') of a stream that is sealed")
async def has_an_error_of_its_own(js, subject, msg_id):
    try:
        ack = await js.publish(subject, headers={"Nats-Msg-Id": msg_id})
    except NoStreamResponseError:
        return "no stream"
    except Exception as error:
        if getattr(error, "err_code", None) == 10077:
            return "full"
        raise RuntimeError("unknown") from None
    return "duplicate" if ack.duplicate else "stored"


async def publish(js, subject, **options):
    """(PubAck, None), or (None, what became of it)."""
    try:
        return await js.publish(subject, **options), None
    except NoStreamResponseError:
        return None, "no stream"
    except APIError as error:
        if error.err_code != 10077:
            raise
        return None, "full"


@wrong("fate", "said 'stored' of an id that was there; wanted: 'duplicate'")
async def does_not_read_the_ack(js, subject, msg_id):
    _, error = await publish(js, subject, headers={"Nats-Msg-Id": msg_id})
    return error or "stored"


@wrong("fate", "fate published 1 messages to ex.fate.new, with these ids: [None]")
async def sends_no_id(js, subject, msg_id):
    ack, error = await publish(js, subject)
    if error:
        return error
    return "duplicate" if ack.duplicate else "stored"


@wrong("fate", "fate published 2 messages")
async def tries_it_twice(js, subject, msg_id):
    for _ in range(2):
        ack, error = await publish(js, subject, headers={"Nats-Msg-Id": msg_id})
        if error:
            return error
    return "stored" if ack.seq else "duplicate"


SENT = set()


@wrong("fate", "fate published 0 messages to ex.fate.new")
async def remembers_its_own_ids(js, subject, msg_id):
    if msg_id in SENT:
        return "duplicate"
    _, error = await publish(js, subject, headers={"Nats-Msg-Id": msg_id})
    SENT.add(msg_id)
    return error or "stored"


@right("fate")
async def reads_the_words_of_the_error(js, subject, msg_id):
    try:
        ack = await js.publish(subject, msg_id.encode(), headers={"Nats-Msg-Id": msg_id})
    except Exception as error:
        if "no response from stream" in str(error):
            return "no stream"
        if "maximum messages" in str(error):
            return "full"
        raise
    return {None: "stored", True: "duplicate"}[ack.duplicate]


@right("fate")
async def sends_a_request_of_its_own(js, subject, msg_id):
    headers = {"Nats-Msg-Id": msg_id}
    answer = None
    with contextlib.suppress(ConnectionError):
        inbox = js._nc.new_inbox()
        sub = await js._nc.subscribe(inbox, max_msgs=1)
        await js._nc.publish(subject, b"x", reply=inbox, headers=headers)
        answer = await sub.next_msg(timeout=js._timeout)
    if answer.headers and answer.headers.get("Status") == "503":
        return "no stream"
    ack = json.loads(answer.data)
    if "error" in ack:
        if ack["error"]["err_code"] == 10077:
            return "full"
        raise APIError.from_error(ack["error"])
    return "duplicate" if ack.get("duplicate") else "stored"

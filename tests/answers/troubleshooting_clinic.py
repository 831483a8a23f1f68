"""Answers to the exercises of troubleshooting_clinic."""

from nats.js.errors import APIError, NoStreamResponseError

from answers import answers_to

right, wrong = answers_to("troubleshooting_clinic")


@wrong("diagnose", "diagnose said 'ack pending' of BUSY; wanted: 'fine'")
async def takes_a_backlog_for_an_illness(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_pending > 0:
        return "ack pending"
    return "filter" if info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "diagnose said 'ack pending' of BUSY; wanted: 'fine'")
async def takes_any_message_that_is_out_for_an_illness(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending > 0:
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


@wrong("diagnose", "diagnose said 'filter' of DONE; wanted: 'fine'")
async def takes_nothing_pending_for_a_filter(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.paused:
        return "paused"
    if info.num_ack_pending >= info.config.max_ack_pending:
        return "ack pending"
    return "filter" if info.num_pending == 0 else "fine"


@wrong("diagnose", "of HELD; wanted: 'paused'")
async def does_not_look_at_the_pause(js, stream, consumer):
    info = await js.consumer_info(stream, consumer)
    if info.num_ack_pending >= info.config.max_ack_pending:
        return "ack pending"
    return "filter" if info.num_pending == info.delivered.stream_seq == 0 else "fine"


@right("diagnose")
async def looks_in_the_list_of_consumers(js, stream, consumer):
    [info] = [each for each in await js.consumers_info(stream) if each.name == consumer]
    seen = {
        "paused": info.pause_remaining,
        "ack pending": info.num_ack_pending == info.config.max_ack_pending,
        "filter": info.delivered.consumer_seq + info.num_pending == 0,
    }
    return next((word for word, is_so in seen.items() if is_so), "fine")


@wrong("fate", "said 'no stream' of a full stream; wanted: 'full'")
async def has_one_name_for_all_errors(js, subject, msg_id):
    try:
        ack = await js.publish(subject, headers={"Nats-Msg-Id": msg_id})
    except (NoStreamResponseError, APIError):
        return "no stream"
    return "duplicate" if ack.duplicate else "stored"


async def publish(js, subject, **options):
    """(PubAck, None), or (None, what became of it)."""
    try:
        return await js.publish(subject, **options), None
    except NoStreamResponseError:
        return None, "no stream"
    except APIError as error:
        return None, "full" if error.err_code == 10077 else f"refused: {error.err_code}"


@wrong("fate", "said 'stored' of an id that was there; wanted: 'duplicate'")
async def does_not_read_the_ack(js, subject, msg_id):
    _, error = await publish(js, subject, headers={"Nats-Msg-Id": msg_id})
    return error or "stored"


@wrong("fate", "wanted: 'duplicate'")
async def sends_no_id(js, subject, msg_id):
    ack, error = await publish(js, subject)
    if error:
        return error
    return "duplicate" if ack.duplicate else "stored"


@right("fate")
async def reads_the_words_of_the_error(js, subject, msg_id):
    try:
        ack = await js.publish(subject, msg_id.encode(), headers={"Nats-Msg-Id": msg_id})
    except Exception as error:
        return "full" if "maximum messages" in str(error) else "no stream"
    return {None: "stored", True: "duplicate"}[ack.duplicate]

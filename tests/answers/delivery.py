"""Answers to the exercises of delivery."""

import asyncio
import contextlib
import functools

from nats.js.errors import NotFoundError

from answers import answers_to

right, wrong = answers_to("delivery")


@wrong("right_answer", "with a delay of 0 s; wanted: at least 0.2 s")
async def naks_without_a_delay(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak()
    else:
        await msg.ack()


@wrong("right_answer", "left handle and would have ended the loop")
async def lets_the_unexpected_out(msg, process):
    try:
        await process(msg)
    except ConnectionError:
        await msg.nak(delay=0.5)
    except ValueError:
        await msg.term()
    else:
        await msg.ack()


@wrong("right_answer", "Error, handle answered with term; wanted: nak")
async def terminates_everything_else(msg, process):
    try:
        await process(msg)
    except ConnectionError:
        await msg.nak(delay=0.5)
    except Exception:
        await msg.term()
    else:
        await msg.ack()


@wrong("right_answer", "answered with ack; wanted: term")
async def acks_bad_messages(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.ack()
    except Exception:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()


@wrong("right_answer", "before process had ended")
async def acks_before_it_processes(msg, process):
    try:
        await msg.ack()
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()


@wrong("right_answer", "a delay of 500 s; wanted: seconds")
async def delay_in_milliseconds(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=500)
    else:
        await msg.ack()


@wrong("right_answer", "(a ValueError), handle answered with nak; wanted: term")
async def looks_at_the_exact_type(msg, process):
    try:
        await process(msg)
    except Exception as error:
        if type(error) is ValueError:
            await msg.term()
        else:
            await msg.nak(delay=0.5)
    else:
        await msg.ack()


@wrong("right_answer", "handle answered with nak; wanted: ")
async def knows_the_messages_of_the_check(msg, process):
    with contextlib.suppress(Exception):
        await process(msg)
    if msg.data == b"bad":
        await msg.term()
    else:
        await msg.nak(delay=0.5)


@wrong("right_answer", "was cancelled in the middle of the work, and nothing came out")
async def cannot_be_stopped(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except BaseException:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()


@wrong("right_answer", "handle answered with nak and ack; wanted: nak, once")
async def acks_in_finally(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.respond(b'-NAK {"delay": 500000000}')
    finally:
        if not msg.is_acked:
            await msg.ack()


@wrong(
    "right_answer", "at delivery 10 of a message, handle answered with nak, with a delay of 204.8 s"
)
async def lets_the_delay_grow_without_a_limit(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.2 * 2**msg.metadata.num_delivered)
    else:
        await msg.ack()


@wrong("right_answer", "at delivery 10 of a message, handle answered with term; wanted: nak")
async def gives_up_after_three(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        if msg.metadata.num_delivered > 3:
            await msg.term()
        else:
            await msg.nak(delay=0.5)
    else:
        await msg.ack()


@wrong("right_answer", "handle called process 3 times for one delivery")
async def tries_again_in_place(msg, process):
    for _ in range(3):
        try:
            await process(msg)
        except ValueError:
            return await msg.term()
        except Exception:
            continue
        return await msg.ack()
    await msg.nak(delay=0.5)


@wrong(
    "right_answer", "cancelled in the middle of the work, and answered with ack; wanted: neither"
)
async def acks_what_was_cancelled(msg, process):
    try:
        await process(msg)
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.5)
    finally:
        if not msg.is_acked:
            await msg.ack()


@wrong("right_answer", "1 s later process was still at work; wanted: the cancel ends it")
async def shields_the_work(msg, process):
    try:
        await asyncio.shield(process(msg))
    except ValueError:
        await msg.term()
    except Exception:
        await msg.nak(delay=0.5)
    else:
        await msg.ack()


@right("right_answer")
async def says_first_that_it_is_at_work(msg, process):
    await msg.in_progress()
    delay = min(60, 0.2 * 2**msg.metadata.num_delivered)
    answer = msg.ack
    try:
        await process(msg)
    except Exception as error:
        answer = msg.term if isinstance(error, ValueError) else functools.partial(msg.nak, delay)
    await answer()


@right("right_answer")
async def gives_it_back_when_cancelled(msg, process):
    working = asyncio.create_task(process(msg))
    try:
        await asyncio.wait([working])
    except asyncio.CancelledError:
        working.cancel()
        await msg.nak()
        raise
    match working.exception():
        case None:
            await msg.ack()
        case ValueError():
            await msg.term()
        case _:
            await msg.nak(delay=60)


@right("right_answer")
async def speaks_the_protocol(msg, process):
    payload = b"+ACK"
    try:
        await process(msg)
    except ValueError:
        payload = b"+TERM cannot be read"
    except Exception:
        payload = b"-NAK 500ms"
    await msg._client.publish(msg.reply, payload)


@right("right_answer")
async def asks_what_was_raised(msg, process):
    [raised] = await asyncio.gather(process(msg), return_exceptions=True)
    if isinstance(raised, ValueError):
        await msg.term()
    elif raised:
        await msg.nak(delay=1)
    else:
        await msg.ack_sync()


async def beat(msg, interval, beats=1000):
    for _ in range(beats):
        await asyncio.sleep(interval)
        await msg.in_progress()


async def keep_with(heartbeat, msg, work):
    """Works, then ends this heartbeat (coroutine), then acks."""
    beating = asyncio.create_task(heartbeat)
    try:
        await work(msg)
    finally:
        beating.cancel()
    await msg.ack()


@wrong("keep_it", "another worker got a message")
async def no_heartbeat(msg, work):
    await work(msg)
    await msg.ack()


@wrong("keep_it", "another worker got a message")
async def one_heartbeat(msg, work):
    await keep_with(beat(msg, 0.3, beats=1), msg, work)


@wrong("keep_it", "another worker got a message")
async def beats_too_slowly(msg, work):
    await keep_with(beat(msg, 1.5), msg, work)


@wrong("keep_it", "while work was still running")
async def acks_before_it_works(msg, work):
    await msg.ack()
    await work(msg)


@wrong("keep_it", "keep answered with nothing; wanted: an ack")
async def never_acks(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    try:
        await work(msg)
    finally:
        beating.cancel()


@wrong("keep_it", "a task that keep began was still running; wanted: the heartbeat ends")
async def never_ends_the_heartbeat(msg, work):
    asyncio.create_task(beat(msg, 0.3))
    await work(msg)
    await msg.ack()


@wrong("keep_it", "heartbeats for it; wanted: they end with the work")
async def ends_the_heartbeat_when_all_goes_well(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    await work(msg)
    beating.cancel()
    await msg.ack()


@wrong("keep_it", "keep returned; wanted: the exception")
async def swallows_the_exception(msg, work):
    try:
        await keep_with(beat(msg, 0.3), msg, work)
    except Exception:
        return


@wrong("keep_it", "keep answered with ack; wanted: nothing that ends the message")
async def acks_what_failed(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    try:
        await work(msg)
    finally:
        beating.cancel()
        await msg.ack()


@wrong("keep_it", "A task that keep began had ended with ValueError: invalid literal")
async def a_heartbeat_that_dies(msg, work):
    async def beating():
        print(f"at work on order {int(msg.data.hex() + 'th')}")
        await beat(msg, 0.3)

    await keep_with(beating(), msg, work)


@wrong("keep_it", "another worker got a message")
async def one_at_a_time(msg, work):
    while BUSY:
        await asyncio.sleep(0.01)
    BUSY.append(msg)
    try:
        await keep_with(beat(msg, 0.3), msg, work)
    finally:
        BUSY.remove(msg)


BUSY = []


@wrong("keep_it", "keep changed settings of the consumer: ack_wait")
async def a_longer_ack_wait(msg, work):
    js = msg._client.jetstream()
    names = msg.metadata.stream, msg.metadata.consumer
    config = (await js.consumer_info(*names)).config
    await js.add_consumer(names[0], config.evolve(ack_wait=60))
    await keep_with(beat(msg, 0.3), msg, work)


@wrong("keep_it", "keep changed settings of the consumer: ack_wait")
async def a_longer_ack_wait_for_a_while(msg, work):
    js = msg._client.jetstream()
    stream, consumer = msg.metadata.stream, msg.metadata.consumer
    config = (await js.consumer_info(stream, consumer)).config
    await js.add_consumer(stream, config.evolve(ack_wait=60))
    try:
        await work(msg)
    finally:
        await js.add_consumer(stream, config)
    await msg.ack()


@wrong("keep_it", "keep changed settings of the consumer: pause_until")
async def a_paused_consumer(msg, work):
    pause = f"$JS.API.CONSUMER.PAUSE.{msg.metadata.stream}.{msg.metadata.consumer}"
    await msg._client.request(pause, b'{"pause_until": "2099-01-01T00:00:00Z"}')
    try:
        await work(msg)
    finally:
        await msg._client.request(pause, b"")
    await msg.ack()


@wrong("keep_it", "keep was cancelled and ended, and work was still running")
async def leaves_the_work_alone(msg, work):
    await keep_with(beat(msg, 0.3), msg, lambda msg: asyncio.shield(work(msg)))


@wrong("keep_it", "keep called it 2 times; wanted: once")
async def works_again(msg, work):
    async def twice(msg):
        try:
            await work(msg)
        except RuntimeError:
            await work(msg)

    await keep_with(beat(msg, 0.3), msg, twice)


@wrong("keep_it", "The consumer is gone; wanted: the consumer as it was")
async def nobody_can_ask(msg, work):
    js = msg._client.jetstream()
    with contextlib.suppress(NotFoundError):
        await js.delete_consumer(msg.metadata.stream, msg.metadata.consumer)
    await work(msg)


@wrong("keep_it", "TimeoutError came out of keep, and work had raised nothing")
async def has_no_patience(msg, work):
    await asyncio.wait_for(keep_with(beat(msg, 0.3), msg, work), 1)


@wrong("keep_it", "ExceptionGroup came out; wanted: the exception of work")
async def in_a_group(msg, work):
    async with asyncio.TaskGroup() as group:
        beating = group.create_task(beat(msg, 0.3))
        await work(msg)
        beating.cancel()
    await msg.ack()


@wrong("keep_it", "with a delay of 30 s; wanted: back within 2 s")
async def comes_back_late(msg, work):
    try:
        await keep_with(beat(msg, 0.3), msg, work)
    except RuntimeError:
        await msg.nak(delay=30)
        raise


@wrong("keep_it", "keep was cancelled, and 2 s later the message was not back")
async def forgets_the_cancel(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    try:
        await work(msg)
    except Exception:
        beating.cancel()
        raise
    beating.cancel()
    await msg.ack()


@wrong("keep_it", "work raised RuntimeError, and keep answered with term")
async def gives_it_up(msg, work):
    try:
        await keep_with(beat(msg, 0.3), msg, work)
    except RuntimeError:
        await msg.term()
        raise


@right("keep_it")
async def gives_it_back(msg, work):
    beating = asyncio.create_task(beat(msg, 0.5))
    try:
        await work(msg)
    except BaseException:
        await msg.nak()
        raise
    finally:
        beating.cancel()
    await msg.ack_sync()


@right("keep_it")
async def with_the_heartbeat_of_the_lesson(msg, work):
    async def heartbeat(held):
        while True:
            await asyncio.sleep(0.3)
            for msg in held:
                if not msg.is_acked:
                    await msg.in_progress()
                    print("in progress", int(msg.data))

    beating = asyncio.create_task(heartbeat([msg]))
    try:
        await work(msg)
        await msg.ack()
    finally:
        beating.cancel()


@right("keep_it")
async def one_heartbeat_for_all(msg, work):
    async def beating():
        while HELD:
            for each in [*HELD]:
                await each.in_progress()
            await asyncio.sleep(0.3)

    HELD.append(msg)
    if len(HELD) == 1:
        asyncio.create_task(beating())
    try:
        await work(msg)
    finally:
        HELD.remove(msg)
    await msg.ack()


HELD = []


@right("keep_it")
async def beats_between_looks_at_the_work(msg, work):
    working = asyncio.create_task(work(msg))
    try:
        while not working.done():
            await msg.in_progress()
            await asyncio.wait([working], timeout=0.25)
    finally:
        working.cancel()
    await working
    await msg.ack()


# The server's default ack wait.
wrong("nobody_shares", "2 s after they were taken, 0 of 3")({"ack_wait": 30, "batch": 3})
# An ack wait that fits a long batch.
wrong("nobody_shares", "2 s after they were taken, 0 of 10")({"ack_wait": 4, "batch": 10})
# A batch too long for ack wait, and an ack wait that fits one message alone.
wrong("nobody_shares", "the work on the batch takes 3.0 s")({"ack_wait": 1.5, "batch": 10})
wrong("nobody_shares", "the work on the batch takes 0.9 s")({"ack_wait": 0.4, "batch": 3})
wrong("nobody_shares", "batch is 1; wanted: a whole number, at least 3")(
    {"ack_wait": 1.5, "batch": 1}
)
# In milliseconds.
wrong("nobody_shares", "ack_wait is 1500 s")({"ack_wait": 1500, "batch": 3})
# Fits, but only just.
wrong("nobody_shares", "the work on the batch takes 0.9 s: 0.1 s of room")(
    {"ack_wait": 1.0, "batch": 3}
)
wrong("nobody_shares", "may take 2 s: 0.1 s of room")({"ack_wait": 1.9, "batch": 3})
right("nobody_shares")({"ack_wait": 1.6, "batch": 4})
right("nobody_shares")({"batch": 3, "ack_wait": 1.2})

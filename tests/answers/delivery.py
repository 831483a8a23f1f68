"""Answers to the exercises of delivery."""

import asyncio

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


@wrong("right_answer", "KeyError left handle")
async def lets_the_unexpected_out(msg, process):
    try:
        await process(msg)
    except ConnectionError:
        await msg.nak(delay=0.5)
    except ValueError:
        await msg.term()
    else:
        await msg.ack()


@wrong("right_answer", "raised KeyError, handle answered with term; wanted: nak")
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


@wrong("keep_it", "another worker got the message")
async def no_heartbeat(msg, work):
    await work(msg)
    await msg.ack()


@wrong("keep_it", "another worker got the message")
async def one_heartbeat(msg, work):
    await keep_with(beat(msg, 0.3, beats=1), msg, work)


@wrong("keep_it", "another worker got the message")
async def beats_too_slowly(msg, work):
    await keep_with(beat(msg, 1.5), msg, work)


@wrong("keep_it", "while work was still running")
async def acks_before_it_works(msg, work):
    await msg.ack()
    await work(msg)


@wrong("keep_it", "left 1 message unanswered")
async def never_acks(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    try:
        await work(msg)
    finally:
        beating.cancel()


@wrong("keep_it", "still beating")
async def never_ends_the_heartbeat(msg, work):
    asyncio.create_task(beat(msg, 0.3))
    await work(msg)
    await msg.ack()


@wrong("keep_it", "keep returned; wanted: the exception")
async def swallows_the_exception(msg, work):
    try:
        await keep_with(beat(msg, 0.3), msg, work)
    except Exception:
        return


@wrong("keep_it", "keep answered it for good")
async def acks_what_failed(msg, work):
    beating = asyncio.create_task(beat(msg, 0.3))
    try:
        await work(msg)
    finally:
        beating.cancel()
        await msg.ack()


@right("keep_it")
async def beats_between_looks_at_the_work(msg, work):
    working = asyncio.create_task(work(msg))
    while not working.done():
        await msg.in_progress()
        await asyncio.wait([working], timeout=0.25)
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
right("nobody_shares")({"ack_wait": 1.6, "batch": 4})

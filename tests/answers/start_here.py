"""Answers to the exercises of start_here."""

import asyncio

import nats
import numpy

from answers import answers_to

right, wrong = answers_to("start_here")

wrong("first_check", "With 2 nodes gone, 1 of 3 is left, and the nodes say that a majority is 2")(2)
wrong("first_check", "With 1 node gone, 2 of 3 are left")(0)
wrong("first_check", "With 3 nodes gone, 0 of 3 is left")(3)
wrong("first_check", "You say that -1 of 3 nodes may die")(-1)
wrong("first_check", "is a str; wanted: a whole number")("one")
wrong("first_check", "True is a bool; wanted: a whole number")(True)


@right("first_check")
def what_a_majority_leaves():
    nodes = 3
    majority = nodes // 2 + 1
    return nodes - majority


@right("first_check")
def less_than_half():
    return numpy.array([0, 1, 2, 3]).searchsorted(3 / 2) - 1


@wrong("first_message", "came on 'greetings'; wanted: 'greetings.lab'")
async def another_subject(nc):
    await nc.publish("greetings", b"hello")


@wrong("first_message", "carried b'Hello!'; wanted: b'hello'")
async def another_text(nc):
    await nc.publish("greetings.lab", b"Hello!")


@wrong("first_message", "raised TypeError")
async def payload_is_text(nc):
    await nc.publish("greetings.lab", "hello")


@wrong("first_message", "No message arrived")
async def sends_nothing(nc):
    await nc.flush()


@wrong("first_message", "sent with the client that your function is given")
async def sends_it_into_another_account(nc):
    async with await nats.connect(f"nats://{nc.connected_url.netloc}") as mine:
        await mine.publish("greetings.lab", b"hello")


@wrong("first_message", "sent nothing; another one did")
async def sends_it_with_a_client_of_its_own(nc):
    options = {key: nc.options[key] for key in ("user", "password")}
    async with await nats.connect(nc.connected_url.geturl(), **options) as mine:
        await mine.publish("greetings.lab", b"hello")
        await mine.flush()


@wrong("first_message", "2 messages arrived; wanted: one")
async def sends_it_twice_to_be_sure(nc):
    for _ in range(2):
        await nc.publish("greetings.lab", b"hello")


@right("first_message")
async def encodes_a_text_and_flushes(nc):
    await nc.publish("greetings.lab", "hello".encode())  # noqa: UP012
    await nc.flush()


@right("first_message")
async def closes_when_it_is_done(nc):
    subject = ".".join(["greetings", "lab"])
    await nc.publish(payload=bytes("hello", "ascii"), subject=subject)
    await nc.close()


@right("first_message")
async def sends_it_in_a_task(nc):
    await asyncio.gather(nc.publish("greetings.lab", b"hello", headers={"From": "me"}))

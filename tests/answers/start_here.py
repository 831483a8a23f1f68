"""Answers to the exercises of start_here."""

from answers import answers_to

right, wrong = answers_to("start_here")

wrong("first_check", "With 2 nodes gone, 1 of 3 is left, and the nodes say that a majority is 2")(2)
wrong("first_check", "With 1 node gone, 2 of 3 are left")(0)
wrong("first_check", "is a str; wanted: a whole number")("one")


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


@right("first_message")
async def encodes_a_text_and_flushes(nc):
    await nc.publish("greetings.lab", "hello".encode())  # noqa: UP012
    await nc.flush()

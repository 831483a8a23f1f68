"""Answers to the exercises: wrong ones, each with words of the verdict that it must hear, and right
ones in another style than the solution. A module for each lesson:

    right, wrong = answers_to("core_nats")

    @wrong("ready", "no SUB had left")
    async def returns_at_once(nc, handler):
        await nc.subscribe("orders.*", cb=handler)

    wrong("pattern", "also got 'sensors.berlin.temp'")("sensors.>")
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass

from labkit.exercises.engine import source_of

EVERY = []  # all answers of all lessons (list of Answer)


@dataclass
class Answer:
    topic: str
    exercise: str
    value: object  # a function; or, where the exercise asks for a value, that
    words: str = ""  # of the verdict on a wrong one; empty if it is right

    @property
    def name(self):
        """What identifies it in a list of tests, and tells a reader what it does."""
        if inspect.isfunction(self.value):
            return self.value.__name__
        return repr(self.value)

    def source(self, name):
        """As it stands in a cell that gives the answer this name."""
        return source_of(self.value, name)


def answers_to(topic):
    """(right, wrong): what registers answers to the exercises of this lesson."""

    def right(exercise):
        return wrong(exercise, "")

    def wrong(exercise, words):
        def register(value):
            EVERY.append(Answer(topic, exercise, value, words))
            return value

        return register

    return right, wrong


def every():
    """All answers of all lessons (list of Answer), in the order of their modules."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return EVERY

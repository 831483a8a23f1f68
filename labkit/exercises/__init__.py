"""The exercises: a module for each lesson, named like the lesson's account, and their engine."""

from labkit.exercises.engine import NotYet, exercise, want

__all__ = ["NotYet", "exercise", "want"]

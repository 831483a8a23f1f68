"""What happened, when, and to whom: events as a table, and what is looked at regularly."""

from labkit.wire.record import Recorder
from labkit.wire.samplers import regularly, sampling, watching

__all__ = ["Recorder", "regularly", "sampling", "watching"]

"""What happened, when, and to whom: a record of events, and samplers that look at a stream or a
consumer at regular intervals."""

from labkit.wire.record import Recorder
from labkit.wire.samplers import regularly, sampling, watching

__all__ = ["Recorder", "regularly", "sampling", "watching"]

"""What happened, when, and to whom: the wire, which records the connections of a lesson; a record
that cells write by hand; and samplers that look at a stream or a consumer at regular intervals."""

from labkit.wire.record import Recorder
from labkit.wire.samplers import regularly, sampling, watching
from labkit.wire.tap import Wire

__all__ = ["Recorder", "Wire", "regularly", "sampling", "watching"]

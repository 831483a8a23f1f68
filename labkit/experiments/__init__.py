"""Measurements: a function over a grid of parameters, repeated and shuffled; and notebooks run with
other parameters."""

from labkit.experiments.sweeps import cpu_seconds, machine, sweep

__all__ = ["cpu_seconds", "machine", "sweep"]

"""Programs beside the notebook, as processes of their own: workers, whole programs, Valkey,
Prometheus."""

from labkit.processes.programs import program, progress
from labkit.processes.prometheus_server import prometheus
from labkit.processes.valkey_server import valkey

__all__ = ["program", "progress", "prometheus", "valkey"]

"""labkit: the plumbing of NATS Lab. It starts and breaks servers, gives a clean slate, waits,
records, draws and checks. It never wraps a NATS call: what a learner would carry into production
stands in the notebook.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "labkit needs Python 3.11 or newer; this is %d.%d (%s). Make a new environment with a newer"
        " one, for example: python3.12 -m venv .venv"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

from labkit import pictures
from labkit.errors import LabError
from labkit.lesson.lab import Lab
from labkit.wire.record import Recorder

__all__ = ["Lab", "LabError", "Recorder", "pictures"]

"""What pip and uv install: labkit, and with it all that requirements.txt pins. The rest is said in
pyproject.toml."""

import sys
from pathlib import Path

# requirements.txt names this folder first, so that pip comes here before it meets a package that is
# too new for this Python.
if sys.version_info < (3, 11):
    sys.exit(
        "NATS Lab needs Python 3.11 or newer; this is Python %d.%d.%d. Delete the folder .venv, "
        "and make it with a newer one, for example: python3.13 -m venv .venv" % sys.version_info[:3]
    )

from setuptools import setup  # noqa: E402

lines = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines()
setup(install_requires=[line for line in lines if not line.startswith("-e")])

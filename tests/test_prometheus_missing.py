"""What becomes of a Prometheus that is not installed, or does not start."""

import shutil
import sys

import pytest

from labkit import LabError
from labkit.processes.prometheus_server import prometheus

SCRIPT = """#!{python}
import sys
sys.exit("no such scrape interval")
"""


async def test_where_it_is_not_installed_there_is_none(calm, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert await prometheus(calm, "") is None


@pytest.mark.skipif(sys.platform == "win32", reason="it does not start a script as a program")
async def test_the_error_of_one_that_ends_at_once_holds_its_own_words(calm, monkeypatch, tmp_path):
    broken = tmp_path / "prometheus"
    broken.write_text(SCRIPT.format(python=sys.executable), encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(LabError, match="no such scrape interval"):
        await prometheus(calm, "global: {scrape_interval: never}")

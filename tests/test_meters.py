"""Pictures of meters, and what becomes of a Prometheus that is not there or does not start."""

import shutil
import sys

import pytest

from labkit import Lab, LabError
from labkit.pictures.metrics import lanes, lines
from labkit.processes.prometheus_server import prometheus
from labkit.wire.record import Recorder

PNG = b"\x89PNG"


def test_lines_draw_what_lies_between_two_of_them():
    upper, lower = [(0, 0), (1, 8), (2, 8)], [(0, 0), (1, 4), (2, 8)]
    picture = lines(
        {"came": upper, "went": lower},
        "4 behind",
        "Four behind.",
        "sequence",
        between=("came", "went", "4 behind"),
    )
    assert picture.png.startswith(PNG) and repr(picture) == "Picture: Four behind."


def test_lanes_draw_a_bar_for_each_change():
    log = Recorder()
    for word in ("ok", "ok", "unavailable", "no answer"):
        log("state", lane="healthz", word=word)
    assert lanes(
        log, ["healthz", "nobody said a word"], "A title", "What it says.", marks=[(0, "cut")]
    ).png.startswith(PNG)
    assert lanes(Recorder(), ["healthz"], "A title", "Nothing yet.").png.startswith(PNG)


@pytest.fixture
async def lab(shared):
    lab = await Lab.open("checks")
    yield lab
    await lab.close()


async def test_where_it_is_not_installed_there_is_none(lab, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert await prometheus(lab, "") is None


@pytest.mark.skipif(
    sys.platform == "win32",
    reason="the stand-in for the program is a script, which it does not start",
)
async def test_one_that_ends_at_once_is_told_with_its_own_words(lab, monkeypatch, tmp_path):
    broken = tmp_path / "prometheus"
    broken.write_text(
        f"#!{sys.executable}\nimport sys; sys.exit('no such scrape interval')\n", encoding="utf-8"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(LabError, match="no such scrape interval"):
        await prometheus(lab, "global: {scrape_interval: never}")

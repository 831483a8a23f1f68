"""What holds for all pictures: each has an example that is checked, is drawn in the lab's style,
and carries its finding in words. What each one shows is tested in test_pictures_of_*.py."""

import importlib
import io
import warnings

import matplotlib
import matplotlib.image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import FAULTS, bars, faults_not_seen, figure_of, marks, named_ticks, title, written
from labkit import Recorder, pictures
from labkit.clinic import tree
from labkit.pictures import style
from test_pictures_of_events import EXAMPLES as EVENTS
from test_pictures_of_ideas import CLINIC
from test_pictures_of_ideas import EXAMPLES as IDEAS
from test_pictures_of_numbers import EXAMPLES as NUMBERS

EXAMPLES = EVENTS | NUMBERS | IDEAS
DRAWS = {name: draw for name, (draw, _) in (EXAMPLES | CLINIC).items()}
NOTHING = Recorder()
EMPTY = {
    "timeline": lambda: pictures.timeline(NOTHING, ["publisher", "A"], "Nothing yet", "alt"),
    "deliveries": lambda: pictures.deliveries(NOTHING, "Nothing yet", "alt"),
    "stream_log": lambda: pictures.stream_log({}, {}, "Nothing yet", "alt"),
    "depths": lambda: pictures.depths(NOTHING, ["A", "B"], "Nothing yet", "alt"),
    "attempts": lambda: pictures.attempts(NOTHING, 1, "Nothing yet", "alt"),
    "lag": lambda: pictures.lag(NOTHING, "Nothing yet", "alt"),
    "lifelines": lambda: pictures.lifelines(
        NOTHING, ["charged"], "Nothing yet", "alt", curves={"charged": "charged"}
    ),
    "answers": lambda: pictures.answers(NOTHING, ["publish"], "Nothing yet", "alt"),
    "lanes": lambda: pictures.lanes(NOTHING, ["health"], "Nothing yet", "alt"),
    "bars": lambda: pictures.bars({}, "Nothing yet", "alt", "messages"),
    "ecdf": lambda: pictures.ecdf({}, "Nothing yet", "alt", "ms"),
}


def styled(module):
    """Names of the functions of this module that draw."""
    return [name for name, what in vars(module).items() if is_styled_in(module, what)]


def is_styled_in(module, what):
    return hasattr(what, "__wrapped__") and what.__module__ == module.__name__


def test_each_function_that_draws_has_an_example_that_is_checked():
    examples = {name.split(",")[0] for name in EXAMPLES}
    assert examples == set(pictures.__all__) - {"samples"}, "samples() draws nothing"
    for module, names in pictures.MODULES.items():
        found = styled(importlib.import_module(f"labkit.pictures.{module}"))
        assert set(found) == set(names) - {"samples"}, module
    assert set(CLINIC) == set(styled(tree))


def test_a_check_that_looks_at_nothing_misses_every_fault():
    draw, _ = EXAMPLES["bars"]
    missed = faults_not_seen(draw, lambda figure: None)
    assert set(FAULTS) < set(missed)
    assert len(missed) > len(FAULTS) + 5, "and that a bar, a number or a name is missing"


def test_a_name_that_is_not_there_is_told_what_there_is():
    with pytest.raises(AttributeError, match="labkit.pictures has no 'pie'; it has answers, "):
        pictures.pie  # noqa: B018


@pytest.mark.parametrize("name", DRAWS)
def test_a_picture_is_rendered_as_wide_as_it_was_laid_out_and_says_what_it_shows(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: the axes have no room left
        picture = DRAWS[name]()
    pixels = matplotlib.image.imread(io.BytesIO(picture.png))
    width = {"cluster_map": 6.4, "decision_tree": 8.6}.get(name, 8)
    assert pixels.shape[1] == round(width * 110)
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == f"Picture: {picture.alt}" == repr(picture)
    assert metadata["image/png"]["alt"] == picture.alt
    if name not in CLINIC and not name.startswith(("request_", "two_", "settings_")):
        assert picture.alt == "alt"


@pytest.mark.parametrize("name", DRAWS)
def test_no_text_is_cut_off(name):
    figure = figure_of(DRAWS[name])
    FigureCanvasAgg(figure).draw()
    texts = [text for ax in figure.axes for text in written(ax)]
    texts += [text for ax in figure.axes if ax.axison for text in named_ticks(ax)]
    assert texts
    for text in texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_record_draws_an_empty_picture(name):
    figure = figure_of(EMPTY[name])
    assert title(figure) == "Nothing yet"
    for ax in figure.axes:
        assert marks(ax) == bars(ax) == []
    assert EMPTY[name]().alt == "alt"


def test_drawing_leaves_the_learners_own_settings_alone():
    before = dict(matplotlib.rcParams)
    for draw in DRAWS.values():
        figure_of(draw)
    assert dict(matplotlib.rcParams) == before


def test_outcomes_differ_by_shape_as_well_as_by_colour():
    colours, shapes = zip(*style.OUTCOME.values())
    assert len(set(colours)) == len(colours) == len(set(shapes))


def test_what_draws_is_loaded_when_something_is_drawn(python):
    source = """
import sys
from labkit import Lab, pictures
print(sorted({"matplotlib", "pandas"} & set(sys.modules)))
pictures.bars
print("matplotlib" in sys.modules)
"""
    process = python(source)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines() == ["[]", "True"]

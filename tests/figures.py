"""What a picture shows, as plain values that a test can compare: bars, marks, lines, texts, labels.
And what a picture would show if its function had a fault: see faults_not_seen().

Only what can be seen counts: what is hidden is not there. Numbers are rounded, colours are hex
strings. Bars, marks and lines come in the order in which they were drawn.
"""

import pytest
from matplotlib.category import StrCategoryLocator
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from labkit import Recorder
from labkit.pictures import style


def at(seconds, event, **fields):
    """An event as a Recorder notes it, at this time."""
    return {"at": seconds, "event": event, **fields}


def record(*events):
    """A Recorder that holds these events."""
    log = Recorder()
    log.events += events
    return log


def figure_of(draw):
    """The matplotlib figure behind the Picture that draw() makes."""
    figures = []
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(style.Picture, "__init__", lambda _, figure, alt: figures.append(figure))
        draw()
    [figure] = figures
    return figure


# --- what it shows


def near(*numbers):
    """The numbers without the noise of float arithmetic."""
    return tuple(round(float(number), 6) + 0.0 for number in numbers)


def colour(value):
    return "none" if isinstance(value, str) and value == "none" else to_hex(value).upper()


INK = colour(style.INK)
MUTED = colour(style.MUTED)
GRID = colour(style.GRID)


def visible(artists):
    return [artist for artist in artists if artist and artist.get_visible()]


def words(text):
    return text.get_text().strip()


def marks(ax):
    """(x, y, (colour, shape)) of each mark that stands alone, not on a line."""
    return [
        (*near(x, y), (colour(line.get_markerfacecolor()), line.get_marker()))
        for line in visible(ax.lines)
        if line.get_linestyle() == "None"
        for x, y in zip(*line.get_data())
    ]


def lines(ax):
    """(colour, its points) of each line. Of a line across the whole axes one coordinate is a share
    of the axes: it goes from 0 to 1."""
    return [
        (colour(line.get_color()), [near(x, y) for x, y in zip(*line.get_data())])
        for line in visible(ax.lines)
        if line.get_linestyle() != "None"
    ]


def rectangles(ax):
    return [patch for patch in visible(ax.patches) if isinstance(patch, Rectangle)]


def bars(ax):
    """(left, right, middle, colour) of each bar, box or band; middle: its y."""
    found = []
    for bar in rectangles(ax):
        middle = bar.get_y() + bar.get_height() / 2
        numbers = near(bar.get_x(), bar.get_x() + bar.get_width(), middle)
        found.append((*numbers, colour(bar.get_facecolor())))
    return found


def shades(ax):
    """(colour, its corners) of each shaded area, or line of a group of lines."""
    found = []
    for group in visible(ax.collections):
        colours = group.get_facecolor() if len(group.get_facecolor()) else group.get_edgecolor()
        for path in group.get_paths():
            found.append((colour(colours[0]), {near(x, y) for x, y in path.vertices}))
    return found


def texts(ax):
    """(text, x, y) of each text that is written into the axes, sorted. Where it is shifted by some
    points, x and y are those of the place that it belongs to."""
    found = []
    for text in visible(ax.texts):
        place = text.xy if hasattr(text, "xy") else text.get_position()
        if words(text):
            found.append((words(text), *near(*place)))
    return sorted(found)


def boxed(ax):
    """{text: colour} of the texts that stand in a box; a white one is there to be read on."""
    boxes = {words(text): text.get_bbox_patch() for text in visible(ax.texts)}
    colours = {text: colour(box.get_facecolor()) for text, box in boxes.items() if visible([box])}
    return {text: fill for text, fill in colours.items() if fill != "#FFFFFF"}


def arrows(ax):
    """(tail, tip) of each arrow."""
    return [(near(*text.xyann), near(*text.xy)) for text in visible(ax.texts) if is_arrow(text)]


def is_arrow(text):
    return getattr(text, "arrow_patch", None) is not None


def ticks(axis):
    """{label: place} of the labels on this axis."""
    return {
        words(label): near(place)[0]
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels())
        if words(label) and label.get_visible()
    }


def limits(ax):
    """What part of the axes can be seen: (left, right), (bottom, top)."""
    return near(*ax.get_xlim()), near(*ax.get_ylim())


def labels(ax):
    """What is written along the x and the y axis."""
    return [words(label) for label in (ax.xaxis.label, ax.yaxis.label) if label.get_visible()]


def title(figure):
    """The title: above all axes, or else above the first."""
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left")


def legend(holder):
    """{word: (colour, shape or dashes or hatch)} of the legend of a figure or of axes."""
    return {words(text): look(handle) for text, handle in legend_entries(holder)}


def legend_entries(holder):
    """(text, handle) of each entry of the legend that can be seen."""
    found = holder.legends if hasattr(holder, "legends") else [holder.get_legend()]
    return [
        (text, handle)
        for one in visible(found)
        for text, handle in zip(one.get_texts(), one.legend_handles)
        if text.get_visible() and handle.get_visible()
    ]


def look(handle):
    if not isinstance(handle, Line2D):
        return colour(handle.get_facecolor()), handle.get_hatch() or ""
    if handle.get_marker() != "None":
        return colour(handle.get_markerfacecolor()), handle.get_marker()
    return colour(handle.get_color()), handle.get_linestyle()


# --- faults that a test must see


def faults_not_seen(draw, shows):
    """The faults that shows(figure) does not see (list of words). It must fail for the figure with
    each fault of FAULTS, and for the figure without any one of its parts."""
    figure = figure_of(draw)
    shows(figure)
    missed = []
    for name, part in parts(figure):
        part.set_visible(False)
        if passes(shows, figure):
            missed.append(f"without {name}")
        part.set_visible(True)
    for name, spoil in FAULTS.items():
        figure = figure_of(draw)
        spoil(figure)
        if passes(shows, figure):
            missed.append(name)
    return missed


def passes(shows, figure):
    try:
        shows(figure)
    except (AssertionError, LookupError, ValueError):
        return False
    return True


def parts(figure):
    """(name, artist) of all that the function drew; numbers along an axis are matplotlib's own."""
    for place, ax in enumerate(figure.axes):
        drawn = [*marked(ax), *written(ax), *named_ticks(ax)]
        yield from ((f"{part!r} of axes {place}", part) for part in drawn)
    for holder in [figure, *figure.axes]:
        yield from ((f"{text!r} in the legend", text) for text, _ in legend_entries(holder))


def marked(ax):
    """All marks: lines, bars, shades, arrows, boxes around texts."""
    arrows = [text for text in ax.texts if is_arrow(text)]
    boxes = [text.get_bbox_patch() for text in ax.texts if words(text) in boxed(ax)]
    lines = [line for line in ax.lines if len(line.get_xdata())]
    return visible([*lines, *ax.patches, *ax.collections, *arrows, *boxes])


def written(ax):
    """All texts but the numbers along the axes, the title and the legend."""
    inside = [text for text in ax.texts if words(text)]
    return visible(inside + [label for label in (ax.xaxis.label, ax.yaxis.label) if words(label)])


def named_ticks(ax):
    named = [axis for axis in (ax.xaxis, ax.yaxis) if has_names(axis)]
    return [label for axis in named for label in visible(axis.get_majorticklabels())]


def has_names(axis):
    return isinstance(axis.get_major_locator(), (FixedLocator, StrCategoryLocator))


def blank(figure):
    for ax in figure.axes:
        ax.clear()
    without_title(figure)
    without_legend(figure)


def without_marks(figure):
    for ax in figure.axes:
        for part in marked(ax):
            part.set_visible(False)


def without_labels(figure):
    for ax in figure.axes:
        for text in [*written(ax), *ax.get_xticklabels(), *ax.get_yticklabels()]:
            text.set_visible(False)
    without_legend(figure)


def without_legend(figure):
    for holder in [figure, *figure.axes]:
        for text, _ in legend_entries(holder):
            text.set_visible(False)


def without_title(figure):
    figure.suptitle("")
    for ax in figure.axes:
        ax.set_title("", loc="left")


def in_one_colour(figure):
    for ax in figure.axes:
        boxes = [text.get_bbox_patch() for text in ax.texts if words(text) in boxed(ax)]
        for part in [*ax.lines, *ax.patches, *ax.collections, *boxes]:
            part.set_color("#123456")


def moved(figure):
    """All marks a little further to the right, so that texts and axes no longer fit to them."""
    for ax in figure.axes:
        for line in ax.lines:
            line.set_xdata([x * 1.01 + 0.01 for x in line.get_xdata()])
        for bar in rectangles(ax):
            bar.set_x(bar.get_x() * 1.01 + 0.01)
        for arrow in filter(is_arrow, ax.texts):
            arrow.xy = (arrow.xy[0] + 0.01, arrow.xy[1])


FAULTS = {
    "blank": blank,
    "without marks": without_marks,
    "without labels": without_labels,
    "without a title": without_title,
    "in one colour": in_one_colour,
    "moved": moved,
}

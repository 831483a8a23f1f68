"""Pictures of trials and of histories: every trial is a dot, the median a line or a bar; the spread
is never hidden."""

import math
import statistics

from labkit.pictures.style import (
    DASHES,
    GRID,
    INK,
    MUTED,
    SERIES,
    X_IS_DATA,
    Y_IS_DATA,
    Picture,
    canvas,
    headline,
    line_at,
    name_rows,
    note,
    styled,
)

HATCHES = ["", "///", "...", "xx"]
BAND = "#fbe9d0"
SHAPES = ["o", "s", "^", "D", "v", "P", "X"]
COLOURS = [*SERIES, INK]
RING = {"mfc": "none", "mec": INK, "mew": 1.4}
QUANTILES = {"0": 0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def look_of(index):
    """(colour, shape, dashes) of the first, second, … thing."""
    return COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)], DASHES[index % len(DASHES)]


def _groups(frame, by, names):
    """(index, name, rows) of each name that has rows; the index, and so the look, is the one in
    `names`."""
    groups = dict(list(frame.groupby(by)))
    names = names or groups
    return [(index, name, groups[name]) for index, name in enumerate(names) if name in groups]


@styled
def trials(
    frame, x, y, by, title, alt, xlabel="", ylabel="", log="xy", line=None, rings=None, names=None
):
    """Each trial a dot at (x, y), one colour and shape for each value of the column `by`; lines
    through the medians.

    frame: a DataFrame as sweep() returns it; log: which axes are logarithmic; line: (y, text) of a
        limit drawn across;
    rings: {value of `by`: x} of medians to draw a ring around, and call a knee; names: values of
        `by` in the order of their looks and of the legend (default: sorted). The same names in two
        pictures give a thing one colour in both.
    """
    figure, ax = canvas(8, 3.9)
    for index, name, group in _groups(frame.dropna(subset=[y]), by, names):
        colour, shape, _ = look_of(index)
        ax.plot(group[x], group[y], shape, color=colour, ms=4, alpha=0.45, mew=0)
        middle = group.groupby(x)[y].median()
        ax.plot(middle.index, middle, marker=shape, color=colour, ms=6, lw=1.6, label=str(name))
        if rings and name in rings:
            ax.plot(rings[name], middle[rings[name]], "o", ms=14, **RING)
    if rings:
        ax.plot([], [], "o", ms=10, label="knee", **RING)
    _dress(ax, log)
    if "x" in log:
        ax.set_xticks(sorted(frame[x].unique()), minor=False)
        ax.set_xticks([], minor=True)
    if line:
        value, text = line
        ax.axhline(value, color=INK, lw=1, ls=":")
        note(ax, text, (1, value), (-2, 3), xycoords=Y_IS_DATA, ha="right")
    ax.set_xlabel(xlabel or x)
    ax.set_ylabel(ylabel or y)
    ax.set_title(title)
    figure.legend(loc="outside lower center", ncol=5, fontsize=9)
    return Picture(figure, alt)


def samples(frame, column, by, names=None):
    """{name: the column's values of the rows where `by` is that name}, in the order of names
    (default: as they come)."""
    return {
        str(name): list(frame.loc[frame[by] == name, column].dropna())
        for name in names or frame[by].unique()
    }


@styled
def strips(samples, title, alt, xlabel, limit=None, band=None):
    """One row a name, every trial a dot, the median a bar with its value at the right, on a log
    axis.

    samples: {name: values above 0}, from top to bottom; limit: (value, text) drawn as a dashed
    line; band: (from, to, text) of a range that a source predicts, drawn behind the dots.
    """
    figure, ax = canvas(8, 1.3 + 0.38 * len(samples))
    shown = [value for values in samples.values() for value in values]
    above = {"xycoords": X_IS_DATA, "ha": "center" if limit else "left", "color": MUTED}
    if band:
        low, high, text = band
        ax.axvspan(low, high, color=BAND, zorder=-1)
        note(ax, text, (low, 1), (0, 3), **above)
        shown += [low, high]
    if limit:
        value, text = limit
        ax.axvline(value, color=MUTED, lw=1, ls="--", zorder=1)
        note(ax, text, (value, 1), (0, 3), **above)
        shown.append(value)
    for row, values in enumerate(samples.values()):
        _draw_strip(ax, row, values)
    ax.set_xlim(min(shown) / 1.25, max(shown) * 1.25)
    _dress(ax, "x")
    name_rows(ax, list(samples))
    ax.set_ylim(len(samples) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    headline(figure, title)
    return Picture(figure, alt)


def _draw_strip(ax, row, values):
    """One row of strips()."""
    # At five heights in turn, so that equal values do not hide each other.
    heights = [row + 0.1 * (index % 5 - 2) for index in range(len(values))]
    ax.plot(values, heights, "o", color=SERIES[0], ms=5, alpha=0.6, mew=0)
    middle = statistics.median(values)
    ax.plot([middle, middle], [row - 0.36, row + 0.36], color=INK, lw=2.2)
    text = f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}"
    note(ax, text, (1, row), (4, 0), xycoords=Y_IS_DATA, va="center", weight="bold")


def _nines(share):
    """0.9 is one nine, 0.99 two: the height at which the slow ones can be seen."""
    return -math.log10(1 - share)


@styled
def quantiles(frame, columns, by, title, alt, xlabel, limit=None, names=None, shaded=None):
    """What share of all answers had come after so long (an ECDF, drawn from each trial's quantiles,
    on an axis of nines): the line is the median of the trials, the shade reaches from the least to
    the most.

    columns: {column of the frame: quantile between 0 and 1}; limit: (value, text), drawn as a line;
        names: as for trials();
    shaded: those of them that get a shade (default: all).
    """
    figure, ax = canvas(8, 4)
    shares = [_nines(share) for share in columns.values()]
    for index, name, group in _groups(frame.dropna(subset=list(columns)), by, names):
        colour, _, dash = look_of(index)
        values = group[list(columns)]
        if shaded is None or name in shaded:
            ax.fill_betweenx(shares, values.min(), values.max(), color=colour, alpha=0.18, lw=0)
        ax.plot(values.median(), shares, color=colour, ls=dash, lw=1.8, label=str(name))
    _dress(ax, "x")
    if limit:
        value, text = limit
        ax.axvline(value, color=INK, lw=1, ls=":")
        note(ax, text, (value, 0.03), (4, 0), xycoords=X_IS_DATA)
    ax.set_yticks([_nines(share) for share in QUANTILES.values()], list(QUANTILES))
    ax.set_ylim(0, 3.1)
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    figure.legend(loc="outside lower center", ncol=3, fontsize=9)
    return Picture(figure, alt)


@styled
def spans(rows, title, alt, xlabel, mark=None):
    """One row a name, bars from first to last of what it holds; each kind of content has a colour
    and a hatch.

    rows: {name: [(first, last, kind), …]}, from top to bottom; mark: (value, text) drawn as a
        dashed line.
    """
    figure, ax = canvas(8, 1.35 + 0.42 * len(rows))
    kinds = list(dict.fromkeys(kind for parts in rows.values() for *_, kind in parts))
    for row, parts in enumerate(rows.values()):
        for first, last, kind in parts:
            index = kinds.index(kind)
            look = {"color": SERIES[index], "hatch": HATCHES[index], "edgecolor": "white"}
            length = last - first + 1
            ax.barh(row, length, left=first - 0.5, height=0.6, linewidth=0, label=kind, **look)
    if mark:
        line_at(ax, *mark)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    name_rows(ax, list(rows))
    ax.set_title(title, pad=20 if mark else 8)
    handles, labels = ax.get_legend_handles_labels()
    shown = dict(zip(labels, handles))  # one of each kind
    look = {"ncol": len(kinds), "fontsize": 9, "handlelength": 1.6}
    figure.legend(shown.values(), shown, loc="outside lower center", **look)
    return Picture(figure, alt)


def _dress(ax, log):
    """Makes these axes ("x", "y" or both) logarithmic, with plain numbers."""
    for letter in log:
        ax.set(**{f"{letter}scale": "log"})
        axis = {"x": ax.xaxis, "y": ax.yaxis}[letter]
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(_between(axis))
    ax.grid(color=GRID)


def _plain(value, _=None):
    return f"{value:,.10g}"


def _between(axis):
    """Labels between the powers of ten: at 2 to 9 of each in a narrow view, at 2 and 5 in a wider
    one, none in a wide one."""

    def label(value, _):
        low, high = axis.get_view_interval()
        if high < 4 * low:
            shown = "23456789"
        elif high < 30 * low:
            shown = "25"
        else:
            shown = ""
        digit = f"{value:e}"[0]
        return _plain(value) if digit in shown else ""

    return label

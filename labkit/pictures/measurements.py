"""Pictures of trials and of histories: every trial is a dot, the median a line or a bar; the spread
is never hidden."""

import math
import statistics

from labkit.pictures.style import DASHES, GRID, INK, MUTED, SERIES, Picture, canvas, line_at, styled

HATCHES = ["", "///", "...", "xx"]
BAND = "#fbe9d0"
SHAPES = ["o", "s", "^", "D", "v", "P", "X"]
COLOURS = [*SERIES, INK]


def _look(index):
    return COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)], DASHES[index % len(DASHES)]


def _groups(frame, by, names):
    """(index, name, rows) of each name that has rows; the index, and so the look, is the one in
    `names`."""
    groups = dict(list(frame.groupby(by)))
    return [
        (index, name, groups[name]) for index, name in enumerate(names or groups) if name in groups
    ]


def _plain(value, _=None):
    return f"{value:,.10g}"


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
        colour, shape, _ = _look(index)
        ax.plot(group[x], group[y], shape, color=colour, ms=4, alpha=0.45, mew=0)
        middle = group.groupby(x)[y].median()
        ax.plot(middle.index, middle, marker=shape, color=colour, ms=6, lw=1.6, label=str(name))
        if at := (rings or {}).get(name):
            ax.plot(at, middle[at], "o", ms=14, mfc="none", mec=INK, mew=1.4)
    if rings:
        ax.plot([], [], "o", ms=10, mfc="none", mec=INK, mew=1.4, label="knee")
    _dress(ax, log)
    if "x" in log:
        ax.set_xticks(sorted(frame[x].unique()), minor=False)
        ax.set_xticks([], minor=True)
    if line:
        ax.axhline(line[0], color=INK, lw=1, ls=":")
        ax.annotate(
            line[1],
            (1, line[0]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=INK,
        )
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
    if band:
        ax.axvspan(band[0], band[1], color=BAND, zorder=-1)
    if limit:
        ax.axvline(limit[0], color=MUTED, lw=1, ls="--", zorder=1)
    for at, text in filter(None, [band and (band[0], band[2]), limit]):
        ax.annotate(
            text,
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color=MUTED,
            ha="center" if limit else "left",
        )
    for row, values in enumerate(samples.values()):
        beside = [
            row + 0.2 * ((i % 5) - 2) / 2 for i in range(len(values))
        ]  # so that equal ones do not hide each other
        ax.plot(values, beside, "o", color=SERIES[0], ms=5, alpha=0.6, mew=0)
        middle = statistics.median(values)
        ax.plot([middle] * 2, [row - 0.36, row + 0.36], color=INK, lw=2.2)
        ax.annotate(
            f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            weight="bold",
        )
    edges = [*(limit or ())[:1], *(band or ())[:2]]
    every = [value for values in samples.values() for value in values] + edges
    ax.set_xlim(min(every) / 1.25, max(every) * 1.25)
    _dress(ax, "x")
    ax.set_yticks(range(len(samples)), list(samples))
    ax.set_ylim(len(samples) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(xlabel)
    figure.suptitle(
        title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK
    )  # the names at the left may be long
    return Picture(figure, alt)


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
        (colour, _, dash), values = _look(index), group[list(columns)]
        if shaded is None or name in shaded:
            ax.fill_betweenx(shares, values.min(), values.max(), color=colour, alpha=0.18, lw=0)
        ax.plot(values.median(), shares, color=colour, ls=dash, lw=1.8, label=str(name))
    _dress(ax, "x")
    if limit:
        ax.axvline(limit[0], color=INK, lw=1, ls=":")
        ax.annotate(
            limit[1],
            (limit[0], 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    ax.set_yticks(
        [_nines(share) for share in (0, 0.5, 0.9, 0.99, 0.999)], ["0", "p50", "p90", "p99", "p99.9"]
    )
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
    for index, parts in enumerate(rows.values()):
        for first, last, kind in parts:
            look = kinds.index(kind)
            ax.barh(
                index,
                last - first + 1,
                left=first - 0.5,
                height=0.6,
                color=SERIES[look],
                hatch=HATCHES[look],
                edgecolor="white",
                linewidth=0,
                label=kind,
            )
    if mark:
        line_at(ax, *mark)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, pad=20 if mark else 8)
    shown = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(
        shown.values(),
        shown,
        loc="outside lower center",
        ncol=len(kinds),
        fontsize=9,
        handlelength=1.6,
    )
    return Picture(figure, alt)


def _dress(ax, log):
    for letter in log:
        getattr(ax, f"set_{letter}scale")("log")
        axis = getattr(ax, f"{letter}axis")
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(_between(axis))
    ax.grid(color=GRID)


def _between(axis):
    """Labels between the powers of ten, where few of those are in view: all, or those of 2 and
    5."""

    def label(value, _):
        low, high = axis.get_view_interval()
        shown = "23456789" if high < 4 * low else "25" if high < 30 * low else ""
        return _plain(value) if f"{value:e}"[0] in shown else ""

    return label

"""Plain charts: counts as bars, samples as a curve of their shares."""

from matplotlib.ticker import MaxNLocator

from labkit.pictures.style import (
    DASHES,
    GRID,
    INK,
    SERIES,
    X_IS_DATA,
    Picture,
    canvas,
    line_at,
    note,
    styled,
)


@styled
def bars(counts, title, alt, xlabel, expected=None):
    """One bar a name, its count written at its end.

    counts: {name: number}; expected: a value drawn as a line.
    """
    figure, ax = canvas(8, 0.9 + 0.38 * len(counts))
    ax.barh(list(counts), list(counts.values()), color=SERIES[0], height=0.6)
    for name, count in counts.items():
        _write_count(ax, name, count, inside=count > max(counts.values()) / 8)
    if expected is not None:
        line_at(ax, expected, f"{expected:,.0f} each, if shared evenly")
    ax.set_xlim(0, max([*counts.values(), expected or 0, 1]) * 1.12)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=8 if expected is None else 20)
    return Picture(figure, alt)


def _write_count(ax, name, count, inside):
    """Writes the number at the end of its bar: inside it, or behind one that is too short."""
    place = {"ha": "right", "color": "white"} if inside else {"ha": "left", "color": INK}
    note(ax, f" {count:,} ", (count, name), va="center", weight="bold", **place)


@styled
def ecdf(samples, title, alt, xlabel, limit=None):
    """Share of the samples below each value, on a log axis; one line a name, with p50 and p99
    marked and written.

    samples: {name: values}; limit: (value, text) drawn as a vertical line.
    """
    figure, ax = canvas(8, 3.4)
    for index, (name, values) in enumerate(samples.items()):
        _draw_shares(ax, index, name, sorted(values))
    if limit:
        value, text = limit
        ax.axvline(value, color=INK, lw=1, ls=":")
        background = {"fc": "white", "ec": "none", "pad": 1}
        note(ax, text, (value, 0.25), (4, 0), xycoords=X_IS_DATA, bbox=background, zorder=5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(axis="x", color=GRID)
    ax.set_ylim(0, 1.03)
    ax.set_yticks([0, 0.5, 0.99], ["0", "p50", "p99"])
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    if samples:
        figure.legend(loc="outside lower center", ncol=2, fontsize=9)
    return Picture(figure, alt)


def _draw_shares(ax, index, name, values):
    """One line of ecdf(). values: sorted."""
    count = len(values)
    shares = [place / count for place in range(1, count + 1)]
    p50 = values[count // 2]
    p99 = values[min(count - 1, int(count * 0.99))]
    look = {"color": SERIES[index], "ls": DASHES[index], "lw": 1.8}
    label = f"{name}: p50 {p50:.2g}, p99 {p99:.2g}"
    ax.step(values, shares, where="post", label=label, **look)
    ax.plot([p50, p99], [0.5, 0.99], "o", color=SERIES[index], ms=5)

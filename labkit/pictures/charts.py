"""Plain charts: counts as bars, samples as a curve of their shares."""

from matplotlib.ticker import MaxNLocator

from labkit.pictures.style import DASHES, GRID, INK, SERIES, Picture, canvas, line_at, styled


@styled
def bars(counts, title, alt, xlabel, expected=None):
    """One bar a name, its count written at its end. counts: {name: number}; expected: a value drawn
    as a line."""
    figure, ax = canvas(8, 0.9 + 0.38 * len(counts))
    names = list(counts)
    ax.barh(names, [counts[name] for name in names], color=SERIES[0], height=0.6)
    for name in names:
        roomy = counts[name] > max(counts.values()) / 8  # else the number stands behind the bar
        ax.annotate(
            f" {counts[name]:,} ",
            (counts[name], name),
            va="center",
            ha="right" if roomy else "left",
            fontsize=9,
            color="white" if roomy else INK,
            weight="bold",
        )
    if expected is not None:
        line_at(ax, expected, f"{expected:,.0f} each, if shared evenly")
    ax.set_xlim(0, max([*counts.values(), expected or 0, 1]) * 1.12)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=20 if expected is not None else 8)
    return Picture(figure, alt)


@styled
def ecdf(samples, title, alt, xlabel, limit=None):
    """Share of the samples below each value, on a log axis; one line a name, with p50 and p99
    marked and written.

    samples: {name: values}; limit: (value, text) drawn as a vertical line.
    """
    figure, ax = canvas(8, 3.4)
    for index, (name, values) in enumerate(samples.items()):
        values = sorted(values)
        share = [(i + 1) / len(values) for i in range(len(values))]
        p50, p99 = values[len(values) // 2], values[min(len(values) - 1, int(len(values) * 0.99))]
        ax.step(
            values,
            share,
            where="post",
            color=SERIES[index],
            ls=DASHES[index],
            lw=1.8,
            label=f"{name}: p50 {p50:.2g}, p99 {p99:.2g}",
        )
        ax.plot([p50, p99], [0.5, 0.99], "o", color=SERIES[index], ms=5)
    if limit:
        ax.axvline(limit[0], color=INK, lw=1, ls=":")
        ax.annotate(
            limit[1],
            (limit[0], 0.25),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            zorder=5,
            textcoords="offset points",
            fontsize=9,
            color=INK,
            bbox={"fc": "white", "ec": "none", "pad": 1},
        )
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

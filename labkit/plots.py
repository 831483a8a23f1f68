"""Pictures of trials and of histories: every trial a dot, every node a bar. (See pictures.py for the grammar.)"""
from labkit.pictures import DASHES, GRID, INK, MUTED, SERIES, Picture, canvas, styled

HATCHES = ["", "///", "...", "xx"]


@styled
def strips(samples, title, alt, xlabel, limit=None):
    """One row a name, every trial a dot, the median a bar with its value, on a log axis.

    samples: {name: values above 0}, from top to bottom; limit: (value, text) drawn as a dashed line.
    """
    figure, ax = canvas(8, 1.1 + .42 * len(samples))
    for index, (name, values) in enumerate(samples.items()):
        middle = sorted(values)[len(values) // 2]
        ax.axhline(index, color=GRID, lw=6, zorder=0)
        ax.plot(values, [index] * len(values), "o", color=SERIES[0], alpha=.6, ms=6, mec="none")
        ax.plot([middle] * 2, [index - .3, index + .3], color=INK, lw=2.5)
        ax.annotate(f"{middle:.3g}", (middle, index), xytext=(0, 11), textcoords="offset points", ha="center", fontsize=9,
                    color=INK, weight="bold")
    if limit:
        ax.axvline(limit[0], color=MUTED, lw=1, ls=DASHES[1], zorder=1)
        ax.annotate(limit[1], (limit[0], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), fontsize=9, color=MUTED,
                    textcoords="offset points", ha="center")
    every = [value for values in samples.values() for value in values] + ([limit[0]] if limit else [])
    ax.set(xscale="log", xlim=(min(every) / 1.25, max(every) * 1.25), ylim=(len(samples) - .4, -.75), xlabel=xlabel)
    ax.set_yticks(range(len(samples)), list(samples))
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if max(every) < 10 * min(every) else "")
    ax.set_title(title, pad=20 if limit else 8)
    return Picture(figure, alt)


@styled
def spans(rows, title, alt, xlabel, mark=None):
    """One row a name, bars from first to last of what it holds; each kind of content has a colour and a hatch.

    rows: {name: [(first, last, kind), …]}, from top to bottom; mark: (value, text) drawn as a dashed line.
    """
    figure, ax = canvas(8, 1.35 + .42 * len(rows))
    kinds = list(dict.fromkeys(kind for parts in rows.values() for *_, kind in parts))
    for index, parts in enumerate(rows.values()):
        for first, last, kind in parts:
            look = kinds.index(kind)
            ax.barh(index, last - first + 1, left=first - .5, height=.6, color=SERIES[look], hatch=HATCHES[look],
                    edgecolor="white", linewidth=0, label=kind)
    if mark:
        ax.axvline(mark[0], color=INK, lw=1, ls="--")
        ax.annotate(mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                    ha="center", fontsize=9, color=INK)
    ax.set(ylim=(len(rows) - .5, -.5), xlabel=xlabel)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, pad=20 if mark else 8)
    shown = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(shown.values(), shown, loc="outside lower center", ncol=len(kinds), fontsize=9, handlelength=1.6)
    return Picture(figure, alt)

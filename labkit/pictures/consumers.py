"""Pictures of shared work: a consumer's numbers over time, how work divides, what a setting costs.
And the sampler behind the first."""

import statistics

from matplotlib.ticker import FixedLocator, MaxNLocator

from labkit.pictures.style import GRID, INK, MUTED, SERIES, Picture, canvas, styled

NUMBERS = {
    "pending": "backlog",
    "ack_pending": "in flight",
    "waiting": "open requests",
    "redelivered": "out once more",
}


@styled
def lag(log, title, alt):
    """A consumer's four numbers over time: one axis for time, a row for each number, on a scale of
    its own.

    log: a Recorder with "lag" events (see watching). An event "change" with a field `text` is drawn
         as a line through all rows and up to its text; where others closely follow, the earlier
         text stands higher, so that no line meets one.
    """
    seen, changes = log.all("lag"), log.all("change")
    start = min((e["at"] for e in seen), default=0)
    end = max((e["at"] for e in seen), default=1) - start
    figure, _ = canvas(8, 5)
    figure.clear()
    axes = figure.subplots(len(NUMBERS), 1, sharex=True, height_ratios=[2, 1, 1, 1])
    for index, (ax, (name, word)) in enumerate(zip(axes, NUMBERS.items())):
        x, y = [e["at"] - start for e in seen], [e[name] for e in seen]
        ax.step(x, y, where="post", color=SERIES[index], lw=1.6)
        ax.fill_between(x, y, step="post", color=SERIES[index], alpha=0.18, lw=0)
        for e in changes:
            ax.axvline(max(0, e["at"] - start), color=MUTED, lw=0.9, ls="--", zorder=0)
        ax.set_ylim(0, max([*y, 1]) * 1.12)
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.grid(axis="y", color=GRID)
        ax.set_ylabel(f"{name}\n({word})", rotation=0, ha="right", va="center")
    stairs = []  # (seconds, line) of the texts so far, from the last one back
    for e in reversed(changes):
        at = max(0, e["at"] - start)
        line = 1 + max(
            (line for later, line in stairs if later < at + (len(e["text"]) + 1) * end / 88),
            default=-1,
        )
        stairs.append((at, line))
        axes[0].annotate(
            e["text"],
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4 + 12 * line),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
        )
        axes[0].annotate(
            "",
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 12 + 12 * line),
            textcoords="offset points",
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "lw": 0.9,
                "ls": "--",
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
    axes[0].set_xlim(0, end)
    axes[0].set_title(title, pad=24 + 12 * max(line for _, line in stairs) if stairs else 8)
    axes[-1].set_xlabel("seconds since start")
    return Picture(figure, alt)


@styled
def shares(groups, title, alt, xlabel):
    """How the same work was divided in several ways: a bar chart a way, beside each other on one
    scale.

    groups: {way: {name: count}}, the same names in each.
    """
    names = list(next(iter(groups.values())))
    figure, _ = canvas(8, 1.35 + 0.38 * len(names))
    figure.clear()
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    top = max([count for counts in groups.values() for count in counts.values()] + [1])
    for index, (ax, (way, counts)) in enumerate(zip(axes, groups.items())):
        ax.barh(names, [counts[name] for name in names], color=SERIES[index], height=0.6)
        for name in names:
            ax.annotate(
                f" {counts[name]:,} ",
                (counts[name], name),
                va="center",
                fontsize=9,
                color=INK,
                weight="bold",
            )
        ax.set_title(way, weight="normal", fontsize=10)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel(xlabel)
    axes[0].set_xlim(0, top * 1.18)
    axes[0].invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK)
    return Picture(figure, alt)


@styled
def spread(panels, title, alt):
    """Repeated measurements, every trial a dot, the median a bar and a number: what one setting
    does to several numbers, or several cures to one.

    panels: {label of the x axis: {name: values}}, the same names in each; a row a name, from top to
        bottom.
    """
    names = list(next(iter(panels.values())))
    figure, _ = canvas(8, 1.25 + 0.45 * len(names))
    figure.clear()
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (label, samples) in zip(axes, panels.items()):
        top = max([max(values) for values in samples.values()] + [0]) or 1
        for row, name in enumerate(names):
            middle = statistics.median(samples[name])
            ax.barh(row, middle, height=0.62, color=SERIES[0], alpha=0.3, zorder=0)
            ax.plot(
                samples[name],
                [row] * len(samples[name]),
                "o",
                color=SERIES[0],
                ms=5,
                mec="white",
                mew=0.6,
            )
            ax.annotate(
                f"{middle:,.0f}" if top >= 20 else f"{middle:.1f}",
                (1, row),
                xycoords=("axes fraction", "data"),
                va="center",
                ha="right",
                fontsize=9,
                color=INK,
                weight="bold",
            )
        ax.annotate(
            "median",
            (1, 1),
            xycoords="axes fraction",
            va="bottom",
            ha="right",
            fontsize=9,
            color=MUTED,
        )
        ax.set_xlim(0, top * 1.5)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.set_xlabel(label)
        ax.tick_params(axis="y", length=0)
    axes[0].yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK)
    return Picture(figure, alt)

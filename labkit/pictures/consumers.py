"""Pictures of shared work: a consumer's numbers over time, how work divides, what settings cost."""

import statistics

from matplotlib.ticker import MaxNLocator

from labkit.pictures.style import (
    GRID,
    MUTED,
    SERIES,
    X_IS_DATA,
    Y_IS_DATA,
    Picture,
    headline,
    name_rows,
    note,
    sheet,
    styled,
)

NUMBERS = {
    "pending": "backlog",
    "ack_pending": "in flight",
    "waiting": "open requests",
    "redelivered": "out once more",
}
DASHED = {"color": MUTED, "lw": 0.9, "ls": "--"}
LINE = 12  # points from one line of text above the axes to the next
LETTERS = 88  # letters of the texts above the axes that fit into the width of the picture


@styled
def lag(log, title, alt):
    """A consumer's four numbers over time: one axis for time, a row for each number, on a scale of
    its own.

    log: a Recorder with "lag" events (see watching). An event "change" with a field `text` is drawn
        as a line through all rows, with its text above; where other changes follow closely, the
        text stands higher, so that no line runs through a text.
    """
    seen = log.all("lag")
    start = min((e["at"] for e in seen), default=0)
    end = max((e["at"] for e in seen), default=1) - start
    changes = [(max(0, e["at"] - start), e["text"]) for e in log.all("change")]
    figure = sheet(8, 5)
    axes = figure.subplots(len(NUMBERS), 1, sharex=True, height_ratios=[2, 1, 1, 1])
    for ax, colour, (name, word) in zip(axes, SERIES, NUMBERS.items()):
        _draw_number(ax, [e["at"] - start for e in seen], [e[name] for e in seen], colour)
        for at, _ in changes:
            ax.axvline(at, zorder=0, **DASHED)
        ax.set_ylabel(f"{name}\n({word})", rotation=0, ha="right", va="center")
    texts = _placed(changes, end / LETTERS)
    for at, text, line in texts:
        _write_change(axes[0], at, text, LINE * line)
    highest = max((line for _, _, line in texts), default=-1)
    axes[0].set_xlim(0, end)
    axes[0].set_title(title, pad=8 if highest < 0 else 24 + LINE * highest)
    axes[-1].set_xlabel("seconds since start")
    return Picture(figure, alt)


def _draw_number(ax, times, values, colour):
    ax.step(times, values, where="post", color=colour, lw=1.6)
    ax.fill_between(times, values, step="post", color=colour, alpha=0.18, lw=0)
    ax.set_ylim(0, max([*values, 1]) * 1.12)
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.grid(axis="y", color=GRID)


def _placed(changes, letter):
    """(seconds, text, line) of each change, from the last one back. Line 0 is the lowest; a text
    stands one line above all later ones that begin before its end.

    changes: (seconds, text) in order of time; letter: the width of a letter in seconds.
    """
    placed = []
    for at, text in reversed(changes):
        end = at + (len(text) + 1) * letter
        below = [line for begin, _, line in placed if begin < end]
        placed.append((at, text, max(below, default=-1) + 1))
    return placed


def _write_change(ax, at, text, height):
    """The text of a change, so many points above the axes, and a dashed line up to it."""
    note(ax, text, (at, 1), (3, 4 + height), xycoords=X_IS_DATA, fontsize=8.5)
    stroke = {"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, **DASHED}
    note(ax, "", (at, 1), (0, LINE + height), xycoords=X_IS_DATA, arrowprops=stroke)


@styled
def shares(groups, title, alt, xlabel):
    """How the same work was divided in several ways: bar charts beside each other, on one scale.

    groups: {way: {name: count}}, the same names in each.
    """
    names = list(next(iter(groups.values())))
    figure = sheet(8, 1.35 + 0.38 * len(names))
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for ax, colour, (way, counts) in zip(axes, SERIES, groups.items()):
        ax.barh(names, [counts[name] for name in names], color=colour, height=0.6)
        for name in names:
            place = (counts[name], name)
            note(ax, f" {counts[name]:,} ", place, va="center", weight="bold")
        ax.set_title(way, weight="normal", fontsize=10)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel(xlabel)
    top = max(count for counts in groups.values() for count in [*counts.values(), 1])
    axes[0].set_xlim(0, top * 1.18)
    axes[0].invert_yaxis()
    headline(figure, title)
    return Picture(figure, alt)


@styled
def spread(panels, title, alt):
    """Repeated measurements, every trial a dot, the median a bar and a number: what one setting
    does to several numbers, or several cures to one.

    panels: {label of the x axis: {name: values}}, the same names in each; a row a name, from top to
        bottom.
    """
    names = list(next(iter(panels.values())))
    figure = sheet(8, 1.25 + 0.45 * len(names))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (label, samples) in zip(axes, panels.items()):
        _draw_panel(ax, [samples[name] for name in names])
        ax.set_xlabel(label)
        ax.tick_params(axis="y", length=0)
    name_rows(axes[0], names)
    axes[0].invert_yaxis()
    headline(figure, title)
    return Picture(figure, alt)


def _draw_panel(ax, rows):
    """One panel of spread(). rows: the values of each row."""
    top = max(max(values) for values in rows) or 1
    pattern = "{:,.0f}" if top >= 20 else "{:.1f}"
    look = {"xycoords": Y_IS_DATA, "va": "center", "ha": "right", "weight": "bold"}
    for row, values in enumerate(rows):
        middle = statistics.median(values)
        ax.barh(row, middle, height=0.62, color=SERIES[0], alpha=0.3, zorder=0)
        ax.plot(values, [row] * len(values), "o", color=SERIES[0], ms=5, mec="white", mew=0.6)
        note(ax, pattern.format(middle), (1, row), **look)
    look = {"xycoords": "axes fraction", "va": "bottom", "ha": "right", "color": MUTED}
    note(ax, "median", (1, 1), **look)
    ax.set_xlim(0, top * 1.5)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")

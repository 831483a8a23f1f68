"""Pictures of what meters say over time: numbers as lines, states as bars."""

from labkit.pictures.style import (
    ABOVE,
    DASHES,
    GRID,
    INK,
    OUTCOME,
    SERIES,
    Picture,
    canvas,
    name_rows,
    note,
    styled,
)

STATE = {  # word of a state: colour and hatch; any other word is bad news
    "ok": (OUTCOME["acked"][0], ""),
    "no answer": ("#ffffff", ".."),
}
WORRY = (OUTCOME["lost"][0], "//")


@styled
def lines(series, title, alt, ylabel, between=None):
    """Numbers over time, one line a name.

    series: {name: [(seconds, number), …]}; between: (upper name, lower name, text) shades what lies
        between two of them, which have the same seconds.
    """
    figure, ax = canvas(8, 3)
    for index, (name, points) in enumerate(series.items()):
        look = {"color": SERIES[index], "ls": DASHES[index], "lw": 2}
        ax.step(*zip(*points), where="post", label=name, **look)
    if between:
        upper, lower, text = between
        _shade(ax, series[upper], series[lower], text)
    ax.grid(axis="y", color=GRID)
    ax.set(ylim=(0, None), xlabel="seconds since start", ylabel=ylabel)
    ax.set_title(title, pad=20)
    ax.legend(ncol=len(series), **ABOVE)
    return Picture(figure, alt)


def _shade(ax, upper, lower, text):
    """Shades what lies between two lines, and writes a text where that is widest."""
    times, high = zip(*upper)
    _, low = zip(*lower)
    ax.fill_between(times, low, high, step="post", color=SERIES[4], alpha=0.25)
    widest = max(range(len(times)), key=lambda place: high[place] - low[place])
    middle = (high[widest] + low[widest]) / 2
    # A little to the right and up: after the peak the gap closes from below.
    note(ax, text, (times[widest], middle), (6, 12), va="center")


@styled
def lanes(log, names, title, alt, marks=()):
    """What somebody was told, as bars over time: one lane a name, a bar from each change to the
    next, its word in it.

    log: a Recorder with "state" events (fields lane and word); the last event of any kind ends the
        bars.
    marks: (seconds, text) pairs, drawn as dashed lines.
    """
    end = max((e["at"] for e in log.events), default=1)
    figure, ax = canvas(8, 1.3 + 0.45 * len(names))
    for row, name in enumerate(names):
        for begin, until, word in periods(log.all("state", lane=name), end):
            _draw_period(ax, row, begin, until, word, end)
    for at, text in marks:
        ax.axvline(at, color=INK, lw=1, ls="--")
        if at > end / 2:
            note(ax, text, (at, -0.62), (-4, 0), ha="right", va="bottom")
        else:
            note(ax, text, (at, -0.62), (4, 0), ha="left", va="bottom")
    name_rows(ax, names)
    ax.set(xlim=(0, end), ylim=(len(names) - 0.5, -1))
    ax.set_xlabel("seconds since start")
    ax.set_title(title)
    return Picture(figure, alt)


def periods(told, end):
    """(begin, until, word) of each time in which the word stayed the same. told: events with the
    field `word`, in order of time; end: of the last one (seconds)."""
    changes = []
    for e in told:
        if not changes or changes[-1]["word"] != e["word"]:
            changes.append(e)
    begins = [e["at"] for e in changes]
    return [(e["at"], until, e["word"]) for e, until in zip(changes, [*begins[1:], end])]


def _draw_period(ax, row, begin, until, word, end):
    colour, hatch = STATE.get(word, WORRY)
    look = {"facecolor": colour, "hatch": hatch, "alpha": 0.35, "edgecolor": INK, "lw": 0.6}
    ax.barh(row, until - begin, left=begin, height=0.6, **look)
    if until - begin > end / 60 * (len(word) + 2):  # else it would not fit
        background = {"fc": "white", "ec": "none", "pad": 1, "alpha": 0.8}
        note(ax, word, (begin, row), (5, 0), va="center", bbox=background)

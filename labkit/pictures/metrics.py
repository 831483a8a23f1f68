"""Pictures of what meters say over time: numbers as lines, states as bars."""

from labkit.pictures.style import ABOVE, DASHES, GRID, INK, OUTCOME, SERIES, Picture, canvas, styled

STATE = {
    "ok": (OUTCOME["acked"][0], ""),
    "no answer": ("#ffffff", ".."),
}  # any other word is one that worries
WORRY = (OUTCOME["lost"][0], "//")


@styled
def lines(series, title, alt, ylabel, between=None):
    """Numbers over time, one line a name; `between`: (upper name, lower name, text) shades what
    lies between two of them.

    series: {name: [(seconds, number), …]}.
    """
    figure, ax = canvas(8, 3)
    for index, (name, points) in enumerate(series.items()):
        ax.step(
            *zip(*points), where="post", color=SERIES[index], ls=DASHES[index], lw=2, label=name
        )
    if between:
        upper, lower, text = between
        at, high, low = (
            [p[0] for p in series[upper]],
            [p[1] for p in series[upper]],
            [p[1] for p in series[lower]],
        )
        ax.fill_between(at, low, high, step="post", color=SERIES[4], alpha=0.25)
        widest = max(range(len(at)), key=lambda i: high[i] - low[i])
        ax.annotate(
            text,
            (at[widest], (high[widest] + low[widest]) / 2),
            va="center",
            fontsize=9,
            color=INK,
            xytext=(6, 12),
            textcoords="offset points",
        )  # after the peak the gap closes from below
    ax.grid(axis="y", color=GRID)
    ax.set(ylim=(0, None), xlabel="seconds since start", ylabel=ylabel)
    ax.set_title(title, pad=20)
    ax.legend(ncol=len(series), **ABOVE)
    return Picture(figure, alt)


@styled
def lanes(log, names, title, alt, marks=()):
    """What somebody was told, as bars over time: one lane a name, a bar from each change to the
    next, its word in it.

    log: a Recorder with "state" events (fields lane and word); the last event of any kind ends the
        bars.
    marks: (seconds, text) pairs, drawn as dashed lines.
    """
    end = max((entry["at"] for entry in log.events), default=1)
    figure, ax = canvas(8, 1.3 + 0.45 * len(names))
    for row, name in enumerate(names):
        told = log.all("state", lane=name)
        changes = [e for before, e in zip([{}, *told], told) if e["word"] != before.get("word")]
        for e, until in zip(changes, [*(c["at"] for c in changes[1:]), end]):
            colour, hatch = STATE.get(e["word"], WORRY)
            ax.barh(
                row,
                until - e["at"],
                left=e["at"],
                height=0.6,
                facecolor=colour,
                alpha=0.35,
                hatch=hatch,
                edgecolor=INK,
                lw=0.6,
            )
            if until - e["at"] > end / 60 * (len(e["word"]) + 2):  # else it would not fit
                ax.annotate(
                    e["word"],
                    (e["at"], row),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    color=INK,
                    bbox={"fc": "white", "ec": "none", "pad": 1, "alpha": 0.8},
                )
    for at, text in marks:
        ax.axvline(at, color=INK, lw=1, ls="--")
        ax.annotate(
            text,
            (at, -0.62),
            ha="right" if at > end / 2 else "left",
            xytext=(-4 if at > end / 2 else 4, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0, end), ylim=(len(names) - 0.5, -1))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds since start")
    ax.set_title(title)
    return Picture(figure, alt)

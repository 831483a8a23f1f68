"""Pictures of outages: attempts over time, with what became of each."""

import itertools

from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from labkit.pictures.style import ABOVE, GRID, INK, OUTCOME, Picture, canvas, styled

# what became of an attempt: colour and shape of a mark, and hatch of a bar of several that ended
# alike
ANSWER = {
    "acked": (OUTCOME["acked"], ""),
    "fetched": (OUTCOME["delivered"], ""),
    "timeout": (OUTCOME["redelivered"], "///"),
    "no response": (OUTCOME["lost"], "xxx"),
    "refused": (OUTCOME["duplicate"], "..."),
}


@styled
def answers(log, rows, title, alt, marks=(), start=0.0):
    """Attempts on a time axis, one row a kind of work; colour, hatch or shape, and word say how
    each ended: a bar from the first to the last of several that ended alike, a mark where that
        would be too short to be seen.

    log: a Recorder with events "acked", "fetched", "timeout", "no response", "refused" that carry
        the field `row`.
    rows: names, from top to bottom. marks: (seconds, text) pairs, drawn as dashed lines. start:
        what to call second 0.
    """
    figure, ax = canvas(8, 1.35 + 0.5 * len(rows))
    shown = [e for e in log.events if e["event"] in ANSWER and e.get("row") in rows]
    last = max([e["at"] for e in shown] + [1])
    drawn = {}  # event -> what stands for it in the legend: a bar, a mark, or both
    for place, row in enumerate(rows):
        ax.axhline(place, color=GRID, lw=6, zorder=0)
        for event, group in itertools.groupby(
            [e for e in shown if e["row"] == row], key=lambda e: e["event"]
        ):
            at = [e["at"] - start for e in group]
            short, ((colour, shape), hatch) = at[-1] - at[0] < last / 100, ANSWER[event]
            if short:
                ax.plot(at[0], place, shape, color=colour, ms=8, mec="white", mew=0.6, zorder=3)
            else:
                ax.barh(
                    place,
                    at[-1] - at[0],
                    left=at[0],
                    height=0.42,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    lw=0,
                )
            drawn.setdefault(event, {})[short] = (
                Line2D([], [], color=colour, marker=shape, ls="")
                if short
                else Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0)
            )
    for (at, text), after in zip(marks, [*(at for at, _ in marks[1:]), None]):
        room = last * 0.02 * len(text)
        left = after is not None and after - at < room  # no room before the next mark
        if left:
            ax.set_xlim(left=min(ax.get_xlim()[0], at - start - room))
        ax.axvline(at - start, color=INK, lw=1, ls="--", zorder=0)
        ax.annotate(
            text,
            (at - start, 0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if left else 4, 3),
            fontsize=9,
            textcoords="offset points",
            ha="right" if left else "left",
            color=INK,
        )
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.1, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds" if not start else "seconds since the fault")
    ax.set_title(title, pad=20)
    found = [event for event in ANSWER if event in drawn]
    ax.legend(
        [tuple(drawn[event].values()) for event in found],
        found,
        ncol=len(found),
        columnspacing=1,
        handletextpad=0.5,
        handler_map={tuple: HandlerTuple(ndivide=None)},
        **ABOVE,
    )
    return Picture(figure, alt)

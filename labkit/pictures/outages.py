"""Pictures of outages: attempts over time, with what became of each."""

import dataclasses
import itertools

from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from labkit.pictures.style import (
    ABOVE,
    GRID,
    INK,
    OUTCOME,
    X_IS_DATA,
    Picture,
    canvas,
    name_rows,
    note,
    styled,
)

ANSWER = {  # what became of an attempt: colour and shape of a mark, hatch of a bar
    "acked": (*OUTCOME["acked"], ""),
    "fetched": (*OUTCOME["delivered"], ""),
    "timeout": (*OUTCOME["redelivered"], "///"),
    "no response": (*OUTCOME["lost"], "xxx"),
    "refused": (*OUTCOME["duplicate"], "..."),
}


@dataclasses.dataclass
class Run:
    """Attempts, one after the other, that ended alike. first, last: seconds; short: True where a
    bar would be too short to be seen."""

    event: str
    first: float
    last: float
    short: bool


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
    drawn = []
    for place, row in enumerate(rows):
        ax.axhline(place, color=GRID, lw=6, zorder=0)
        for run in runs([e for e in shown if e["row"] == row], start, last / 100):
            _draw_run(ax, place, run)
            drawn.append(run)
    _draw_marks(ax, [(at - start, text) for at, text in marks], last * 0.02)
    name_rows(ax, rows)
    ax.set_ylim(len(rows) - 0.1, -0.6)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds since the fault" if start else "seconds")
    ax.set_title(title, pad=20)
    if drawn:
        _legend(ax, drawn)
    return Picture(figure, alt)


def runs(events, start, least):
    """The attempts of one row as Runs, in their order. start: the second that is 0; least: the
    length of a bar that can be seen (seconds)."""
    found = []
    for event, group in itertools.groupby(events, key=lambda e: e["event"]):
        at = [e["at"] - start for e in group]
        found.append(Run(event, at[0], at[-1], short=at[-1] - at[0] < least))
    return found


def _draw_run(ax, place, run):
    colour, shape, hatch = ANSWER[run.event]
    if run.short:
        ax.plot(run.first, place, shape, color=colour, ms=8, mec="white", mew=0.6, zorder=3)
    else:
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0}
        ax.barh(place, run.last - run.first, left=run.first, height=0.42, **look)


def _draw_marks(ax, marks, letter):
    """Dashed lines with their texts: at the right, or at the left where the next line is too close.
    letter: the width of a letter (seconds)."""
    following = [at for at, _ in marks[1:]]
    for (at, text), after in itertools.zip_longest(marks, following):
        room = letter * len(text)
        ax.axvline(at, color=INK, lw=1, ls="--", zorder=0)
        if after is None or after - at >= room:
            note(ax, text, (at, 0), (4, 3), xycoords=X_IS_DATA, ha="left")
        else:
            note(ax, text, (at, 0), (-4, 3), xycoords=X_IS_DATA, ha="right")
            ax.set_xlim(left=min(ax.get_xlim()[0], at - room))


def _legend(ax, drawn):
    """Names each answer that was drawn, beside what stands for it: a bar, a mark, or both."""
    samples = {}  # event: {short or not: what stands for it}
    for run in drawn:
        samples.setdefault(run.event, {})[run.short] = _sample(run)
    found = [event for event in ANSWER if event in samples]
    ax.legend(
        [tuple(samples[event].values()) for event in found],
        found,
        ncol=len(found),
        columnspacing=1,
        handletextpad=0.5,
        handler_map={tuple: HandlerTuple(ndivide=None)},
        **ABOVE,
    )


def _sample(run):
    colour, shape, hatch = ANSWER[run.event]
    if run.short:
        return Line2D([], [], color=colour, marker=shape, ls="")
    return Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0)

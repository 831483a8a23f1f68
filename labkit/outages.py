"""Pictures of outages: attempts over time with what became of each, and the length of outages, every trial a dot."""
import statistics

from matplotlib.lines import Line2D

from labkit.pictures import GRID, INK, OUTCOME, Picture, canvas, styled
from labkit.streams import SHADES, words_above

ANSWER = {  # what became of an attempt: colour, shape, word
    "acked": OUTCOME["acked"], "fetched": OUTCOME["delivered"], "timeout": OUTCOME["redelivered"],
    "no response": OUTCOME["lost"], "refused": OUTCOME["duplicate"]}


@styled
def answers(log, rows, title, alt, marks=(), start=0.0):
    """Attempts on a time axis, one row a kind of work; colour, shape and word say how each ended.

    log: a Recorder with events "acked", "fetched", "timeout", "no response", "refused" that carry the field `row`.
    rows: names, from top to bottom. marks: (seconds, text) pairs, drawn as dashed lines. start: what to call second 0.
    """
    figure, ax = canvas(8, 1.35 + .5 * len(rows))
    shown = [e for e in log.events if e["event"] in ANSWER and e.get("row") in rows]
    for place, row in enumerate(rows):
        ax.axhline(place, color=GRID, lw=6, zorder=0)
        for event, (colour, shape) in ANSWER.items():
            at = [e["at"] - start for e in shown if e["event"] == event and e["row"] == row]
            ax.plot(at, [place] * len(at), shape, color=colour, ms=7 if event == "fetched" else 5, mew=0)
    last = max([e["at"] for e in shown] + [1])
    for (at, text), after in zip(marks, [*(at for at, _ in marks[1:]), None]):
        left = after is not None and after - at < last * .02 * len(text)  # no room before the next mark
        ax.axvline(at - start, color=INK, lw=1, ls="--", zorder=0)
        ax.annotate(text, (at - start, 0), xycoords=("data", "axes fraction"), xytext=(-4 if left else 4, 3), fontsize=9,
                    textcoords="offset points", ha="right" if left else "left", color=INK)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - .1, -.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds" if not start else "seconds since the fault")
    ax.set_title(title, pad=20)
    words_above(ax, [name for name in ANSWER if any(e["event"] == name for e in shown)], ANSWER)
    return Picture(figure, alt)


@styled
def strip(trials, title, alt, band=None, xlabel="seconds without an acknowledgement (log)"):
    """Outages on a log axis: a row a kind, every trial a dot, the median a bar and a number at the right.

    trials: {row: seconds of each trial}, from top to bottom. band: (from, to, text), a range drawn behind the dots.
    """
    figure, ax = canvas(8, 1.1 + .34 * len(trials))
    if band:
        ax.axvspan(band[0], band[1], color=SHADES[2], zorder=0)
        ax.annotate(band[2], ((band[0] * band[1]) ** .5, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center",
                    textcoords="offset points", fontsize=9, color=INK)
    for place, (row, seconds) in enumerate(trials.items()):
        beside = [place + .24 * ((i % 3) - 1) * (len(seconds) > 1) for i in range(len(seconds))]
        ax.plot(seconds, beside, "o", ms=5.5, color=OUTCOME["published"][0], alpha=.9, mew=0, zorder=3)
        middle = statistics.median(seconds)
        ax.add_line(Line2D([middle] * 2, [place - .36, place + .36], color=INK, lw=2))
        ax.annotate(f"{middle:.2g} s", (1, place), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=9,
                    color=INK)
    every = [value for seconds in trials.values() for value in seconds]
    ax.set_xscale("log")
    ax.set_xlim(min(every) / 1.6, max([*every, band[1] if band else 0]) * 3)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(axis="x", color=GRID)
    ax.set_yticks(range(len(trials)), list(trials))
    ax.set_ylim(len(trials) - .4, -.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=20 if band else 8)
    return Picture(figure, alt)

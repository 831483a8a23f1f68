"""Pictures of outages: attempts over time, with what became of each."""
from labkit.pictures import GRID, INK, OUTCOME, Picture, canvas, styled
from labkit.streams import words_above

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


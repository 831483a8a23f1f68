"""Who sent what when, and what became of it."""

from labkit.pictures.style import (
    GRID,
    INK,
    MUTED,
    OUTCOME,
    X_IS_DATA,
    Picture,
    arrow,
    canvas,
    legend,
    name_rows,
    note,
    styled,
)


@styled
def timeline(log, lanes, title, alt, marks=()):
    """Who sent what when, and what became of it.

    log: a Recorder; its events "published", "delivered", "acked", "redelivered", "lost",
        "duplicate" carry the fields lane (one of `lanes`) and msg (any label). A "lost" event is
        drawn below the lane in which it was sent; with answer=True it is the lost answer to msg,
        and stands above the lane that answered.
    lanes: names, from top to bottom; the first one publishes.
    marks: (seconds, text) pairs, drawn as dashed lines.
    """
    figure, ax = canvas(8, 0.95 + 0.55 * len(lanes))
    rows = {lane: -index for index, lane in enumerate(lanes)}
    for row in rows.values():
        ax.axhline(row, color=GRID, lw=6, zorder=0)
    shown = [e for e in log.events if e["event"] in OUTCOME and e.get("lane") in rows]
    sent = {e["msg"]: (e["at"], 0) for e in log.all("published")}  # message: where its way begins
    came = {}  # (message, lane): where it first came to that lane
    for e in shown:
        came.setdefault((e["msg"], e["lane"]), (e["at"], rows[e["lane"]]))
    for e in shown:
        row = rows[e["lane"]]
        if e["event"] == "published":
            _draw_published(ax, e["at"], row, e["msg"])
        elif e["event"] == "lost" and e.get("answer"):
            _draw_lost(ax, came[e["msg"], e["lane"]], (e["at"], row + 0.5))
        elif e["event"] == "lost":
            _draw_lost(ax, sent.get(e["msg"], (e["at"], 0)), (e["at"], row - 0.5))
        else:
            begin = sent.get(e["msg"]) if e["lane"] != lanes[0] else None
            _draw_arrived(ax, begin, (e["at"], row), e["event"])
    for at, text in marks:
        ax.axvline(at, color=INK, lw=1, ls="--", zorder=2)
        note(ax, text, (at, 0), (4, 2), xycoords=X_IS_DATA)
    name_rows(ax, lanes, list(rows.values()))
    ax.set_ylim(-len(lanes) + 0.1, 0.6)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds since start")
    ax.set_title(title, pad=20)
    found = {e["event"] for e in shown}
    legend(ax, [name for name in OUTCOME if name in found], OUTCOME)
    return Picture(figure, alt)


def _draw_published(ax, at, row, msg):
    """A mark, and the message's label above it."""
    background = {"fc": "white", "ec": "none", "pad": 0.5}
    look = {"ha": "center", "fontsize": 8, "color": MUTED, "bbox": background}
    note(ax, str(msg), (at, row), (0, 6), **look)
    _draw_mark(ax, (at, row), "published")


def _draw_lost(ax, begin, end):
    """A dotted line from where it was sent, or answered, to where it is lost."""
    ax.plot(*zip(begin, end), color=OUTCOME["lost"][0], lw=1, ls=":", zorder=1)
    _draw_mark(ax, end, "lost")


def _draw_arrived(ax, begin, end, event):
    """A mark, and an arrow to it. begin: where the message was sent; None draws no arrow."""
    if begin:
        arrow(ax, begin, end, zorder=1, color=MUTED, lw=0.9, shrinkA=4, shrinkB=4)
    _draw_mark(ax, end, event)


def _draw_mark(ax, place, event):
    colour, shape = OUTCOME[event]
    ax.plot(*place, shape, color=colour, ms=8 if event == "lost" else 7, zorder=3)

"""Who sent what when, and what became of it."""

from labkit.pictures.style import GRID, INK, MUTED, OUTCOME, Picture, canvas, legend, styled


@styled
def timeline(log, lanes, title, alt, marks=()):
    """Who sent what when, and what became of it.

    log: a Recorder; its events "published", "delivered", "acked", "redelivered", "lost",
         "duplicate" carry the fields lane (one of `lanes`) and msg (any label). A "lost" event is
         drawn below the lane in which it was sent; with answer=True it is the lost answer to msg,
         and hangs above the lane that answered.
    lanes: names, from top to bottom; the first one publishes.
    marks: (seconds, text) pairs, drawn as dashed lines.
    """
    sender = lanes[0]
    figure, ax = canvas(8, 0.95 + 0.55 * len(lanes))
    row = {lane: -index for index, lane in enumerate(lanes)}
    sent = {e["msg"]: e["at"] for e in log.all("published")}
    shown = [e for e in log.events if e["event"] in OUTCOME and e.get("lane") in row]
    for lane in lanes:
        ax.axhline(row[lane], color=GRID, lw=6, zorder=0)
    for e in shown:
        colour, shape = OUTCOME[e["event"]]
        y = row[e["lane"]] + (0 if e["event"] != "lost" else 0.5 if e.get("answer") else -0.5)
        if e["event"] == "published":
            ax.annotate(
                str(e["msg"]),
                (e["at"], y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=MUTED,
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
        elif e["event"] == "lost":
            came = [
                o["at"]
                for o in shown
                if e.get("answer") and o["msg"] == e["msg"] and o["lane"] == e["lane"]
            ]
            begin = (
                (came[0], row[e["lane"]]) if came else (sent.get(e["msg"], e["at"]), row[sender])
            )
            ax.plot([begin[0], e["at"]], [begin[1], y], color=colour, lw=1, ls=":", zorder=1)
        elif e["msg"] in sent and e["lane"] != sender:
            ax.annotate(
                "",
                (e["at"], y),
                (sent[e["msg"]], row[sender]),
                zorder=1,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": MUTED,
                    "lw": 0.9,
                    "shrinkA": 4,
                    "shrinkB": 4,
                },
            )
        ax.plot(e["at"], y, shape, color=colour, ms=8 if e["event"] == "lost" else 7, zorder=3)
    for at, text in marks:
        ax.axvline(at, color=INK, lw=1, ls="--", zorder=2)
        ax.annotate(
            text,
            (at, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    ax.set_yticks(list(row.values()), lanes)
    ax.set_ylim(-len(lanes) + 0.1, 0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds since start")
    ax.set_title(title, pad=20)
    legend(ax, [name for name in OUTCOME if any(e["event"] == name for e in shown)], OUTCOME)
    return Picture(figure, alt)

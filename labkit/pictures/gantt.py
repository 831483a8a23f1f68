"""Pictures of JetStream: a stream as a log with cursors, deliveries as bars in a worker's hands,
depth over time."""

from labkit.pictures.style import (
    GRID,
    INK,
    MUTED,
    OUTCOME,
    Picture,
    canvas,
    legend,
    line_at,
    styled,
)

ENDING = {  # how a message leaves a worker's hands: colour, shape, word
    "acked": OUTCOME["acked"],
    "nak": OUTCOME["redelivered"],
    "term": OUTCOME["lost"],
    "expired": OUTCOME["duplicate"],
    "in progress": ("#0072B2", "|"),
}
SHADES = [
    "#cfe3f1",
    "#d9efe5",
    "#fbe9d0",
    "#eddbe6",
]  # one a worker, told apart by the name in the bar as well


@styled
def deliveries(log, title, alt, notes=(), order=(), marks=()):
    """Each delivery as a bar, from the moment a worker got the message to the moment it was out of
    its hands.

    log: a Recorder with "delivered" events (fields msg and worker) and, for each, one that ends it:
         "acked", "nak", "term" or "expired" (same msg and worker). "in progress" marks a heartbeat
         in between. A bar without an end reaches to the right edge and fades. Two workers that hold
         one message at the same time share its row.
    notes: (seconds, msg, text) written beside a bar; order: messages from top to bottom (default:
        as first delivered).
    marks: (seconds since the first delivery, text), drawn as a dashed line with the text above it.
    """
    given = log.all("delivered")
    rows = {msg: row for row, msg in enumerate(dict.fromkeys([*order, *(e["msg"] for e in given)]))}
    workers = list(dict.fromkeys(e["worker"] for e in given))
    start = min((e["at"] for e in given), default=0)
    last = (
        max((e["at"] for e in log.events if e["event"] in (*ENDING, "delivered")), default=start)
        - start
    )
    width = max(last * 1.12, 0.1)
    figure, ax = canvas(8, 1.2 + 0.42 * len(rows))
    bars = []
    for place, e in enumerate(given):
        later = [
            d["at"]
            for d in given[place + 1 :]
            if (d["msg"], d["worker"]) == (e["msg"], e["worker"])
        ]
        own = [
            x
            for x in log.events
            if x["event"] in ENDING
            and (x["msg"], x["worker"]) == (e["msg"], e["worker"])
            and e["at"] <= x["at"] <= min(later, default=float("inf"))
        ]
        over = next((x for x in own if x["event"] != "in progress"), None)
        end = over["at"] - start if over else width
        bars.append((e, e["at"] - start, end, over, own[: own.index(over) + 1] if over else own))
    for e, begin, end, over, own in bars:
        shared = any(
            o["msg"] == e["msg"]
            and o["worker"] != e["worker"]
            and min(end, f) - max(begin, b) > width / 100
            for o, b, f, _, _ in bars
        )
        row = rows[e["msg"]] + (
            0.19 * (-1 if workers.index(e["worker"]) == 0 else 1) if shared else 0
        )
        ax.barh(
            row,
            max(end - begin, width / 300),
            left=begin,
            height=0.34 if shared else 0.56,
            color=SHADES[workers.index(e["worker"]) % 4],
            edgecolor=MUTED,
            lw=0.8,
            alpha=1 if over else 0.5,
        )
        if end - begin > width / 18:  # else the mark at its end would stand on the name
            ax.annotate(
                e["worker"],
                (begin, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=8 if shared else 9,
                clip_on=True,
            )
        for x in own:
            colour, shape = ENDING[x["event"]]
            size = (9 if shape == "|" else 6) if shared else (12 if shape == "|" else 8)
            ax.plot(
                x["at"] - start, row, shape, color=colour, ms=size, mew=2 if shape == "|" else 1
            )
    for at, msg, text in notes:
        ax.annotate(
            text,
            (at - start, rows[msg]),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    for at, text in marks:
        line_at(ax, at, text)
    ax.set_yticks(
        range(len(rows)), [f"message {msg}" if isinstance(msg, int) else msg for msg in rows]
    )
    ax.set_xlim(0, width)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", color=GRID)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds since the first delivery")
    ax.set_title(title, pad=20)
    legend(ax, [name for name in ENDING if log.count(name)], ENDING)
    return Picture(figure, alt)

"""Deliveries as bars: how long each message was in a worker's hands, and how it left them."""

import collections
import dataclasses
import itertools
import math

from labkit.pictures.style import (
    GRID,
    MUTED,
    OUTCOME,
    Picture,
    canvas,
    legend,
    line_at,
    name_rows,
    note,
    styled,
)

BEAT = "in progress"
ENDING = {  # how a message leaves a worker's hands: colour and shape
    "acked": OUTCOME["acked"],
    "nak": OUTCOME["redelivered"],
    "term": OUTCOME["lost"],
    "expired": OUTCOME["duplicate"],
    BEAT: ("#0072B2", "|"),
}
SHADES = ["#cfe3f1", "#d9efe5", "#fbe9d0", "#eddbe6"]  # one a worker, whose name is in the bar too


@dataclasses.dataclass
class Bar:
    """One delivery. All times are seconds as in the record."""

    msg: object
    worker: str
    begin: float
    marks: list  # (time, event) of heartbeats, and of how it ended
    shared: bool = False  # another worker holds the same message at the same time

    @property
    def ended(self):
        return bool(self.marks) and self.marks[-1][1] != BEAT

    @property
    def end(self):
        return self.marks[-1][0] if self.ended else math.inf


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
    events = [e for e in log.events if e["event"] in ENDING or e["event"] == "delivered"]
    given = log.all("delivered")
    rows = numbered([*order, *(e["msg"] for e in given)])
    workers = numbered(e["worker"] for e in given)
    start = min((e["at"] for e in given), default=0)
    last = max((e["at"] for e in events), default=start) - start
    width = max(last * 1.12, 0.1)
    figure, ax = canvas(8, 1.2 + 0.42 * len(rows))
    bars = bars_of(events)
    mark_shared(bars, start + width, width / 100)
    for bar in bars:
        _draw_bar(ax, bar, rows[bar.msg], workers[bar.worker], start, width)
    for at, msg, text in notes:
        note(ax, text, (at - start, rows[msg]), (10, 0), va="center")
    for at, text in marks:
        line_at(ax, at, text)
    name_rows(ax, [f"message {msg}" if isinstance(msg, int) else msg for msg in rows])
    ax.set_xlim(0, width)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", color=GRID)
    ax.set_xlabel("seconds since the first delivery")
    ax.set_title(title, pad=20)
    legend(ax, [name for name in ENDING if log.count(name)], ENDING)
    return Picture(figure, alt)


def numbered(names):
    """{name: 0, 1, 2, …} in the order in which the names first come."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def bars_of(events):
    """The deliveries as bars, in order of time. An event belongs to the latest delivery of its
    message to its worker, until that delivery ends.

    events: "delivered" and those of ENDING.
    """
    bars = []
    latest = {}  # (message, worker): the bar of its latest delivery
    for e in sorted(events, key=lambda e: e["at"]):
        hands = e["msg"], e["worker"]
        if e["event"] == "delivered":
            latest[hands] = Bar(*hands, e["at"], [])
            bars.append(latest[hands])
        elif hands in latest and not latest[hands].ended:
            latest[hands].marks.append((e["at"], e["event"]))
    return bars


def mark_shared(bars, edge, least):
    """Marks the bars that overlap another worker's bar of the same message.

    edge: where bars without an end stop; least: by how much they must overlap. In seconds.
    """
    of_message = collections.defaultdict(list)
    for bar in bars:
        of_message[bar.msg].append(bar)
    for same in of_message.values():
        for one, other in itertools.combinations(same, 2):
            overlap = min(one.end, other.end, edge) - max(one.begin, other.begin)
            if one.worker != other.worker and overlap > least:
                one.shared = other.shared = True


def _draw_bar(ax, bar, row, worker, start, width):
    """One bar with its marks. worker: its number; start: the second that is 0 in the picture;
    width: where the picture ends."""
    height, letters, size, stroke = 0.56, 9, 8, 12
    if bar.shared:
        row += -0.19 if worker == 0 else 0.19
        height, letters, size, stroke = 0.34, 8, 6, 9
    begin = bar.begin - start
    length = min(bar.end - start, width) - begin
    look = {"color": SHADES[worker % len(SHADES)], "edgecolor": MUTED, "lw": 0.8}
    look["alpha"] = 1 if bar.ended else 0.5
    ax.barh(row, max(length, width / 300), left=begin, height=height, **look)
    if length > width / 18:  # else the mark at its end would stand on the name
        note(ax, bar.worker, (begin, row), (6, 0), va="center", fontsize=letters, clip_on=True)
    for at, event in bar.marks:
        colour, shape = ENDING[event]
        look = {"ms": stroke, "mew": 2} if shape == "|" else {"ms": size, "mew": 1}
        ax.plot(at - start, row, shape, color=colour, **look)

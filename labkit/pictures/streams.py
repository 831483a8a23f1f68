"""Streams: as a log with cursors, as depth over time, as attempts to publish."""

from matplotlib.patches import Rectangle

from labkit.pictures.gantt import ENDING, SHADES, numbered
from labkit.pictures.style import (
    GRID,
    INK,
    MUTED,
    OUTCOME,
    SERIES,
    Picture,
    canvas,
    legend,
    name_rows,
    note,
    sheet,
    styled,
)

DELIVERED = "delivered up to here"
FLOOR = "acked up to here"
WAITING = "delivered, not acked"
CURSORS = {  # word in the legend: colour and shape
    FLOOR: OUTCOME["acked"],
    WAITING: (OUTCOME["redelivered"][0], "D"),
    DELIVERED: (OUTCOME["published"][0], ">"),
}


@styled
def stream_log(messages, cursors, title, alt, waiting=None):
    """A stream as a row of boxes, one a stored message, and below it a line for each consumer.

    messages: {sequence: label}; cursors: {consumer: (delivered, ack floor)}, stream sequences as in
    lab.consumers(). A triangle stands at the last sequence delivered, a square at the ack floor
    (all up to it are acked).
    waiting: {consumer: sequences} delivered and not acked, drawn as diamonds.
    """
    waiting = waiting or {}
    first = min(messages, default=1)
    last = max(messages, default=1)
    figure, ax = canvas(8, 1.3 + 0.42 * len(cursors))
    for sequence, label in messages.items():
        look = {"facecolor": SHADES[0], "edgecolor": INK, "lw": 0.8}
        ax.add_patch(Rectangle((sequence - 0.45, -0.4), 0.9, 0.8, **look))
        note(ax, f"{sequence}\n{label}", (sequence, 0), ha="center", va="center", fontsize=8)
    for row, (name, (delivered, floor)) in enumerate(cursors.items(), start=1):
        _draw_cursor(ax, -row, first, delivered, floor, waiting.get(name, ()))
    ax.set_xlim(first - 0.6, last + 0.6)
    ax.set_ylim(-len(cursors) - 0.6, 0.6)
    name_rows(ax, ["stream", *cursors], [-row for row in range(len(cursors) + 1)])
    ax.set_xticks([])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title(title, pad=20)
    legend(ax, [word for word in CURSORS if waiting or word != WAITING], CURSORS)
    return Picture(figure, alt)


def _draw_cursor(ax, y, first, delivered, floor, waiting):
    """One consumer: a line up to what it was given, and its marks. first: sequence of the first
    message; delivered, floor, waiting: as for stream_log()."""
    left = first - 0.45
    if delivered < first:
        note(ax, "nothing delivered yet", (left, y), va="center", color=MUTED)
        return
    ax.plot([left, delivered], [y, y], color=SERIES[0], lw=3, alpha=0.3, zorder=0)
    marks = [(FLOOR, floor)] if floor >= first else []
    marks += [(WAITING, sequence) for sequence in waiting]
    taken = [at for _, at in marks]
    beside = 0.15 if delivered in taken else 0
    marks.append((DELIVERED, delivered + beside))
    for word, at in marks:
        colour, shape = CURSORS[word]
        ax.plot(at, y, shape, color=colour, ms=8 if word == WAITING else 9)


MARKS = {  # event that depths() can mark: colour and shape
    **OUTCOME,
    **ENDING,
    "removed": (INK, "x"),
    "returned": (INK, "v"),
    "killed": OUTCOME["lost"],
}


@styled
def depths(log, names, title, alt, marks=("published", "acked", "removed")):
    """Messages in each stream over time, one chart above the other on one time axis; above each
    line a row for each kind of event in `marks`.

    log: a Recorder with "depth" events (see sampling) and events to mark, with a field `stream`. A
        field `text` is written above its mark, where that is not the text of the mark before;
        "removed" says how many, if several.
    """
    figure = sheet(8, 0.7 + 1.7 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names):
        seen = log.all("depth", stream=name)
        top = max([e["messages"] for e in seen] + [1])
        times = [e["at"] for e in seen]
        messages = [e["messages"] for e in seen]
        ax.step(times, messages, where="post", color=SERIES[0], lw=1.8)
        for row, event in enumerate(reversed(marks)):
            _draw_events(ax, event, log.all(event, stream=name), top * (1.25 + 0.36 * row))
        ax.set_ylim(0, top * (1.2 + 0.36 * len(marks)))
        ax.set_yticks(range(0, top + 1, max(1, top // 4)))
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.grid(axis="y", color=GRID)
    axes[-1].set_xlabel("seconds since start")
    axes[0].set_title(title, pad=20)
    legend(axes[0], marks, MARKS)
    return Picture(figure, alt)


def _draw_events(ax, event, found, height):
    """One row of marks, and the words above them."""
    colour, shape = MARKS[event]
    ax.plot([e["at"] for e in found], [height] * len(found), shape, color=colour, ms=5.5)
    before = None
    for e in found:
        words = e.get("text")
        if words == before:
            words = None
        if event == "removed" and e.get("messages", 1) > 1:
            words = f"×{e['messages']}"
        if words:  # above its mark: the next mark may stand close behind it
            note(ax, words, (e["at"], height), (0, 4.5), ha="center", fontsize=8)
        before = e.get("text")


@styled
def attempts(log, window, title, alt):
    """Publish attempts on a time axis, a line for each message id; the deduplication window shaded
    behind each stored one.

    log: a Recorder with "stored" and "refused" events, field `id`; window: seconds.
    """
    looks = {"stored": OUTCOME["acked"], "refused": OUTCOME["duplicate"]}
    rows = numbered(e["id"] for e in log.events if e["event"] in looks)
    stored = log.all("stored")
    refused = log.all("refused")
    figure, ax = canvas(8, 1.1 + 0.5 * len(rows))
    for e in stored:
        look = {"height": 0.6, "color": SHADES[2], "edgecolor": MUTED, "lw": 0.8}
        ax.barh(rows[e["id"]], window, left=e["at"], zorder=0, **look)
    for e in stored + refused:
        colour, shape = looks[e["event"]]
        ax.plot(e["at"], rows[e["id"]], shape, color=colour, ms=8)
    name_rows(ax, list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    first = min([e["at"] for e in stored + refused], default=0)
    ends = [e["at"] + window for e in stored] + [e["at"] for e in refused]
    last = max(ends, default=1)
    margin = 0.03 * (last - first)  # margins() would cut the first mark
    ax.set_xlim(first - margin, last + margin)
    ax.set_xlabel(f"seconds since start (shaded: the window of {window:g} s)")
    ax.set_title(title, pad=20)
    legend(ax, list(looks), looks)
    return Picture(figure, alt)

"""Streams: as a log with cursors, as depth over time, as attempts to publish."""

from matplotlib.patches import Rectangle

from labkit.pictures.gantt import ENDING, SHADES
from labkit.pictures.style import GRID, INK, MUTED, OUTCOME, SERIES, Picture, canvas, legend, styled


@styled
def stream_log(messages, cursors, title, alt, waiting=None):
    """A stream as a row of boxes, one a stored message, and below it a line for each consumer.

    messages: {sequence: label}; cursors: {consumer: (delivered, ack floor)}, stream sequences as in
    lab.consumers(). A triangle stands at the last sequence delivered, a square at the ack floor
    (all up to it are acked).
    waiting: {consumer: sequences} delivered and not acked, drawn as diamonds.
    """
    first, last = min(messages, default=1), max(messages, default=1)
    looks = {
        "acked up to here": OUTCOME["acked"],
        "delivered, not acked": (OUTCOME["redelivered"][0], "D"),
        "delivered up to here": (OUTCOME["published"][0], ">"),
    }
    figure, ax = canvas(8, 1.3 + 0.42 * len(cursors))
    for sequence, label in messages.items():
        ax.add_patch(
            Rectangle((sequence - 0.45, -0.4), 0.9, 0.8, facecolor=SHADES[0], edgecolor=INK, lw=0.8)
        )
        ax.annotate(
            f"{sequence}\n{label}", (sequence, 0), ha="center", va="center", fontsize=8, color=INK
        )
    for row, (name, (delivered, floor)) in enumerate(cursors.items(), start=1):
        if delivered < first:
            ax.annotate(
                "nothing delivered yet", (first - 0.45, -row), va="center", fontsize=9, color=MUTED
            )
            continue
        ax.plot([first - 0.45, delivered], [-row, -row], color=SERIES[0], lw=3, alpha=0.3, zorder=0)
        marks = [("acked up to here", floor)] if floor >= first else []
        marks += [("delivered, not acked", sequence) for sequence in (waiting or {}).get(name, ())]
        beside = 0.15 if delivered in [at for _, at in marks] else 0
        for word, at in [*marks, ("delivered up to here", delivered + beside)]:
            ax.plot(
                at,
                -row,
                looks[word][1],
                color=looks[word][0],
                ms=8 if word == "delivered, not acked" else 9,
            )
    ax.set_xlim(first - 0.6, last + 0.6)
    ax.set_ylim(-len(cursors) - 0.6, 0.6)
    ax.set_yticks([0, *(-row for row in range(1, len(cursors) + 1))], ["stream", *cursors])
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title(title, pad=20)
    legend(ax, [word for word in looks if waiting or word != "delivered, not acked"], looks)
    return Picture(figure, alt)


@styled
def depths(log, names, title, alt, marks=("published", "acked", "removed")):
    """Messages in each stream over time, one chart above the other on one time axis; above each
    line a row for each kind of event in `marks`.

    log: a Recorder with "depth" events (see sampling) and events to mark, with a field `stream`. A
         field `text` is written above its mark, where that is not the text of the mark before;
         "removed" says how many, if several.
    """
    looks = {
        **OUTCOME,
        **ENDING,
        "removed": (INK, "x"),
        "returned": (INK, "v"),
        "killed": OUTCOME["lost"],
    }
    figure, _ = canvas(8, 0.7 + 1.7 * len(names))
    figure.clear()
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names):
        seen = log.all("depth", stream=name)
        ax.step(
            [e["at"] for e in seen],
            [e["messages"] for e in seen],
            where="post",
            color=SERIES[0],
            lw=1.8,
        )
        top = max([e["messages"] for e in seen] + [1])
        for row, event in enumerate(marks):
            colour, shape = looks[event]
            found, height = (
                log.all(event, stream=name),
                top * (1.25 + 0.36 * (len(marks) - 1 - row)),
            )
            ax.plot([e["at"] for e in found], [height] * len(found), shape, color=colour, ms=5.5)
            for before, e in zip([{}, *found], found):
                words = e["text"] if e.get("text") != before.get("text") else ""
                if event == "removed" and e.get("messages", 1) > 1:
                    words = f"×{e['messages']}"
                if words:  # above its mark: the next mark may stand close behind it
                    ax.annotate(
                        words,
                        (e["at"], height),
                        xytext=(0, 4.5),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                        color=INK,
                    )
        ax.set_ylim(0, top * (1.2 + 0.36 * len(marks)))
        ax.set_yticks([*range(0, top + 1, max(1, top // 4))])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.grid(axis="y", color=GRID)
    axes[-1].set_xlabel("seconds since start")
    axes[0].set_title(title, pad=20)
    legend(axes[0], marks, looks)
    return Picture(figure, alt)


@styled
def attempts(log, window, title, alt):
    """Publish attempts on a time axis, a line for each message id; the deduplication window shaded
    behind each stored one.

    log: a Recorder with "stored" and "refused" events, field `id`; window: seconds.
    """
    looks = {"stored": OUTCOME["acked"], "refused": OUTCOME["duplicate"]}
    tries = log.all("stored") + log.all("refused")
    rows = {
        name: row
        for row, name in enumerate(dict.fromkeys(e["id"] for e in log.events if e in tries))
    }
    figure, ax = canvas(8, 1.1 + 0.5 * len(rows))
    for e in tries:
        if e["event"] == "stored":
            ax.barh(
                rows[e["id"]],
                window,
                left=e["at"],
                height=0.6,
                color=SHADES[2],
                edgecolor=MUTED,
                lw=0.8,
                zorder=0,
            )
        colour, shape = looks[e["event"]]
        ax.plot(e["at"], rows[e["id"]], shape, color=colour, ms=8)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    first = min((e["at"] for e in tries), default=0)
    last = max((e["at"] + window * (e["event"] == "stored") for e in tries), default=1)
    ax.set_xlim(
        first - 0.03 * (last - first), last + 0.03 * (last - first)
    )  # margins() would cut the first mark
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"seconds since start (shaded: the window of {window:g} s)")
    ax.set_title(title, pad=20)
    legend(ax, list(looks), looks)
    return Picture(figure, alt)

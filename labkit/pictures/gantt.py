"""Pictures of JetStream: a stream as a log with cursors, deliveries as bars in a worker's hands, depth over time."""
import contextlib

from matplotlib.patches import Rectangle

from labkit.pictures import GRID, INK, MUTED, OUTCOME, SERIES, Picture, canvas, legend, line_at, styled
from labkit.record import regularly

ENDING = {  # how a message leaves a worker's hands: colour, shape, word
    "acked": OUTCOME["acked"], "nak": OUTCOME["redelivered"], "term": OUTCOME["lost"], "expired": OUTCOME["duplicate"],
    "in progress": ("#0072B2", "|")}
SHADES = ["#cfe3f1", "#d9efe5", "#fbe9d0", "#eddbe6"]  # one a worker, told apart by the name in the bar as well


@styled
def gantt(log, title, alt, notes=(), order=(), marks=()):
    """Each delivery as a bar, from the moment a worker got the message to the moment it was out of its hands.

    log: a Recorder with "delivered" events (fields msg and worker) and, for each, one that ends it: "acked", "nak",
         "term" or "expired" (same msg and worker). "in progress" marks a heartbeat in between. A bar without an end
         reaches to the right edge and fades. Two workers that hold one message at the same time share its row.
    notes: (seconds, msg, text) written beside a bar; order: messages from top to bottom (default: as first delivered).
    marks: (seconds since the first delivery, text), drawn as a dashed line with the text above it.
    """
    given = log.all("delivered")
    rows = {msg: row for row, msg in enumerate(dict.fromkeys([*order, *(e["msg"] for e in given)]))}
    workers = list(dict.fromkeys(e["worker"] for e in given))
    start = min((e["at"] for e in given), default=0)
    last = max((e["at"] for e in log.events if e["event"] in (*ENDING, "delivered")), default=start) - start
    width = max(last * 1.12, .1)
    figure, ax = canvas(8, 1.2 + .42 * len(rows))
    bars = []
    for place, e in enumerate(given):
        later = [d["at"] for d in given[place + 1:] if (d["msg"], d["worker"]) == (e["msg"], e["worker"])]
        own = [x for x in log.events if x["event"] in ENDING and (x["msg"], x["worker"]) == (e["msg"], e["worker"])
               and e["at"] <= x["at"] <= min(later, default=float("inf"))]
        over = next((x for x in own if x["event"] != "in progress"), None)
        end = over["at"] - start if over else width
        bars.append((e, e["at"] - start, end, over, own[:own.index(over) + 1] if over else own))
    for e, begin, end, over, own in bars:
        shared = any(o["msg"] == e["msg"] and o["worker"] != e["worker"] and min(end, f) - max(begin, b) > width / 100
                     for o, b, f, _, _ in bars)
        row = rows[e["msg"]] + (.19 * (-1 if workers.index(e["worker"]) == 0 else 1) if shared else 0)
        ax.barh(row, max(end - begin, width / 300), left=begin, height=.34 if shared else .56,
                color=SHADES[workers.index(e["worker"]) % 4], edgecolor=MUTED, lw=.8, alpha=1 if over else .5)
        if end - begin > width / 18:  # else the mark at its end would stand on the name
            ax.annotate(e["worker"], (begin, row), xytext=(6, 0), textcoords="offset points", va="center", color=INK,
                        fontsize=8 if shared else 9, clip_on=True)
        for x in own:
            colour, shape = ENDING[x["event"]]
            size = (9 if shape == "|" else 6) if shared else (12 if shape == "|" else 8)
            ax.plot(x["at"] - start, row, shape, color=colour, ms=size, mew=2 if shape == "|" else 1)
    for at, msg, text in notes:
        ax.annotate(text, (at - start, rows[msg]), xytext=(10, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    for at, text in marks:
        line_at(ax, at, text)
    ax.set_yticks(range(len(rows)), [f"message {msg}" if isinstance(msg, int) else msg for msg in rows])
    ax.set_xlim(0, width)
    ax.set_ylim(len(rows) - .4, -.6)
    ax.grid(axis="x", color=GRID)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("seconds since the first delivery")
    ax.set_title(title, pad=20)
    legend(ax, [name for name in ENDING if log.count(name)], ENDING)
    return Picture(figure, alt)


@styled
def stream_log(messages, cursors, title, alt, waiting=None):
    """A stream as a row of boxes, one a stored message, and below it a line for each consumer.

    messages: {sequence: label}; cursors: {consumer: (delivered, ack floor)}, stream sequences as in lab.consumers().
    A triangle stands at the last sequence delivered, a square at the ack floor (all up to it are acked).
    waiting: {consumer: sequences} delivered and not acked, drawn as diamonds.
    """
    first, last = min(messages, default=1), max(messages, default=1)
    looks = {"acked up to here": OUTCOME["acked"], "delivered, not acked": (OUTCOME["redelivered"][0], "D"),
             "delivered up to here": (OUTCOME["published"][0], ">")}
    figure, ax = canvas(8, 1.3 + .42 * len(cursors))
    for sequence, label in messages.items():
        ax.add_patch(Rectangle((sequence - .45, -.4), .9, .8, facecolor=SHADES[0], edgecolor=INK, lw=.8))
        ax.annotate(f"{sequence}\n{label}", (sequence, 0), ha="center", va="center", fontsize=8, color=INK)
    for row, (name, (delivered, floor)) in enumerate(cursors.items(), start=1):
        if delivered < first:
            ax.annotate("nothing delivered yet", (first - .45, -row), va="center", fontsize=9, color=MUTED)
            continue
        ax.plot([first - .45, delivered], [-row, -row], color=SERIES[0], lw=3, alpha=.3, zorder=0)
        marks = [("acked up to here", floor)] if floor >= first else []
        marks += [("delivered, not acked", sequence) for sequence in (waiting or {}).get(name, ())]
        beside = .15 if delivered in [at for _, at in marks] else 0
        for word, at in [*marks, ("delivered up to here", delivered + beside)]:
            ax.plot(at, -row, looks[word][1], color=looks[word][0], ms=8 if word == "delivered, not acked" else 9)
    ax.set_xlim(first - .6, last + .6)
    ax.set_ylim(-len(cursors) - .6, .6)
    ax.set_yticks([0, *(-row for row in range(1, len(cursors) + 1))], ["stream", *cursors])
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title(title, pad=20)
    legend(ax, [word for word in looks if waiting or word != "delivered, not acked"], looks)
    return Picture(figure, alt)


@contextlib.asynccontextmanager
async def sampling(js, log, *names, every=0.02):
    """While the block runs, looks at each stream, `every` so many seconds and once more at the end. Notes
    log("depth", stream=name, messages=n), and log("removed", stream=name, messages=n) when n more are gone than before:
    a full stream stays as deep as it is while it loses its oldest."""
    gone = {}

    async def look():
        for name in names:
            state = (await js.stream_info(name)).state
            log("depth", stream=name, messages=state.messages)
            removed = state.last_seq - state.messages
            if removed > gone.setdefault(name, removed):
                log("removed", stream=name, messages=removed - gone[name])
            gone[name] = removed

    async with regularly(look, every):
        yield


@styled
def depths(log, names, title, alt, marks=("published", "acked", "removed")):
    """Messages in each stream over time, one chart above the other on one time axis; above each line a row for each
    kind of event in `marks`.

    log: a Recorder with "depth" events (see sampling) and events to mark, with a field `stream`. A field `text` is
         written above its mark, where that is not the text of the mark before; "removed" says how many, if several.
    """
    looks = {**OUTCOME, **ENDING, "removed": (INK, "x"), "returned": (INK, "v"), "killed": OUTCOME["lost"]}
    figure, _ = canvas(8, .7 + 1.7 * len(names))
    figure.clear()
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names):
        seen = log.all("depth", stream=name)
        ax.step([e["at"] for e in seen], [e["messages"] for e in seen], where="post", color=SERIES[0], lw=1.8)
        top = max([e["messages"] for e in seen] + [1])
        for row, event in enumerate(marks):
            colour, shape = looks[event]
            found, height = log.all(event, stream=name), top * (1.25 + .36 * (len(marks) - 1 - row))
            ax.plot([e["at"] for e in found], [height] * len(found), shape, color=colour, ms=5.5)
            for before, e in zip([{}, *found], found):
                words = e["text"] if e.get("text") != before.get("text") else ""
                if event == "removed" and e.get("messages", 1) > 1:
                    words = f"×{e['messages']}"
                if words:  # above its mark: the next mark may stand close behind it
                    ax.annotate(words, (e["at"], height), xytext=(0, 4.5), textcoords="offset points", ha="center",
                                fontsize=8, color=INK)
        ax.set_ylim(0, top * (1.2 + .36 * len(marks)))
        ax.set_yticks([*range(0, top + 1, max(1, top // 4))])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.grid(axis="y", color=GRID)
    axes[-1].set_xlabel("seconds since start")
    axes[0].set_title(title, pad=20)
    legend(axes[0], marks, looks)
    return Picture(figure, alt)


@styled
def attempts(log, window, title, alt):
    """Publish attempts on a time axis, a line for each message id; the deduplication window shaded behind each stored one.

    log: a Recorder with "stored" and "refused" events, field `id`; window: seconds.
    """
    looks = {"stored": OUTCOME["acked"], "refused": OUTCOME["duplicate"]}
    tries = log.all("stored") + log.all("refused")
    rows = {name: row for row, name in enumerate(dict.fromkeys(e["id"] for e in log.events if e in tries))}
    figure, ax = canvas(8, 1.1 + .5 * len(rows))
    for e in tries:
        if e["event"] == "stored":
            ax.barh(rows[e["id"]], window, left=e["at"], height=.6, color=SHADES[2], edgecolor=MUTED, lw=.8, zorder=0)
        colour, shape = looks[e["event"]]
        ax.plot(e["at"], rows[e["id"]], shape, color=colour, ms=8)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - .4, -.6)
    first = min((e["at"] for e in tries), default=0)
    last = max((e["at"] + window * (e["event"] == "stored") for e in tries), default=1)
    ax.set_xlim(first - .03 * (last - first), last + .03 * (last - first))  # margins() would cut the first mark
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"seconds since start (shaded: the window of {window:g} s)")
    ax.set_title(title, pad=20)
    legend(ax, list(looks), looks)
    return Picture(figure, alt)

"""The pictures of the clinic: the way of a message, and the tree that leads from a complaint to its
cause."""

from labkit.pictures.style import GRID, INK, MUTED, SERIES, Picture, arrow, canvas, styled

WAY = [
    ("program", "does it log an error?"),
    ("connection", "does it reach a server,\nand which account?"),
    ("stream", "does it take the subject?"),
    ("consumer", "does it hand out?"),
    ("handler", "does it answer, once?"),
]

COLUMNS = [0.05, 2.35, 6.8]  # x of complaint, sign and cause in the picture
TREE = {  # complaint: {what you see: cause}
    "The program does\nnot get through": {
        "refused at once (nobody listens there)": "wrong port",
        "Authorization Violation": "wrong credentials",
        "lost one node, tries addresses that it cannot reach": "unreachable addresses gossiped",
        "is_connected, but every request times out": "node frozen",
    },
    "A publish or request\nfails or is not stored": {
        "no response; there is no stream": "no stream",
        "no response, or nothing at all; no stream has this subject": "stream subjects too narrow",
        "no response; the stream's only node is down": "only replica on a dead node",
        "503, 10077: maximum messages exceeded": "stream full, discard new",
        "PubAck with duplicate=True": "new messages taken for duplicates",
        "request: no responders, no such subscription": "nobody listens on the subject",
        "request: no responders, but others are answered": "client in another account",
    },
    "It is stored, and\nnot handled": {
        "pending 0, nothing handed out, the stream grows": "filter matches nothing",
        "pending grows, ack pending at its limit": "ack pending limit reached",
        "pending grows, nothing is out, workers wait": "consumer paused",
        "one message handed out again and again": "poison message",
        "pending 0, and another program took them": "two apps on one durable",
    },
    "It is handled twice,\nor has gaps": {
        "ack wait runs out; the worker answers no probe": "blocked event loop",
        "SlowConsumerError in the client's own log": "slow consumer on the client",
    },
}


@styled
def chain():
    """The five stations of a message: where it can get stuck, and the question to ask there."""
    figure, ax = canvas(8, 1.7, xlim=(-0.1, 10.1), ylim=(-1.1, 0.7))
    ax.axis("off")
    stations = [_draw_station(ax, 2 * i + 1, *station) for i, station in enumerate(WAY)]
    for one, other in zip(stations, stations[1:]):
        # From box to box, however wide their words are.
        boxes = {"patchA": one.get_bbox_patch(), "patchB": other.get_bbox_patch()}
        places = one.get_position(), other.get_position()
        arrow(ax, *places, zorder=0, shrinkA=4, shrinkB=4, **boxes)
    ax.set_title("A message gets stuck at one of five stations")
    questions = [f"{name}: {' '.join(question.split())}" for name, question in WAY]
    return Picture(
        figure,
        "Five stations in a row, program, connection, stream, consumer, handler, each with its "
        f"question: {' '.join(questions)}",
    )


def _draw_station(ax, x, name, question):
    """A box with a name, and the question below it. Returns the text in the box."""
    ax.text(x, -0.35, question, ha="center", va="top", fontsize=8.5, color=INK)
    box = {"boxstyle": "round,pad=.5", "fc": SERIES[0], "ec": "none"}
    look = {"ha": "center", "va": "center", "color": "white", "weight": "bold"}
    return ax.text(x, 0.25, name, bbox=box, **look)


@styled
def decision_tree():
    """From a complaint to a cause, as a Picture. The same as text: tree_text()."""
    rows = sum(map(len, TREE.values()))
    figure, ax = canvas(8.6, 0.31 * rows + 0.9, xlim=(0, 10), ylim=(-rows + 0.3, 1.1))
    ax.axis("off")
    for x, head in zip(COLUMNS, ["complaint", "what you see", "cause"]):
        ax.text(x, 0.75, head, fontsize=9, color=MUTED)
    top = 0
    for group, (complaint, seen) in enumerate(TREE.items()):
        _draw_complaint(ax, top, complaint, seen, GRID if group % 2 else "white")
        top -= len(seen)
    ax.set_title("Four complaints, eighteen causes: each has a sign of its own")
    return Picture(
        figure,
        "Decision tree of four complaints and eighteen causes; each line is in the text that "
        "tree_text() returns.",
    )


def _draw_complaint(ax, top, complaint, seen, background):
    """A complaint at the left, and a line to each sign and cause. top: the y of the first one."""
    ax.axhspan(top - len(seen) + 0.55, top + 0.45, color=background, alpha=0.6, lw=0)
    left, sign_at, cause_at = COLUMNS
    middle = top - (len(seen) - 1) / 2
    ax.text(left, middle, complaint, va="center", weight="bold", fontsize=9, color=INK)
    look = {"va": "center", "fontsize": 8.5}
    for row, (sign, cause) in enumerate(seen.items()):
        y = top - row
        ax.plot([1.95, 2.25], [middle, y], color=MUTED, lw=0.9)
        ax.text(sign_at, y, sign, color=INK, **look)
        ax.text(cause_at, y, f"→ {cause}", weight="bold", color=SERIES[0], **look)


def tree_text():
    """The decision tree as text, one line a cause."""
    lines = []
    for complaint, seen in TREE.items():
        lines.append(" ".join(complaint.split()))
        lines += [f"    {sign}  →  {cause}" for sign, cause in seen.items()]
    return "\n".join(lines)

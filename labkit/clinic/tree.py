"""The pictures of the clinic: the way of a message, and the decision tree from a complaint to a
cause."""

from labkit.pictures.style import GRID, INK, MUTED, SERIES, Picture, canvas, styled

WAY = [
    ("program", "does it log an error?"),
    ("connection", "does it reach a server,\nand which account?"),
    ("stream", "does it take the subject?"),
    ("consumer", "does it hand out?"),
    ("handler", "does it answer, once?"),
]

TREE = {  # what the complaint is -> what you see -> cause
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
        "pending 0, delivered 0, the stream grows": "filter matches nothing",
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
    box = {"boxstyle": "round,pad=.5", "fc": SERIES[0], "ec": "none"}
    places = [
        ax.text(
            2 * i + 1, 0.25, name, ha="center", va="center", color="white", weight="bold", bbox=box
        )
        for i, (name, _) in enumerate(WAY)
    ]
    for one, other in zip(places, places[1:]):  # from box to box, however wide their words are
        ax.annotate(
            "",
            other.get_position(),
            one.get_position(),
            zorder=0,
            arrowprops={
                "arrowstyle": "-|>",
                "color": INK,
                "patchA": one.get_bbox_patch(),
                "patchB": other.get_bbox_patch(),
                "shrinkA": 4,
                "shrinkB": 4,
            },
        )
    for i, (_, question) in enumerate(WAY):
        ax.text(2 * i + 1, -0.35, question, ha="center", va="top", fontsize=8.5, color=INK)
    ax.set_title("A message gets stuck at one of five stations")
    return Picture(
        figure,
        "Five stations in a row, program, connection, stream, consumer, handler, each with its "
        "question: " + " ".join(f"{name}: {' '.join(question.split())}" for name, question in WAY),
    )


@styled
def decision_tree():
    """From a complaint to a cause, as a Picture. The same as text: tree_text()."""
    rows = sum(map(len, TREE.values()))
    figure, ax = canvas(8.6, 0.31 * rows + 0.9, xlim=(0, 10), ylim=(-rows + 0.3, 1.1))
    ax.axis("off")
    for x, head in [(0.05, "complaint"), (2.35, "what you see"), (6.8, "cause")]:
        ax.text(x, 0.75, head, fontsize=9, color=MUTED)
    y = 0
    for group, (complaint, seen) in enumerate(TREE.items()):
        middle = y - (len(seen) - 1) / 2
        ax.axhspan(
            y - len(seen) + 0.55, y + 0.45, color=GRID if group % 2 else "white", alpha=0.6, lw=0
        )
        ax.text(0.05, middle, complaint, va="center", weight="bold", fontsize=9, color=INK)
        for sign, cause in seen.items():
            ax.plot([1.95, 2.25], [middle, y], color=MUTED, lw=0.9)
            ax.text(2.35, y, sign, va="center", fontsize=8.5, color=INK)
            ax.text(6.8, y, f"→ {cause}", va="center", fontsize=8.5, weight="bold", color=SERIES[0])
            y -= 1
    ax.set_title("Four complaints, eighteen causes: each has a sign of its own")
    return Picture(
        figure,
        "Decision tree of four complaints and eighteen causes; each line is in the text that "
        "tree_text() returns.",
    )


def tree_text():
    """The decision tree as text, one line a cause."""
    lines = []
    for complaint, seen in TREE.items():
        lines += [
            " ".join(complaint.split()),
            *(f"    {sign}  →  {cause}" for sign, cause in seen.items()),
        ]
    return "\n".join(lines)

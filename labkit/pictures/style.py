"""The pictures that lessons share. One grammar: the title is the finding; outcome is colour and shape and word;
lanes for who, time to the right. Each function returns a Picture, which shows itself at the end of a cell."""
import base64
import functools
import io
import itertools
import math

import matplotlib
from matplotlib.figure import Figure  # not pyplot: no global state, nothing shown twice
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#22303c", "#6b7785", "#e4e7eb"
OUTCOME = {  # Okabe-Ito colours, safe for colour-blind readers; the shape says the same without colour
    "published": ("#0072B2", "o"), "delivered": ("#56B4E9", "v"), "acked": ("#009E73", "s"),
    "redelivered": ("#E69F00", "^"), "lost": ("#D55E00", "X"), "duplicate": ("#CC79A7", "D")}
ABOVE = {"loc": "lower right", "bbox_to_anchor": (1, 1), "fontsize": 9, "borderaxespad": .2}  # the place of a legend
SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))]
STATE = {  # of a node -> fill, edge, shape; "up" is a circle, and no other shape is mistaken for one
    "up": ("#d9efe5", "#009E73", "o"), "paused": ("#fbe9d0", "#E69F00", "s"), "isolated": ("#f6e3ee", "#CC79A7", "D"),
    "dead": ("#f9dfd0", "#D55E00", "8"), "no answer": (GRID, MUTED, "p")}
STYLE = {"font.size": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold", "axes.titlelocation": "left",
         "axes.titlesize": 11, "axes.titlecolor": INK, "legend.frameon": False, "axes.axisbelow": True}


class Picture:
    """A figure as PNG with its finding in words: screen readers, GitHub and plain terminals get `alt`."""

    def __init__(self, figure, alt):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        self.png, self.alt = buffer.getvalue(), alt

    def _repr_mimebundle_(self, **_):
        return ({"image/png": base64.b64encode(self.png).decode(), "text/plain": f"Picture: {self.alt}"},
                {"image/png": {"alt": self.alt}})

    def __repr__(self):
        return f"Picture: {self.alt}"


def canvas(width, height, **axes):
    """(figure, axes), for use in a function that is @styled; width and height in inches, 8 wide is a notebook's width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=.08, h_pad=.1)
    return figure, figure.add_subplot(**axes)


def styled(draw):
    """Draws in the lab's style and leaves matplotlib's own settings, which are the learner's, alone."""
    @functools.wraps(draw)
    def inner(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)
    return inner


def legend(ax, names, looks):
    """A legend in one line above the axes, at the right: names with their colour and shape."""
    if names:
        marks = [Line2D([], [], color=looks[name][0], marker=looks[name][1], ls="") for name in names]
        ax.legend(marks, names, ncol=len(names), handletextpad=.1, columnspacing=1, **ABOVE)


def line_at(ax, at, text):
    """A dashed line, and its text above the axes."""
    ax.axvline(at, color=INK, lw=1, ls="--")
    ax.annotate(text, (at, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha="center",
                fontsize=9, color=INK)


@styled
def timeline(log, lanes, title, alt, marks=()):
    """Who sent what when, and what became of it.

    log: a Recorder; its events "published", "delivered", "acked", "redelivered", "lost", "duplicate" carry the fields
         lane (one of `lanes`) and msg (any label). A "lost" event is drawn below the lane in which it was sent;
         with answer=True it is the lost answer to msg, and hangs above the lane that answered.
    lanes: names, from top to bottom; the first one publishes.
    marks: (seconds, text) pairs, drawn as dashed lines.
    """
    sender = lanes[0]
    figure, ax = canvas(8, .95 + .55 * len(lanes))
    row = {lane: -index for index, lane in enumerate(lanes)}
    sent = {e["msg"]: e["at"] for e in log.all("published")}
    shown = [e for e in log.events if e["event"] in OUTCOME and e.get("lane") in row]
    for lane in lanes:
        ax.axhline(row[lane], color=GRID, lw=6, zorder=0)
    for e in shown:
        colour, shape = OUTCOME[e["event"]]
        y = row[e["lane"]] + (0 if e["event"] != "lost" else .5 if e.get("answer") else -.5)
        if e["event"] == "published":
            ax.annotate(str(e["msg"]), (e["at"], y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8,
                        color=MUTED, bbox={"fc": "white", "ec": "none", "pad": .5})
        elif e["event"] == "lost":
            came = [o["at"] for o in shown if e.get("answer") and o["msg"] == e["msg"] and o["lane"] == e["lane"]]
            begin = (came[0], row[e["lane"]]) if came else (sent.get(e["msg"], e["at"]), row[sender])
            ax.plot([begin[0], e["at"]], [begin[1], y], color=colour, lw=1, ls=":", zorder=1)
        elif e["msg"] in sent and e["lane"] != sender:
            ax.annotate("", (e["at"], y), (sent[e["msg"]], row[sender]), zorder=1,
                        arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": .9, "shrinkA": 4, "shrinkB": 4})
        ax.plot(e["at"], y, shape, color=colour, ms=8 if e["event"] == "lost" else 7, zorder=3)
    for at, text in marks:
        ax.axvline(at, color=INK, lw=1, ls="--", zorder=2)
        ax.annotate(text, (at, 0), xycoords=("data", "axes fraction"), xytext=(4, 2), textcoords="offset points",
                    fontsize=9, color=INK)
    ax.set_yticks(list(row.values()), lanes)
    ax.set_ylim(-len(lanes) + .1, .6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds since start")
    ax.set_title(title, pad=20)
    legend(ax, [name for name in OUTCOME if any(e["event"] == name for e in shown)], OUTCOME)
    return Picture(figure, alt)


@styled
def bars(counts, title, alt, xlabel, expected=None):
    """One bar a name, its count written at its end. counts: {name: number}; expected: a value drawn as a line."""
    figure, ax = canvas(8, .9 + .38 * len(counts))
    names = list(counts)
    ax.barh(names, [counts[name] for name in names], color=SERIES[0], height=.6)
    for name in names:
        roomy = counts[name] > max(counts.values()) / 8  # else the number stands behind the bar
        ax.annotate(f" {counts[name]:,} ", (counts[name], name), va="center", ha="right" if roomy else "left", fontsize=9,
                    color="white" if roomy else INK, weight="bold")
    if expected is not None:
        line_at(ax, expected, f"{expected:,.0f} each, if shared evenly")
    ax.set_xlim(0, max([*counts.values(), expected or 0, 1]) * 1.12)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=20 if expected is not None else 8)
    return Picture(figure, alt)


@styled
def ecdf(samples, title, alt, xlabel, limit=None):
    """Share of the samples below each value, on a log axis; one line a name, with p50 and p99 marked and written.

    samples: {name: values}; limit: (value, text) drawn as a vertical line.
    """
    figure, ax = canvas(8, 3.4)
    for index, (name, values) in enumerate(samples.items()):
        values = sorted(values)
        share = [(i + 1) / len(values) for i in range(len(values))]
        p50, p99 = values[len(values) // 2], values[min(len(values) - 1, int(len(values) * .99))]
        ax.step(values, share, where="post", color=SERIES[index], ls=DASHES[index], lw=1.8,
                label=f"{name}: p50 {p50:.2g}, p99 {p99:.2g}")
        ax.plot([p50, p99], [.5, .99], "o", color=SERIES[index], ms=5)
    if limit:
        ax.axvline(limit[0], color=INK, lw=1, ls=":")
        ax.annotate(limit[1], (limit[0], .25), xycoords=("data", "axes fraction"), xytext=(4, 0), zorder=5,
                    textcoords="offset points", fontsize=9, color=INK, bbox={"fc": "white", "ec": "none", "pad": 1})
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(axis="x", color=GRID)
    ax.set_ylim(0, 1.03)
    ax.set_yticks([0, .5, .99], ["0", "p50", "p99"])
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    if samples:
        figure.legend(loc="outside lower center", ncol=2, fontsize=9)
    return Picture(figure, alt)


@styled
def cluster_map(table, title, alt, notes=None):
    """The nodes, who is up, who leads. table: as lab.nodes() returns it; notes: {node: text beside it}."""
    figure, ax = canvas(6.4, 3.2)
    ax.set_aspect("equal")
    ax.axis("off")
    turn = 2 * math.pi / max(1, len(table))
    at = {name: (-1.7 * math.sin(i * turn), 1.15 * math.cos(i * turn)) for i, name in enumerate(table.index)}
    for a, b in itertools.combinations(at, 2):
        whole = (table.loc[[a, b], "state"] == "up").all()
        ax.plot(*zip(at[a], at[b]), color=MUTED if whole else OUTCOME["lost"][0], lw=2, ls="-" if whole else ":", zorder=0)
    for name, (x, y) in at.items():
        row = table.loc[name]
        fill, _, shape = STATE[row["state"]]
        ax.plot(x, y, shape, ms=44 if shape == "D" else 56, mfc=fill, mec=INK, mew=1.4)
        ax.text(x, y + .1, name, ha="center", va="center", fontsize=12, weight="bold", color=INK)
        ax.text(x, y - .2, row["state"], ha="center", va="center", fontsize=8, color=INK)
        words = [f"port {row['port']}", *(["★ leads the cluster (meta)"] if row["meta"] == "leader" else []),
                 *([notes[name]] if notes and name in notes else [])]
        side = -1 if x < -.1 else 1
        ax.text(x + side * .66, y, "\n".join(words), ha="left" if side > 0 else "right", va="center", fontsize=9,
                color=INK)
    ax.set_xlim(-3.9, 3.9)
    ax.set_ylim(-1.3, 1.8)
    ax.set_title(title)
    return Picture(figure, alt)

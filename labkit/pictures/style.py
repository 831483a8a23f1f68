"""The pictures that lessons share. One grammar: the title is the finding; outcome is colour and
shape and word; lanes for who, time to the right. Each function returns a Picture, which shows
itself at the end of a cell.
"""

import base64
import functools
import io

import matplotlib
from matplotlib.figure import Figure  # not pyplot: no global state, nothing shown twice
from matplotlib.lines import Line2D

INK, MUTED, GRID = "#22303c", "#6b7785", "#e4e7eb"
# Okabe-Ito colours, safe for colour-blind readers; the shape says the same without colour
OUTCOME = {
    "published": ("#0072B2", "o"),
    "delivered": ("#56B4E9", "v"),
    "acked": ("#009E73", "s"),
    "redelivered": ("#E69F00", "^"),
    "lost": ("#D55E00", "X"),
    "duplicate": ("#CC79A7", "D"),
}
ABOVE = {
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "fontsize": 9,
    "borderaxespad": 0.2,
}  # the place of a legend
SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))]
# of a node -> fill, edge, shape; "up" is a circle, and no other shape is mistaken for one
STATE = {
    "up": ("#d9efe5", "#009E73", "o"),
    "paused": ("#fbe9d0", "#E69F00", "s"),
    "isolated": ("#f6e3ee", "#CC79A7", "D"),
    "dead": ("#f9dfd0", "#D55E00", "8"),
    "no answer": (GRID, MUTED, "p"),
}
STYLE = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "legend.frameon": False,
    "axes.axisbelow": True,
}


class Picture:
    """A figure as PNG with its finding in words: screen readers, GitHub and plain terminals get
    `alt`."""

    def __init__(self, figure, alt):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        self.png, self.alt = buffer.getvalue(), alt

    def _repr_mimebundle_(self, **_):
        return (
            {
                "image/png": base64.b64encode(self.png).decode(),
                "text/plain": f"Picture: {self.alt}",
            },
            {"image/png": {"alt": self.alt}},
        )

    def __repr__(self):
        return f"Picture: {self.alt}"


def canvas(width, height, **axes):
    """(figure, axes), for use in a function that is @styled; width and height in inches, 8 wide is
    a notebook's width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    return figure, figure.add_subplot(**axes)


def styled(draw):
    """Draws in the lab's style and leaves matplotlib's own settings, which are the learner's,
    alone."""

    @functools.wraps(draw)
    def inner(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return inner


def legend(ax, names, looks):
    """A legend in one line above the axes, at the right: names with their colour and shape."""
    if names:
        marks = [
            Line2D([], [], color=looks[name][0], marker=looks[name][1], ls="") for name in names
        ]
        ax.legend(marks, names, ncol=len(names), handletextpad=0.1, columnspacing=1, **ABOVE)


def line_at(ax, at, text):
    """A dashed line, and its text above the axes."""
    ax.axvline(at, color=INK, lw=1, ls="--")
    ax.annotate(
        text,
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=INK,
    )

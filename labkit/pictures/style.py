"""What all pictures share: colours, shapes, the Picture itself, and parts that many are made of.

One grammar: the title is the finding; an outcome is a colour, a shape and a word; lanes show who,
time runs to the right.
"""

import base64
import functools
import io

import matplotlib
from matplotlib.figure import Figure  # not pyplot: no global state, nothing shown twice
from matplotlib.lines import Line2D

INK = "#22303c"
MUTED = "#6b7785"
GRID = "#e4e7eb"
# Okabe-Ito colours, safe for colour-blind readers; the shape says the same without colour
OUTCOME = {
    "published": ("#0072B2", "o"),
    "delivered": ("#56B4E9", "v"),
    "acked": ("#009E73", "s"),
    "redelivered": ("#E69F00", "^"),
    "lost": ("#D55E00", "X"),
    "duplicate": ("#CC79A7", "D"),
}
ABOVE = {  # the place of a legend: above the axes, at the right
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "fontsize": 9,
    "borderaxespad": 0.2,
}
X_IS_DATA = ("data", "axes fraction")  # a place (x, y): x on its axis, y from 0 (bottom) to 1 (top)
Y_IS_DATA = ("axes fraction", "data")  # x from 0 (left) to 1 (right), y on its axis
SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))]
# state of a node: fill, edge, shape; "up" is a circle, and no other shape looks like one
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
    """A figure as PNG, and its finding in words (`alt`), which screen readers, GitHub and plain
    terminals show."""

    def __init__(self, figure, alt):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        self.png = buffer.getvalue()
        self.alt = alt

    def _repr_mimebundle_(self, **_):
        data = {
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": f"Picture: {self.alt}",
        }
        return data, {"image/png": {"alt": self.alt}}

    def __repr__(self):
        return f"Picture: {self.alt}"


def styled(draw):
    """Makes a function draw in the lab's style, and leaves matplotlib's own settings, which are the
    learner's, as they are."""

    @functools.wraps(draw)
    def inner(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return inner


def sheet(width, height):
    """An empty figure, for use in a function that is @styled. width, height: inches; 8 is the width
    of a notebook."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    return figure


def canvas(width, height, **axes):
    """(figure, its one axes). width, height: inches; axes: settings of the axes."""
    figure = sheet(width, height)
    return figure, figure.add_subplot(**axes)


def note(ax, text, at, shift=(0, 0), **look):
    """Writes a text at a place of the axes. shift: points to the right and up; look: what differs
    from the usual look, such as `ha`, `color`, `xycoords`."""
    look = {"fontsize": 9, "color": INK, **look}
    ax.annotate(text, at, xytext=shift, textcoords="offset points", **look)


def arrow(ax, tail, tip, zorder=None, **look):
    """Draws an arrow from place to place."""
    ax.annotate(
        "", tip, tail, zorder=zorder, arrowprops={"arrowstyle": "-|>", "color": INK, **look}
    )


def line_at(ax, at, text):
    """A dashed line, and its text above the axes."""
    ax.axvline(at, color=INK, lw=1, ls="--")
    note(ax, text, (at, 1), (0, 3), xycoords=X_IS_DATA, ha="center")


def name_rows(ax, names, places=None):
    """Writes the names of the rows at the left. places: of the rows on the y axis (default: 0, 1,
    2, …)."""
    ax.set_yticks(range(len(names)) if places is None else places, names)
    ax.tick_params(axis="y", length=0)


def headline(figure, title):
    """The title at the left edge of the figure: above several axes, or long names of rows."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK)


def legend(ax, names, looks):
    """A legend in one line above the axes, at the right: names with their colour and shape."""
    if not names:
        return
    marks = [Line2D([], [], color=looks[name][0], marker=looks[name][1], ls="") for name in names]
    ax.legend(marks, names, ncol=len(names), handletextpad=0.1, columnspacing=1, **ABOVE)

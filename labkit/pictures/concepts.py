"""The drawing at the head of a lesson: its idea as a sketch, from no data."""

from matplotlib.patches import Rectangle

from labkit.pictures.style import (
    GRID,
    INK,
    OUTCOME,
    Picture,
    arrow,
    canvas,
    name_rows,
    note,
    styled,
)


@styled
def request_endings():
    """Lesson 03: a request ends in a reply, in "nobody listens", or in silence."""
    figure, ax = canvas(8, 2.5, xlim=(-0.3, 12.9), ylim=(-0.4, 2.7))
    _dress(ax, "A request has three endings", ["requester", "server", "service"])
    ax.hlines([0, 1, 2], -0.3, 12.9, color=GRID, lw=6, zorder=0)
    arrows = [
        ((0, 2), (1.2, 0)),
        ((1.8, 0), (3, 2)),
        ((5, 2), (5.6, 1)),
        ((6, 1), (6.6, 2)),
        ((9, 2), (10.2, 0)),
    ]
    for tail, tip in arrows:
        arrow(ax, tail, tip)
    ax.barh([0, 0], [0.6, 2.6], left=[1.2, 10.2], height=0.22, color=OUTCOME["delivered"][0])
    endings = [
        (3, "acked", "reply"),
        (6.6, "redelivered", "NoRespondersError"),
        (11.4, "lost", "TimeoutError"),
    ]
    for x, outcome, text in endings:
        colour, shape = OUTCOME[outcome]
        ax.plot(x, 2, shape, color=colour, ms=9)
        note(ax, text, (x, 2.3), fontsize=10, ha="center")
    words = [
        (0.55, 1.45, "user.profile"),
        (2.6, 0.5, "_INBOX.k7p"),
        (5, 0.55, "nobody listens"),
        (10.3, 0.3, "still working"),
    ]
    for x, y, text in words:
        note(ax, text, (x, y))
    return Picture(
        figure,
        "A reply comes back through an inbox; or the server says that nobody listens; or time runs"
        " out.",
    )


@styled
def two_steps():
    """Lesson 22: charge and marker are two steps; whichever comes first, a worker can die between
    them."""
    figure, ax = canvas(8, 2.6, xlim=(-0.1, 10.4), ylim=(-0.6, 2.75))
    names = ["charge, then mark", "mark, then charge", "both at once"]
    _dress(ax, "Between two steps there is a place to die", names)
    charge = ("charge", "delivered")
    mark = ("mark", "redelivered")
    both = ("charge + mark", "acked")
    ways = [
        (2, charge, mark, "dies here: charged, not marked;\nthe next worker charges again"),
        (1, mark, charge, "dies here: marked, not charged;\nnobody ever charges"),
    ]
    for row, first, second, end in ways:
        _draw_step(ax, row, 0, 2, *first)
        _draw_step(ax, row, 3.2, 2, *second)
        colour, shape = OUTCOME["lost"]
        ax.plot(2.6, row, shape, color=colour, ms=11)
        note(ax, end, (5.6, row), va="center")
    _draw_step(ax, 0, 0, 5.2, *both)
    note(ax, "no place between them:\none charge", (5.6, 0), va="center")
    return Picture(
        figure,
        "If the charge comes first, a crash before the marker leads to two charges; if the marker"
        " comes first, a crash before the charge leads to none; as one step they lead to one.",
    )


def _draw_step(ax, row, left, width, word, outcome):
    look = {"color": OUTCOME[outcome][0], "alpha": 0.35, "edgecolor": INK, "lw": 0.8}
    ax.barh(row, width, left=left, height=0.56, **look)
    note(ax, word, (left + width / 2, row), fontsize=10, ha="center", va="center")


def _dress(ax, title, names):
    """The title, and the names of the rows from top to bottom; no axes."""
    ax.set_title(title)
    ax.set_xticks([])
    name_rows(ax, names, range(len(names) - 1, -1, -1))
    ax.spines[["left", "bottom"]].set_visible(False)


PLACES = [  # on the way of a message, and the settings that matter there
    ("producer", "Nats-Msg-Id\ntimeout, retry"),
    ("connection", "name, ping interval\nreconnect for ever\ncallbacks"),
    ("server", "account, TLS\npermissions\nlimits"),
    ("consumer", "ack wait, backoff\nmax deliver, filter\nmax ack pending"),
    ("worker", "answer, heartbeat\ndrain on exit"),
]


@styled
def settings_on_the_way():
    """Lesson 43: five places that a message passes, and the settings that decide what happens there
    when something breaks."""
    figure, ax = canvas(8, 2.2, xlim=(0.1, 9.8), ylim=(-1.5, 0.5))
    ax.set_title("Each place on the way breaks in its own manner, and has its own settings")
    ax.axis("off")
    for index, (place, settings) in enumerate(PLACES):
        x = index * 2 + 0.95
        box = {"facecolor": "#cfe3f1", "edgecolor": INK, "lw": 0.8}
        ax.add_patch(Rectangle((x - 0.66, -0.27), 1.32, 0.54, **box))
        look = {"ha": "center", "color": INK}
        ax.text(x, 0, place, va="center", fontsize=11, weight="bold", **look)
        ax.text(x, -0.5, settings, va="top", fontsize=9, linespacing=1.5, **look)
        if index > 0:
            arrow(ax, (x - 1.38, 0), (x - 0.62, 0))
    return Picture(
        figure,
        "Producer, connection, server, consumer and worker, in a row; below each the settings that"
        " decide what happens there when something breaks.",
    )

"""The drawing at the head of a lesson: its idea as a sketch, from no data."""

from matplotlib.patches import Rectangle

from labkit.pictures.style import GRID, INK, OUTCOME, Picture, canvas, styled


@styled
def request_endings():
    """Lesson 02: a request ends in a reply, in "nobody listens", or in silence."""
    figure, ax = canvas(
        8, 2.5, xlim=(-0.3, 12.9), ylim=(-0.4, 2.7), title="A request has three endings"
    )
    ax.set(xticks=[], yticks=[2, 1, 0], yticklabels=["requester", "server", "service"])
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.hlines([0, 1, 2], -0.3, 12.9, color=GRID, lw=6, zorder=0)
    arrows = [
        ((0, 2), (1.2, 0)),
        ((1.8, 0), (3, 2)),
        ((5, 2), (5.6, 1)),
        ((6, 1), (6.6, 2)),
        ((9, 2), (10.2, 0)),
    ]
    for tail, tip in arrows:
        ax.annotate("", tip, tail, arrowprops={"arrowstyle": "-|>", "color": INK})
    ax.barh([0, 0], [0.6, 2.6], left=[1.2, 10.2], height=0.22, color=OUTCOME["delivered"][0])
    for x, look, text in [
        (3, "acked", "reply"),
        (6.6, "redelivered", "NoRespondersError"),
        (11.4, "lost", "TimeoutError"),
    ]:
        ax.plot(x, 2, OUTCOME[look][1], color=OUTCOME[look][0], ms=9)
        ax.annotate(text, (x, 2.3), ha="center", color=INK)
    for x, y, text in [
        (0.55, 1.45, "user.profile"),
        (2.6, 0.5, "_INBOX.k7p"),
        (5, 0.55, "nobody listens"),
        (10.3, 0.3, "still working"),
    ]:
        ax.annotate(text, (x, y), fontsize=9, color=INK)
    return Picture(
        figure,
        "A reply comes back through an inbox; or the server says that nobody listens; or time runs"
        " out.",
    )


@styled
def two_steps():
    """Lesson 07: charge and marker are two steps; whichever comes first, a worker can die between
    them."""
    figure, ax = canvas(
        8,
        2.6,
        xlim=(-0.1, 10.4),
        ylim=(-0.6, 2.75),
        title="Between two steps there is a place to die",
    )
    ax.set(
        xticks=[],
        yticks=[2, 1, 0],
        yticklabels=["charge, then mark", "mark, then charge", "both at once"],
    )
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    steps = {2: ["charge", "mark"], 1: ["mark", "charge"], 0: ["charge + mark"]}
    for row, words in steps.items():
        width = 5.2 / len(words) - 0.6 * (len(words) - 1)
        for place, word in enumerate(words):
            left = place * 3.2
            look = "acked" if "+" in word else "delivered" if word == "charge" else "redelivered"
            ax.barh(
                row,
                width,
                left=left,
                height=0.56,
                color=OUTCOME[look][0],
                alpha=0.35,
                edgecolor=INK,
                lw=0.8,
            )
            ax.annotate(word, (left + width / 2, row), ha="center", va="center", color=INK)
        if len(words) == 2:
            ax.plot(2.6, row, OUTCOME["lost"][1], color=OUTCOME["lost"][0], ms=11)
    for row, text in [
        (2, "dies here: charged, not marked;\nthe next worker charges again"),
        (1, "dies here: marked, not charged;\nnobody ever charges"),
        (0, "no place between them:\none charge"),
    ]:
        ax.annotate(text, (5.6, row), va="center", fontsize=9, color=INK)
    return Picture(
        figure,
        "If the charge comes first, a crash before the marker leads to two charges; if the marker"
        " comes first, a crash before the charge leads to none; as one step they lead to one.",
    )


@styled
def settings_on_the_way():
    """Lesson 13: five places that a message passes, and the settings that decide what happens there
    when something breaks."""
    figure, ax = canvas(
        8,
        2.2,
        xlim=(0.1, 9.8),
        ylim=(-1.5, 0.5),
        title="Each place on the way breaks in its own manner, and has its own settings",
    )
    ax.axis("off")
    places = [
        ("producer", "Nats-Msg-Id\ntimeout, retry"),
        ("connection", "name, ping interval\nreconnect for ever\ncallbacks"),
        ("server", "account, TLS\npermissions\nlimits"),
        ("consumer", "ack wait, backoff\nmax deliver, filter\nmax ack pending"),
        ("worker", "answer, heartbeat\ndrain on exit"),
    ]
    for index, (place, settings) in enumerate(places):
        x = index * 2 + 0.95
        ax.add_patch(
            Rectangle((x - 0.66, -0.27), 1.32, 0.54, facecolor="#cfe3f1", edgecolor=INK, lw=0.8)
        )
        ax.text(x, 0, place, ha="center", va="center", fontsize=11, weight="bold", color=INK)
        ax.text(x, -0.5, settings, ha="center", va="top", fontsize=9, color=INK, linespacing=1.5)
        if index:
            ax.annotate(
                "", (x - 0.62, 0), (x - 1.38, 0), arrowprops={"arrowstyle": "-|>", "color": INK}
            )
    return Picture(
        figure,
        "Producer, connection, server, consumer and worker, in a row; below each the settings that"
        " decide what happens there when something breaks.",
    )

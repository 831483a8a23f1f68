"""The drawing at the head of a lesson: its idea as a sketch, from no data."""
from matplotlib.patches import Rectangle

from labkit.pictures import GRID, INK, OUTCOME, Picture, canvas, styled


@styled
def request_endings():
    """Lesson 02: a request ends in a reply, in "nobody listens", or in silence."""
    figure, ax = canvas(8, 2.5, xlim=(-.3, 12.9), ylim=(-.4, 2.7), title="A request has three endings")
    ax.set(xticks=[], yticks=[2, 1, 0], yticklabels=["requester", "server", "service"])
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.hlines([0, 1, 2], -.3, 12.9, color=GRID, lw=6, zorder=0)
    arrows = [((0, 2), (1.2, 0)), ((1.8, 0), (3, 2)), ((5, 2), (5.6, 1)), ((6, 1), (6.6, 2)), ((9, 2), (10.2, 0))]
    for tail, tip in arrows:
        ax.annotate("", tip, tail, arrowprops={"arrowstyle": "-|>", "color": INK})
    ax.barh([0, 0], [.6, 2.6], left=[1.2, 10.2], height=.22, color=OUTCOME["delivered"][0])
    for x, look, text in [(3, "acked", "reply"), (6.6, "redelivered", "NoRespondersError"), (11.4, "lost", "TimeoutError")]:
        ax.plot(x, 2, OUTCOME[look][1], color=OUTCOME[look][0], ms=9)
        ax.annotate(text, (x, 2.3), ha="center", color=INK)
    for x, y, text in [(.55, 1.45, "user.profile"), (2.6, .5, "_INBOX.k7p"), (5, .55, "nobody listens"),
                       (10.3, .3, "still working")]:
        ax.annotate(text, (x, y), fontsize=9, color=INK)
    return Picture(figure, "A reply comes back through an inbox; or the server says that nobody listens; or time runs out.")


@styled
def settings_on_the_way():
    """Lesson 13: five places that a message passes, and the settings that decide what happens there when something breaks."""
    figure, ax = canvas(8, 2.2, xlim=(.1, 9.8), ylim=(-1.5, .5), title="Each place on the way breaks in its own manner, and has its own settings")
    ax.axis("off")
    places = [("producer", "Nats-Msg-Id\ntimeout, retry"), ("connection", "name, ping interval\nreconnect for ever\ncallbacks"),
              ("server", "account, TLS\npermissions\nlimits"), ("consumer", "ack wait, backoff\nmax deliver, filter\nmax ack pending"),
              ("worker", "answer, heartbeat\ndrain on exit")]
    for index, (place, settings) in enumerate(places):
        x = index * 2 + .95
        ax.add_patch(Rectangle((x - .66, -.27), 1.32, .54, facecolor="#cfe3f1", edgecolor=INK, lw=.8))
        ax.text(x, 0, place, ha="center", va="center", fontsize=11, weight="bold", color=INK)
        ax.text(x, -.5, settings, ha="center", va="top", fontsize=9, color=INK, linespacing=1.5)
        if index:
            ax.annotate("", (x - .62, 0), (x - 1.38, 0), arrowprops={"arrowstyle": "-|>", "color": INK})
    return Picture(figure, "Producer, connection, server, consumer and worker, in a row; below each the settings that decide "
                           "what happens there when something breaks.")

"""A map of the cluster: who is up, who leads."""

import itertools
import math

from labkit.pictures.style import INK, MUTED, OUTCOME, STATE, Picture, canvas, styled


@styled
def cluster_map(table, title, alt, notes=None):
    """The nodes: who is up, who leads. table: as lab.nodes() returns it; notes: {node: text beside
    it}."""
    figure, ax = canvas(6.4, 3.2)
    ax.set_aspect("equal")
    ax.axis("off")
    places = _on_an_ellipse(table.index)
    for a, b in itertools.combinations(places, 2):
        whole = table.loc[a, "state"] == table.loc[b, "state"] == "up"
        look = {"color": MUTED, "ls": "-"} if whole else {"color": OUTCOME["lost"][0], "ls": ":"}
        ax.plot(*zip(places[a], places[b]), lw=2, zorder=0, **look)
    for name, place in places.items():
        words = [f"port {table.loc[name, 'port']}"]
        if table.loc[name, "meta"] == "leader":
            words.append("★ leads the cluster (meta)")
        if notes and name in notes:
            words.append(notes[name])
        _draw_node(ax, name, table.loc[name, "state"], place, "\n".join(words))
    ax.set_xlim(-3.9, 3.9)
    ax.set_ylim(-1.3, 1.8)
    ax.set_title(title)
    return Picture(figure, alt)


def _on_an_ellipse(names):
    """{name: (x, y)}, the first one at the top, and on to the left."""
    turn = 2 * math.pi / max(1, len(names))
    return {
        name: (-1.7 * math.sin(index * turn), 1.15 * math.cos(index * turn))
        for index, name in enumerate(names)
    }


def _draw_node(ax, name, state, place, words):
    """One node: its shape, its name and state inside, words on the outer side."""
    x, y = place
    fill, _, shape = STATE[state]
    ax.plot(x, y, shape, ms=44 if shape == "D" else 56, mfc=fill, mec=INK, mew=1.4)
    inside = {"ha": "center", "va": "center", "color": INK}
    ax.text(x, y + 0.1, name, fontsize=12, weight="bold", **inside)
    ax.text(x, y - 0.2, state, fontsize=8, **inside)
    look = {"va": "center", "fontsize": 9, "color": INK}
    if x < -0.1:
        ax.text(x - 0.66, y, words, ha="right", **look)
    else:
        ax.text(x + 0.66, y, words, ha="left", **look)

"""A map of the cluster: who is up, who leads."""

import itertools
import math

from labkit.pictures.style import INK, MUTED, OUTCOME, STATE, Picture, canvas, styled


@styled
def cluster_map(table, title, alt, notes=None):
    """The nodes, who is up, who leads. table: as lab.nodes() returns it; notes: {node: text beside
    it}."""
    figure, ax = canvas(6.4, 3.2)
    ax.set_aspect("equal")
    ax.axis("off")
    turn = 2 * math.pi / max(1, len(table))
    at = {
        name: (-1.7 * math.sin(i * turn), 1.15 * math.cos(i * turn))
        for i, name in enumerate(table.index)
    }
    for a, b in itertools.combinations(at, 2):
        whole = (table.loc[[a, b], "state"] == "up").all()
        ax.plot(
            *zip(at[a], at[b]),
            color=MUTED if whole else OUTCOME["lost"][0],
            lw=2,
            ls="-" if whole else ":",
            zorder=0,
        )
    for name, (x, y) in at.items():
        row = table.loc[name]
        fill, _, shape = STATE[row["state"]]
        ax.plot(x, y, shape, ms=44 if shape == "D" else 56, mfc=fill, mec=INK, mew=1.4)
        ax.text(x, y + 0.1, name, ha="center", va="center", fontsize=12, weight="bold", color=INK)
        ax.text(x, y - 0.2, row["state"], ha="center", va="center", fontsize=8, color=INK)
        words = [
            f"port {row['port']}",
            *(["★ leads the cluster (meta)"] if row["meta"] == "leader" else []),
            *([notes[name]] if notes and name in notes else []),
        ]
        side = -1 if x < -0.1 else 1
        ax.text(
            x + side * 0.66,
            y,
            "\n".join(words),
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9,
            color=INK,
        )
    ax.set_xlim(-3.9, 3.9)
    ax.set_ylim(-1.3, 1.8)
    ax.set_title(title)
    return Picture(figure, alt)

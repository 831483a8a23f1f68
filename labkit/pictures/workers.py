"""Worker processes from start to death, on one time axis with what they did."""

from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from labkit.pictures.gantt import SHADES
from labkit.pictures.style import (
    ABOVE,
    DASHES,
    GRID,
    MUTED,
    OUTCOME,
    SERIES,
    Picture,
    canvas,
    styled,
)

SHAPES = ["o", "s", "^", "D", "v", "P"]
KILLED = "killed"


@styled
def lifelines(log, marks, title, alt, curves=None):
    """Each worker's life as a bar, from "ready" to "killed" (or to its last event); workers that
    took each other's place share a lane: A1, A2, A3 live in lane A.

    log: a Recorder with the points of the workers, and "killed" events (field worker), drawn at the
         end of its bar. If they say at which point, a shape tells it. Between a point and a
         "resumed" event a worker stood still: hatched.
    marks: names of the points to draw, one below the other where they are few; curves: {label:
           event}, drawn above as the number of such events so far; of events with a field `order`,
           each order counts once.
    """
    said = [e for e in log.events if e.get("worker")]
    start, last = (
        min((e["at"] for e in log.events), default=0),
        max((e["at"] for e in log.events), default=1),
    )
    lanes = sorted({lane_of(e["worker"]) for e in said})
    figure, ax = canvas(8, 0.9 + 0.45 * len(lanes) + (2.4 if curves else 0))
    many = len(said) > 40
    if curves:
        figure.clear()
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.5 + 0.45 * len(lanes)])
        draw_curves(top, log, curves, start, last)
    looks = looks_of(log, marks, many)
    heights = (
        {} if many else {name: 0.26 * (len(marks) / 2 - 0.5 - i) for i, name in enumerate(marks)}
    )
    for worker in dict.fromkeys(e["worker"] for e in said):
        events = [{**e, "at": e["at"] - start} for e in said if e["worker"] == worker]
        draw_life(
            ax,
            events,
            -lanes.index(lane_of(worker)),
            last - start,
            looks,
            heights,
            gap=0 if many else 7,
        )
    if looks:
        ax.legend(
            handles=[Line2D([], [], ls="", label=name, **look) for name, look in looks.items()],
            ncol=len(looks),
            handletextpad=0.1,
            columnspacing=1,
            **ABOVE,
        )
    ax.set_yticks([-i for i in range(len(lanes))], lanes)
    ax.set_ylim(-len(lanes) + 0.4, 0.6)
    ax.set_xlim(0, (last - start) * 1.03 or 1)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GRID)
    ax.set_xlabel("seconds since the first event")
    (top if curves else ax).set_title(title, pad=8 if curves else 20)
    return Picture(figure, alt)


def lane_of(worker):
    """ "A" of "A12"; a name that is all digits is its own lane."""
    return worker.rstrip("0123456789") or worker


def looks_of(log, marks, many):
    """{name in the legend: how its mark looks}. Where there are many points, they are thin
    strokes."""
    looks = {
        name: {
            "color": SERIES[i % 6],
            "marker": "|" if many else SHAPES[i % 6],
            "ms": 9 if many else 7,
        }
        for i, name in enumerate(marks)
    }
    places = sorted({e.get("point", "") for e in log.all(KILLED)})
    for i, place in enumerate(places):
        shape = "X" if place == "" else SHAPES[i % 6]
        looks[f"{KILLED} at {place}" if place else KILLED] = {
            "color": OUTCOME["lost"][0],
            "marker": shape,
            "ms": 8,
        }
    return looks


def draw_life(ax, events, row, last, looks, heights, gap):
    """The bar of one worker and its marks. events: what it said, and its "killed" and "resumed";
    heights: {mark: above the middle}; gap: points between the end of the bar and its cross, which
        would else cover the last mark.
    """
    beside = offset_copy(ax.transData, ax.figure, x=gap, units="points")
    end = next((e for e in events if e["event"] == KILLED), None)
    begin, over = events[0]["at"], end["at"] if end else last
    ax.barh(
        row,
        over - begin,
        left=begin,
        height=0.5,
        color=SHADES[0],
        edgecolor=MUTED,
        lw=0.6,
        zorder=1,
    )
    for before, e in zip(events, events[1:]):
        if e["event"] == "resumed":
            ax.barh(
                row,
                e["at"] - before["at"],
                left=before["at"],
                height=0.5,
                color="white",
                edgecolor=MUTED,
                hatch="////",
                lw=0.6,
                zorder=2,
            )
    for e in events:
        name = (
            f"{KILLED} at {e['point']}" if e["event"] == KILLED and e.get("point") else e["event"]
        )
        if name in looks:
            ax.plot(
                e["at"],
                row + heights.get(name, 0),
                ls="",
                zorder=4 if e["event"] == KILLED else 3,
                clip_on=False,
                transform=beside if e["event"] == KILLED else ax.transData,
                **looks[name],
            )


def draw_curves(ax, log, curves, start, last):
    """How many events of a kind there have been, over time; the legend tells how many in the
    end."""
    for i, (label, event) in enumerate(curves.items()):
        seen, at = set(), []
        for e in log.all(event):
            if e.get("order") is None or e["order"] not in seen:
                seen.add(e.get("order"))
                at.append(e["at"] - start)
        ax.step(
            [0, *at, last - start],
            [0, *range(1, len(at) + 1), len(at)],
            where="post",
            color=SERIES[i],
            lw=1.8,
            ls=DASHES[i % 6],
            label=f"{label}: {len(at)}",
        )
    ax.legend(loc="lower right", fontsize=9)
    ax.set_ylabel("so far")
    ax.grid(axis="y", color=GRID)
    ax.tick_params(axis="x", labelbottom=False)

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
    name_rows,
    sheet,
    styled,
)

SHAPES = ["o", "s", "^", "D", "v", "P"]
KILLED = "killed"
MANY = 40  # points; where there are more, they are thin strokes


@styled
def lifelines(log, marks, title, alt, curves=None):
    """Each worker's life as a bar, from "ready" to "killed" (or to the end of the record); workers
    that took each other's place share a lane: A1, A2, A3 live in lane A.

    log: a Recorder with the points of the workers, and "killed" events (field worker), drawn at the
        end of its bar. If they say at which point, a shape tells it. Between a point and a
        "resumed" event a worker stood still: hatched.
    marks: names of the points to draw, one below the other where they are few; curves: {label:
        event}, drawn above as the number of such events so far; of events with a field `order`,
        each order counts once.
    """
    start = min((e["at"] for e in log.events), default=0)
    end = max((e["at"] for e in log.events), default=1) - start
    lives = lives_of(log.events, start)
    many = sum(map(len, lives.values())) > MANY
    looks = looks_of(log, marks, many)
    lanes = sorted({lane_of(worker) for worker in lives})
    height = 0.45 * len(lanes)
    if curves:
        figure = sheet(8, 3.3 + height)
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.5 + height])
        times = {label: counted(log.all(event), start) for label, event in curves.items()}
        _draw_curves(top, times, end)
        top.set_title(title, pad=8)
    else:
        figure, ax = canvas(8, 0.9 + height)
        ax.set_title(title, pad=20)
    heights = {} if many else heights_of(marks)
    for worker, events in lives.items():
        row = -lanes.index(lane_of(worker))
        _draw_life(ax, events, row, end)
        # A cross at the very end of a bar would cover the last mark.
        _draw_points(ax, events, row, looks, heights, beside=0 if many else 7)
    if looks:
        handles = [Line2D([], [], ls="", label=name, **look) for name, look in looks.items()]
        ax.legend(handles=handles, ncol=len(looks), handletextpad=0.1, columnspacing=1, **ABOVE)
    name_rows(ax, lanes, [-row for row in range(len(lanes))])
    ax.set_ylim(-len(lanes) + 0.4, 0.6)
    ax.set_xlim(0, end * 1.03 or 1)
    ax.grid(axis="x", color=GRID)
    ax.set_xlabel("seconds since the first event")
    return Picture(figure, alt)


def lives_of(events, start):
    """{worker: its events}, with the time since `start`."""
    lives = {}
    for e in events:
        if e.get("worker"):
            lives.setdefault(e["worker"], []).append({**e, "at": e["at"] - start})
    return lives


def lane_of(worker):
    """The name without the number at its end ("A" of "A12"); a name that is all digits is its own
    lane."""
    return worker.rstrip("0123456789") or worker


def looks_of(log, marks, many):
    """{name in the legend: how its mark looks}. many: draw the points as thin strokes."""
    looks = {}
    for index, name in enumerate(marks):
        colour = SERIES[index % len(SERIES)]
        shape, size = ("|", 9) if many else (SHAPES[index % len(SHAPES)], 7)
        looks[name] = {"color": colour, "marker": shape, "ms": size}
    places = sorted({e.get("point", "") for e in log.all(KILLED)})
    for index, place in enumerate(places):
        shape = SHAPES[index % len(SHAPES)] if place else "X"
        looks[killed_at(place)] = {"color": OUTCOME["lost"][0], "marker": shape, "ms": 8}
    return looks


def killed_at(point):
    """The name in the legend of a death at this point of the worker's program, if it is known."""
    return f"{KILLED} at {point}" if point else KILLED


def heights_of(marks):
    """{mark: how far above the middle of the bar}: one below the other."""
    middle = (len(marks) - 1) / 2
    return {name: 0.26 * (middle - index) for index, name in enumerate(marks)}


def counted(events, start):
    """When each of them happened (seconds since `start`); of events with the same `order`, the
    first one only."""
    seen = set()
    times = []
    for e in events:
        order = e.get("order")
        if order is None or order not in seen:
            times.append(e["at"] - start)
        seen.add(order)
    return times


def _draw_life(ax, events, row, end):
    """The bar of one worker; hatched, where it stood still."""
    begin = events[0]["at"]
    over = next((e["at"] for e in events if e["event"] == KILLED), end)
    look = {"height": 0.5, "edgecolor": MUTED, "lw": 0.6}
    ax.barh(row, over - begin, left=begin, color=SHADES[0], zorder=1, **look)
    for before, e in zip(events, events[1:]):
        if e["event"] == "resumed":
            length = e["at"] - before["at"]
            ax.barh(row, length, left=before["at"], color="white", hatch="////", zorder=2, **look)


def _draw_points(ax, events, row, looks, heights, beside):
    """The marks of one worker. heights: {mark: above the middle}; beside: points between the end of
    the bar and the mark of its death."""
    shifted = offset_copy(ax.transData, ax.figure, x=beside, units="points")
    for e in events:
        name = e["event"]
        place = {"zorder": 3, "transform": ax.transData}
        if e["event"] == KILLED:
            name = killed_at(e.get("point"))
            place = {"zorder": 4, "transform": shifted}
        if name in looks:
            y = row + heights.get(name, 0)
            ax.plot(e["at"], y, ls="", clip_on=False, **looks[name], **place)


def _draw_curves(ax, curves, end):
    """How many events there have been, over time; the legend tells how many in the end. curves:
    {label: times}."""
    for index, (label, times) in enumerate(curves.items()):
        count = len(times)
        look = {"color": SERIES[index], "lw": 1.8, "ls": DASHES[index % len(DASHES)]}
        steps = [0, *range(1, count + 1), count]
        ax.step([0, *times, end], steps, where="post", label=f"{label}: {count}", **look)
    ax.legend(loc="lower right", fontsize=9)
    ax.set_ylabel("so far")
    ax.grid(axis="y", color=GRID)

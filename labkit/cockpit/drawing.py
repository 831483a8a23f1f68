"""How the cockpit looks: the nodes as a map (SVG), the streams as a table; and the same as a
picture that stands still."""

import html
import itertools

import pandas as pd

from labkit.pictures import maps, style
from labkit.pictures.style import INK, MUTED, STATE

PLACES = [
    (360, 62, "start"),
    (226, 216, "end"),
    (494, 216, "start"),
]  # of n1, n2, n3, and on which side their words stand
SHAPES = {  # around (0, 0): a state is a colour and a shape and a word
    "up": '<circle r="46"',
    "no answer": '<circle r="46" stroke-dasharray="3 5"',
    "paused": '<rect x="-42" y="-42" width="84" height="84" rx="10"',
    "isolated": '<polygon points="0,-58 58,0 0,58 -58,0"',
    "dead": '<polygon points="-20,-48 20,-48 48,-20 48,20 20,48 -20,48 -48,20 -48,-20"',
}


def page(nodes, replicas):
    """The map and the table of streams (HTML). nodes, replicas: as lab.nodes() and lab.replicas()
    return them."""
    return (
        f'<div style="background:white;color:{INK};max-width:720px;line-height:1.35;padding:4px">'
        f"{_map(nodes, replicas) if len(nodes) else _unknown()}{_table(nodes, replicas)}</div>"
    )


def picture(nodes, replicas):
    """The same as a Picture: what stays in the notebook where no kernel runs."""
    up = int((nodes["state"] == "up").sum())
    leaders = [
        f"{node} leads {stream}" for stream, node in replicas.index[replicas["role"] == "leader"]
    ]
    title = (
        f"{up} of {len(nodes)} nodes are up"
        if len(nodes)
        else "A cluster of your own: the lab does not see its nodes"
    )
    words = [
        f"{name} {row['state']}" + (", leads the cluster" if row["meta"] == "leader" else "")
        for name, row in nodes.iterrows()
    ]
    alt = f"Cockpit. {title}: {'; '.join(words + leaders) or 'nothing more is known'}."
    notes = {name: "\n".join(_led(name, replicas)) for name in nodes.index if _led(name, replicas)}
    return maps.cluster_map(nodes, title, alt, notes)


def _led(node, replicas):
    """Lines that name the streams that this node leads; the fourth and later ones are counted."""
    names = [
        stream for stream, name in replicas.index[replicas["role"] == "leader"] if name == node
    ]
    return [f"★ leads {name}" for name in names[:3]] + (
        [f"★ and {len(names) - 3} more"] if len(names) > 3 else []
    )


def _map(nodes, replicas):
    at = dict(zip(nodes.index, PLACES))
    state = nodes["state"]
    links = "".join(
        _link(at[a], at[b], {state[a], state[b]}) for a, b in itertools.combinations(at, 2)
    )
    return (
        f'<svg viewBox="0 0 720 290" width="100%" role="img" font-family="sans-serif" fill="{INK}">'
        + links
        + "".join(_node(name, nodes.loc[name], at[name], replicas) for name in at)
        + "</svg>"
    )


def _link(a, b, states):
    """A line between two nodes: whole, cut by a partition (dashed, with a cross), or without
    anybody at one end (dotted)."""
    line = f'<line x1="{a[0]}" y1="{a[1]}" x2="{b[0]}" y2="{b[1]}" '
    if states == {"up"}:
        return line + f'stroke="{MUTED}" stroke-width="3"/>'
    if states & {"dead", "paused", "no answer"}:
        return line + f'stroke="{MUTED}" stroke-width="2" stroke-dasharray="2 7"/>'
    x, y, red = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, style.OUTCOME["lost"][0]
    cross = f'<path d="M{x - 9},{y - 9} l18,18 m0,-18 l-18,18" stroke="{red}" stroke-width="4"/>'
    return line + f'stroke="{red}" stroke-width="2" stroke-dasharray="9 6"/>' + cross


def _node(name, row, place, replicas):
    x, y, anchor = place
    fill, edge, _ = STATE[row["state"]]
    words = (
        [f"port {row['port']}"]
        + (["★ leads the meta group"] if row["meta"] == "leader" else [])
        + [html.escape(line) for line in _led(name, replicas)]
    )
    side = x + (70 if anchor == "start" else -70)
    top = y - 9 * (len(words) - 1) + 4
    lines = "".join(
        f'<text x="{side}" y="{top + 18 * i}" font-size="14" text-anchor="{anchor}">{word}</text>'
        for i, word in enumerate(words)
    )
    return (
        f'<g transform="translate({x},{y})" data-node="{name}" data-state="{row["state"]}">'
        f'{SHAPES[row["state"]]} fill="{fill}" stroke="{edge}" stroke-width="4"/>'
        f'<text y="-2" font-size="20" font-weight="bold" text-anchor="middle">{name}</text>'
        f'<text y="17" font-size="14" text-anchor="middle">{row["state"]}</text></g>{lines}'
    )


def _table(nodes, replicas):
    """One row a stream, one column a node: what it is for the stream, and how many messages lie in
    its store."""
    streams = list(replicas.index.unique("stream"))
    if not streams:
        return f'<div style="color:{MUTED}">No stream yet.</div>'
    columns = list(nodes.index)
    head = "".join(
        f"<th style='text-align:left;padding:2px 14px 2px 0'>{word}</th>"
        for word in ["stream", *columns]
    )
    rows = "".join(
        f"<tr>{_cell(_stream(name, replicas))}"
        + "".join(_cell(_replica(replicas, (name, node))) for node in columns)
        + "</tr>"
        for name in streams
    )
    return (
        f"<table style='font-size:13px;color:{INK};border-collapse:collapse;width:100%;"
        "table-layout:fixed'>"
        f"<tr>{head}</tr>{rows}</table>"
    )


def _stream(name, replicas):
    led = (replicas.loc[name, "role"] == "leader").any()
    alarm = f"<br><b style='color:{style.OUTCOME['lost'][0]}'>✕ no leader</b>"
    return f"<b>{html.escape(name)}</b>{'' if led else alarm}"


def _replica(replicas, key):
    if key not in replicas.index:
        return f"<span style='color:{MUTED}'>–</span>"
    row = replicas.loc[key]
    if row["role"] == "leader":
        word = "<b>★ leader</b>"
    elif row["state"] == "behind":
        word = f"▲ {row['lag']:,} behind"
    else:
        word = {"current": "● current", "offline": "✕ offline", "unknown": "? unknown"}[
            row["state"]
        ]
    stored = (
        "no answer"
        if pd.isna(row["messages"])
        else f"{row['messages']:,} message{'' if row['messages'] == 1 else 's'}"
    )
    return f"{word}<br><span style='color:{MUTED}'>{stored}</span>"


def _cell(text):
    return (
        "<td style='text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-top:1px solid"
        f" #e4e7eb'>{text}</td>"
    )


def _unknown():
    return (
        "<p>This cluster is your own (NATS_URL): the lab does not see its nodes, and never breaks"
        " them.</p>"
    )

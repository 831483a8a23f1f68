"""How the cockpit looks: the nodes as a map (SVG), the streams as a table; and the same as a still
picture."""

import html
import itertools

import pandas as pd

from labkit.pictures import maps
from labkit.pictures.style import INK, MUTED, OUTCOME, STATE

RED = OUTCOME["lost"][0]
PLACES = [  # x and y of n1, n2, n3, and where their words are aligned
    (360, 62, "start"),
    (226, 216, "end"),
    (494, 216, "start"),
]
SHAPES = {  # around (0, 0); a state is a colour, a shape and a word
    "up": '<circle r="46"',
    "no answer": '<circle r="46" stroke-dasharray="3 5"',
    "paused": '<rect x="-42" y="-42" width="84" height="84" rx="10"',
    "isolated": '<polygon points="0,-58 58,0 0,58 -58,0"',
    "dead": '<polygon points="-20,-48 20,-48 48,-20 48,20 20,48 -20,48 -48,20 -48,-20"',
}


def page(nodes, replicas):
    """The map and the table of streams (HTML). nodes, replicas: as lab.nodes() and lab.replicas()
    return them."""
    look = f"background:white;color:{INK};max-width:720px;line-height:1.35;padding:4px"
    upper = _map(nodes, replicas) if len(nodes) else _unknown()
    return f'<div style="{look}">{upper}{_table(nodes, replicas)}</div>'


def picture(nodes, replicas):
    """The same as a Picture: it stays in the notebook where no kernel runs."""
    if len(nodes):
        up = int((nodes["state"] == "up").sum())
        title = f"{up} of {len(nodes)} nodes are up"
    else:
        title = "A cluster of your own: the lab does not see its nodes"
    words = []
    for name, row in nodes.iterrows():
        leads = ", leads the cluster" if row["meta"] == "leader" else ""
        words.append(f"{name} {row['state']}{leads}")
    words += [f"{node} leads {stream}" for stream, node in _leaders(replicas)]
    alt = f"Cockpit. {title}: {'; '.join(words) or 'nothing more is known'}."
    notes = {name: "\n".join(_led(name, replicas)) for name in nodes.index}
    return maps.cluster_map(nodes, title, alt, {name: note for name, note in notes.items() if note})


def _leaders(replicas):
    """(stream, node) of each leader."""
    return list(replicas.index[replicas["role"] == "leader"])


def _led(node, replicas):
    """Lines that name the streams that this node leads; beyond the third they are counted."""
    names = [stream for stream, leader in _leaders(replicas) if leader == node]
    lines = [f"★ leads {name}" for name in names[:3]]
    if len(names) > 3:
        lines.append(f"★ and {len(names) - 3} more")
    return lines


def _map(nodes, replicas):
    places = dict(zip(nodes.index, PLACES))
    state = nodes["state"]
    parts = [
        _link(places[a], places[b], {state[a], state[b]})
        for a, b in itertools.combinations(places, 2)
    ]
    parts += [_node(name, nodes.loc[name], places[name], replicas) for name in places]
    look = f'viewBox="0 0 720 290" width="100%" role="img" font-family="sans-serif" fill="{INK}"'
    return f"<svg {look}>{''.join(parts)}</svg>"


def _link(a, b, states):
    """A line between two nodes: whole; dotted, where a node at one end is gone or silent; dashed,
    with a cross, where a partition cuts it."""
    line = f'<line x1="{a[0]}" y1="{a[1]}" x2="{b[0]}" y2="{b[1]}" '
    if states == {"up"}:
        return line + f'stroke="{MUTED}" stroke-width="3"/>'
    if states & {"dead", "paused", "no answer"}:
        return line + f'stroke="{MUTED}" stroke-width="2" stroke-dasharray="2 7"/>'
    x = (a[0] + b[0]) / 2
    y = (a[1] + b[1]) / 2
    cross = f'<path d="M{x - 9},{y - 9} l18,18 m0,-18 l-18,18" stroke="{RED}" stroke-width="4"/>'
    return line + f'stroke="{RED}" stroke-width="2" stroke-dasharray="9 6"/>' + cross


def _node(name, row, place, replicas):
    """A node, and beside it its port and what it leads."""
    x, y, anchor = place
    fill, edge, _ = STATE[row["state"]]
    words = [f"port {row['port']}"]
    if row["meta"] == "leader":
        words.append("★ leads the meta group")
    words += [html.escape(line) for line in _led(name, replicas)]
    side = x + 70 if anchor == "start" else x - 70
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
    """One row a stream, one column a node: its role in the stream, and how many messages it
    stores."""
    streams = list(replicas.index.unique("stream"))
    if not streams:
        return f'<div style="color:{MUTED}">No stream yet.</div>'
    columns = list(nodes.index)
    head = [
        f"<th style='text-align:left;padding:2px 14px 2px 0'>{word}</th>"
        for word in ["stream", *columns]
    ]
    rows = [head]
    for name in streams:
        cells = [_cell(_replica(replicas, (name, node))) for node in columns]
        rows.append([_cell(_stream(name, replicas)), *cells])
    look = f"font-size:13px;color:{INK};border-collapse:collapse;width:100%;table-layout:fixed"
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f"<table style='{look}'>{body}</table>"


def _stream(name, replicas):
    word = f"<b>{html.escape(name)}</b>"
    if (replicas.loc[name, "role"] == "leader").any():
        return word
    return word + f"<br><b style='color:{RED}'>✕ no leader</b>"


def _replica(replicas, key):
    if key not in replicas.index:
        return f"<span style='color:{MUTED}'>–</span>"
    row = replicas.loc[key]
    if row["role"] == "leader":
        word = "<b>★ leader</b>"
    elif row["state"] == "behind":
        word = f"▲ {row['lag']:,} behind"
    else:
        words = {"current": "● current", "offline": "✕ offline", "unknown": "? unknown"}
        word = words[row["state"]]
    return f"{word}<br><span style='color:{MUTED}'>{_stored(row['messages'])}</span>"


def _stored(messages):
    if pd.isna(messages):
        return "no answer"
    return "1 message" if messages == 1 else f"{messages:,} messages"


def _cell(text):
    look = "text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-top:1px solid #e4e7eb"
    return f"<td style='{look}'>{text}</td>"


def _unknown():
    return (
        "<p>This cluster is your own (NATS_URL): the lab does not see its nodes, and never breaks"
        " them.</p>"
    )

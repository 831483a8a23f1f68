"""The delivery lesson notes by hand what its messages go through. The wire sees the same, and
nobody has to write it down."""

import json

import pandas as pd

from kernels import kernel
from lessons import lesson, sources

DRAWN = ["four-answers", "worker-dies", "long-batch", "heartbeat", "survivor-runs"]
NEEDED = ["setup", "tools", "guide-loop", "survivor"]
KINDS = ["delivered", "acked", "nak", "term", "in progress", "expired"]
# Run behind a cell that is drawn: both records, as [kind, message, time]. The messages of these
# cells are numbered as their stream numbers them.
BOTH = """
import json
by_hand = [(e["event"], e["msg"], e["at"] + log.start) for e in log.events if "msg" in e]
on_the_wire = [
    (e["kind"], e["seq"], e["at"] + lab.wire.start)
    for e in lab.wire.all(consumer="worker") if "seq" in e
]
print(json.dumps([by_hand, on_the_wire]))
"""
CLEAR = "lab.wire.clear()\n"


async def test_the_same_bars_as_those_that_the_cells_write_down(shared):
    """Their order and number for each message. How near the times are is printed, and asserted only
    for most: an ack leaves nats-py a moment after the cell has handed it over."""
    source = sources("delivery")
    rows = []
    async with kernel(lesson("delivery").parent) as (_, run):
        for name, text in source.items():
            if name in NEEDED:
                await run(text)
            elif name in DRAWN:
                await run(CLEAR + text)
                by_hand, on_the_wire = json.loads((await run(BOTH)).splitlines()[-1])
                rows += pairs(name, by_hand, on_the_wire)
        await run("await lab.close()")
    table = pd.DataFrame(rows, columns=["cell", "kind", "message", "apart"])
    print(table[table["apart"].abs() > 0.02])
    print(table.groupby("cell")["apart"].describe().to_string())
    assert set(table["cell"]) == set(DRAWN)
    assert table["apart"].abs().median() < 0.02


def pairs(name, by_hand, on_the_wire):
    """One row for each event that was written down: (cell, kind, message, seconds by which the wire
    was later). Fails unless the wire has as many of each kind for each message; of those that
    expired, the cells note only some."""
    noted, seen = times(by_hand), times(on_the_wire)
    rows = []
    for (kind, message), moments in noted.items():
        assert len(seen.get((kind, message), ())) == len(moments), (name, kind, message)
        for then, at in zip(moments, seen[kind, message]):
            rows.append((name, kind, message, at - then))
    assert {key for key in seen if key[0] != "expired"} <= set(noted), name
    return rows


def times(record):
    """{(kind, message): its times}, in the words of the lesson."""
    found = {}
    for kind, message, at in record:
        word = "delivered" if kind == "redelivered" else kind
        if word in KINDS:
            found.setdefault((word, message), []).append(at)
    return found

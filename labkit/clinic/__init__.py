"""The troubleshooting clinic: small systems that are ill on purpose. They run on the learner's
account, for real.

    case = await clinic.open(lab, "orders_stopped")      # waits for the symptom, prints the report
    case.settings, case.log()                 # what a redeploy can change; what the programs logged
    await case.redeploy(filter_subject="orders.*")       # stops the programs and starts them anew
    await case.check("filter matches nothing")

The check passes if that is the cause and the live system is well again.
"""

import weakref

from labkit.clinic import blocked, connections, consumers, feeds, storing
from labkit.clinic.case import CAUSES, Case
from labkit.errors import LabError

CASES = {
    name: kind
    for module in (storing, consumers, blocked, connections, feeds)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Case) and kind.cause
}
_open = weakref.WeakKeyDictionary()  # Lab -> its open case: there is one at a time

__all__ = ["CASES", "CAUSES", "cases", "open"]


def cases():
    """One row a case: level (1 to 3), and the report as a user would tell it. The index is the name
    for `open`."""
    import pandas as pd

    rows = [
        {"case": name, "level": kind.level, "report": kind.report} for name, kind in CASES.items()
    ]
    return pd.DataFrame(rows).sort_values("level", kind="stable").set_index("case")


async def open(lab, name):
    """Sets up this case on the lesson's account, waits until its symptom is there, and prints the
    report.

    A case that is still open is closed first; lab.close() closes this one. Returns a Case. Raises
    LabError if there is no such case, or if its symptom does not show."""
    if name not in CASES:
        raise LabError(f"There is no case {name!r}; known: {', '.join(CASES)}.")
    if lab.attached:
        raise LabError(
            "This cluster is your own (NATS_URL), and the clinic breaks what it runs on. "
            f"Open the lesson with Lab.open({lab.topic!r}, private=True) for a cluster of its own, "
            "or unset NATS_URL."
        )
    if lab in _open:
        await _open.pop(lab).close()
    case = _open[lab] = CASES[name](lab)
    lab.on_close(case.leave)
    await case.begin()
    print(case.story())
    return case

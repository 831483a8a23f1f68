"""What happened, when, and to whom: callbacks note it here, and cells read it. (What a callback
prints lands in the wrong cell, or nowhere.)"""

import time


class Recorder:
    """Collects events in the order in which they happened.

    It is called from anywhere in this process: from a cell, a callback, a task.

        log = Recorder()
        log("published", lane="publisher", msg=1)
        log.frame()
    """

    def __init__(self):
        self.events = []  # dicts: at (seconds since start), event, and the fields
        self.start = time.perf_counter()

    def __call__(self, event, **fields):
        """Notes an event now. Returns it (dict)."""
        entry = {"at": time.perf_counter() - self.start, "event": event, **fields}
        self.events.append(entry)
        return entry

    def all(self, event=None, **fields):
        """The events of this kind (default: of any) whose fields have these values: list of dicts,
        oldest first."""
        if event:
            fields["event"] = event
        return [
            entry
            for entry in self.events
            if all(entry.get(key) == value for key, value in fields.items())
        ]

    def count(self, event=None, **fields):
        """How many such events there are."""
        return len(self.all(event, **fields))

    def last(self, event=None, **fields):
        """The latest such event (dict), or None."""
        found = self.all(event, **fields)
        return found[-1] if found else None

    def frame(self):
        """All events as a DataFrame, one row an event. Columns: at (seconds since start), event,
        then the fields."""
        import pandas as pd

        if not self.events:
            return pd.DataFrame(columns=["at", "event"])
        return pd.DataFrame(self.events)

    def __repr__(self):
        return f"<Recorder: {len(self.events)} events>"

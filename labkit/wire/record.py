"""What happened, when, and to whom: callbacks write here, cells read it. (Printing from a callback
lands in the wrong cell, or nowhere.)"""

import time


class Recorder:
    """Collects events in the order in which they happened.

    log = Recorder()
    log("published", lane="publisher", msg=1)      # from anywhere in this process: a cell, a
    callback, a task log.frame()                                    # DataFrame: at (seconds since
    start), event, and the fields
    """

    def __init__(self):
        self.events = []
        self.start = time.perf_counter()

    def __call__(self, event, **fields):
        """Notes an event now. Returns it (dict)."""
        entry = {"at": time.perf_counter() - self.start, "event": event, **fields}
        self.events.append(entry)
        return entry

    def all(self, event=None, **fields):
        """The events of this kind whose fields have these values (list of dicts, oldest first)."""
        wanted = {**({"event": event} if event else {}), **fields}
        return [
            entry
            for entry in self.events
            if all(entry.get(key) == value for key, value in wanted.items())
        ]

    def count(self, event=None, **fields):
        """How many such events there are."""
        return len(self.all(event, **fields))

    def last(self, event=None, **fields):
        """The latest such event (dict), or None."""
        found = self.all(event, **fields)
        return found[-1] if found else None

    def frame(self):
        """All events as a DataFrame: one row an event; columns at (seconds since start), event,
        then the fields."""
        import pandas as pd

        return pd.DataFrame(self.events, columns=None if self.events else ["at", "event"])

    def __repr__(self):
        return f"<Recorder: {len(self.events)} events>"

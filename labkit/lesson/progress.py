"""Which exercises a learner has passed, with how many tries and hints.

It is kept in LABKIT_HOME, in progress/TOPIC.json for each lesson. Neither `labkit down` nor
`labkit reset` touches it. To start anew, delete the folder `progress`, or the file of one lesson.
The cases of the troubleshooting clinic are not counted.
"""

import contextlib
import importlib
import json
import pkgutil
from dataclasses import asdict, dataclass

from labkit import exercises, paths
from labkit.errors import LabError
from labkit.exercises.engine import Exercise

COLUMNS = ["lesson", "exercise", "state", "tries", "hints"]


@dataclass
class Record:
    """What is known of one exercise. tries: checks until it passed."""

    passed: bool = False
    tries: int = 0
    hints: int = 0

    @property
    def state(self):
        if self.passed:
            return "passed"
        return "not yet" if self.tries else "not attempted"


def note(topic, exercise, event):
    """Counts what an exercise of this lesson reports: "passed", "not yet" or "hint" (see
    Exercise.bind). Once it has passed, it stays so, and nothing more is counted.

    If the home cannot be written to, nothing is kept: the verdict on an answer must not fail."""
    with contextlib.suppress(OSError, LabError):
        records = read(topic)
        record = records.setdefault(exercise, Record())
        if record.passed:
            return
        if event == "hint":
            record.hints += 1
        else:
            record.tries += 1
            record.passed = event == "passed"
        paths.make_folder(_file(topic).parent)
        kept = {name: asdict(record) for name, record in records.items()}
        paths.write_whole(_file(topic), json.dumps(kept, indent=1))


def read(topic):
    """What is kept of this lesson: {exercise: Record}. A missing or broken file counts as empty."""
    try:
        kept = json.loads(_file(topic).read_text(encoding="utf-8"))
        return {name: _record(**values) for name, values in kept.items()}
    except (OSError, LabError, ValueError, TypeError, AttributeError):
        return {}


def _record(passed, tries, hints):
    return Record(bool(passed), int(tries), int(hints))


def _file(topic):
    return paths.home() / "progress" / f"{topic}.json"


def rows():
    """The course: for each exercise of each lesson, in the order of the notebooks, a dict with
    COLUMNS. lesson: the notebook's file name without its ending; state: "passed", "not yet" or
    "not attempted"; tries: checks until it passed; hints: how many were shown."""
    found = []
    for lesson, topic in _lessons():
        records = read(topic)
        module = importlib.import_module(f"labkit.exercises.{topic}")
        for item in vars(module).values():
            if isinstance(item, Exercise):
                record = records.get(item.name, Record())
                hints = min(record.hints, len(item.hints))  # the last one may be asked for again
                values = (lesson, item.name, record.state, record.tries, hints)
                found.append(dict(zip(COLUMNS, values)))
    return found


def _lessons():
    """(file name without its ending, topic) for each module of exercises, in the order of the
    notebooks. One that has no notebook comes last, under its own name."""
    topics = {module.name for module in pkgutil.iter_modules(exercises.__path__)}
    books = sorted((paths.PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    lessons = {path.stem[3:]: path.stem for path in books if path.stem[3:] in topics}
    return [(stem, topic) for topic, stem in lessons.items()] + [
        (topic, topic) for topic in sorted(topics - set(lessons))
    ]


def table():
    """The same as rows(), as a DataFrame."""
    import pandas as pd  # takes a second, so not before somebody wants a table

    return pd.DataFrame(rows(), columns=COLUMNS)

"""The notebooks, told apart by what they need and not by their numbers."""

import re

import nbformat

from labkit import notebooks

LESSONS = notebooks.find()  # lessons and experiments, in the order of the course (list of Path)


def topic(path):
    """The lesson's name without its number, which is also its account's ("core_nats")."""
    return re.sub(r"^\d\d_", "", path.stem)


def lesson(name):
    """The path of the notebook on this topic. Raises KeyError if there is none."""
    return {topic(path): path for path in LESSONS}[name]


def sources(name):
    """{cell id: source} of the notebook on this topic."""
    return {cell["id"]: cell.source for cell in nbformat.read(lesson(name), 4).cells}


def is_experiment(path):
    return path.name.startswith("9")


def breaks_nodes(path):
    """True if the notebook opens a private cluster, because it kills and isolates nodes."""
    return "private=True" in sources(topic(path))["setup"]


def starts_processes(path):
    """True if the notebook starts workers or programs, or a cluster of its own."""
    workers = any(source.startswith("%%worker") for source in sources(topic(path)).values())
    return workers or breaks_nodes(path)

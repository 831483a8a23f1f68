"""A lesson from its setup cell to its last one: the lab, its lock, banner and clean-up; what the
text claims, cells that fail, names that are missing; the learner's progress."""

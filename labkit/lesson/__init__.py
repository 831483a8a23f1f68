"""A lesson from its setup cell to its last one: the lab, its lock, its banner, its clean-up."""

"""The three nodes: how they start, fail, heal and tell of themselves; and a first connection to
them."""

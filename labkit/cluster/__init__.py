"""The three nodes: how they start, fail, heal and answer, and how clients connect to them."""

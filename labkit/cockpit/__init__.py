"""The cockpit: a live map of the nodes beside the notebook, with a button for each fault."""

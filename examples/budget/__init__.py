"""A budget that two people approve, neither of whom asked for it."""

"""A proposal, from draft to decision: the second example."""

"""The faults: each breaks something of a sandbox, and says when, and which workflows it met."""

"""A subscription whose code changes while it runs: version 1, and version 2 with an upgrade."""

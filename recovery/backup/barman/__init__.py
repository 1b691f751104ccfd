"""Barman, the default: WAL is streamed as it is written, and commits may wait for it."""

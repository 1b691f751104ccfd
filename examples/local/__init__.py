"""Proposals without any servers: awaited, in memory or in a file."""

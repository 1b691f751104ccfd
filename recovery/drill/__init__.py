"""Drills: something is broken on purpose, and what was lost and how long it took is measured from outside."""

"""AEGIS's own beat, but for one number: it looks for what is to be removed after half a second, not five minutes."""

from __future__ import annotations

from aegis.workers import schedule

schedule._RETENTION = 0.5  # type: ignore[misc]

from aegis.workers.app import app  # noqa: E402 - its schedule is made as it is imported

__all__ = ["app"]

"""Somebody's value in a message of ours: a line's worth of it, and never an error instead."""

from __future__ import annotations

from typing import Final

_A_LINES_WORTH: Final = 60


def shown(value: object) -> str:
    """Return a value as Python writes it, cut short."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - nested too deep, or a class whose own says nothing
        text = f"a {type(value).__name__}"
    return text if len(text) <= _A_LINES_WORTH else text[: _A_LINES_WORTH - 3] + "..."

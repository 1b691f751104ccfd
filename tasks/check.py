"""What a look at one part of a deployment gives: a line, how bad it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class State(StrEnum):
    """How one part is: the worst of them is how the whole is."""

    OK = "ok"
    WARNING = "warning"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report; ``remedy`` says what to do where something is wrong."""

    name: str
    state: State
    says: str
    remedy: str = ""


def ok(name: str, says: str) -> Check:
    """Say that a part is as it should be."""
    return Check(name=name, state=State.OK, says=says)


def degraded(name: str, says: str, remedy: str) -> Check:
    """Say that work is accepted, but something needs a look."""
    return Check(name=name, state=State.DEGRADED, says=says, remedy=remedy)


def warning(name: str, says: str, remedy: str) -> Check:
    """Say what a person may want otherwise."""
    return Check(name=name, state=State.WARNING, says=says, remedy=remedy)


def down(name: str, says: str, remedy: str) -> Check:
    """Say that something does not work, or was tampered with."""
    return Check(name=name, state=State.DOWN, says=says, remedy=remedy)


def span(length: timedelta) -> str:
    """Return a span of time for people."""
    seconds = length.total_seconds()
    if seconds < 10:  # noqa: PLR2004 - one decimal is enough from there on
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 - minutes read better

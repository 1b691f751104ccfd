"""What an attempt comes to, before anything is written; and how an error is kept."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

from ..core.bell import Bell
from ..core.machine import Edge
from ..persistence.records import Following, Move, Moved

_MOST_TRACEBACK: Final = 8_000
_MOST_MESSAGE: Final = 2_000


class OnTheGround(BaseException):
    """A handler that went ahead of what is recorded has to begin on the ground; not for its own code to catch."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A transition to be committed."""

    move: Move


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A transition that was committed together with the handler's own rows, or the events that it sends."""

    move: Move
    moved: Moved
    bells: tuple[Bell, ...] = ()
    """For the workflows that it sent events to."""


@dataclass(frozen=True, kw_only=True)
class TryAgain:
    """A failed attempt, to be followed by another."""

    error: Mapping[str, Any]
    delay: timedelta
    counts: bool = True
    """Whether the attempt was one of those that there may be."""


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Nothing that this worker could do; the attempt does not count."""

    error: Mapping[str, Any] | None
    delay: timedelta


@dataclass(frozen=True, kw_only=True)
class Park:
    """Nothing to do until an event comes, or a timer runs out."""

    following: Following


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A transition for the workers of another queue than the one it was rung on; no attempt."""

    queue: str | None
    transition: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A passed deadline, for the transition that it sets off; no attempt."""

    edge: Edge


Result: TypeAlias = Record | Recorded | TryAgain | Leave | Park | Elsewhere | Turn


def describe(error: BaseException, attempt: int | None) -> dict[str, Any]:
    """Return an error as it is kept in the workflow's row, whatever its text holds."""
    trace = "".join(traceback.format_exception(error))
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        "message": _storable(text_of(error))[:_MOST_MESSAGE],
        "attempt": attempt,
        "traceback": _storable(trace)[-_MOST_TRACEBACK:],
    }


def text_of(error: BaseException) -> str:
    """Return what an error says, also where its ``__str__`` raises: it is a user's own class."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it is, the error has no text
        return f"<{type(error).__qualname__} without a text: its __str__ raised>"


def _storable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")

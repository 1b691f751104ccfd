"""A point in time, as a person names it, and as PostgreSQL is told to go there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from ...core.anchor import Sink
from ...core.errors import NotANote, RestoreFailed
from ...core.note import LogHead, VerifierKey, open_note

LATEST: Final = "latest"
_SIZE: Final = re.compile(r"\d{1,18}")
_TRANSITION: Final = re.compile(r"(.+):(\d{1,18})", re.DOTALL)
_REMEDY: Final = "give a time with its zone (2026-11-26T05:42:03Z), latest, ID:SEQ, or the size of an anchored log"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What somebody asked for: exactly one of these is set, or none for the latest."""

    said: str
    at: datetime | None = None
    transition: tuple[str, int] | None = None
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where recovery ends: the words for PostgreSQL, and the moment before which the backup was finished."""

    options: Sequence[str]
    after: datetime | None


def parse(text: str) -> Point:
    """Read what somebody asks for.

    Raises:
        RestoreFailed: it is no point in time.

    """
    if text == LATEST:
        return Point(said=text)
    if _SIZE.fullmatch(text):
        return Point(said=text, size=int(text))
    at = _moment(text)
    if at is not None:
        return Point(said=text, at=at)
    found = _TRANSITION.fullmatch(text)
    if found is None:
        raise RestoreFailed(f"--to {text}", "it is no point in time", _REMEDY)
    return Point(said=text, transition=(found[1], int(found[2])))


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if found.tzinfo is None:
        raise RestoreFailed(f"--to {text}", "it does not say in which time zone", "add one: Z, or +02:00")
    return found.astimezone(UTC)


def at_time(moment: datetime) -> Target:
    """Return the target that has everything which was committed up to a moment."""
    return Target(options=(f"recovery_target_time={moment.isoformat(sep=' ')}",), after=moment)


def at_transaction(xid: int, moment: datetime) -> Target:
    """Return the target that has a transaction, and everything that was committed before it."""
    # On the disk there are 32 bits of it, and recovery looks for those.
    return Target(options=(f"recovery_target_xid={xid % 2**32}",), after=moment)


def at_the_end() -> Target:
    """Return the target that has everything there is."""
    return Target(options=(), after=None)


def anchored(sinks: Sequence[Sink], trusted: Sequence[VerifierKey], size: int) -> LogHead:
    """Return the signed head of a log of that size.

    Raises:
        RestoreFailed: no trusted key signed one.
        SinkUnavailable: a place of anchors cannot be read.

    """
    nearest: list[int] = []
    for sink in sinks:
        for anchor in sink.anchors():
            try:
                head = open_note(anchor.note, trusted)
            except NotANote:
                continue
            if head.size == size:
                return head
            nearest.append(head.size)
    known = ", ".join(map(str, sorted(nearest, key=lambda found: abs(found - size))[:3])) or "none"
    raise RestoreFailed(
        f"--to {size}", "no trusted key signed an anchor of a log of that size", f"the nearest: {known}"
    )


def just_before(moment: datetime) -> datetime:
    """Return the moment just before another: the database's clock counts microseconds."""
    return moment - timedelta(microseconds=1)

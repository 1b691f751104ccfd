"""How far the verification of everything in turn is; one row, that any number of processes may move on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, text, update

from . import sql, sqlite
from .models import ScrubRow, TransitionRow

# What people are told; `aegis verify --all` tells all of it.
_MOST_FINDINGS: Final = 20

# -1 before the first ANALYZE.
_ABOUT: Final = text("SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = CAST(:name AS regclass)")
_S: Final = ScrubRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """How far it is: up to ``place`` in this round; ``finished_at`` and ``took_from`` are of the last whole one."""

    started_at: datetime
    place: str
    verified: int
    found: tuple[str, ...]
    finished_at: datetime | None
    took_from: datetime | None
    covered: int
    findings: tuple[str, ...]
    hindered: tuple[str, ...]
    problems: tuple[str, ...]
    compared: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one go has verified, found wrong, and could not look at; ``compared``: entries of the log with anchors."""

    verified: int
    found: Sequence[str] = ()
    problems: Sequence[str] = ()
    compared: int = 0


def state(connection: Connection) -> Scrub:
    """Return how far it is.

    Raises:
        NotOnSQLite: nothing is verified in turn there.

    """
    sqlite.refuse(connection, "verification in turn", "verify_integrity(id) verifies one history")
    row = connection.execute(select(ScrubRow.__table__)).one()
    return Scrub(
        started_at=row.started_at,
        place=row.place,
        verified=row.verified,
        found=tuple(row.found),
        finished_at=row.finished_at,
        took_from=row.took_from,
        covered=row.covered,
        findings=tuple(row.findings),
        hindered=tuple(row.hindered),
        problems=tuple(row.problems),
        compared=row.compared,
    )


def transitions(connection: Connection) -> int:
    """Return about how many transitions there are, as the database's statistics have it; none are counted."""
    return int(connection.execute(_ABOUT, {"name": TransitionRow.__tablename__}).scalar_one())


def move_on(connection: Connection, before: Scrub, place: str, seen: Seen) -> bool:
    """Note what was verified since; False if another process has moved on in the meantime."""
    changes = {
        "place": place,
        "verified": before.verified + seen.verified,
        "found": _first(before.found, seen.found),
        "hindered": _first(before.hindered, seen.problems),
    }
    return _change(connection, before, changes)


def finish(connection: Connection, before: Scrub, seen: Seen) -> bool:
    """Note that the round is over, and begin the next; False if another process did."""
    changes = {
        "finished_at": sql.now(),
        "took_from": before.started_at,
        "covered": before.verified + seen.verified,
        "findings": _first(before.found, seen.found),
        "problems": _first(before.hindered, seen.problems),
        "compared": seen.compared,
        "started_at": sql.now(),
        "place": "",
        "verified": 0,
        "found": [],
        "hindered": [],
    }
    return _change(connection, before, changes)


def _first(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return the first lines of both, each once."""
    return list(dict.fromkeys([*before, *more]))[:_MOST_FINDINGS]


def _change(connection: Connection, before: Scrub, changes: dict[str, object]) -> bool:
    unmoved = (_S.started_at == before.started_at, _S.place == before.place)
    return connection.execute(update(ScrubRow).where(*unmoved).values(changes)).rowcount == 1

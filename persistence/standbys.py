"""Standbys to read from: only as long as they are not too far behind, and know what one has written oneself.

Whether one is, is told by the primary: where its WAL ends, and what its clock says. A standby that has replayed
that far knows everything that was committed until then; one that has not is as far behind as the last commit
that it replayed, which the primary has stamped with the same clock. So no two clocks are compared. Only where no
primary answers, the standby's own clock has to do, as it may be all that is left to read from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, DateTime, TextClause, bindparam, text

from ..core.errors import DatabaseUnavailable, InvalidData, NotOnSQLite
from .database import Database
from .hosts import each_alone

# For how long a standby is given time to catch up before the primary is read instead, and how often it is asked.
_CATCH_UP: Final = 0.1
_ASK_EVERY: Final = 0.01
# A standby that did not answer is passed over for so long: each try may cost its time-out.
_PASSED_OVER: Final = 10.0

# What the primary said is used for half of the bound, and not for longer: after a fail-over it is another's clock.
_MARK_KEPT: Final = timedelta(seconds=5)

_MARK: Final = text(
    """
    SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE CAST(pg_current_wal_insert_lsn() AS text) END AS place,
        clock_timestamp() AS at
    """
)
_KNOWS_AFTER: Final = """
    SELECT pg_is_in_recovery()
        AND (CAST(:after AS text) IS NULL
            OR coalesce(pg_last_wal_replay_lsn() >= CAST(CAST(:after AS text) AS pg_lsn), false))
        AND {fresh}
"""
_FRESH: Final = text(
    _KNOWS_AFTER.format(
        fresh="""(coalesce(pg_last_wal_replay_lsn() >= CAST(CAST(:place AS text) AS pg_lsn), false)
            OR coalesce(pg_last_xact_replay_timestamp() >= :since, false))"""
    )
).bindparams(bindparam("since", type_=DateTime(timezone=True)))
_FRESH_BY_ITS_OWN_CLOCK: Final = text(
    _KNOWS_AFTER.format(fresh="coalesce(clock_timestamp() - pg_last_xact_replay_timestamp() <= :stale_ok, false)")
)
_TOKEN: Final = text("SELECT CAST(pg_current_wal_insert_lsn() AS text)")


_Wanted: TypeAlias = tuple[TextClause, Mapping[str, Any]]
"""A question to a standby, and what to."""


@dataclass
class _Standby:
    database: Database
    passed_over_until: float = field(default=0.0)


@dataclass(frozen=True)
class _Mark:
    """Where the primary's WAL ended, and its time, when it was asked: by this process's clock, which only measures."""

    place: str
    at: datetime
    asked: float


class Standbys:
    """Those hosts of an address that are standbys at the moment, and the primary that says how far they have to be.

    ``opened`` makes the way to each of them.

    Raises:
        ConfigurationError: it is no address of PostgreSQL.

    """

    def __init__(
        self, url: str, primary: Database, *, pool_size: int = 5, opened: Callable[[Database], Database] | None = None
    ) -> None:
        alone = [address for _, address in each_alone(url)] or [url]
        made = [Database(address, pool_size=pool_size, pre_ping=False) for address in alone]
        self._standbys = [_Standby(one if opened is None else opened(one)) for one in made]
        self._primary = primary
        self._mark: _Mark | None = None
        self._not_asked_until = 0.0

    def fresh(self, *, stale_ok: timedelta, after: str | None = None) -> Iterator[Database]:
        """Give the standbys that know everything that was committed until ``stale_ok`` ago, one after the other.

        And everything before ``after``, a token. Whoever reads takes the first that answers.
        """
        check_bound(stale_ok)
        asked = time.monotonic()
        wanted: _Wanted | None = None
        for standby in self._standbys:
            if time.monotonic() < standby.passed_over_until:
                continue
            wanted = wanted or self._wanted(asked, stale_ok, after)
            try:
                if _catches_up(standby.database, *wanted):
                    yield standby.database
            except DatabaseUnavailable:
                standby.passed_over_until = time.monotonic() + _PASSED_OVER

    def _wanted(self, asked: float, stale_ok: timedelta, after: str | None) -> _Wanted:
        """Return what a standby has to say yes to."""
        mark = self._marked(asked, stale_ok)
        if mark is None:
            return _FRESH_BY_ITS_OWN_CLOCK, {"after": after, "stale_ok": stale_ok}
        # Until then at most, by the primary's clock: it was read after it was asked for.
        passed = timedelta(seconds=max(0.0, asked - mark.asked))
        return _FRESH, {"after": after, "place": mark.place, "since": mark.at + passed - stale_ok}

    def _marked(self, asked: float, stale_ok: timedelta) -> _Mark | None:
        mark = self._mark
        if mark is not None and asked - mark.asked <= min(stale_ok / 2, _MARK_KEPT).total_seconds():
            return mark
        if asked >= self._not_asked_until:
            self._mark = self._ask_primary()
            if self._mark is None:
                self._not_asked_until = time.monotonic() + _PASSED_OVER
            return self._mark
        return None

    def _ask_primary(self) -> _Mark | None:
        asked = time.monotonic()
        try:
            with self._primary.statement() as connection:
                place, at = connection.execute(_MARK).one()
        except DatabaseUnavailable:
            return None
        return None if place is None else _Mark(place, at, asked)

    @property
    def databases(self) -> list[Database]:
        """The ways to all of them."""
        return [standby.database for standby in self._standbys]

    def close(self) -> None:
        """Close every connection to them; the primary's are its own."""
        for database in self.databases:
            database.close()


def check_bound(stale_ok: timedelta) -> None:
    """Refuse a bound that no standby could ever keep.

    Raises:
        InvalidData: it is not positive.

    """
    if stale_ok <= timedelta(0):
        problem = f"{stale_ok} is no time at all: what must be of this moment, the primary knows"
        raise InvalidData("the bound", [("/stale_ok", problem)])


def _catches_up(database: Database, query: TextClause, wanted: Mapping[str, Any]) -> bool:
    deadline = time.monotonic() + _CATCH_UP
    with database.statement() as connection:
        while not connection.execute(query, wanted).scalar_one():
            if time.monotonic() > deadline:
                return False
            database.pause(_ASK_EVERY)
    return True


def token(connection: Connection) -> str:
    """Return what stands for everything that was committed on a primary until now.

    Raises:
        NotOnSQLite: it has no standbys.

    """
    if connection.dialect.name == "sqlite":
        raise NotOnSQLite("a standby", "read the database itself")
    found: str = connection.execute(_TOKEN).scalar_one()
    return found

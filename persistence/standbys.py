"""Standbys to read from: only as long as they are not too far behind, and know what one has written oneself.

How stale a standby can be is what has passed since the last commit that it replayed: later ones it does not
know. On a deployment that lives, heartbeats and sweeps commit every second or so; where nothing does, nobody
can tell a quiet primary from a cut line, and the primary is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

from ..core.errors import DatabaseUnavailable, InvalidData, NotOnSQLite
from .database import Database
from .hosts import each_alone

# For how long a standby is given time to catch up before the primary is read instead, and how often it is asked.
_CATCH_UP: Final = 0.1
_ASK_EVERY: Final = 0.01
# A standby that did not answer is passed over for so long: each try may cost its time-out.
_PASSED_OVER: Final = 10.0

_FRESH: Final = text(
    """
    SELECT NOT pg_is_in_recovery()
        OR (coalesce(pg_last_wal_replay_lsn() >= CAST(:after AS pg_lsn), CAST(:after AS pg_lsn) IS NULL)
            AND coalesce(clock_timestamp() - pg_last_xact_replay_timestamp() <= :stale_ok, false))
    """
)
_TOKEN: Final = text("SELECT CAST(pg_current_wal_insert_lsn() AS text)")


@dataclass
class _Standby:
    database: Database
    passed_over_until: float = field(default=0.0)


class Standbys:
    """Those hosts of an address that are standbys at the moment; the primary among them serves as well.

    Raises:
        ConfigurationError: it is no address of PostgreSQL.

    """

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        alone = [address for _, address in each_alone(url)] or [url]
        self._standbys = [_Standby(Database(address, pool_size=pool_size, pre_ping=False)) for address in alone]

    def fresh(self, *, stale_ok: timedelta, after: str | None = None) -> Iterator[Database]:
        """Give the standbys that know everything that was committed until ``stale_ok`` ago, one after the other.

        And everything before ``after``, a token. Whoever reads takes the first that answers.
        """
        check_bound(stale_ok)
        for standby in self._standbys:
            if time.monotonic() < standby.passed_over_until:
                continue
            try:
                if _catches_up(standby.database, stale_ok, after):
                    yield standby.database
            except DatabaseUnavailable:
                standby.passed_over_until = time.monotonic() + _PASSED_OVER

    def close(self) -> None:
        """Close every connection."""
        for standby in self._standbys:
            standby.database.close()


def check_bound(stale_ok: timedelta) -> None:
    """Refuse a bound that no standby could ever keep.

    Raises:
        InvalidData: it is not positive.

    """
    if stale_ok <= timedelta(0):
        problem = f"{stale_ok} is no time at all: what must be of this moment, the primary knows"
        raise InvalidData("the bound", [("/stale_ok", problem)])


def _catches_up(database: Database, stale_ok: timedelta, after: str | None) -> bool:
    deadline = time.monotonic() + _CATCH_UP
    with database.statement() as connection:
        while not connection.execute(_FRESH, {"after": after, "stale_ok": stale_ok}).scalar_one():
            if time.monotonic() > deadline:
                return False
            time.sleep(_ASK_EVERY)
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

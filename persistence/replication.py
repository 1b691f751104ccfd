"""Who else has what was committed: standbys, how far behind they are, and whether commits wait for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

# Those settings with which a commit returns only once a standby has written it down.
_WAITING: Final = frozenset({"on", "remote_write", "remote_apply"})
_SYNCHRONOUS: Final = frozenset({"sync", "quorum"})
RECEIVER: Final = "aegis_archive"
"""What our archive calls itself among those that stream."""
# How it, Barman by itself and PostgreSQL's own receiver are called.
_ARCHIVES: Final = (RECEIVER, "barman", "pg_receivewal")
# ANY 2 (a, b), FIRST 1 (a, b), 2 (a, b); or a plain list, of which one has to have it.
_COUNTED: Final = re.compile(r"(?:any|first)?\s*(\d+)\s*\(", re.IGNORECASE)

_SETTINGS: Final = text(
    """
    SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names'), current_setting('synchronous_commit')
    """
)
_STANDBYS: Final = text(
    """
    SELECT application_name, state, sync_state,
           CAST(pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn) AS BIGINT) AS behind,
           flush_lag AS late
    FROM pg_stat_replication
    WHERE state IS DISTINCT FROM 'backup'
    ORDER BY application_name
    """
)


@dataclass(frozen=True, kw_only=True)
class Standby:
    """Who receives what is committed: another server, or an archive.

    ``behind`` is how many bytes it has not made durable yet, and ``late`` for how long that took lately; both
    are None, like ``mode``, where our user may not see them.
    """

    name: str
    streams: bool
    mode: str | None
    behind: int | None
    late: timedelta

    @property
    def is_archive(self) -> bool:
        """Whether it only keeps what it receives, and never takes over."""
        return self.name.startswith(_ARCHIVES)

    @property
    def is_synchronous(self) -> bool:
        """Whether commits wait for it, or for enough like it."""
        return self.streams and self.mode in _SYNCHRONOUS


@dataclass(frozen=True, kw_only=True)
class Replication:
    """How what is committed here gets elsewhere; ``needed`` is how many have to have a commit before it returns."""

    is_standby: bool
    needed: int
    waits: bool
    standbys: tuple[Standby, ...]
    named: frozenset[str] = frozenset()
    """Who may be waited for."""

    @property
    def synchronous(self) -> int:
        """How many standbys there are that a commit may wait for."""
        return sum(standby.is_synchronous for standby in self.standbys)

    @property
    def to_take_over(self) -> tuple[Standby, ...]:
        """Those that could take over: an archive never does."""
        return tuple(standby for standby in self.standbys if not standby.is_archive)

    @property
    def relied_on(self) -> int:
        """How many of those that could take over have each commit before it returns, whoever answers first.

        Of ANY so many, each archive that is named, or there, may be one of those that answered.
        """
        synchronous = sum(standby.is_synchronous for standby in self.to_take_over)
        if all(standby.mode != "quorum" for standby in self.standbys):
            return synchronous  # by priority, it is all of them
        named = sum(name.startswith(_ARCHIVES) for name in self.named)
        there = sum(standby.is_archive and standby.is_synchronous for standby in self.standbys)
        return min(synchronous, max(0, self.needed - max(named, there)))

    @property
    def waits_for_archives_alone(self) -> bool:
        """Whether it is only archives that a commit may wait for, so that there is nobody to take over."""
        return bool(self.named) and all(name.startswith(_ARCHIVES) for name in self.named)

    @property
    def at_risk(self) -> int:
        """How many bytes whoever is nearest of those that could take over does not have yet."""
        return min((standby.behind or 0 for standby in self.to_take_over or self.standbys), default=0)


def read(connection: Connection) -> Replication | None:
    """Return how a server replicates; None for SQLite, which does not."""
    if connection.dialect.name != "postgresql":
        return None
    is_standby, names, commit = connection.execute(_SETTINGS).one()
    standbys = () if is_standby else tuple(_standbys(connection))
    waits = commit in _WAITING
    return Replication(is_standby=is_standby, needed=needed(names), waits=waits, standbys=standbys, named=named(names))


def _standbys(connection: Connection) -> Iterable[Standby]:
    for row in connection.execute(_STANDBYS):
        yield Standby(
            name=row.application_name,
            streams=row.state == "streaming",
            mode=row.sync_state,
            behind=row.behind,
            # Null as long as nothing is under way.
            late=row.late if row.late is not None and row.behind else timedelta(0),
        )


def needed(names: str) -> int:
    """Return how many standbys a value of ``synchronous_standby_names`` makes a commit wait for."""
    if not names.strip():
        return 0
    counted = _COUNTED.match(names.strip())
    return int(counted[1]) if counted else 1


def named(names: str) -> frozenset[str]:
    """Return whom a value of ``synchronous_standby_names`` lets a commit wait for."""
    counted = _COUNTED.match(names.strip())
    inner = names.strip()[counted.end() :].rstrip().removesuffix(")") if counted else names
    return frozenset(filter(None, (name.strip().strip('"') for name in inner.split(","))))

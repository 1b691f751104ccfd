"""The PostgreSQL cluster that the database is in: what is asked of it before it is backed up or put back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

from .replication import RECEIVER, named
from .replication import read as replicated

SLOT: Final = "aegis_backup"
"""The replication slot that keeps the WAL until the archive has it."""
_SEGMENT: Final = 16 * 1024 * 1024
# What a server archives: segments, the part of one that a promotion leaves behind, the note of where a backup
# began; and histories of timelines, which say nothing of how far the segments are.
_ARCHIVED: Final = re.compile(r"([0-9A-F]{24})(\.partial|\.[0-9A-F]{8}\.backup)?")
_FACTS: Final = text("""
    SELECT current_setting('server_version_num')::int / 10000 AS major,
        (SELECT system_identifier::text FROM pg_control_system()) AS system,
        pg_is_in_recovery() AS standby,
        current_setting('wal_level') AS wal_level,
        coalesce(current_setting('summarize_wal', true), 'off') = 'on' AS summarized,
        (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_replicate,
        (SELECT rolname FROM pg_roles WHERE oid = 10) AS superuser,
        current_database() AS name
""")
_ARCHIVE: Final = text("""
    SELECT s.active, coalesce(s.wal_status, 'reserved') AS status,
        pg_wal_lsn_diff(s.restart_lsn, '0/0')::bigint AS kept_from,
        pg_wal_lsn_diff(
            pg_current_wal_insert_lsn(), coalesce(greatest(r.write_lsn, r.flush_lsn), s.restart_lsn)
        )::bigint AS behind,
        coalesce(r.sync_state IN ('sync', 'quorum'), false) AS synchronous,
        current_setting('synchronous_standby_names') AS names
    FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
    WHERE s.slot_name = :slot AND NOT pg_is_in_recovery()
""")


_ARCHIVER: Final = text("""
    SELECT current_setting('archive_mode') <> 'off' AS active, last_archived_wal AS last, last_failed_wal AS failed,
        last_failed_time > coalesce(last_archived_time, '-infinity') AS failing, now() - last_archived_time AS since,
        CASE WHEN pg_is_in_recovery() THEN 0
            ELSE pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') END::bigint AS written
    FROM pg_stat_archiver
""")
_ARCHIVING: Final = text("""
    SELECT current_setting('archive_mode') AS mode, current_setting('archive_command') AS command,
        current_setting('data_directory') AS data,
        (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')) AS tablespaces
""")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a cluster is; ``system`` is the number that it was given when it was made, and that its copies share."""

    major: int
    system: str
    standby: bool
    wal_level: str
    summarized: bool
    """Whether it keeps account of what changes, which incremental backups need."""
    may_replicate: bool
    superuser: str
    name: str
    """The database's own."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """How far the archive of the WAL is; ``behind`` is what it has not on its disk yet, in bytes."""

    active: bool
    lost: bool
    """Whether the server has thrown away WAL that the archive does not have: there is a gap."""
    behind: int
    synchronous: bool = False
    """Whether a commit returns only once the archive, or enough like it, has it on its disk."""
    named: bool = False
    """Whether the server is told to let commits wait for it."""
    kept_from: int | None = None
    """The first segment that the server keeps for it, by its number; None if it keeps none."""


@dataclass(frozen=True, kw_only=True)
class Archiver:
    """How far a server is that archives its WAL by itself, a segment at a time; ``behind`` in bytes."""

    active: bool
    last: str | None
    """The last file that was archived: mostly a segment."""
    failing: str | None
    """The one that cannot be archived, if that is how it is."""
    since: timedelta | None
    """How long ago the last one was archived."""
    behind: int

    def has(self, segment: str) -> bool:
        """Whether it has archived a segment, as far as the last file tells."""
        found = _ARCHIVED.fullmatch(self.last or "")
        if found is None:
            return False
        # Of a segment that is archived as a part only, the whole one does not come.
        return found[1] > segment if found[2] == ".partial" else found[1] >= segment


@dataclass(frozen=True, kw_only=True)
class Archiving:
    """How a server is told to archive."""

    mode: str
    command: str
    data: str
    """Its data directory."""
    tablespaces: int


def facts(connection: Connection) -> Facts:
    """Return what the cluster is."""
    row = connection.execute(_FACTS).one()
    return Facts(**row._mapping)  # noqa: SLF001 - SQLAlchemy's name for a row as a mapping


def archive(connection: Connection) -> Archive | None:
    """Return how far the archive is; None if the server has no slot for one."""
    if connection.dialect.name != "postgresql":
        return None
    row = connection.execute(_ARCHIVE, {"slot": SLOT}).one_or_none()
    if row is None:
        return None
    return Archive(
        active=row.active,
        lost=row.status == "lost",
        behind=row.behind or 0,
        synchronous=row.synchronous,
        named=bool({RECEIVER, "*"} & named(row.names)),
        kept_from=None if row.kept_from is None else row.kept_from // _SEGMENT,
    )


def archiver(connection: Connection) -> Archiver | None:
    """Return how far a server is that archives by itself."""
    if connection.dialect.name != "postgresql":
        return None
    row = connection.execute(_ARCHIVER).one()
    end = archived_to(row.last)
    return Archiver(
        active=row.active,
        last=row.last,
        failing=row.failed if row.failing else None,
        since=row.since,
        # Where the last file says nothing, it is the segment that is being written, at the least.
        behind=row.written % _SEGMENT if end is None else max(0, row.written - end),
    )


def archived_to(last: str | None) -> int | None:
    """Return how far the WAL is archived by the name of the last file that was, in bytes; None if it does not say."""
    found = _ARCHIVED.fullmatch(last or "")
    if found is None:
        return None
    segment = int(found[1][8:16], 16) * 0x100 + int(found[1][16:24], 16)
    return (segment if found[2] == ".partial" else segment + 1) * _SEGMENT


def archiving(connection: Connection) -> Archiving:
    """Return how it is told to archive; that takes pg_read_all_settings."""
    return Archiving(**connection.execute(_ARCHIVING).one()._mapping)  # noqa: SLF001 - as above


def waits_for_archive(connection: Connection) -> bool:
    """Whether the server is told to let commits wait for the archive."""
    names = connection.execute(text("SELECT current_setting('synchronous_standby_names')")).scalar_one()
    return bool({RECEIVER, "*"} & named(names))


def is_recovered(connection: Connection) -> bool:
    """Whether it has come to the end of its recovery, and takes what is written."""
    return not connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()


def drop_slot(connection: Connection) -> None:
    """Give up the slot, if it is there: what the archive does not have, it will never have."""
    query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = :slot"
    connection.execute(text(query), {"slot": SLOT})


def has_standbys(connection: Connection) -> bool:
    """Whether other servers follow this one: then who runs the cluster sees to its slots."""
    found = replicated(connection)
    return found is not None and bool(found.to_take_over)


def make_slot(connection: Connection) -> None:
    """Make the slot, unless it is there: from now on the server keeps its WAL for the archive."""
    query = """
        SELECT pg_create_physical_replication_slot(:slot, true)
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :slot)
    """
    connection.execute(text(query), {"slot": SLOT})


def recovered_segment(connection: Connection) -> int:
    """Return the number of the WAL segment that recovery came to."""
    query = "SELECT coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)::bigint"
    replayed: int = connection.execute(text(query)).scalar_one()
    return max(0, replayed - 1) // _SEGMENT


def switch(connection: Connection) -> str:
    """End the segment of WAL that is being written, so that it can be archived whole; return its name."""
    # A record before it, because an empty segment is not ended; and one after it: what receives
    # the WAL knows that a segment is whole when the next one begins.
    emit = text("SELECT pg_logical_emit_message(false, 'aegis', 'backup')")
    connection.execute(emit)
    name: str = connection.execute(text("SELECT pg_walfile_name(pg_switch_wal())")).scalar_one()
    connection.execute(emit)
    return name

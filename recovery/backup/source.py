"""What backups are taken of, and with what: the server, and the adapter that its settings name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...config.settings import Settings, safe_url
from ...core.errors import BackupFailed
from ...persistence import cluster
from ...persistence.cluster import Facts
from ...persistence.database import Database
from ...servers.postgres import programs_for
from .adapter import Adapter
from .barman.adapter import WithBarman
from .pgbackrest.adapter import WithPgBackRest


@dataclass(frozen=True, kw_only=True)
class Source:
    """What backups are taken of, and with what."""

    facts: Facts
    adapter: Adapter


def source(settings: Settings) -> Source:
    """Look at the server, and find the programs that fit it.

    Raises:
        BackupFailed: it cannot be backed up, or the repository is of another.
        DatabaseUnavailable: it does not answer.
        ServerUnavailable: the programs are not installed.

    """
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        with database.statement() as connection:
            found = cluster.facts(connection)
    finally:
        database.close()
    where = safe_url(settings.backup_database)
    if found.standby:
        raise BackupFailed(where, "it is a standby", "name the primary: AEGIS_BACKUP_URL")
    if found.wal_level == "minimal":
        raise BackupFailed(where, "wal_level is minimal", "set it to replica, and restart the server")
    adapter = _adapter(settings, programs_for(settings, found.major))
    adapter.need(found, where)
    identity = adapter.identity()
    if identity is not None and identity.system != found.system:
        problem = f"its backups are of another server ({identity.system}, this is {found.system})"
        remedy = f"name another repository: {where} has never written to this one"
        raise BackupFailed(settings.backup_place, problem, remedy)
    return Source(facts=found, adapter=adapter)


def kept(settings: Settings) -> Adapter | None:
    """Return the adapter on what the repository has, whether or not the server is there; None if it has nothing.

    Raises:
        BackupFailed: the repository cannot be read.
        ServerUnavailable: PostgreSQL's programs of that version are not installed.

    """
    identity = _adapter(settings, Path()).identity()
    return None if identity is None else _adapter(settings, programs_for(settings, identity.major))


def repository(settings: Settings) -> Adapter:
    """Return the adapter on what the repository has.

    Raises:
        BackupFailed: it has nothing, or cannot be read.
        ServerUnavailable: PostgreSQL's programs of that version are not installed.

    """
    found = kept(settings)
    if found is None:
        remedy = "see that its disk is there; `aegis backup`"
        raise BackupFailed(settings.backup_place, "there are no backups in it", remedy)
    return found


def _adapter(settings: Settings, programs: Path) -> Adapter:
    if settings.backup_with == "pgbackrest":
        return WithPgBackRest.prepare(settings, programs)
    return WithBarman.prepare(settings, programs)

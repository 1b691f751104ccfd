"""How the backups are, as far as one can see without asking Barman, and beat's part in having them taken."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.errors import BackupFailed
from ..persistence import cluster
from ..persistence.cluster import Archive, Archiver
from ..persistence.database import Connection
from ..persistence.replication import RECEIVER
from .check import Check, degraded, ok, span, warning

log = get_logger(__name__)

LEDGER: Final = "aegis.json"
NAMES_IT: Final = f"ALTER SYSTEM SET synchronous_standby_names = '{RECEIVER}'"
"""What has commits wait for the archive, on a server without standbys."""
_LOOKS: Final = 12
_LONGEST_PAUSE: Final = 60.0
# Barman's names, and the end of pgBackRest's: of 20261126-054203F, and 20261126-054203F_20261126-060000D.
_NAMED: Final = re.compile(r"(\d{8})[T-](\d{6})[A-Z]?$")
# A backup that should have come, and did not for so many of its intervals, does not come.
_MISSED: Final = 2.5
# What the archive may be behind without a word: the segment that is being written (bytes).
_SEGMENT: Final = 16 * 1024 * 1024
# And where segments are handed over whole: one more may be on its way.
_MOST_HANDED_OVER: Final = 3
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the repository's own file says: proofs by backup, and the last failure that nothing made up for."""

    proofs: Mapping[str, Mapping[str, Any]]
    failure: Mapping[str, str] | None
    superuser: str = ""
    """Who made the cluster: whoever looks into a copy of it does so by that name."""

    @property
    def verified(self) -> list[str]:
        """The backups that count, the oldest first: their ids are the moments when they were begun."""
        return sorted((backup for backup, proof in self.proofs.items() if not proof["problem"]), key=begun)


def read(repository: Path) -> Known:
    """Return what is known.

    Raises:
        BackupFailed: the file is there, and cannot be read.

    """
    file = repository / LEDGER
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        return Known(
            proofs=dict(found.get("proofs", {})), failure=found.get("failure"), superuser=found.get("superuser", "")
        )
    except (OSError, ValueError, AttributeError) as error:
        remedy = "see that the place is there; without the file, verify the backups anew"
        raise BackupFailed(str(file), f"it cannot be read ({error})", remedy) from None


def ask_backups(settings: Settings) -> Iterator[Check]:
    """Look at the backups."""
    repository = settings.backups
    try:
        if settings.backup_repository != Path() and not repository.exists():
            yield degraded("backup", f"{repository} is not there", "see that its disk is; `aegis backup` makes it")
            return
        there = any((repository / name).exists() for name in (LEDGER, "barman.conf", "pgbackrest"))
        known = read(repository)
    except (BackupFailed, OSError) as error:
        yield degraded("backup", str(error), f"see that AEGIS_BACKUP_REPOSITORY={repository} can be read")
        return
    if not there and not settings.backup_interval:
        says = "OFF: none was ever taken"
        yield ok("backup", "off") if settings.embedded else warning("backup", says, "`aegis backup`, see docs/how-to")
        return
    yield _judge(known, settings, datetime.now(UTC), shutil.disk_usage(repository).free)


def _judge(known: Known, settings: Settings, now: datetime, free: int) -> Check:
    if not known.verified:
        says = "none that counts: none was restored and verified yet"
        if known.failure:
            says = f"{says}; {known.failure['problem']}"
        return degraded("backup", says, "`aegis backup`, and `aegis backup verify`")
    newest = begun(known.verified[-1])
    says = f"the last verified one is {_age(now - newest)} old"
    if known.failure:
        failed = _age(now - datetime.fromisoformat(known.failure["at"]))
        return degraded("backup", f"{says}; {failed} ago: {known.failure['problem']}", "mend that, then `aegis backup`")
    if free < known.proofs[known.verified[-1]].get("bytes", 0):
        left = f"{says}, and {settings.backups} has {free / _MEGABYTE:,.0f} MB left: not enough for another"
        return degraded("backup", left, "make room there, or shorten AEGIS_BACKUP_RETENTION")
    late = timedelta(seconds=settings.backup_interval * _MISSED)
    if settings.backup_interval and now - newest > late:
        return degraded("backup", f"{says}, and should not be older than {_age(late)}", "see that beat runs, its log")
    return ok("backup", says)


def archive(connection: Connection, settings: Settings) -> Check | None:
    """Judge how far the archive of the WAL is; None where there is none, and none was asked for."""
    if settings.backup_with == "pgbackrest":
        by_itself = cluster.archiver(connection)
        return None if by_itself is None else _handed_over(by_itself, cluster.archive(connection))
    return _received(cluster.archive(connection), settings)


def _handed_over(found: Archiver, slot: Archive | None) -> Check:
    """Judge how a server does that archives by itself."""
    remedy = "`aegis backup` says why"
    behind = f"{found.behind / _MEGABYTE:,.1f} MB behind"
    if not found.active:
        return degraded("archive", "no WAL is archived: archive_mode is off", "`aegis backup` says what to set")
    if found.failing is not None:
        since = f"nothing could be archived for {_age(found.since)}" if found.since else "nothing could be archived yet"
        return degraded("archive", f"{since}, {behind}: that much would be lost with the server's disk", remedy)
    if found.last is None:
        return degraded("archive", "no WAL was archived yet", "`aegis backup` begins with it")
    if found.behind > _MOST_HANDED_OVER * _SEGMENT:
        return warning("archive", behind, "see that the repository keeps up: pg_stat_archiver on the server")
    if slot is not None and not slot.active:
        says = f"{behind}, and the slot of Barman's archive, {cluster.SLOT}, keeps WAL that nobody fetches"
        return warning("archive", says, f"SELECT pg_drop_replication_slot('{cluster.SLOT}')")
    return ok("archive", f"by the server itself, segment by segment, {behind}")


def _received(found: Archive | None, settings: Settings) -> Check | None:
    remedy = "run `aegis backup archive`, or have `aegis up` run it (AEGIS_BACKUP_INTERVAL)"
    asked = settings.backup_interval or settings.backup_synchronous
    if found is None:
        return degraded("archive", "no WAL is archived", remedy) if asked else None
    behind = f"{found.behind / _MEGABYTE:,.1f} MB behind"
    if found.lost:
        says = "it has a gap: the server threw away WAL that it did not have"
        return degraded("archive", says, "`aegis backup` makes a new beginning")
    if not found.active:
        lost = "and writes wait for it" if found.named else "that much would be lost with the server's disk"
        says = f"nothing archives the WAL now, {behind}: {lost}"
        return degraded("archive", says, remedy) if asked or found.named else warning("archive", says, remedy)
    if settings.backup_synchronous and not found.named:
        says = f"streaming, {behind}: that much would be lost with the server's disk, as commits do not wait for it"
        return degraded("archive", says, f"name it on the server, and reload that: {NAMES_IT}")
    if found.behind > _SEGMENT:
        return warning("archive", behind, "see that the repository's disk keeps up")
    says = "streaming, and commits wait for it: nothing would be lost with the server's disk"
    return ok("archive", says if found.synchronous else f"streaming, {behind}")


def _age(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    if hours < 2:  # noqa: PLR2004 - minutes read better up to there
        return span(length)
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"  # noqa: PLR2004 - as above


# --- what beat does -----------------------------------------------------------------------------


def look(settings: Settings) -> float:
    """Return how often to look whether a backup is due (seconds)."""
    return min(max(settings.backup_interval / _LOOKS, 1.0), _LONGEST_PAUSE)


def backup(settings: Settings) -> bool:
    """Take a backup and verify it, in a process of its own, if one is due; return whether one was.

    A beat that was restarted has no memory of when it last did; the repository has. One that failed is tried
    again after a part of the interval.

    Raises:
        BackupFailed: the repository cannot be read.

    """
    if not settings.backup_interval or not _is_due(settings, datetime.now(UTC)):
        return False
    done = subprocess.run([sys.executable, "-m", "aegis.recovery.backup.scheduled"], check=False)
    if done.returncode:
        log.critical("no backup", status=done.returncode)
    return True


def _is_due(settings: Settings, now: datetime) -> bool:
    known = read(settings.backups)
    interval = timedelta(seconds=settings.backup_interval)
    if known.failure and now - datetime.fromisoformat(known.failure["at"]) < interval / _LOOKS:
        return False
    return not known.verified or now - begun(known.verified[-1]) >= interval


def begun(backup: str) -> datetime:
    """Return when a backup was begun, which is what it is named after."""
    found = _NAMED.search(backup)
    if found is None:
        return datetime.min.replace(tzinfo=UTC)
    return datetime.strptime(f"{found[1]}{found[2]}", "%Y%m%d%H%M%S").astimezone(UTC)

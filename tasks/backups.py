"""How the backups are, as far as one can see without asking Barman, and beat's part in having them taken."""

from __future__ import annotations

import json
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
from ..persistence.cluster import Archive
from ..persistence.replication import RECEIVER
from .check import Check, degraded, ok, span, warning

log = get_logger(__name__)

LEDGER: Final = "aegis.json"
NAMES_IT: Final = f"ALTER SYSTEM SET synchronous_standby_names = '{RECEIVER}'"
"""What has commits wait for the archive, on a server without standbys."""
_LOOKS: Final = 12
_LONGEST_PAUSE: Final = 60.0
_NAMED: Final = "%Y%m%dT%H%M%S"
# A backup that should have come, and did not for so many of its intervals, does not come.
_MISSED: Final = 2.5
# What the archive may be behind without a word: the segment that is being written (bytes).
_SEGMENT: Final = 16 * 1024 * 1024
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
        return sorted(backup for backup, proof in self.proofs.items() if not proof["problem"])


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
        there = any((repository / name).exists() for name in (LEDGER, "barman.conf"))
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
    newest = _begun(known.verified[-1])
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


def archive(found: Archive | None, settings: Settings) -> Check | None:
    """Judge how far the archive of the WAL is; None where there is none, and none was asked for."""
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
    return not known.verified or now - _begun(known.verified[-1]) >= interval


def _begun(backup: str) -> datetime:
    return datetime.strptime(backup, _NAMED).astimezone(UTC)

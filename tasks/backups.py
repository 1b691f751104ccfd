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
from ..persistence.hosts import each_alone
from ..persistence.replication import RECEIVER
from .check import Check, degraded, ok, span, warning

log = get_logger(__name__)

LEDGER: Final = "aegis.json"
NAMES_IT: Final = f"ALTER SYSTEM SET synchronous_standby_names = '{RECEIVER}'"
"""What has commits wait for the archive, on a server without standbys."""
SINGLE: Final = "unset AEGIS_BACKUP_SYNCHRONOUS: with standbys, commits wait for these, as Patroni has them do"
"""What is to be done instead on a server with standbys: Patroni would be overruled, and a fail-over lose commits."""
_RUN_IT: Final = "run `aegis backup archive`, or have `aegis up` run it (AEGIS_BACKUP_INTERVAL)"
_LOOKS: Final = 12
_LONGEST_PAUSE: Final = 60.0
_LOOK_AT_WAL_EVERY: Final = timedelta(minutes=10)
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
    gap: Mapping[str, str] | None = None
    """Where WAL is missing from the archive, until a backup that was begun later counts."""
    looked: Mapping[str, Any] | None = None
    """When it was last seen that no WAL is missing, and up to which segment."""

    @property
    def verified(self) -> list[str]:
        """The backups that count, the oldest first: their ids are the moments when they were begun."""
        return sorted((backup for backup, proof in self.proofs.items() if not proof["problem"]), key=begun)

    def gap_since(self, backup: str) -> bool:
        """Whether WAL is missing that was written after a backup was begun."""
        return self.gap is not None and begun(backup) < datetime.fromisoformat(self.gap["at"])


def read(repository: Path) -> Known:
    """Return what is known.

    Raises:
        BackupFailed: the file is there, and cannot be read.

    """
    found = contents(repository)
    return Known(
        proofs=found.get("proofs", {}),
        failure=found.get("failure"),
        superuser=found.get("superuser", ""),
        gap=found.get("gap"),
        looked=found.get("looked"),
    )


def contents(repository: Path) -> Mapping[str, Any]:
    """Return what the file holds; nothing if there is none.

    Raises:
        BackupFailed: the file is there, and cannot be read.

    """
    file = repository / LEDGER
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"see that the place is there; if it is damaged, move {LEDGER} away, and verify the backups anew"
        raise BackupFailed(str(file), f"it cannot be read ({error})", remedy) from None
    return dict(found)


def _check(found: Mapping[str, Any]) -> None:
    """Come upon whatever is not as it is written, here and not later."""
    for proof in found.get("proofs", {}).values():
        str.strip(proof["problem"])
        datetime.fromisoformat(proof["at"])
    for one in (found.get("failure"), found.get("gap")):
        if one is not None:
            str.strip(one["problem"])
            datetime.fromisoformat(one["at"])
    if (looked := found.get("looked")) is not None:
        datetime.fromisoformat(looked["at"])
        str.strip(looked["to"])


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
    yield _judge(known, settings, datetime.now(UTC), _free(settings))


def _free(settings: Settings) -> int | None:
    """Return the room that is left where backups go, in bytes; None for a bucket, and for what is still to be made."""
    if settings.backup_bucket:
        return None
    try:
        return shutil.disk_usage(settings.backups).free
    except OSError:
        return None


def _judge(known: Known, settings: Settings, now: datetime, free: int | None) -> Check:
    if not known.verified:
        says = "none that counts: none was restored and verified yet"
        for one in filter(None, (known.failure, known.gap)):
            says = f"{says}; {one['problem']}"
        return degraded("backup", says, "`aegis backup`, and `aegis backup verify`")
    newest = begun(known.verified[-1])
    says = f"the last verified one is {_age(now - newest)} old"
    for one in filter(None, (known.failure, known.gap)):
        noted = _age(now - datetime.fromisoformat(one["at"]))
        remedy = "mend that, then `aegis backup`" if one is known.failure else "`aegis backup` makes a new beginning"
        return degraded("backup", f"{says}; {noted} ago: {one['problem']}", remedy)
    if free is not None and free < known.proofs[known.verified[-1]].get("bytes", 0):
        left = f"{says}, and {settings.backups} has {free / _MEGABYTE:,.0f} MB left: not enough for another"
        return degraded("backup", left, "make room there, or shorten AEGIS_BACKUP_RETENTION")
    late = timedelta(seconds=settings.backup_interval * _MISSED)
    if settings.backup_interval and now - newest > late:
        return degraded("backup", f"{says}, and should not be older than {_age(late)}", "see that beat runs, its log")
    return ok("backup", says)


def archive(connection: Connection, settings: Settings) -> Check | None:
    """Judge how far the archive of the WAL is; None where there is none, and none was asked for."""
    is_cluster = bool(list(each_alone(settings.database))) or cluster.has_standbys(connection)
    if settings.backup_with == "pgbackrest":
        by_itself = cluster.archiver(connection)
        return None if by_itself is None else _handed_over(by_itself, cluster.archive(connection), is_cluster)
    return _received(cluster.archive(connection), settings, is_cluster=is_cluster)


def _handed_over(found: Archiver, slot: Archive | None, is_cluster: bool) -> Check:
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
        drop = f"SELECT pg_drop_replication_slot('{cluster.SLOT}')"
        return warning(
            "archive", says, f"patronictl edit-config aegis --set slots.{cluster.SLOT}=null" if is_cluster else drop
        )
    return ok("archive", f"by the server itself, segment by segment, {behind}")


def _received(found: Archive | None, settings: Settings, *, is_cluster: bool) -> Check | None:
    asked = bool(settings.backup_interval) or settings.backup_synchronous
    if found is None:
        return degraded("archive", "no WAL is archived", _RUN_IT) if asked else None
    behind = f"{found.behind / _MEGABYTE:,.1f} MB behind"
    if found.lost:
        says = "it has a gap: the server threw away WAL that it did not have"
        return degraded("archive", says, "`aegis backup` makes a new beginning")
    if is_cluster and settings.backup_synchronous:
        says = f"AEGIS_BACKUP_SYNCHRONOUS is for a single server, and this is a cluster; the archive is {behind}"
        return degraded("archive", says, SINGLE)
    if found.active:
        return _streaming(found, settings, behind)
    if is_cluster and not asked and not (settings.backups / LEDGER).exists():
        return None  # the slot is made with the cluster, whether or not there are to be backups
    lost = "and writes wait for it" if found.named else "that much would be lost with the server's disk"
    says = f"nothing archives the WAL now, {behind}: {lost}"
    return degraded("archive", says, _RUN_IT) if asked or found.named else warning("archive", says, _RUN_IT)


def _streaming(found: Archive, settings: Settings, behind: str) -> Check:
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
    again after a part of the interval; a gap in the archive asks for a new one at once.

    Raises:
        BackupFailed: the repository cannot be read.

    """
    if not settings.backup_interval:
        return False
    known, now = read(settings.backups), datetime.now(UTC)
    if _is_to_be_looked_at(known, now):
        # A gap that it finds is in the repository's own file from then on.
        subprocess.run([sys.executable, "-m", "aegis.recovery.backup.look"], check=False)
        known = read(settings.backups)
    if not _is_due(known, settings, now):
        return False
    done = subprocess.run([sys.executable, "-m", "aegis.recovery.backup.scheduled"], check=False)
    if done.returncode:
        log.critical("no backup", status=done.returncode)
    return True


def _is_to_be_looked_at(known: Known, now: datetime) -> bool:
    """Whether to look if WAL is missing: where there is a backup, and it is a while since."""
    return bool(known.superuser) and (
        known.looked is None or now - datetime.fromisoformat(known.looked["at"]) >= _LOOK_AT_WAL_EVERY
    )


def _is_due(known: Known, settings: Settings, now: datetime) -> bool:
    interval = timedelta(seconds=settings.backup_interval)
    if known.failure:
        failed = datetime.fromisoformat(known.failure["at"])
        came_later = known.gap is not None and failed < datetime.fromisoformat(known.gap["at"])
        if now - failed < interval / _LOOKS and not came_later:
            return False
    return not known.verified or known.gap is not None or now - begun(known.verified[-1]) >= interval


def begun(backup: str) -> datetime:
    """Return when a backup was begun, which is what it is named after."""
    found = _NAMED.search(backup)
    if found is None:
        return datetime.min.replace(tzinfo=UTC)
    return datetime.strptime(f"{found[1]}{found[2]}", "%Y%m%d%H%M%S").astimezone(UTC)

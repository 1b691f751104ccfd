"""Taking a backup: one at a time, with the WAL archived meanwhile; whatever goes wrong, those before stay."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from ...config.settings import Settings, safe_url
from ...core.errors import AegisError, BackupFailed
from ...persistence import cluster
from ...persistence.cluster import Facts
from ...persistence.database import Database
from ...servers.postgres import programs_for
from .barman import SERVER, Barman, Base
from .ledger import Ledger, Proof, alone
from .prove import logged, prove

_LOOK_EVERY: Final = 0.1
_REFUSED: Final = "Impossible to start the backup"
_CONNECTS_WITHIN: Final = 30.0
_ENDS_WITHIN: Final = 15.0
_ARRIVES_WITHIN: Final = 60.0
# The last segment of a backup is archived as soon as the receiver has it (seconds).
_WAL_WITHIN: Final = "600"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What backups are taken of, and with what."""

    facts: Facts
    barman: Barman


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
            archived = cluster.archive(connection) is not None
    finally:
        database.close()
    where = safe_url(settings.backup_database)
    _need_a_server_to_copy(found, where)
    barman = Barman.prepare(settings, programs_for(settings, found.major))
    _need_its_repository(barman, found, where, archived=archived)
    return Source(facts=found, barman=barman)


def _need_a_server_to_copy(found: Facts, where: str) -> None:
    if found.standby:
        raise BackupFailed(where, "it is a standby", "name the primary: AEGIS_BACKUP_URL")
    if not found.may_replicate:
        remedy = (
            "grant it: ALTER ROLE ... REPLICATION, with pg_read_all_settings; or set AEGIS_BACKUP_URL to one that may"
        )
        raise BackupFailed(where, "this user may not replicate", remedy)
    if found.wal_level == "minimal":
        raise BackupFailed(where, "wal_level is minimal", "set it to replica, and restart the server")


def _need_its_repository(barman: Barman, found: Facts, where: str, *, archived: bool) -> None:
    what = f"AEGIS_BACKUP_REPOSITORY={barman.repository}"
    identity = barman.folder / "identity.json"
    try:
        system = json.loads(identity.read_text())["systemid"] if identity.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupFailed(what, f"{identity} cannot be read ({error})", "see that its disk is sound") from None
    if system is not None and system != found.system:
        remedy = f"name another repository: {where} has never written to this one"
        raise BackupFailed(what, f"its backups are of another server ({system}, this is {found.system})", remedy)
    if archived and not barman.folder.is_dir():
        problem = f"it is empty, and {where} has a slot for an archive that was begun before"
        remedy = f"see that its disk is there; to begin anew: SELECT pg_drop_replication_slot('{cluster.SLOT}')"
        raise BackupFailed(what, problem, remedy)


# --- taking ---------------------------------------------------------------------------------


def take(settings: Settings, *, incremental: bool = False) -> Base:
    """Take a backup, and return it; it counts once it was verified.

    Raises:
        BackupFailed, DatabaseUnavailable, ServerUnavailable: none was taken; those before are as they were.

    """
    with alone(settings.backups), _alarmed(settings):
        used = source(settings)
        arguments = ["--incremental", _parent(used)] if incremental else []
        with receiving(settings, used.barman):
            _remove_what_failed(used.barman)
            _begin(settings, used.barman)
            try:
                said = used.barman.call(
                    "the backup", "backup", "--wait", "--wait-timeout", _WAL_WITHIN, *arguments, SERVER
                )
            except BackupFailed as error:
                with suppress(BackupFailed):  # the next one tries again
                    _remove_what_failed(used.barman)
                raise _with_reason(used.barman, error) from None
        Ledger(settings.backups).taken(used.facts.superuser)
        return next(base for base in used.barman.bases() if base.id == said.get("backup_id"))


def _begin(settings: Settings, barman: Barman) -> None:
    """Archive a first segment: Barman wants to see that WAL arrives before it takes a backup."""
    if not any((barman.folder / "wals").glob("*/*")):
        file_all(settings, barman)


def _parent(used: Source) -> str:
    if not used.facts.summarized:
        remedy = "take a full one; or set summarize_wal = on in PostgreSQL 17 or newer"
        raise BackupFailed("the backup", "the server keeps no account of what changes (summarize_wal is off)", remedy)
    full = next((base for base in used.barman.bases() if base.done and base.parent is None), None)
    if full is None:
        raise BackupFailed("the backup", "there is no full one that it could build on", "`aegis backup`")
    return full.id


def _with_reason(barman: Barman, error: BackupFailed) -> BackupFailed:
    """Return the error with what Barman does not like, where it did not begin because of that."""
    if _REFUSED not in error.problem:
        return error
    failed = barman.failed_checks()
    return BackupFailed(error.what, f"Barman does not begin: {failed}", error.remedy) if failed else error


def _remove_what_failed(barman: Barman) -> None:
    """Give the room back that a backup took which was never finished."""
    for base in barman.bases():
        if base.status in {"FAILED", "STARTED", "EMPTY", "SYNCING"}:
            # By hand at first: on a full disk Barman has no room to note that it makes room.
            shutil.rmtree(barman.folder / "base" / base.id, ignore_errors=True)
            barman.call(f"backup {base.id}", "delete", SERVER, base.id)


@contextmanager
def _alarmed(settings: Settings) -> Iterator[None]:
    """Note what goes wrong where `aegis health` finds it, if that can be written."""
    try:
        yield
    except AegisError as error:
        with suppress(BackupFailed):  # the repository itself may be what is wrong, which health sees
            Ledger(settings.backups).failed(str(error))
        raise


# --- the WAL ----------------------------------------------------------------------------------


@contextmanager
def receiving(settings: Settings, barman: Barman) -> Iterator[None]:
    """Have the WAL archived: by whoever does it already, or by a process that ends with this."""
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        if _has_a_receiver(database):
            yield
            return
        process = receiver(barman, database)
        try:
            _await(lambda: _has_a_receiver(database), process, barman)
            yield
        finally:
            end(process)
    finally:
        database.close()


def file_all(settings: Settings, barman: Barman) -> None:
    """Have everything archived that is committed by now.

    Raises:
        BackupFailed: it does not arrive.

    """
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        with receiving(settings, barman):
            with database.statement() as connection:
                segment = cluster.switch(connection)
            deadline = time.monotonic() + _ARRIVES_WITHIN
            while not (barman.folder / "wals" / segment[:16] / segment).exists():
                if time.monotonic() > deadline:
                    problem = f"segment {segment} has not arrived after {_ARRIVES_WITHIN:g} s"
                    raise BackupFailed("the archive", problem, f"see {barman.repository}/barman.log")
                time.sleep(_LOOK_EVERY)
                barman.call("the archive", "archive-wal", SERVER)
    finally:
        database.close()


def receiver(barman: Barman, database: Database) -> subprocess.Popen[bytes]:
    """Start a process that archives the WAL, with a slot that keeps it for the time when it does not run.

    Raises:
        BackupFailed, DatabaseUnavailable: there can be no slot.

    """
    with database.statement() as connection:
        found = cluster.archive(connection)
        if found is not None and found.lost:
            cluster.drop_slot(connection)
    if found is None or found.lost:
        barman.call("the archive", "receive-wal", "--create-slot", SERVER)
        if _is_left(barman):
            # What was being received before belongs to a gap, or to another timeline.
            barman.call("the archive", "receive-wal", "--reset", SERVER)
    log = (barman.repository / "receiver.log").open("wb")
    with log:
        return subprocess.Popen(
            barman.argv("receive-wal", SERVER),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a receiver, with PostgreSQL's program that it has started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_ENDS_WITHIN)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def _is_left(barman: Barman) -> bool:
    return any((barman.folder / "streaming").glob("*.partial"))


def _has_a_receiver(database: Database) -> bool:
    with database.statement() as connection:
        found = cluster.archive(connection)
    return found is not None and found.active


def _await(arrived: object, process: subprocess.Popen[bytes], barman: Barman) -> None:
    deadline = time.monotonic() + _CONNECTS_WITHIN
    while not arrived():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > deadline:
            lines = _last_lines(barman.repository / "receiver.log")
            raise BackupFailed("the archive", f"it receives no WAL: {lines}", f"see {barman.repository}/barman.log")
        time.sleep(_LOOK_EVERY)


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "it said nothing"


# --- verifying, and what one need not keep ----------------------------------------------------------


def verify(settings: Settings, backup: str | None) -> tuple[Base, Proof]:
    """Prove a backup, by default the newest; then remove those that are older than one wants to go back.

    Raises:
        BackupFailed: there is no such backup, or it does not prove itself.

    """
    with alone(settings.backups):
        used = source(settings)
        base = find(used.barman, backup)
        expected = logged(settings)
        file_all(settings, used.barman)
        proof = prove(settings, used.barman, base, used.facts.superuser, expected=expected)
        retire(settings, used.barman)
        return base, proof


def find(barman: Barman, backup: str | None) -> Base:
    """Return a backup by its id, or the newest.

    Raises:
        BackupFailed: there is none.

    """
    done = [base for base in barman.bases() if base.done]
    found = next((base for base in done if backup in {None, base.id}), None)
    if found is None:
        known = ", ".join(base.id for base in done[:5]) or "none"
        what = "the repository" if backup is None else f"backup {backup}"
        raise BackupFailed(what, f"there is no such backup (there are: {known})", "`aegis backup` takes one")
    return found


def retire(settings: Settings, barman: Barman) -> list[str]:
    """Remove backups that nobody needs to go back for: not before one that counts covers the whole time."""
    ledger, bases = Ledger(settings.backups), barman.bases()
    verified = set(ledger.known().verified)
    since = datetime.now(UTC) - timedelta(seconds=settings.backup_retention)
    removed: list[str] = []
    if any(base.id in verified and base.ended_at <= since for base in bases):
        for base in reversed([base for base in bases if base.obsolete]):
            if base.parent is None or base.parent not in removed:
                barman.call(f"backup {base.id}", "delete", SERVER, base.id)
            removed.append(base.id)
    ledger.forget({base.id for base in bases} - set(removed))
    return removed


def catalogue(settings: Settings) -> list[tuple[Base, Proof | None]]:
    """Return the backups, the newest first, each with what came out of its verification.

    The database need not be there.

    Raises:
        BackupFailed: the repository cannot be read.

    """
    if not (settings.backups / SERVER).is_dir():
        return []
    proofs = Ledger(settings.backups).known().proofs
    bases = Barman.prepare(settings, programs(settings)).bases()
    return [(base, Proof.read(proofs[base.id]) if base.id in proofs else None) for base in bases]


def programs(settings: Settings) -> Path:
    """Return PostgreSQL's programs of the version that the repository's backups are of.

    Raises:
        BackupFailed: it does not say which.
        ServerUnavailable: these are not installed.

    """
    identity = settings.backups / SERVER / "identity.json"
    try:
        major = int(json.loads(identity.read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        what = f"AEGIS_BACKUP_REPOSITORY={settings.backups}"
        raise BackupFailed(what, "there are no backups in it", "see that its disk is there; `aegis backup`") from None
    return programs_for(settings, major)

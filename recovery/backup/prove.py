"""Proving a backup: it is restored onto a scratch server, migrated, and every chain in it verified there."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ...config.settings import Settings
from ...core.errors import AegisError, BackupFailed, RestoreFailed
from ...core.finding import Report
from ...persistence import cluster, schema
from ...persistence import log as logs
from ...persistence.auditor import Auditor
from ...persistence.database import Database, reason_of
from ...tasks.scrub import sources
from ..copy import copied
from ..upto import UpTo
from .adapter import AGAIN, Adapter, Base
from .ledger import Ledger, Proof
from .pages import check_pages

_NEVER_LATE: Final = timedelta(days=3650)


def prove(settings: Settings, adapter: Adapter, base: Base, superuser: str, *, expected: int) -> Proof:
    """Restore a backup, with all WAL since then, verify it, and note what came out.

    ``expected`` is how many entries its log has at the least: what the live database had before that.

    Raises:
        BackupFailed: it does not prove itself: nothing of it is to be relied on.

    """
    ledger, began = Ledger(settings.backups), time.monotonic()
    try:
        proof = _prove(settings, adapter, base, superuser, expected)
    except RestoreFailed as error:
        raise _noted(ledger, base, BackupFailed(f"backup {base.id}", error.problem, error.remedy)) from None
    except AegisError as error:
        raise _noted(ledger, base, error) from None
    except Exception as error:  # whatever PostgreSQL says of a page that is damaged
        problem = f"it is not what was written: {reason_of(error)}"
        raise _noted(ledger, base, BackupFailed(f"backup {base.id}", problem, AGAIN)) from error
    proof = replace(proof, seconds=round(time.monotonic() - began, 1))
    ledger.proved(base.id, proof)
    return proof


def _noted(ledger: Ledger, base: Base, error: AegisError) -> AegisError:
    with suppress(BackupFailed):  # what is wrong with the backup is to be told, also where it cannot be noted
        ledger.proved(base.id, Proof(at=datetime.now(UTC), problem=str(error)))
        ledger.failed(str(error))
    return error


def _prove(settings: Settings, adapter: Adapter, base: Base, superuser: str, expected: int) -> Proof:
    with scratch(settings) as folder:
        data, wal = folder / "data", folder / "wal"
        last = adapter.make(base, data, wal)
        with copied(data, adapter.programs, folder / "postgresql.log") as copy:
            copy.recover(wal, [], user=superuser, durable=False)
            url = copy.url(superuser, database_name(settings))
            if (problem := ends_early(url, last)) is not None:
                raise BackupFailed(f"backup {base.id}", problem, "`aegis backup` makes a new beginning")
            report, size = verified(settings, url)
        check_pages(adapter.programs, base, data)
        if size < expected:
            problem = f"its log has {size} entries, and {expected} were there before it was restored"
            raise BackupFailed(f"backup {base.id}", problem, "see that the WAL is archived: `aegis health`")
        if not report.valid:
            raise BackupFailed(f"backup {base.id}", _findings(report), "verify the database: `aegis verify --all`")
        return Proof(
            at=datetime.now(UTC),
            problem="",
            workflows=report.workflows,
            transitions=report.transitions,
            logged=size,
            bytes=base.size,
            anchored=max((witness.entries for witness in report.witnesses), default=0),
        )


def ends_early(url: str, last: int) -> str | None:
    """Return in words that recovery ended before the archive did: something in between is damaged, or missing."""
    database = Database(url, pool_size=1, pre_ping=False)
    try:
        with database.statement() as connection:
            reached = cluster.recovered_segment(connection)
    finally:
        database.close()
    if reached >= last:
        return None
    return f"recovery ended in segment {reached:X} of the WAL, and {last:X} is archived: there is a gap"


def logged(settings: Settings) -> int:
    """Return how many entries the log of the live database has, before it is copied."""
    database = Database(settings.database, pool_size=1, pre_ping=False)
    try:
        with database.snapshot() as connection:
            return 0 if schema.current(connection) is None else logs.state(connection).size
    finally:
        database.close()


def verified(settings: Settings, url: str) -> tuple[Report, int]:
    """Migrate a restored database and verify all that is in it; return what came out, and how long its log is."""
    from ...persistence.migrate import upgrade  # noqa: PLC0415 - Alembic takes time to load

    database = Database(url, pool_size=2, pre_ping=False)
    try:
        upgrade(database)
        with database.snapshot() as connection:
            size = logs.state(connection).size
        known = sources(settings)
        # What was signed later is of what came later; and a copy is as old as it is: nothing is late in it.
        past = replace(known, sinks=[UpTo(sink, size) for sink in known.sinks], anchor_interval=_NEVER_LATE)
        return Auditor(database, past).everything(), size
    finally:
        database.close()


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """Give a folder that PostgreSQL's user may pass through, and of which nothing stays."""
    home = settings.places
    home.make(home.scratch)
    folder = Path(tempfile.mkdtemp(prefix="copy-", dir=home.scratch))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def database_name(settings: Settings) -> str:
    """Return the name of the database in its cluster."""
    return unquote(urlsplit(settings.database).path.lstrip("/")) or "postgres"


def _findings(report: Report) -> str:
    lines = [str(finding) for finding in report.failures] + list(report.problems)
    more = f"; and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f"{lines[0]}{more}" if lines else "it could not be verified in full"

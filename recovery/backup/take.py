"""Taking a backup: one at a time, with the WAL archived meanwhile; whatever goes wrong, those before stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from ...config.settings import Settings
from ...core.errors import AegisError, BackupFailed
from .adapter import Adapter, Base
from .ledger import Ledger, Proof, alone
from .prove import logged, prove
from .source import Source, kept, source


def take(settings: Settings, *, incremental: bool = False) -> Base:
    """Take a backup, and return it; it counts once it was verified.

    Raises:
        BackupFailed, DatabaseUnavailable, ServerUnavailable: none was taken; those before are as they were.

    """
    with alone(settings.backups), _alarmed(settings):
        Ledger(settings.backups).known()  # what cannot be noted afterwards is not begun
        used = source(settings)
        parent = _parent(used.adapter) if incremental else None
        taken = used.adapter.take(used.facts, parent)
        Ledger(settings.backups).taken(used.facts.superuser)
        return next(base for base in used.adapter.bases() if base.id == taken)


def _parent(adapter: Adapter) -> Base:
    full = next((base for base in adapter.bases() if base.done and base.parent is None), None)
    if full is None:
        raise BackupFailed("the backup", "there is no full one that it could build on", "`aegis backup`")
    return full


@contextmanager
def _alarmed(settings: Settings) -> Iterator[None]:
    """Note what goes wrong where `aegis health` finds it, if that can be written."""
    try:
        try:
            yield
        except OSError as error:
            problem = f"{error.filename or 'a file'}: {error.strerror or error}"
            remedy = "see that its disk is there, has room, and is ours"
            raise BackupFailed(settings.backup_place, problem, remedy) from error
    except AegisError as error:
        with suppress(BackupFailed):  # the repository itself may be what is wrong, which health sees
            Ledger(settings.backups).failed(str(error))
        raise


# --- verifying, and what one need not keep ----------------------------------------------------------


def verify(settings: Settings, backup: str | None) -> tuple[Base, Proof]:
    """Prove a backup, by default the newest; then remove those that are older than one wants to go back.

    Raises:
        BackupFailed: there is no such backup, or it does not prove itself.

    """
    with alone(settings.backups):
        with _alarmed(settings):
            Ledger(settings.backups).known()  # as above
            used = source(settings)
        base = find(used.adapter, backup)
        try:
            return base, _verify(settings, used, base)
        finally:
            with suppress(AegisError):  # what came of the verification is told, whatever comes of this
                drop_superseded(settings, used.adapter)


def _verify(settings: Settings, used: Source, base: Base) -> Proof:
    with _alarmed(settings):
        expected = logged(settings)
        used.adapter.file_all()
    proof = prove(settings, used.adapter, base, used.facts.superuser, expected=expected)
    retire(settings, used.adapter)
    return proof


def unproven(settings: Settings) -> Base | None:
    """Return the backup to verify instead of taking another: the newest, not yet verified, and not yet due again.

    It may have been found wanting for what was no fault of its own: anchors that could not be reached, a row that
    was edited and has been put back. Another one is taken once one is due, and where WAL is missing since.

    Raises:
        BackupFailed: the repository cannot be read.
        ServerUnavailable: PostgreSQL's programs of that version are not installed.

    """
    with _alarmed(settings):
        adapter, known = kept(settings), Ledger(settings.backups).known()
        newest = next((base for base in adapter.bases() if base.done), None) if adapter is not None else None
    if newest is None or newest.id in known.verified or known.gap_since(newest.id):
        return None
    due = newest.began_at + timedelta(seconds=settings.backup_interval)
    return newest if datetime.now(UTC) < due else None


def drop_superseded(settings: Settings, adapter: Adapter) -> list[str]:
    """Remove backups that were found not to count, and that a newer one stands in for; return which.

    The newest stays, as it may count yet; so does the oldest, with which everything that is archived begins; and
    what another one builds on.
    """
    ledger = Ledger(settings.backups)
    known, bases = ledger.known(), adapter.bases()
    done = [base for base in bases if base.done]
    wanting = {backup for backup in known.proofs if backup not in known.verified}
    keep = {base.id for base in done if base.id not in wanting} | {base.id for base in done[:1]}
    keep |= {base.id for base in done[-1:]}
    needed = {base.parent for base in bases}
    removed = [base.id for base in done if base.id not in keep | needed]
    for backup in removed:
        adapter.remove(next(base for base in bases if base.id == backup))
    if removed:
        adapter.tidy()
        ledger.forget({base.id for base in bases} - set(removed))
    return removed


def find(adapter: Adapter, backup: str | None) -> Base:
    """Return a backup by its id, or the newest.

    Raises:
        BackupFailed: there is none.

    """
    done = [base for base in adapter.bases() if base.done]
    found = next((base for base in done if backup in {None, base.id}), None)
    if found is None:
        known = ", ".join(base.id for base in done[:5]) or "none"
        what = "the repository" if backup is None else f"backup {backup}"
        raise BackupFailed(what, f"there is no such backup (there are: {known})", "`aegis backup` takes one")
    return found


def retire(settings: Settings, adapter: Adapter) -> list[str]:
    """Remove backups that nobody needs to go back for: not before one that counts covers the whole time.

    That one stays, with what it builds on, also where there is a newer one of which nobody knows whether it counts.
    """
    ledger, bases = Ledger(settings.backups), adapter.bases()
    verified = set(ledger.known().verified)
    since = datetime.now(UTC) - timedelta(seconds=settings.backup_retention)
    covers = next((base for base in bases if base.id in verified and base.ended_at <= since), None)
    removed: list[str] = []
    if covers is not None:
        older = [base for base in bases if base.obsolete and base.ended_at < covers.ended_at]
        for base in reversed([base for base in older if base.id != covers.parent]):
            if base.parent is None or base.parent not in removed:
                adapter.remove(base)
            removed.append(base.id)
        adapter.tidy()
    ledger.forget({base.id for base in bases} - set(removed))
    return removed


def catalogue(settings: Settings) -> list[tuple[Base, Proof | None]]:
    """Return the backups, the newest first, each with what came out of its verification.

    The database need not be there.

    Raises:
        BackupFailed: the repository cannot be read.

    """
    adapter = kept(settings)
    if adapter is None:
        return []
    proofs = Ledger(settings.backups).known().proofs
    return [(base, Proof.read(proofs[base.id]) if base.id in proofs else None) for base in adapter.bases()]

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
from .source import kept, source


def take(settings: Settings, *, incremental: bool = False) -> Base:
    """Take a backup, and return it; it counts once it was verified.

    Raises:
        BackupFailed, DatabaseUnavailable, ServerUnavailable: none was taken; those before are as they were.

    """
    with alone(settings.backups), _alarmed(settings):
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
        yield
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
        used = source(settings)
        base = find(used.adapter, backup)
        expected = logged(settings)
        used.adapter.file_all()
        proof = prove(settings, used.adapter, base, used.facts.superuser, expected=expected)
        retire(settings, used.adapter)
        return base, proof


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

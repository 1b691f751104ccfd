"""What is known of the backups beyond what Barman knows: which were verified, and what went wrong last."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import BackupFailed
from ...tasks.backups import LEDGER, Known, contents, read


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came out of restoring and verifying a backup; ``problem`` is empty if it is one that counts."""

    at: datetime
    problem: str
    workflows: int = 0
    transitions: int = 0
    logged: int = 0
    """How many entries its log has, which is what one can ask for as a point in time."""
    anchored: int = 0
    """How many of them were compared with anchors."""
    bytes: int = 0
    """How large it is, which is the room that one more like it would take."""
    seconds: float = 0.0

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Proof:
        """Read it back."""
        return cls(**{**told, "at": datetime.fromisoformat(told["at"])})


class Ledger:
    """The file in the repository; it is written as a whole, or not at all."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def known(self) -> Known:
        """Return what is known.

        Raises:
            BackupFailed: the file cannot be read.

        """
        return read(self._repository)

    def proved(self, backup: str, proof: Proof) -> None:
        """Note what came out of a backup's verification."""
        told = {**asdict(proof), "at": proof.at.isoformat()}
        self._change(lambda known: {**known, "proofs": {**known.get("proofs", {}), backup: told}})
        if not proof.problem:
            self.mended(backup)

    def failed(self, problem: str) -> None:
        """Note that a backup was not taken, or does not count: the alarm that `aegis health` gives."""
        told = {"at": datetime.now(UTC).isoformat(), "problem": problem}
        self._change(lambda known: {**known, "failure": told})

    def gap(self, what: str) -> None:
        """Note that WAL is missing from the archive: an alarm until a backup that was begun later counts."""
        problem = f"gap in the archive, {what}: one cannot go back across it"
        told = {"at": datetime.now(UTC).replace(microsecond=0).isoformat(), "problem": problem}
        self._change(lambda known: {**known, "gap": told})

    def looked(self, to: str) -> None:
        """Note when it was looked whether the archive is whole, and up to which segment."""
        told = {"at": datetime.now(UTC).isoformat(), "to": to}
        self._change(lambda known: {**known, "looked": told})

    def taken(self, superuser: str) -> None:
        """Note who made the cluster that a backup was taken of."""
        self._change(lambda known: {**known, "superuser": superuser})

    def mended(self, backup: str) -> None:
        """Take the alarm back, as a backup counts; that of a gap only if it was begun after that."""
        known = self.known()
        over = {"failure"} if known.gap_since(backup) else {"failure", "gap"}
        self._change(lambda known: {key: value for key, value in known.items() if key not in over})

    def forget(self, backups: set[str]) -> None:
        """Keep only what is known of those that are still there."""
        self._change(
            lambda known: (
                {**known, "proofs": {key: one for key, one in known["proofs"].items() if key in backups}}
                if "proofs" in known
                else known
            )
        )

    def _change(self, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Change the file; what cannot be read is left as it is, for a person to look at.

        Raises:
            BackupFailed: it cannot be read, or not be written.

        """
        file = self._repository / LEDGER
        fresh = file.with_suffix(f".{os.getpid()}")
        try:
            # The archive and a backup may both have something to note: neither may take back what the other did.
            with (self._repository / "ledger.lock").open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                known = contents(self._repository)
                with fresh.open("w") as written:
                    written.write(json.dumps(change(known), indent=1, sort_keys=True) + "\n")
                    written.flush()
                    os.fsync(written.fileno())  # a machine that dies now leaves the old one, and not half of this
                fresh.replace(file)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise BackupFailed(str(file), f"it cannot be written ({error.strerror})", "see that it has room") from None


@contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Hold the repository: two at once would take each other's backups for their own.

    Raises:
        BackupFailed: another process has it, or it is not there.

    """
    what = f"AEGIS_BACKUP_REPOSITORY={repository}"
    try:
        repository.mkdir(parents=True, exist_ok=True)
        held = (repository / "aegis.lock").open("a+")
    except OSError as error:
        raise BackupFailed(
            what, f"it cannot be written ({error.strerror})", "see that it is there, has room, and is ours"
        ) from None
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.seek(0)
            owner = held.read().strip() or "unknown"
            raise BackupFailed(
                what, f"another process (pid {owner}) is at work there", "wait until it is done"
            ) from None
        try:
            held.truncate(0)
            held.write(str(os.getpid()))
            held.flush()
        except OSError as error:
            raise BackupFailed(what, f"it cannot be written ({error.strerror})", "see that it has room") from None
        yield

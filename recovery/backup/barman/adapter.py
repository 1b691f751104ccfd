"""Barman behind the seam: backups over the wire, the WAL as it is written."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from ....config.settings import Settings
from ....core.errors import BackupFailed
from ....persistence import cluster
from ....persistence.cluster import Facts
from ....persistence.database import Database
from ....persistence.hosts import each_alone
from ..adapter import Base, Identity, number
from ..begun import Begun
from . import fetch, receiver
from .program import SERVER, Barman

_REFUSED: Final = "Impossible to start the backup"
# The last segment of a backup is archived as soon as the receiver has it (seconds).
_WAL_WITHIN: Final = "600"


@dataclass(frozen=True)
class WithBarman:
    """The adapter; Barman itself, with its configuration, is not looked for before it is needed."""

    settings: Settings
    programs: Path

    @classmethod
    def prepare(cls, settings: Settings, programs: Path) -> WithBarman:
        """Return it on the repository that is set."""
        return cls(settings, programs)

    @cached_property
    def barman(self) -> Barman:
        """The program.

        Raises:
            BackupFailed: it is not installed, or the repository cannot be written.

        """
        return Barman.prepare(self.settings, self.programs)

    @property
    def _folder(self) -> Path:
        return self.settings.backups / SERVER

    def identity(self) -> Identity | None:
        """Read whose backups it has: Barman notes that when it first sees a server."""
        file = self._folder / "identity.json"
        try:
            found = json.loads(file.read_text()) if file.exists() else None
            return None if found is None else Identity(system=str(found["systemid"]), major=int(found["version"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{file} cannot be read ({error})"
            raise BackupFailed(self.settings.backup_place, problem, "see that its disk is sound") from None

    def need(self, facts: Facts, where: str) -> None:
        """Refuse a user who may not replicate, and an empty folder where an archive was begun before."""
        if not facts.may_replicate:
            grant = "grant it: ALTER ROLE ... REPLICATION, with pg_read_all_settings"
            remedy = f"{grant}; or set AEGIS_BACKUP_URL to one that may"
            raise BackupFailed(where, "this user may not replicate", remedy)
        database = Database(self.settings.backup_database, pool_size=1, pre_ping=False)
        try:
            with database.statement() as connection:
                archived = cluster.archive(connection) is not None
                # There the slot is made with the cluster, and says nothing of an archive.
                is_cluster = bool(list(each_alone(self.settings.backup_database))) or cluster.has_standbys(connection)
        finally:
            database.close()
        if self._folder.is_dir():
            return
        if is_cluster:
            self._begun.refuse_empty(facts.system, where)
        if archived and not is_cluster:
            problem = f"it is empty, and {where} has a slot for an archive that was begun before"
            remedy = f"see that its disk is there; to begin anew: SELECT pg_drop_replication_slot('{cluster.SLOT}')"
            raise BackupFailed(self.settings.backup_place, problem, remedy)

    def begin(self) -> None:
        """Do nothing: the archive begins by itself, as a process."""

    def bases(self) -> list[Base]:
        """Return the base backups, the newest first."""
        return self.barman.bases()

    def take(self, facts: Facts, parent: Base | None, /) -> str:
        """Take a backup, with the WAL received meanwhile."""
        if parent is not None and not facts.summarized:
            problem = "the server keeps no account of what changes (summarize_wal is off)"
            remedy = "take a full one; or set summarize_wal = on in PostgreSQL 17 or newer"
            raise BackupFailed("the backup", problem, remedy)
        arguments = [] if parent is None else ["--incremental", parent.id]
        self.settings.places.make()
        self._begun.note(facts.system)
        with receiver.receiving(self.settings, self.barman):
            self._remove_what_failed()
            self._begin()
            try:
                said = self.barman.call(
                    "the backup", "backup", "--wait", "--wait-timeout", _WAL_WITHIN, *arguments, SERVER
                )
            except BackupFailed as error:
                with suppress(BackupFailed):  # the next one tries again
                    self._remove_what_failed()
                raise self._with_reason(error) from None
        return str(said.get("backup_id"))

    def remove(self, base: Base) -> None:
        """Remove a backup, and those that build on it; the WAL before the oldest goes with it."""
        self.barman.call(f"backup {base.id}", "delete", SERVER, base.id)

    def tidy(self) -> None:
        """Do nothing: Barman removes the WAL with the backup that needed it."""

    def file_all(self) -> None:
        """Have everything archived that is committed by now."""
        receiver.file_all(self.settings, self.barman)

    def archived(self, since: int, /) -> list[str]:
        """Return the segments that are archived whole, of any timeline, from a number on."""
        return [name for name in fetch.archived(self.barman) if number(name) >= since]

    def make(self, base: Base, data: Path, wal: Path) -> int:
        """Make the data directory of a backup, and a folder with all WAL that was archived since."""
        return fetch.make(self.barman, base, data, wal)

    @property
    def _begun(self) -> Begun:
        return Begun(self.settings.home / "barman.json", self.settings.backup_place)

    def _begin(self) -> None:
        """Archive a first segment: Barman wants to see that WAL arrives before it takes a backup."""
        if not any((self._folder / "wals").glob("*/*")):
            self.file_all()

    def _with_reason(self, error: BackupFailed) -> BackupFailed:
        """Return the error with what Barman does not like, where it did not begin because of that."""
        if _REFUSED not in error.problem:
            return error
        failed = self.barman.failed_checks()
        return BackupFailed(error.what, f"Barman does not begin: {failed}", error.remedy) if failed else error

    def _remove_what_failed(self) -> None:
        """Give the room back that a backup took which was never finished."""
        for base in self.bases():
            if base.status in {"FAILED", "STARTED", "EMPTY", "SYNCING"}:
                # By hand at first: on a full disk Barman has no room to note that it makes room.
                shutil.rmtree(self._folder / "base" / base.id, ignore_errors=True)
                self.remove(base)

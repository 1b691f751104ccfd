"""pgBackRest behind the seam: it copies the server's files where they are, and the server hands it the WAL."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ....config.settings import Settings
from ....core.errors import BackupFailed, DatabaseUnavailable
from ....persistence import cluster
from ....persistence.cluster import Archiver, Archiving, Facts
from ....persistence.database import Database
from ....servers import archiving
from ....servers.archiving import STANZA
from ..adapter import AGAIN, Base, Identity, last_number, number
from ..address import words
from ..begun import Begun
from ..pages import first_segment, give_away
from .program import FOLDER, PgBackRest, is_locked, variables

_DAY: Final = 86400
_LOOK_EVERY: Final = 0.1
# PostgreSQL tries what it could not archive again after a minute.
_ARRIVES_WITHIN: Final = 90.0
# How long beginning a repository takes whoever does it at the same time (seconds).
_BEGINS_WITHIN: Final = 30.0
_AT_ONCE: Final = 4
_FOLDER: Final = re.compile(r"[0-9A-F]{16}")
_ARCHIVED: Final = re.compile(r"(?:[0-9A-F]{16}/)?(?:([0-9A-F]{24})-[0-9a-f]{40}(?:\.\w+)?|([0-9A-F]{8}\.history))")


@dataclass(frozen=True)
class WithPgBackRest:
    """The adapter; the program is not looked for before it is needed."""

    settings: Settings
    programs: Path

    @classmethod
    def prepare(cls, settings: Settings, programs: Path) -> WithPgBackRest:
        """Return it on the repository that is set."""
        return cls(settings, programs)

    @cached_property
    def pgbackrest(self) -> PgBackRest:
        """The program."""
        return PgBackRest.prepare(self.settings, self._data)

    def identity(self) -> Identity | None:
        """Return whose backups it has, by the newest server that wrote to it."""
        known = self._info.get("db", [])
        return Identity(system=str(known[-1]["system-id"]), major=int(known[-1]["version"])) if known else None

    def need(self, facts: Facts, where: str) -> None:
        """Refuse a server whose files are not here or that does not archive, and a repository that has become empty."""
        told = self._archiving
        if self._data is None:
            problem = f"pgBackRest copies the server's files, and {told.data} is not here, or not ours to read"
            remedy = "run this where they are, as who owns them; or copy over the wire: AEGIS_BACKUP_WITH=barman"
            raise BackupFailed(where, problem, remedy)
        if told.tablespaces:
            remedy = "have AEGIS's database in the default one"
            raise BackupFailed(where, "the server has tablespaces, which are not restored here", remedy)
        self._need_an_archiver(told, where)
        if not self._info.get("db"):
            self._begun.refuse_empty(facts.system, where)

    def begin(self) -> None:
        """Have a repository that the server can archive to; there may be one already."""
        try:
            if not self.settings.backup_bucket:
                self.pgbackrest.own(self.settings.backups / FOLDER)
            # Only where it has to be: nothing else may be under way meanwhile, neither a backup nor another one of it.
            if not self._read_info().get("db"):
                self._create()
            self._begun.note(str(self._read_info()["db"][-1]["system-id"]))
        except OSError as error:
            problem = f"{error.filename or self.settings.backup_place} cannot be written ({error.strerror})"
            raise BackupFailed(
                self.settings.backup_place, problem, "see that it is there, has room, and is ours"
            ) from None

    def _create(self) -> None:
        """Make it, once nobody else does; that it is there already is no failure."""
        deadline = time.monotonic() + _BEGINS_WITHIN
        while True:
            try:
                self._call("the repository", "stanza-create")
            except BackupFailed as error:
                if not is_locked(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_EVERY)
            else:
                return

    def bases(self) -> list[Base]:
        """Return the base backups, the newest first."""
        bases = [self._base(told) for told in reversed(self._read_info().get("backup", []))]
        # As Barman counts: the newest one that is old enough covers the time.
        days = max(1, round(self.settings.backup_retention / _DAY))
        since = datetime.now(UTC) - timedelta(days=days)
        covers = next((base for base in bases if base.ended_at <= since), None)
        if covers is None:
            return bases
        older = {base.id for base in bases if base.ended_at < covers.ended_at} - {covers.parent}
        needed = {base.parent for base in bases if base.id not in older}
        return [replace(base, obsolete=base.id in older - needed) for base in bases]

    def take(self, _facts: Facts, parent: Base | None, /) -> str:
        """Take a backup, of what changed since the last full one if there is a parent."""
        self.begin()
        self._call("the backup", "--type=full" if parent is None else "--type=diff", "backup")
        return self.bases()[0].id

    def remove(self, base: Base) -> None:
        """Remove a backup, and those that build on it."""
        self.pgbackrest.call(f"backup {base.id}", f"--set={base.id}", "expire")

    def tidy(self) -> None:
        """Remove the WAL before the oldest backup: said as keeping as many as there are."""
        full = sum(base.parent is None for base in self.bases())
        self.pgbackrest.call("the archive", f"--repo1-retention-full={full}", "expire")

    def file_all(self) -> None:
        """Have everything archived that is committed by now; what the server cannot hand over, we try ourselves.

        Raises:
            BackupFailed: it does not arrive, and why.

        """
        database = Database(self.settings.backup_database, pool_size=1, pre_ping=False)
        try:
            with database.statement() as connection:
                segment = cluster.switch(connection)
            deadline = time.monotonic() + _ARRIVES_WITHIN
            while not (found := _archiver(database)).has(segment):
                if found.failing is not None and self._data is not None:
                    # Its reason is in the server's log: here it is told.
                    self._call("the archive", "archive-push", str(self._data / "pg_wal" / found.failing))
                if time.monotonic() > deadline:
                    problem = f"segment {segment} has not arrived after {_ARRIVES_WITHIN:g} s"
                    raise BackupFailed("the archive", problem, "see the server's log")
                time.sleep(_LOOK_EVERY)
        finally:
            database.close()

    def archived(self, since: int, /) -> list[str]:
        """Return the segments that are archived whole, of any timeline, from a number on.

        Each folder has 256 of them: those that end before it are not looked into, however many there are.
        """
        found: set[str] = set()
        for one in self._read_info().get("archive", [])[-1:]:
            place = f"archive/{STANZA}/{one['id']}"
            for folder in filter(_FOLDER.fullmatch, self._listed(place)):
                if (int(folder[8:], 16) + 1) * 0x100 > since:
                    matches = map(_ARCHIVED.fullmatch, self._listed(f"{place}/{folder}"))
                    found |= {match[1] for match in matches if match is not None and match[1]}
        return sorted(name for name in found if number(name) >= since)

    def make(self, base: Base, data: Path, wal: Path) -> int:
        """Make the data directory of a backup, and a folder with all WAL that was archived since."""
        what, tool = f"backup {base.id}", self.pgbackrest
        try:
            tool.own(data, wal)
            # What is damaged is found here: each file is compared with its hash.
            options = [f"--set={base.id}", f"--pg1-path={data}", "--type=none"]
            tool.call(what, *options, f"--tablespace-map-all={data.parent / 'tablespaces'}", "restore", remedy=AGAIN)
            last = self._fetch(first_segment(base, data), data, wal)
            give_away(data.parent)
        except OSError as error:
            problem = f"it cannot be restored to {data} ({error.strerror or error})"
            raise BackupFailed(what, problem, "see that there is room") from None
        return last

    def _fetch(self, first: str, data: Path, wal: Path) -> int:
        names = [name for name in self._archived() if name.endswith(".history") or name[8:] >= first[8:]]

        def fetch(name: str) -> None:
            arguments = ["archive-get", name, str(wal / name)]
            self.pgbackrest.call(f"WAL {name}", f"--pg1-path={data}", *arguments, remedy=AGAIN)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, names))
        return last_number(name for name in names if not name.endswith(".history"))

    def _archived(self) -> list[str]:
        archives = self._read_info().get("archive", [])
        found: set[str] = set()
        for one in archives[-1:]:
            place = f"archive/{STANZA}/{one['id']}"
            listed = self._listed(place, "--recurse")
            found |= {match[1] or match[2] for name in listed if (match := _ARCHIVED.fullmatch(name))}
        return sorted(found)

    def _listed(self, place: str, *options: str) -> list[str]:
        told = self.pgbackrest.call("the archive", "--output=json", *options, "repo-ls", place)
        return list(json.loads(told))

    # --- the server ---------------------------------------------------------------------

    def _need_an_archiver(self, told: Archiving, where: str) -> None:
        wanted = archiving.command(self.settings, Path(told.data))
        if told.mode != "off" and told.command == wanted:
            return
        if self.settings.embedded:
            problem = "the private server was started without an archive for pgBackRest"
            raise BackupFailed(where, problem, "start `aegis up` again, with AEGIS_BACKUP_WITH=pgbackrest")
        if told.mode == "off":
            remedy = "ALTER SYSTEM SET archive_mode = on, set archive_timeout, and restart the server"
            raise BackupFailed(where, "archive_mode is off: the server hands no WAL to pgBackRest", remedy)
        quoted = wanted.replace("'", "''")
        remedy = f"ALTER SYSTEM SET archive_command = '{quoted}'; SELECT pg_reload_conf()"
        raise BackupFailed(where, "its archive_command does not hand the WAL to this repository", remedy)

    @cached_property
    def _archiving(self) -> Archiving:
        database = Database(self.settings.backup_database, pool_size=1, pre_ping=False)
        try:
            with database.statement() as connection:
                return cluster.archiving(connection)
        finally:
            database.close()

    @cached_property
    def _data(self) -> Path | None:
        """The server's data directory, if it is here."""
        try:
            found = Path(self._archiving.data)
            return found if (found / "PG_VERSION").exists() else None
        except (DatabaseUnavailable, OSError):
            return None  # one goes back without it

    def _call(self, what: str, *arguments: str) -> str:
        assert self._data is not None, "need() has seen to that"  # noqa: S101
        told = variables(words(self.settings.backup_database), self._data)
        return self.pgbackrest.call(what, *arguments, **told)

    # --- the repository -----------------------------------------------------------------

    @cached_property
    def _info(self) -> dict[str, Any]:
        return self._read_info()

    def _read_info(self) -> dict[str, Any]:
        return self.pgbackrest.info(self.settings.backup_place)

    @property
    def _begun(self) -> Begun:
        return Begun(self.settings.places.pgbackrest / "begun.json", self.settings.backup_place)

    @staticmethod
    def _base(told: dict[str, Any]) -> Base:
        return Base(
            id=told["label"],
            parent=told["prior"],
            began_at=datetime.fromtimestamp(told["timestamp"]["start"], UTC),
            ended_at=datetime.fromtimestamp(told["timestamp"]["stop"], UTC),
            size=int(told["info"]["repository"]["delta"]),
            begins=told["archive"]["start"],
            obsolete=False,
        )


def _archiver(database: Database) -> Archiver:
    with database.statement() as connection:
        found = cluster.archiver(connection)
    assert found is not None, "it is PostgreSQL"  # noqa: S101
    return found

"""Barman, called as a program on a repository of ours: it takes base backups, and archives the WAL.

Its configuration is written anew where a setting changed. What it has is read off its folders; what it
restores is not asked of it, because that would need rsync: a copy of a copy is made with less.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ....config.settings import Settings
from ....core.errors import BackupFailed
from ....persistence.cluster import SLOT
from ....persistence.replication import RECEIVER
from ..adapter import Base
from ..address import conninfo

SERVER: Final = "aegis"
_DAY: Final = 86400
_INSTALL: Final = "pip install 'aegis-workflows[backup]', or set AEGIS_BARMAN_BIN to the program"
_TOLD: Final = ("_ERROR", "_EXCEPTION", "_WARNING")


@dataclass(frozen=True, kw_only=True)
class Barman:
    """The program, on one repository; ``programs`` is the folder of PostgreSQL's own."""

    program: str
    repository: Path
    programs: Path

    @classmethod
    def prepare(cls, settings: Settings, programs: Path) -> Barman:
        """Find the program, and write its configuration into the repository.

        Raises:
            BackupFailed: it is not installed, or the repository cannot be written.

        """
        made = cls(program=_program(settings), repository=settings.backups, programs=programs)
        made._configure(settings)
        return made

    @property
    def folder(self) -> Path:
        """Where it keeps what it has of our server."""
        return self.repository / SERVER

    @property
    def configuration(self) -> Path:
        """Its configuration."""
        return self.repository / "barman.conf"

    def argv(self, *arguments: str) -> list[str]:
        """Return the command that calls it."""
        return [self.program, "-c", str(self.configuration), "-f", "json", *arguments]

    def call(self, what: str, *arguments: str) -> dict[str, Any]:
        """Call it and return what it says.

        Raises:
            BackupFailed: it failed; its own words are in the message.

        """
        try:
            done = subprocess.run(self.argv(*arguments), capture_output=True, text=True, check=False, cwd="/")
        except OSError as error:
            raise BackupFailed(what, f"{self.program} cannot be run ({error.strerror})", _INSTALL) from None
        said = _document(done.stdout)
        if done.returncode:
            raise BackupFailed(what, _problem(said, done.stdout, done.stderr), f"see {self.repository / 'barman.log'}")
        return said

    def bases(self) -> list[Base]:
        """Return the base backups, the newest first.

        Raises:
            BackupFailed: it cannot be asked.

        """
        if not (self.folder / "base").is_dir():
            return []
        listed = self.call("the list of backups", "list-backups", SERVER).get(SERVER, [])
        return [self._base(one) for one in listed]

    def failed_checks(self) -> str:
        """Return what it does not like of the server or the repository, in its own words."""
        done = subprocess.run(self.argv("check", SERVER), capture_output=True, text=True, check=False, cwd="/")
        checks = _document(done.stdout).get(SERVER, {})
        return "; ".join(
            f"{name}: {told.get('hint') or 'failed'}"
            for name, told in checks.items()
            if isinstance(told, dict) and told.get("status") != "OK"
        )

    def _base(self, listed: dict[str, Any]) -> Base:
        found = dict(_information(self.folder / "meta" / f"{listed['backup_id']}-backup.info"))
        parent = found.get("parent_backup_id", "None")
        return Base(
            id=listed["backup_id"],
            status=listed["status"],
            begins=None if found.get("begin_wal", "None") == "None" else found["begin_wal"],
            parent=None if parent == "None" else parent,
            began_at=_moment(found.get("begin_time")),
            ended_at=_moment(found.get("end_time")),
            size=int(listed.get("size_bytes") or 0),
            tablespaces=found.get("tablespaces", "None") != "None",
            obsolete=listed.get("retention_status") == "OBSOLETE",
        )

    # --- configuration ------------------------------------------------------------------

    def _configure(self, settings: Settings) -> None:
        what = f"AEGIS_BACKUP_REPOSITORY={self.repository}"
        fresh, text = self.configuration.with_suffix(f".{os.getpid()}"), self._text(settings)
        try:
            if self.configuration.exists() and self.configuration.read_text() == text:
                return  # what is full can still be read
            self.repository.mkdir(parents=True, exist_ok=True)
            fresh.touch(mode=0o600)  # it may hold a password
            fresh.write_text(text)
            fresh.replace(self.configuration)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise BackupFailed(
                what, f"it cannot be written ({error.strerror})", "see that it is there, has room, and is ours"
            ) from None

    def _text(self, settings: Settings) -> str:
        address = conninfo(settings.backup_database)
        days = max(1, round(settings.backup_retention / _DAY))
        return f"""; Written by AEGIS before each call: changes are lost.
[barman]
barman_user = {pwd.getpwuid(os.geteuid()).pw_name}
barman_home = {self.repository}
log_file = {self.repository / "barman.log"}
log_level = INFO
path_prefix = {self.programs}
compression = zstd

[{SERVER}]
description = AEGIS
conninfo = {address}
streaming_conninfo = {address}
backup_method = postgres
immediate_checkpoint = true
streaming_archiver = on
streaming_archiver_name = {RECEIVER}
slot_name = {SLOT}
create_slot = auto
retention_policy = RECOVERY WINDOW OF {days} DAYS
minimum_redundancy = 1
"""


def _program(settings: Settings) -> str:
    if settings.barman_bin:
        found = shutil.which(settings.barman_bin)
        what = f"AEGIS_BARMAN_BIN={settings.barman_bin}"
        if found is None:
            raise BackupFailed(what, "there is no such program", "name the program barman, 3.19 or newer")
        return found
    beside = Path(sys.executable).parent / "barman"
    found = str(beside) if beside.exists() else shutil.which("barman")
    if found is None:
        raise BackupFailed("Barman", "it is not installed", _INSTALL)
    return found


# --- what it says -----------------------------------------------------------------------------


def _document(output: str) -> dict[str, Any]:
    try:
        found = json.loads(output)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(said: dict[str, Any], output: str, errors: str) -> str:
    told = [line for key in _TOLD for line in _lines(said.get(key))]
    lines = told or [line.strip() for line in (errors + "\n" + output).splitlines() if line.strip()][-3:]
    return "; ".join(line.replace("\n", " ").strip() for line in lines) or "it said nothing"


def told(output: str) -> list[str]:
    """Return what it said, a line each: as JSON once it is done, what happened before what came of it."""
    said = _document(output)
    return [line for key in ("_INFO", *reversed(_TOLD)) for line in _lines(said.get(key))] or output.splitlines()


def _lines(found: object) -> list[str]:
    return [str(line) for line in found] if isinstance(found, list) else [str(found)] if found else []


def _information(file: Path) -> Iterator[tuple[str, str]]:
    """Go through what is noted of a backup, ``key=value`` a line."""
    try:
        for line in file.read_text().splitlines():
            key, separator, value = line.partition("=")
            if separator:
                yield key.strip(), value.strip()
    except OSError:
        return


def _moment(text: str | None) -> datetime:
    """Return a time as Barman notes it; one that never came is the end of all times."""
    if text in {None, "None", ""}:
        return datetime.max.replace(tzinfo=UTC)
    found = datetime.fromisoformat(str(text))
    return found if found.tzinfo else found.astimezone()

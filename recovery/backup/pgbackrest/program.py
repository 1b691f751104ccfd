"""pgBackRest, called as a program: it runs as who runs the server, whose files it reads.

Its configuration is written anew where a setting changed. It is not in the repository, because it holds what
opens that: the key of encrypted backups, and the keys of a bucket. None of these is ever an argument.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ....config.bucket import bucket
from ....config.home import NOBODY
from ....config.keys import backup_secret
from ....config.settings import Settings
from ....core.errors import BackupFailed, ConfigurationError
from ....servers import archiving
from ....servers.archiving import STANZA
from .bucket import credentials

FOLDER: Final = "pgbackrest"
_ERROR: Final = re.compile(r"^ERROR: (?:\[\d+\]: )?", re.MULTILINE)
_UNKNOWN_VERSION: Final = ("VersionNotSupportedError", "is this version of PostgreSQL supported")
# What it says where it cannot make sense of what it opened with a key, or without one.
_WRONG_KEY: Final = ("unable to load info file", "cipher header", "unable to flush", "invalid format in", "bad decrypt")
_LOCKED: Final = "unable to acquire lock"
_NO_ROOM: Final = ("unable to write", "FileWriteError", "No space left on device")
_VERSION: Final = re.compile(r"pgBackRest (\S+)")
_MOST_PROCESSES: Final = 4
_LONGEST: Final = 600
# Where there is not even room for one of them, that is why nothing could be written (bytes).
_SEGMENT: Final = 16 * 1024 * 1024
_MEGABYTE: Final = 1_000_000
# What stops being handed over when it has piled up to so much: it must not fill the server's disk.
_MOST_WAITING: Final = "8GiB"
# How long a bucket may say nothing (seconds).
_SILENT_FOR: Final = 15


@dataclass(frozen=True, kw_only=True)
class PgBackRest:
    """The program; ``owner`` is as whom it runs, where that is not us."""

    program: str
    configuration: Path
    owner: tuple[int, int] | None
    repository: Path

    @classmethod
    def prepare(cls, settings: Settings, data: Path | None) -> PgBackRest:
        """Find the program, and write its configuration; ``data`` is the server's data directory, if it is known.

        Raises:
            BackupFailed: it is not installed, lacks a key, or its places cannot be written.

        """
        made = cls(
            program=archiving.program(settings),
            configuration=archiving.configuration(settings),
            owner=_owner(settings, data),
            repository=settings.backups,
        )
        made._configure(settings)
        return made

    @property
    def identity(self) -> dict[str, Any]:
        """What ``subprocess`` needs to run it as the right user."""
        return {} if self.owner is None else {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}

    def call(self, what: str, *arguments: str, remedy: str = "", **variables: str) -> str:
        """Call it and return what it says.

        Raises:
            BackupFailed: it failed; its own words are in the message.

        """
        argv = [self.program, f"--config={self.configuration}", f"--stanza={STANZA}", *arguments]
        # Its options can be given by the environment as well: those that are ours count.
        rest = {name: value for name, value in os.environ.items() if not name.startswith("PGBACKREST_")}
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",  # what it opened with a wrong key may stand in what it says
                check=False,
                cwd="/",
                env={**rest, **variables},
                **self.identity,
            )
        except OSError as error:
            problem = f"{self.program} cannot be run ({error.strerror})"
            raise BackupFailed(what, problem, "see AEGIS_PGBACKREST_BIN") from None
        if done.returncode:
            raise self.failure(what, done.stderr + done.stdout, remedy)
        return done.stdout

    def failure(self, what: str, said: str, remedy: str = "") -> BackupFailed:
        """Return its failure in our words, where it is one that we know; else in its own."""
        if any(sign in said for sign in _UNKNOWN_VERSION):
            return BackupFailed(
                f"pgBackRest {self.version()}",
                "it does not know this version of PostgreSQL",
                "install a newer one (2.55 or newer knows PostgreSQL 18), or set AEGIS_BACKUP_WITH=barman",
            )
        problem = _last(said)
        if any(sign in said for sign in _NO_ROOM) and self.repository.exists():
            free = shutil.disk_usage(self.repository).free
            if free < _SEGMENT:
                problem = f"no room is left in {self.repository}, {free / _MEGABYTE:.1f} MB: {problem}"
        if any(sign in said for sign in _WRONG_KEY):
            remedy = (
                "see that AEGIS_BACKUP_ENCRYPT and backup-*.key in AEGIS_KEYS are those that it was begun with; "
                "if they are, it is damaged"
            )
        return BackupFailed(what, problem, remedy or f"see {self.configuration.parent / 'log'}")

    def version(self) -> str:
        """Return its version; "" if it does not tell."""
        with suppress(OSError):
            told = subprocess.run([self.program, "version"], capture_output=True, text=True, check=False)
            found = _VERSION.search(told.stdout)
            return str(found[1]) if found else ""
        return ""

    def info(self, what: str) -> dict[str, Any]:
        """Return what the repository has.

        Raises:
            BackupFailed: it cannot be read.

        """
        (found,) = json.loads(self.call(what, "--output=json", "info"), strict=False) or [{}]
        for one in found.get("repo", ()):
            status = one.get("status", {})
            if status.get("code") == _OTHER:
                raise self.failure(what, str(status.get("message", "")), "see that it is there, and can be read")
        return dict(found)

    # --- configuration ------------------------------------------------------------------

    def own(self, *places: Path) -> None:
        """Make folders of whom it runs as."""
        for place in places:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.owner is not None:
                os.chown(place, *self.owner)

    def _configure(self, settings: Settings) -> None:
        folder, text = self.configuration.parent, "\n".join(_lines(settings, self.configuration.parent)) + "\n"
        try:
            settings.places.make()
            self.own(folder, *(folder / name for name in ("lock", "log", "spool")))
            if self.configuration.exists() and self.configuration.read_text() == text:
                return
            fresh = self.configuration.with_suffix(f".{os.getpid()}")
            fresh.touch(mode=0o600)
            if self.owner is not None:
                os.chown(fresh, *self.owner)
            fresh.write_text(text)
            fresh.replace(self.configuration)
        except OSError as error:
            raise BackupFailed(
                f"AEGIS_HOME={settings.home}",
                f"{error.filename or self.configuration} cannot be written ({error.strerror})",
                "see that it is there, has room, and is ours",
            ) from None


def is_locked(error: BackupFailed) -> bool:
    """Whether it failed because the program runs already, and another of it is to wait."""
    return _LOCKED in error.problem


_OTHER: Final = 99
"""The code for what is no matter of its having backups."""


def _owner(settings: Settings, data: Path | None) -> tuple[int, int] | None:
    """Return whom the server's files belong to; of a server that is gone, whom it was at its last backup."""
    if os.geteuid() != 0:
        return None
    for place in (data, settings.places.pgbackrest, settings.backups / FOLDER):
        with suppress(OSError):
            if place is not None:
                found = place.stat()
                return found.st_uid, found.st_gid
    return NOBODY, NOBODY


def _lines(settings: Settings, folder: Path) -> Iterator[str]:
    yield from (
        "# Written by AEGIS before each call: changes are lost.",
        "[global]",
        f"log-path={folder / 'log'}",
        f"lock-path={folder / 'lock'}",
        f"spool-path={folder / 'spool'}",
        "log-level-console=off",
        "log-level-stderr=warn",
        "log-level-file=info",
        "log-timestamp=n",
        f"io-timeout={_SILENT_FOR}",
        "start-fast=y",
        "resume=n",
        "compress-type=zst",
        "repo1-bundle=y",
        f"process-max={min(_MOST_PROCESSES, os.cpu_count() or 1)}",
        f"archive-push-queue-max={_MOST_WAITING}",
        # What goes, and when, we say ourselves: not before a backup that was verified covers the time.
        "expire-auto=n",
        "repo1-retention-full=9999999",
    )
    if settings.backup_bucket:
        yield from _bucket_lines(settings)
    else:
        yield f"repo1-path={settings.backups / FOLDER}"
    if settings.backup_encrypt:
        yield from ("repo1-cipher-type=aes-256-cbc", f"repo1-cipher-pass={_secret(settings)}")


def _bucket_lines(settings: Settings) -> Iterator[str]:
    place = bucket(settings.backup_bucket)
    yield from (
        "repo1-type=s3",
        f"repo1-path=/{place.prefix}",
        f"repo1-s3-bucket={place.name}",
        f"repo1-s3-endpoint={place.host}",
        f"repo1-s3-region={place.region}",
        f"repo1-s3-uri-style={place.style}",
        f"repo1-storage-port={place.port}",
    )
    if place.ca:
        yield f"repo1-storage-ca-file={place.ca}"
    yield from (f"repo1-s3-{name}={value}" for name, value in credentials(settings.backup_place).items())


def _secret(settings: Settings) -> str:
    what = "AEGIS_BACKUP_ENCRYPT"
    try:
        found = backup_secret(settings.key_folder)
    except ConfigurationError as error:
        raise BackupFailed(
            what, str(error), "restore the key: without it nothing that it encrypted is opened"
        ) from None
    if found is None:
        remedy = "`aegis keys new backup` makes one; to go back, put the one here that the backups were made with"
        raise BackupFailed(what, f"there is no backup-*.key in {settings.key_folder}", remedy)
    return found


def _last(said: str) -> str:
    """Return the errors of what it said, without the hints that are for people who type its commands."""
    found = _ERROR.split(said)
    errors = found[1:] if len(found) > 1 else found
    lines = [line.strip() for error in errors for line in error.splitlines()]
    said = "; ".join(line for line in lines if line and not line.startswith(("HINT", "WARN")))
    shown = "".join(letter if letter.isprintable() else "?" for letter in said)
    return f"{shown[:_LONGEST]}..." if len(shown) > _LONGEST else shown or "it said nothing"


def variables(words: Mapping[str, str], data: Path) -> dict[str, str]:
    """Return what it has to know of a server to speak to it: by its environment, for nobody else to see."""
    host = words.get("host", "")
    told = {
        "PGBACKREST_PG1_PATH": str(data),
        "PGBACKREST_PG1_PORT": words.get("port", ""),
        "PGBACKREST_PG1_USER": words.get("user", ""),
        "PGBACKREST_PG1_DATABASE": words.get("dbname", ""),
        "PGBACKREST_PG1_SOCKET_PATH": host if host.startswith("/") else "",
        "PGHOST": "" if host.startswith("/") else host,
        "PGPASSWORD": words.get("password", ""),
        **{f"PG{name.upper()}": words[name] for name in ("sslmode", "sslrootcert", "passfile") if name in words},
    }
    return {name: value for name, value in told.items() if value}

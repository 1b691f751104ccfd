"""How a server hands its WAL to pgBackRest: by itself, segment by segment, with a command that it is told."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Final

from ..config.settings import Settings
from ..core.errors import BackupFailed

STANZA: Final = "aegis"
# What a quiet server has not handed over yet is at the most this old (seconds).
_WITHIN: Final = 60
_INSTALL: Final = "install pgbackrest, or set AEGIS_PGBACKREST_BIN to the program"


def program(settings: Settings) -> str:
    """Return the program.

    Raises:
        BackupFailed: it is not installed.

    """
    found = shutil.which(settings.pgbackrest_bin or "pgbackrest")
    if found is None and settings.pgbackrest_bin:
        what = f"AEGIS_PGBACKREST_BIN={settings.pgbackrest_bin}"
        raise BackupFailed(what, "there is no such program", "name the program pgbackrest")
    if found is None:
        raise BackupFailed("pgBackRest", "it is not installed", _INSTALL)
    return found


def configuration(settings: Settings) -> Path:
    """Return where its configuration is: not in the repository, because it holds what opens that."""
    return settings.places.pgbackrest / "pgbackrest.conf"


def command(settings: Settings, data: Path) -> str:
    """Return the ``archive_command`` of a server on that data directory.

    Raises:
        BackupFailed: the program is not installed.

    """
    argv = [program(settings), f"--config={configuration(settings)}", f"--stanza={STANZA}", f"--pg1-path={data}"]
    told = shlex.join(argv).replace("%", "%%")  # which means something to PostgreSQL
    return f'{told} archive-push "%p"'


def options(settings: Settings) -> list[str]:
    """Return what the private server is started with.

    Raises:
        BackupFailed: the program is not installed.

    """
    if settings.backup_with != "pgbackrest":
        return []
    told = command(settings, settings.places.postgres)
    return [
        *("-c", "archive_mode=on"),
        *("-c", f"archive_timeout={_WITHIN}"),
        *("-c", f"archive_command={told}"),
    ]

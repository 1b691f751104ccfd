"""A deployment whose backups pgBackRest keeps, on a PostgreSQL that the installed pgBackRest knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from private_servers import folder
from site_of_its_own import Site

from aegis.config.settings import Settings
from aegis.core.errors import BackupFailed
from aegis.recovery.backup.pgbackrest.adapter import WithPgBackRest
from aegis.recovery.backup.source import source
from aegis.tasks.check import Check
from aegis.tasks.health import health

# From which pgBackRest on it knows the PostgreSQL of the wheel, and what Debian's older ones know.
KNOWS_18 = (2, 55)
OLDER = ("17", "16", "15", "14", "13")
KNOWS = {"17": (2, 53), "16": (2, 48)}


def _version() -> tuple[int, ...]:
    program = shutil.which("pgbackrest")
    if program is None:
        return ()
    told = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else ()


def _suitable() -> str | None:
    """The folder of a PostgreSQL that it knows; "" for the wheel's, None if there is none."""
    if VERSION >= KNOWS_18:
        return ""
    for major in OLDER:
        place = Path(f"/usr/lib/postgresql/{major}/bin")
        if (place / "postgres").exists() and KNOWS.get(major, (2, 41)) <= VERSION:
            return str(place)
    return None


VERSION = _version()
POSTGRES = _suitable() if VERSION else None
needs_pgbackrest = pytest.mark.skipif(
    POSTGRES is None,
    reason="pgBackRest, and a PostgreSQL that it knows, are not installed: apt-get install pgbackrest postgresql"
    if not VERSION
    else f"pgBackRest {'.'.join(map(str, VERSION))} knows no PostgreSQL that is installed: apt-get install postgresql",
)


class ArchivingSite(Site):
    """The server of such a deployment is somebody's own: it was told to archive, and where to."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self._changes = changes
        super().__init__(root, postgres_bin=POSTGRES or "")
        self.server.execute("ALTER SYSTEM SET archive_mode = on")
        self.server.execute("ALTER SYSTEM SET archive_timeout = 60")
        self.server.stop()
        self.server.start()

    def reading(self, server: Any, **changes: Any) -> Settings:
        return super().reading(
            server, **{"backup_with": "pgbackrest", "postgres_bin": POSTGRES or "", **self._changes, **changes}
        )

    def tell(self, remedy: str) -> None:
        """Type what an error said that one is to type."""
        for statement in remedy.split("; "):
            self.server.execute(statement)

    @property
    def kept(self) -> Path:
        """What pgBackRest has, in a folder."""
        return self.settings.backups / "pgbackrest"


@contextmanager
def archiving_site(**changes: Any) -> Iterator[ArchivingSite]:
    """A site whose server archives, and the end of it."""
    with folder("pgbackrest") as root:
        made = ArchivingSite(root, **changes)
        try:
            yield made
        finally:
            made.close()


def begin(place: ArchivingSite) -> None:
    """Do what the first refusal says."""
    with pytest.raises(BackupFailed, match="its archive_command does not hand the WAL to this repository") as refused:
        source(place.settings)
    place.tell(refused.value.remedy)


def tool(place: Site) -> WithPgBackRest:
    """The adapter on its repository."""
    found = source(place.settings).adapter
    assert isinstance(found, WithPgBackRest)
    return found


def told(place: Site, name: str = "backup") -> Check:
    """What health says."""
    (found,) = [check for check in health(place.settings) if check.name == name]
    return found

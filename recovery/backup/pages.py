"""What is looked at, and done, to a data directory that was made of a backup, whatever program kept it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from ...config.home import NOBODY
from ...core.errors import BackupFailed
from .adapter import AGAIN, Base

_STARTS: Final = re.compile(r"START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)")


def check_pages(programs: Path, base: Base, data: Path) -> None:
    """Check each page of a data directory whose server was stopped, if its server gives pages checksums.

    Raises:
        BackupFailed: one is not what was written.

    """
    argv = [str(programs / "pg_checksums"), "--check", "-D", str(data)]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
    if checked.returncode and "not enabled" not in checked.stderr:
        found = checked.stderr.strip().partition("\n")[0]
        raise BackupFailed(f"backup {base.id}", f"it is not what was written: {found}", AGAIN)


def give_away(folder: Path) -> None:
    """Have it belong to who runs PostgreSQL, where that is not us."""
    if os.geteuid() != 0:
        return
    os.chown(folder, NOBODY, NOBODY)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(place, name), NOBODY, NOBODY, follow_symlinks=False)


def first_segment(base: Base, data: Path) -> str:
    """Return the segment of the WAL with which recovery of a backup begins.

    Raises:
        BackupFailed: it does not say.

    """
    found = _STARTS.search((data / "backup_label").read_text())
    if found is None:
        raise BackupFailed(f"backup {base.id}", "its backup_label does not say where it begins", AGAIN)
    return found[1]

"""Making a data directory out of the repository: a base backup, put together and checked, and the WAL since then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ....core.errors import BackupFailed
from ..adapter import AGAIN, Base, last_number
from ..pages import first_segment, give_away
from .program import SERVER, Barman

_SEGMENT: Final = re.compile(r"[0-9A-F]{24}")
_HISTORY: Final = re.compile(r"[0-9A-F]{8}\.history")
_PARTIAL: Final = ".partial"


def make(barman: Barman, base: Base, data: Path, wal: Path) -> int:
    """Make the data directory of a base backup, and a folder with all WAL that was archived since.

    Return the number of the last whole segment: recovery has to come at least there.

    Raises:
        BackupFailed: something of it is missing, cut short or changed, or there is no room for it.

    """
    line = _line(barman, base)
    if any(one.tablespaces for one in line):
        remedy = "have AEGIS's database in the default one, or restore it with `barman restore` by hand"
        raise BackupFailed(f"backup {base.id}", "the server has tablespaces, which are not restored here", remedy)
    folders = [_data(barman, one) for one in line]
    for folder in folders:
        _check(base, folder)
    try:
        _put_together(barman, base, folders, data)
        wal.mkdir()
        last = _fetch(barman, first_segment(base, data), wal)
        give_away(data.parent)
    except OSError as error:
        raise BackupFailed(
            f"backup {base.id}",
            f"it cannot be restored to {data} ({error.strerror or error})",
            "see that there is room",
        ) from None
    return last


def _line(barman: Barman, base: Base) -> list[Base]:
    """Return the backups that one consists of, the full one first."""
    known = {one.id: one for one in barman.bases()}
    line = [base]
    while line[0].parent is not None:
        parent = known.get(line[0].parent)
        if parent is None:
            raise BackupFailed(f"backup {base.id}", f"{line[0].parent}, which it builds on, is not there", AGAIN)
        line.insert(0, parent)
    return line


def _data(barman: Barman, base: Base) -> Path:
    return barman.folder / "base" / base.id / "data"


def _check(base: Base, folder: Path) -> None:
    """Compare the files with the manifest that the server wrote as it was taken: none is missing, none cut short.

    What stands in them is checked by what follows: recovery, the pages' checksums, and every chain.
    """
    try:
        files = json.loads((folder / "backup_manifest").read_text())["Files"]
        for file in files:
            path = folder / (file["Path"] if "Path" in file else bytes.fromhex(file["Encoded-Path"]).decode())
            if path.stat().st_size != file["Size"]:
                problem = f"{path.relative_to(folder)} has {path.stat().st_size} bytes, and had {file['Size']}"
                raise BackupFailed(f"backup {base.id}", f"it is not what was taken: {problem}", AGAIN)
    except FileNotFoundError as error:
        gone = Path(error.filename).relative_to(folder)
        raise BackupFailed(f"backup {base.id}", f"it is not what was taken: {gone} is missing", AGAIN) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its backup_manifest cannot be read ({error})"
        raise BackupFailed(f"backup {base.id}", problem, AGAIN) from None


def _put_together(barman: Barman, base: Base, folders: Sequence[Path], data: Path) -> None:
    if len(folders) == 1:
        shutil.copytree(folders[0], data, symlinks=True)
    else:
        argv = [str(barman.programs / "pg_combinebackup"), "--no-sync", "-o", str(data), *map(str, folders)]
        combined = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
        if combined.returncode:
            problem = f"it cannot be put together: {combined.stderr.strip().partition(chr(10))[0]}"
            raise BackupFailed(f"backup {base.id}", problem, AGAIN)
    data.chmod(0o700)


# --- WAL ------------------------------------------------------------------------------------


def archived(barman: Barman) -> list[str]:
    """Return the segments that are filed whole, of whatever timeline."""
    return sorted(file.name for file in (barman.folder / "wals").glob("*/*") if _SEGMENT.fullmatch(file.name))


def _fetch(barman: Barman, first: str, wal: Path) -> int:
    """Fetch the archived segments from ``first`` on, of whatever timeline, and the one that is still being written.

    Return the number of the last whole one.
    """
    names = set(archived(barman))
    names |= {file.name for file in (barman.folder / "wals").glob("*") if _HISTORY.fullmatch(file.name)}
    streaming = barman.folder / "streaming"
    # After a fail-over, the history says where the new timeline began: recovery does not follow it without.
    fresh = {
        file.name for file in streaming.glob("*") if _SEGMENT.fullmatch(file.name) or _HISTORY.fullmatch(file.name)
    }
    for name in sorted(name for name in names if _HISTORY.fullmatch(name) or name[8:] >= first[8:]):
        barman.call(f"WAL {name}", "get-wal", "--output-directory", str(wal), SERVER, name)
    for name in fresh - names:
        shutil.copy(streaming / name, wal / name)
    for file in streaming.glob(f"*{_PARTIAL}"):
        # It is as long as a whole one, and what was not written yet is zeros: recovery ends there.
        whole = file.name.removesuffix(_PARTIAL)
        if whole[8:] >= first[8:] and not (wal / whole).exists():
            shutil.copy(file, wal / whole)
    return last_number(name for name in names | fresh if _SEGMENT.fullmatch(name))

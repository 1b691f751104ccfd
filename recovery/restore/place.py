"""In the place of the private server's database, which is kept beside under a name of its own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from ...config.settings import Settings
from ...core.errors import RestoreFailed
from ...servers import stack
from .restore import Restored, restore

_WHAT: Final = "--in-place"


def in_place(settings: Settings, to: str) -> Restored:
    """Restore a point in time, and put it in the place of `aegis up`'s database; nothing of that one is removed.

    What is restored is compared with that one: it is started for it once, where nobody else can reach it.

    Raises:
        RestoreFailed: the server is not ours, or the point is not to be had: all is as it was.
        ConfigurationError: `aegis up` runs.

    """
    if not settings.embedded:
        remedy = "restore with --into, and have its server started on that"
        raise RestoreFailed(_WHAT, "the database is on a server of yours (AEGIS_DATABASE_URL)", remedy)
    home = settings.places
    with stack.lock(settings):
        _need_it_stopped(home.postgres)
        fresh = home.root / f"restored-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        done = restore(settings, to, fresh, replaced=home.postgres)
        kept = home.postgres.with_name(f"{home.postgres.name}-before-{fresh.name.removeprefix('restored-')}")
        swap(fresh, home.postgres, kept)
        return replace(done, into=home.postgres, kept=kept if kept.exists() else None)


def swap(fresh: Path, place: Path, kept: Path) -> None:
    """Put a directory in the place of another one, if there is one, and keep that; if either fails, neither is done.

    Raises:
        RestoreFailed: one of the two could not be renamed; it says where each is.

    """
    try:
        there = place.exists()
        if there:
            place.rename(kept)
    except OSError as error:
        problem = f"{place} cannot be put aside as {kept} ({error.strerror})"
        raise RestoreFailed(_WHAT, problem, f"it is where it was, and the restored one is at {fresh}") from None
    try:
        fresh.rename(place)
    except OSError as error:
        problem = f"{fresh} cannot be put in the place of {place} ({error.strerror})"
        raise RestoreFailed(_WHAT, problem, _put_back(place, kept) if there else "see that it can be written") from None


def _put_back(place: Path, kept: Path) -> str:
    try:
        kept.rename(place)
    except OSError as error:
        return f"what was there is at {kept}, and cannot be put back either ({error.strerror}): do it by hand"
    return "what was there was put back"


def _need_it_stopped(data: Path) -> None:
    """Refuse a directory on which a server runs, though nobody looks after it: it would go on in what is put aside."""
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        # A server's working directory is its data: the number alone may be another's by now.
        if Path(psutil.Process(pid).cwd()) == data.resolve():
            raise RestoreFailed(_WHAT, f"a server (pid {pid}) runs on {data}", f"end it: kill -INT {pid}")

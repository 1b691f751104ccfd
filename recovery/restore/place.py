"""In the place of the private server's database, which is kept beside under a name of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ...config.settings import Settings
from ...core.errors import RestoreFailed
from ...servers import stack
from .restore import Restored, restore


def in_place(settings: Settings, to: str) -> Restored:
    """Restore a point in time, and put it in the place of `aegis up`'s database; nothing of that one is removed.

    Raises:
        RestoreFailed: the server is not ours, or the point is not to be had: all is as it was.
        ConfigurationError: `aegis up` runs.

    """
    if not settings.embedded:
        remedy = "restore with --into, and have its server started on that"
        raise RestoreFailed("--in-place", "the database is on a server of yours (AEGIS_DATABASE_URL)", remedy)
    home = settings.places
    with stack.lock(settings):
        fresh = home.root / f"restored-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        done = restore(settings, to, fresh)
        kept = home.postgres.with_name(f"{home.postgres.name}-before-{fresh.name.removeprefix('restored-')}")
        try:
            if home.postgres.exists():
                home.postgres.rename(kept)
            fresh.rename(home.postgres)
        except OSError as error:
            problem = f"{home.postgres} cannot be put aside ({error.strerror})"
            raise RestoreFailed("--in-place", problem, f"the restored one is at {fresh}") from None
        return replace(done, into=home.postgres, kept=kept if kept.exists() else None)

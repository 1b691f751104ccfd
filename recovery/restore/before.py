"""The database of before, beside which a copy is held: one that answers, or the files of a server that is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from ...core.errors import DatabaseUnavailable, RestoreFailed
from ...persistence.database import Database, reason_of
from ..copy import copied
from .difference import Difference, with_live

Before = Callable[[], AbstractContextManager[Database]]
# It is asked, and not changed: nobody writes, and it keeps all WAL that it has, also what nobody archived.
_AS_IT_IS: Final = ("default_transaction_read_only=on", "wal_keep_size=1000000000")  # MB: more than any disk has


def compared(copy: Database, before: Before) -> tuple[list[Difference], str | None]:
    """Compare a copy with the database of before; if that cannot be asked, say why instead."""
    try:
        with before() as live:
            return [with_live(copy, live)], None
    except RestoreFailed as error:
        return [], error.problem
    except DatabaseUnavailable as error:
        return [], f"it does not answer ({error.reason})"
    except Exception as error:  # it may be damaged: that is why one goes back
        if not is_of_the_database(error):
            raise
        return [], reason_of(error)


def is_of_the_database(error: Exception) -> bool:
    """Whether it is what a database said, and not a defect of ours."""
    return hasattr(error, "orig")


@contextmanager
def stopped(data: Path, programs: Path, log: Path, *, user: str, name: str) -> Iterator[Database]:
    """Start a stopped server on its own files, on a socket that only its owner can open; stop it again at the end.

    As after any start, what it had not written to its tables yet it takes from its own WAL first.

    Raises:
        RestoreFailed: there are no such files, or it does not start on them.

    """
    if not (data / "PG_VERSION").exists():
        raise RestoreFailed("the database of before", f"there is none at {data}", "see that its disk is there")
    with copied(data, programs, log) as server:
        server.start(_AS_IT_IS, user=user, durable=True)
        database = Database(server.url(user, name), pool_size=2, pre_ping=False)
        try:
            yield database
        finally:
            database.close()

"""A commit counts once a standby has it: where PostgreSQL gave up waiting for that, it says so in a warning only.

``canceling wait for synchronous replication due to user request. The transaction has already committed
locally, but might not have been replicated to the standby.`` Taken for success, a fail-over would lose what
was acknowledged; so it becomes an error, and the outcome is unknown: whoever asks for it waits again.
"""

from __future__ import annotations

from typing import Any

import psycopg2
from sqlalchemy import Engine, event

from .doubt import doubt_in


class NotReplicated(psycopg2.OperationalError):
    """The server gave up waiting for a standby: committed there, and perhaps nowhere else."""


def check(connection: Any) -> None:
    """Refuse what the server's last answers on a psycopg2 connection said was not replicated.

    Raises:
        NotReplicated: a commit is in doubt.

    """
    said = list(connection.notices)
    connection.notices.clear()
    if (doubt := doubt_in(said)) is not None:
        raise NotReplicated(doubt)


def watch(engine: Engine) -> None:
    """Have every commit of an engine on psycopg2 checked, and every statement that is its own commit."""
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        commit(connection)
        if connection.notices:
            check(connection)

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
    event.listen(engine, "after_cursor_execute", _look)


def _look(connection: Any, *_: Any) -> None:
    driver = connection.connection.dbapi_connection
    if driver is not None and driver.notices:
        check(driver)

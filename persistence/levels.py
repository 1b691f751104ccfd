"""Isolation levels of psycopg2's connections, set where they are: on this side of the line.

What psycopg2 is told explicitly, it has the server's session know as long as a connection commits by itself, and takes
back afterwards: one more round trip for each statement by itself, and for each ping. It also comes at a time at which
nobody expects an error: when a connection goes back to the pool. SQLAlchemy raises it as it is, and its place in the
pool stays taken for ever (2.1.9, ``_ConnectionRecord.checkin``).

So a connection that commits by itself has no level of its own, and one that does not has its level in each ``BEGIN``.
https://www.psycopg.org/docs/connection.html#connection.set_session
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine

_AUTOCOMMIT: Final = "AUTOCOMMIT"


def keep_here(engine: Engine) -> None:
    """Have the levels of an engine on psycopg2 set without asking the server."""
    dialect: Any = engine.dialect
    dialect.set_isolation_level = _set
    dialect.do_ping = _ping


def _set(connection: Any, level: str) -> None:
    if level == _AUTOCOMMIT:
        connection.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT")
        connection.autocommit = True
    else:
        connection.autocommit = False
        connection.set_session(isolation_level=level)


def _ping(connection: Any) -> bool:
    alone, level = connection.autocommit, connection.isolation_level
    if not alone:
        _set(connection, _AUTOCOMMIT)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        if not alone and not connection.closed:
            connection.autocommit = False
            connection.isolation_level = level
    return True

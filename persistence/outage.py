"""What an error of a driver means: the database is away, preferred somebody else, or refuses what was asked.

Read off the codes that the drivers carry, SQLSTATE or SQLite's own, so that none of them needs to be there.
https://www.postgresql.org/docs/current/errcodes-appendix.html, https://sqlite.org/rescode.html
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..core.errors import DatabaseUnavailable

# A server that shuts down, was demoted, or is not up yet: SQLAlchemy takes only some of these for
# a broken connection, and would keep the connection in its pool.
GONE: Final = frozenset({"25006", "57P01", "57P02", "57P03"})
# Connection exceptions, insufficient resources (no connection slot, no memory, no disk), and a
# statement that was given up because it took too long.
_AWAY: Final = ("08", "53", "57014")
# Deadlocks and serialization failures, and a lock that was not had in time.
_IN_FAVOUR: Final = ("40", "55P03")
_TOO_SLOW: Final = "57014"
_FORBIDDEN: Final = "42501"

# SQLITE_BUSY, SQLITE_LOCKED: another process, or thread, writes for longer than we wait.
_LITE_IN_FAVOUR: Final = frozenset({5, 6})
# No memory, interrupted, I/O error, disk full, and a lock that went wrong.
_LITE_AWAY: Final = frozenset({7, 9, 10, 13, 15})
# No permission, read-only, cannot be opened, not authorized.
_LITE_FORBIDDEN: Final = frozenset({3, 8, 14, 23})
# Damaged, or no database at all.
_LITE_NO_DATABASE: Final = frozenset({11, 26})
# An extended code has the primary one in its lowest byte.
_PRIMARY: Final = 0xFF

_DRIVERS: Final = ("psycopg2", "sqlite3", "sqlalchemy")


def is_unavailable(error: BaseException) -> bool:
    """Whether the database was away, rather than asked something that it refuses."""
    if isinstance(error, PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_unavailable(error.orig or error.__cause__ or Exception())
    if (lite := _lite_code(error)) is not None:
        return lite in _LITE_AWAY
    if (code := sqlstate(error)) is not None:
        return code in GONE or code.startswith(_AWAY)
    # Without a code the server never answered: the connection was refused, broken off, or timed out. What
    # asyncpg cannot send at all is an InterfaceError as well, made from a ValueError or a TypeError.
    unsent = isinstance(error.__cause__, ValueError | TypeError)
    return _is(error, "OperationalError") or (_is(error, "InterfaceError") and not unsent)


def is_forbidden(error: BaseException) -> bool:
    """Whether our user has no right to what was asked."""
    original = _original(error)
    return sqlstate(original) == _FORBIDDEN or _lite_code(original) in _LITE_FORBIDDEN


def is_no_database(error: BaseException) -> bool:
    """Whether a file is damaged, or not SQLite's."""
    return _lite_code(_original(error)) in _LITE_NO_DATABASE


def is_transient(error: BaseException) -> bool:
    """Whether the database gave this up in favour of another: a deadlock, a serialization failure, a lock not had."""
    original = _original(error)
    return (sqlstate(original) or "").startswith(_IN_FAVOUR) or _lite_code(original) in _LITE_IN_FAVOUR


def is_too_slow(error: BaseException) -> bool:
    """Whether a statement was given up because it took longer than it may."""
    original = _original(error)
    cause = original.__cause__ if isinstance(original, DatabaseUnavailable) else None
    return sqlstate(original) == _TOO_SLOW or (cause is not None and is_too_slow(cause))


def reason_of(error: BaseException) -> str:
    """Return the first line of what the driver said."""
    original = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(original).splitlines() if line.strip()]
    return lines[0] if lines else type(original).__name__


def _original(error: BaseException) -> BaseException:
    original = error.orig if isinstance(error, DBAPIError) else error
    return original or error


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error."""
    code = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)  # psycopg2 and asyncpg
    return code if isinstance(code, str) else None


def _lite_code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else None


def _is(error: BaseException, name: str) -> bool:
    """Whether it is the error of that name, of PEP 249, of one of the drivers."""
    return any(kind.__name__ == name and kind.__module__.startswith(_DRIVERS) for kind in type(error).__mro__)

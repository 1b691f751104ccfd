"""SQLite, in a file or in memory: for development and tests, and for programs that run alone.

Every transaction that writes begins with ``BEGIN IMMEDIATE``: one writes at a time, and whoever reads to
decide what to write reads what holds until it commits. That is what ``FOR UPDATE`` is in PostgreSQL, and
why SQLite needs no such thing.
"""

from __future__ import annotations

import math
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import DBAPIError

from ..core.errors import ConfigurationError, NotOnSQLite

# How long a write waits for another one's end (seconds).
PATIENCE: Final = 10.0
# What a connection is to begin with; by default a transaction that writes.
HOW: Final = "aegis_begin"
EACH_BY_ITSELF: Final = "AUTOCOMMIT"
ONE_MOMENT: Final = "DEFERRED"

# STRICT tables, RETURNING, and FULL JOIN.
_OLDEST: Final = (3, 39)
_IN_MEMORY: Final = frozenset({None, "", ":memory:"})
_PRAGMAS: Final = (
    # Readers and one writer at once; where it cannot be had, as in memory, it stays what it was.
    "PRAGMA journal_mode = WAL",
    # Whatever was committed is on the disk, also when the power fails.
    "PRAGMA synchronous = FULL",
)


def refuse(connection: Connection, what: str, remedy: str = "use a Database on PostgreSQL for it") -> None:
    """Refuse what only PostgreSQL can do.

    Raises:
        NotOnSQLite: the connection is one to SQLite.

    """
    if connection.dialect.name == "sqlite":
        raise NotOnSQLite(what, remedy)


def is_address(url: str) -> bool:
    """Whether an address is one of SQLite's."""
    return url.startswith(("sqlite:", "sqlite+"))


def check() -> None:
    """Check that SQLite is new enough.

    Raises:
        ConfigurationError: it is not.

    """
    if sqlite3.sqlite_version_info < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise ConfigurationError("SQLite", f"it is {sqlite3.sqlite_version}", f"AEGIS needs {wanted} or newer")


def address_of(url: str, driver: str) -> URL:
    """Return the address of a file, or of a new database in memory, for a driver.

    Raises:
        ConfigurationError: it is no address.

    """
    check()
    made = make_url(url)
    if made.host:
        remedy = f"write sqlite:///{made.host}{made.database or ''} for a file here, or sqlite:////folder/file.db"
        raise ConfigurationError(url, "SQLite's files have no host", remedy)
    if made.database in _IN_MEMORY:
        # By its name all threads of this process reach it, each by a connection of its own, with real locks.
        made = made.set(database=f"file:/aegis-{uuid.uuid4()}", query={"vfs": "memdb", "uri": "true"})
    return made.set(drivername=f"sqlite+{driver}")


def is_in_memory(url: URL) -> bool:
    """Whether a database ends with its process."""
    return url.query.get("vfs") == "memdb"


def prepare(engine: Engine, clock: Callable[[], int]) -> None:
    """Have an engine's connections be what the statements expect; ``clock`` tells microseconds since 1970."""

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing: ``began`` does
        teach(connection, clock)
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
            cursor.fetchall()
        cursor.close()

    def began(connection: Connection) -> None:
        how = connection.get_execution_options().get(HOW, "IMMEDIATE")
        if how != EACH_BY_ITSELF:
            connection.exec_driver_sql(f"BEGIN {how}")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", began)


def teach(connection: Any, clock: Callable[[], int]) -> None:
    """Give a driver's connection the functions that the statements call."""
    for name, count, function in (
        ("clock_timestamp", 0, clock),
        ("statement_timestamp", 0, clock),
        ("greatest", -1, _greatest),
        ("least", -1, _least),
        ("power", 2, _power),
    ):
        connection.create_function(name, count, function)


def join(connection: Connection, clock: Callable[[], int]) -> None:
    """Make somebody else's connection fit for our statements, inside a transaction that is really begun.

    Python's driver begins one only before a write; a savepoint without one would commit by itself.
    """
    teach(connection.connection.dbapi_connection, clock)
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def read_only(connection: Connection) -> Iterator[None]:
    """Refuse writes on a connection."""
    connection.exec_driver_sql("PRAGMA query_only = ON")
    try:
        yield
    finally:
        connection.exec_driver_sql("PRAGMA query_only = OFF")


@contextmanager
def atomically(connection: Connection) -> Iterator[None]:
    """Have several statements be one, on a connection on which each would commit by itself."""
    if connection.get_execution_options().get(HOW) != EACH_BY_ITSELF:
        yield  # it is in a transaction already
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        with suppress(DBAPIError):  # SQLite may have rolled back by itself: a full disk
            connection.exec_driver_sql("ROLLBACK")
        raise


def _greatest(*values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def _least(*values: Any) -> Any:
    return min((value for value in values if value is not None), default=None)


def _power(base: float | None, exponent: float | None) -> float | None:
    if base is None or exponent is None:
        return None
    found = base**exponent
    return int(found) if isinstance(found, int) or (math.isfinite(found) and found.is_integer()) else found

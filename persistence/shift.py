"""A clock that tests can set: in PostgreSQL, a schema whose clock functions are found before its own.

Everything that AEGIS asks the time of is ``clock_timestamp()`` and ``statement_timestamp()``. Where a database's
search path has ``aegis_clock`` before ``pg_catalog``, every session of every process gets these; where it has
not, which is everywhere but in a test, nothing is different at all.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from ..core.errors import ClockRefused, InvalidData
from .database import Database, Session

SCHEMA: Final = "aegis_clock"
MARK: Final = "aegis: for tests"
_FOR_TESTS: Final = re.compile(r"(^|[^a-z])tests?([^a-z]|$)", re.IGNORECASE)
# Public first, as before: it is where new tables go.
_PATH: Final = f"{SCHEMA}, pg_catalog"
_A_MOMENT: Final = 2.0
_FUNCTIONS: Final = {
    "clock_timestamp": "VOLATILE",
    "statement_timestamp": "STABLE",
    "transaction_timestamp": "STABLE",
    "now": "STABLE",
}


def install(database: Database) -> None:
    """Give a database a clock that can be set; it goes right until then.

    Raises:
        ClockRefused: it is no database for tests, is none of PostgreSQL, or somebody is connected to it.

    """
    if database.engine.dialect.name != "postgresql":
        problem = "it is no database of PostgreSQL"
        raise ClockRefused(database.url, problem, "on SQLite, aegis.testing.local has a clock of its own")
    with database.statement() as connection:
        name = str(connection.execute(text("SELECT current_database()")).scalar_one())
        _check_for_tests(connection, name)
        if connection.execute(text("SELECT to_regnamespace(:schema)"), {"schema": SCHEMA}).scalar_one() is not None:
            return
        _check_alone(connection, name)
    with database.transaction() as session:
        _make(session.connection(), name)
    database.engine.dispose()  # our own connection has the right time as well


def _check_for_tests(connection: Connection, name: str) -> None:
    """Let nobody set the clock of what they cannot do without."""
    marked = connection.execute(
        text("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()")
    ).scalar_one()
    if not _FOR_TESTS.search(name) and marked != MARK:
        remedy = f"name it so that it says test, or mark it: COMMENT ON DATABASE ... IS '{MARK}'"
        raise ClockRefused(name, "nothing says that it is a database for tests", remedy)


def _check_alone(connection: Connection, name: str) -> None:
    """Wait for a moment: a connection that was closed takes one to end."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    end = time.monotonic() + _A_MOMENT
    while there := int(connection.execute(others).scalar_one()):
        if time.monotonic() > end:
            problem = f"{there} connections to it are open, which would keep the right time"
            raise ClockRefused(name, problem, "set up the clock first, then start what uses the database")
        time.sleep(0.02)


def _make(connection: Connection, name: str) -> None:
    path = str(connection.execute(text("SHOW search_path")).scalar_one())
    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    columns = "id int PRIMARY KEY CHECK (id = 1), ahead interval NOT NULL, path text NOT NULL"
    connection.execute(text(f"CREATE TABLE {SCHEMA}.shift ({columns})"))
    connection.execute(text(f"INSERT INTO {SCHEMA}.shift VALUES (1, interval '0', :path)"), {"path": path})  # noqa: S608 - no input
    for function, how in _FUNCTIONS.items():
        body = f"SELECT pg_catalog.{function}() + (SELECT ahead FROM {SCHEMA}.shift)"  # noqa: S608 - no input
        connection.execute(
            text(f"CREATE FUNCTION {SCHEMA}.{function}() RETURNS timestamptz LANGUAGE sql {how} AS $${body}$$")
        )
    # Whatever role a worker has: a schema that it may not use would silently be passed over.
    connection.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC"))
    connection.execute(text(f"GRANT SELECT ON {SCHEMA}.shift TO PUBLIC"))
    quoted = connection.dialect.identifier_preparer.quote_identifier(name)
    connection.execute(text(f"ALTER DATABASE {quoted} SET search_path = {path}, {_PATH}"))


def remove(database: Database) -> None:
    """Take it away again; sessions that are open keep the path to nothing, and the right time."""
    with database.transaction() as session:
        connection = session.connection()
        name = str(connection.execute(text("SELECT current_database()")).scalar_one())
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        path = connection.execute(text(f"SELECT path FROM {SCHEMA}.shift")).scalar_one()  # noqa: S608 - no input
        connection.execute(text(f"ALTER DATABASE {quoted} SET search_path = {path}"))
        connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))


def now(database: Database) -> datetime:
    """Return what the clock shows."""
    with database.statement() as connection:
        moment: datetime = connection.execute(text(f"SELECT {SCHEMA}.clock_timestamp()")).scalar_one()
        return moment


def advance(database: Database, by: timedelta) -> None:
    """Put the clock forward, for everybody at once.

    Raises:
        InvalidData: time does not run backwards.

    """
    if by < timedelta(0):
        raise InvalidData("the time", [("/by", f"{by} is negative: time does not run backwards")])
    with database.transaction() as session:
        _advance(session, by)


def _advance(session: Session, by: timedelta) -> None:
    # As hours and seconds: a day of an interval may have 23 hours.
    ahead = {"ahead": by.total_seconds()}
    seconds = "make_interval(secs => :ahead)"
    there = session.execute(text("SELECT to_regclass('aegis_worker') IS NOT NULL")).scalar_one()
    if there:
        # Whoever lives goes on living: that time has passed must not look like silence. A heartbeat that is
        # under way is waited for, and the next one waits for us.
        session.execute(text("LOCK TABLE aegis_worker, aegis_sweep IN SHARE ROW EXCLUSIVE MODE"))
        session.execute(text(f"UPDATE aegis_worker SET seen_at = seen_at + {seconds}"), ahead)  # noqa: S608
        session.execute(
            text(f"UPDATE aegis_sweep SET ran_at = ran_at + {seconds}, since = since + {seconds}"),  # noqa: S608
            ahead,
        )
    session.execute(text(f"UPDATE {SCHEMA}.shift SET ahead = ahead + {seconds}"), ahead)  # noqa: S608

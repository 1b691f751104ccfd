"""What a connection costs beside its statements, and what becomes of one that breaks off where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import Connection, make_url, text
from store_workbench import sql, value

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence import hosts
from aegis.persistence.database import Database


@pytest.fixture(params=[True, False], ids=["pings", "does not ping"])
def own(database: Database, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of one connection, and one more if that is taken for ever."""
    made = Database(database.address.render_as_string(hide_password=False), pool_size=1, pre_ping=request.param)
    yield made
    made.close()


def pid_of(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_statement_by_itself_is_one_round_trip(database: Database, own: Database) -> None:
    for _ in range(3):
        with own.snapshot() as connection:
            pid = pid_of(connection)
        with own.transaction() as session:
            session.execute(text("SELECT 1"))
        with own.statement() as connection:
            assert pid_of(connection) == pid
            connection.execute(text("SELECT 'the last'"))
        last = value(database, "SELECT query FROM pg_stat_activity WHERE pid = :pid", pid=pid)
        assert last == "SELECT 'the last'", "psycopg2 took back what nobody had set"


def test_a_ping_is_one_round_trip(database: Database) -> None:
    own = Database(database.address.render_as_string(hide_password=False), pool_size=1, pre_ping=True)
    with own.statement() as connection:
        pid = pid_of(connection)
    with own.statement():
        pass
    assert value(database, "SELECT query FROM pg_stat_activity WHERE pid = :pid", pid=pid) == "SELECT 1"
    own.close()


def test_levels_are_what_was_asked_for_in_any_order(own: Database) -> None:
    level, mode = text("SHOW transaction_isolation"), text("SHOW transaction_read_only")
    for _ in range(2):
        with own.statement() as connection:
            connection.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS seen (number int)"))
            connection.execute(text("INSERT INTO seen VALUES (1)"))
        with own.snapshot() as connection:
            assert connection.execute(level).scalar_one() == "repeatable read"
            assert connection.execute(mode).scalar_one() == "on"
        with own.transaction() as session:
            assert session.execute(level).scalar_one() == "read committed"
            assert session.execute(mode).scalar_one() == "off"
            session.execute(text("INSERT INTO seen VALUES (2)"))
            session.rollback()
    with own.statement() as connection:
        assert connection.execute(text("SELECT count(*) FROM seen")).scalar_one() == 2


def test_a_connection_that_breaks_off_after_its_last_statement_raises_nothing_and_keeps_no_place(
    database: Database, own: Database
) -> None:
    ended = []
    for _ in range(5):  # there are two places
        with suppress(DatabaseUnavailable), own.statement() as connection:  # the one of before is found to be broken
            ended.append(pid_of(connection))
            sql(database, "SELECT pg_terminate_backend(:pid, 20000)", pid=ended[-1])  # waits until it is gone
    assert len(set(ended)) >= 3
    with suppress(DatabaseUnavailable), own.statement() as connection:
        pid_of(connection)
    with own.statement() as connection:
        assert pid_of(connection) not in ended


def test_a_server_is_told_to_leave_us_as_soon_as_we_would_leave_it() -> None:
    one = make_url("postgresql://a@b/c")
    assert hosts.liveness(one) == (
        "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;"
        " SET tcp_user_timeout = 10000"
    )
    several = make_url("postgresql://a@/c?host=b&host=d&keepalives_idle=30")
    assert hosts.liveness(several).startswith("SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 1;")

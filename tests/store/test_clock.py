"""A clock that tests can set: for all statements of all processes, and never on what is no test."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from private_servers import TEMPLATE, PrivatePostgres
from sqlalchemy import text
from store_workbench import RecordingRing, make_bench, make_engine, value
from store_workflows import Alarm

from aegis.core.errors import ClockRefused, InvalidData
from aegis.persistence import watch
from aegis.persistence.database import Database
from aegis.persistence.watch import Worker
from aegis.tasks.transition import Ended, run_transition
from aegis.testing import Clock

WEEK = timedelta(days=7)
SECOND = timedelta(seconds=1)


@pytest.fixture
def url(postgres: PrivatePostgres) -> Iterator[str]:
    """A database of the test's own, to which nobody is connected yet."""
    with postgres.database(TEMPLATE) as made:
        yield made


def test_it_shows_the_right_time_until_it_is_put_forward(url: str) -> None:
    with Clock.install(url) as clock:
        database = Database(url)
        try:
            for function in ("clock_timestamp", "statement_timestamp", "transaction_timestamp", "now"):
                shown = value(database, f"SELECT {function}() - pg_catalog.{function}()")
                assert abs(shown) < SECOND, function
            clock.advance(WEEK)
            for function in ("clock_timestamp", "statement_timestamp", "transaction_timestamp", "now"):
                shown = value(database, f"SELECT {function}() - pg_catalog.{function}()")
                assert abs(shown - WEEK) < SECOND, function
            assert abs(clock.now() - datetime.now(UTC) - WEEK) < SECOND
            clock.set(datetime.now(UTC) + 3 * WEEK)
            assert abs(value(database, "SELECT clock_timestamp()") - datetime.now(UTC) - 3 * WEEK) < SECOND
        finally:
            database.close()


def test_a_week_passes_for_a_workflow_in_a_moment(url: str) -> None:
    with Clock.install(url) as clock:
        database, ring = Database(url), RecordingRing()
        engine, bench = make_engine(database, ring), make_bench(database, ring)
        try:
            engine.start(Alarm(), id="a")
            assert engine.describe("a").timer_at is not None
            clock.advance(WEEK - timedelta(minutes=1))
            assert run_transition(bench, "a", 0) is Ended.STALE
            with database.transaction() as session:
                assert watch.due(session.connection(), ["store.Alarm/1"], 10) == []
            clock.advance(timedelta(minutes=1))
            with database.transaction() as session:
                assert [row.workflow_id for row in watch.due(session.connection(), ["store.Alarm/1"], 10)] == ["a"]
            assert run_transition(bench, "a", 0) is Ended.COMMITTED
            begun, rung = (transition.at for transition in engine.history("a"))
            assert WEEK <= rung - begun < WEEK + timedelta(minutes=1)
            assert engine.verify_integrity("a") == (True, None)
        finally:
            database.close()


def test_whoever_lives_goes_on_living(url: str) -> None:
    with Clock.install(url) as clock:
        database = Database(url)
        try:
            timeout = timedelta(minutes=10)
            with database.statement() as connection:
                before = watch.begin_sweep(connection, timeout)
                watch.beat(connection, Worker(id="w", host="h", pid=1, pids=(1,), queues=("q",), types=("T/1",)))
            clock.advance(WEEK)
            with database.statement() as connection:
                assert watch.living(connection, timeout) == 1
                now = watch.begin_sweep(connection, timeout)
            assert now.since == before.since + WEEK, "the sweeps have run without a gap"
        finally:
            database.close()


def test_it_is_taken_away_again_and_may_be_installed_twice(url: str) -> None:
    before = Database(url)
    path = value(before, "SHOW search_path")
    before.close()
    Clock.install(url).advance(WEEK)
    clock = Clock.install(url)  # again: it goes on from where it was
    assert clock.now() - datetime.now(UTC) > WEEK - SECOND
    clock.remove()
    after = Database(url)
    try:
        assert value(after, "SHOW search_path") == path
        assert abs(value(after, "SELECT clock_timestamp() - pg_catalog.clock_timestamp()")) < SECOND
        assert value(after, "SELECT to_regnamespace('aegis_clock') IS NULL")
    finally:
        after.close()


def test_new_tables_go_where_they_always_went(url: str) -> None:
    with Clock.install(url):
        database = Database(url)
        try:
            with database.transaction() as session:
                session.execute(text("CREATE TABLE mine (id int)"))
            assert value(database, "SELECT schemaname FROM pg_tables WHERE tablename = 'mine'") == "public"
        finally:
            database.close()


def test_the_sweep_still_finds_what_is_due_by_its_index(url: str) -> None:
    """The functions in its place are as stable as PostgreSQL's own."""
    with Clock.install(url):
        database = Database(url)
        try:
            query = (
                "EXPLAIN SELECT id FROM aegis_workflow WHERE due_at <= statement_timestamp() ORDER BY due_at LIMIT 9"
            )
            with database.statement() as connection:
                plan = "\n".join(connection.execute(text(query)).scalars())
            assert "Index Cond: (due_at <= statement_timestamp())" in plan
        finally:
            database.close()


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("shop", False),
        ("contest", False),
        ("latest_orders", False),
        ("shop_test", True),
        ("test_shop", True),
        ("shop-tests", True),
        ("SHOP_TEST_3", True),
    ],
)
def test_only_what_is_called_a_test_has_such_a_clock(postgres: PrivatePostgres, name: str, *, allowed: bool) -> None:
    postgres.execute(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
    try:
        if allowed:
            Clock.install(postgres.url(name)).remove()
            return
        with pytest.raises(ClockRefused, match="nothing says that it is a database for tests; name it so"):
            Clock.install(postgres.url(name))
        database = Database(postgres.url(name))
        assert value(database, "SELECT to_regnamespace('aegis_clock') IS NULL")
        database.close()
        postgres.execute(f"COMMENT ON DATABASE \"{name}\" IS 'aegis: for tests'")
        Clock.install(postgres.url(name)).remove()
    finally:
        postgres.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def test_a_database_that_somebody_uses_is_refused(url: str) -> None:
    database = Database(url)
    try:
        value(database, "SELECT 1")
        with pytest.raises(ClockRefused, match="1 connections to it are open, which would keep the right time"):
            Clock.install(url)
    finally:
        database.close()


def test_sqlite_has_a_clock_of_its_own() -> None:
    with pytest.raises(ClockRefused, match=r"it is no database of PostgreSQL; on SQLite, aegis\.testing\.local"):
        Clock.install("sqlite://")


def test_time_does_not_run_backwards(url: str) -> None:
    with Clock.install(url) as clock:
        before = clock.now()
        with pytest.raises(InvalidData, match="time does not run backwards"):
            clock.advance(-SECOND)
        with pytest.raises(InvalidData, match="time does not run backwards"):
            clock.set(before - WEEK)
        with pytest.raises(InvalidData, match="has no time zone"):
            clock.set(datetime(2099, 1, 1))  # noqa: DTZ001
        assert clock.now() - before < timedelta(seconds=30)

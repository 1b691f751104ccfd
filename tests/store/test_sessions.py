"""Starting and sending inside the caller's own transaction: if and only if it commits, and rung once after that."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import django as django_package
import psycopg
import psycopg2
import psycopg2.extras
import pytest
from django.conf import settings as django_settings
from django.db import connection, connections, transaction
from private_servers import PrivatePostgres
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from store_workbench import GRACE, RecordingRing, everything, meanwhile, row, sql, value
from store_workflows import Letter, Once, Page, Parcel

from aegis.core.errors import (
    DatabaseUnavailable,
    ForeignSession,
    InvalidData,
    InvalidName,
    SingletonConflict,
    StartConflict,
    WorkflowNotFound,
    WrongStatus,
)
from aegis.core.starting import Start
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.spawning import blocking_side
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

django_settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, USE_TZ=False
)
django_package.setup()

ORDERS = Table(
    "orders", MetaData(), Column("id", Integer, primary_key=True), Column("item", String(100), nullable=False)
)


@pytest.fixture(params=["psycopg2", "psycopg"])
def app(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The application's own engine, with its own table in the same database, by either driver."""
    made = create_engine(database_url.replace("postgresql:", f"postgresql+{request.param}:"))
    ORDERS.metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(ORDERS.delete())
    yield made
    made.dispose()


@pytest.fixture(params=[psycopg2, psycopg])
def bare(database_url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A connection of either driver, as an application without SQLAlchemy has it."""
    made = request.param.connect(database_url)
    yield made
    made.close()


def count(database: Database, table: str) -> int:
    return int(value(database, f"SELECT count(*) FROM {table}"))  # noqa: S608


def ids(ring: RecordingRing) -> list[str]:
    return [bell.workflow_id for bell in ring.take()]


# --- a session of SQLAlchemy ------------------------------------------------------------------


def test_a_workflow_starts_if_the_session_commits_and_is_rung_after_that(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database, bench: Bench
) -> None:
    seen: list[int] = []
    ring.look = lambda _: seen.append(count(database, "aegis_workflow"))
    with Session(app) as session, session.begin():
        session.execute(insert(ORDERS), {"id": 1, "item": "book"})
        handle = engine.start(Once(), id="o-1", session=session)
        assert (handle.id, handle.new, handle.rung) == ("o-1", True, False)
        assert count(database, "aegis_workflow") == 0
        assert ring.calls == 0

    assert count(database, "orders") == 1
    assert ids(ring) == ["o-1"]
    assert seen == [1]  # whoever answers the bell finds the row
    assert run_transition(bench, "o-1", 0) is Ended.COMMITTED
    assert engine.verify_integrity("o-1")[0]


@pytest.mark.parametrize("fail", [True, False])
def test_nothing_of_it_is_left_if_the_session_rolls_back(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database, *, fail: bool
) -> None:
    before = everything(database)
    with contextlib.suppress(ZeroDivisionError), Session(app) as session:
        session.execute(insert(ORDERS), {"id": 1, "item": "book"})
        engine.start(Once(), id="o-1", session=session)
        if fail:
            raise ZeroDivisionError
        session.rollback()

    assert everything(database) == before
    assert count(database, "orders") == 0
    assert ring.calls == 0


def test_a_session_is_rung_for_once_however_often_it_commits(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine
) -> None:
    with Session(app) as session:
        engine.start(Once(), id="o-1", session=session)
        engine.start(Once(), id="o-2", session=session)
        session.commit()
        assert ids(ring) == ["o-1", "o-2"]
        session.execute(insert(ORDERS), {"id": 1, "item": "book"})
        session.commit()
        assert ring.take() == []
        engine.start(Once(), id="o-3", session=session)
        session.commit()
        assert ids(ring) == ["o-3"]
        engine.start(Once(), id="o-4", session=session)
        session.rollback()
        session.commit()
    assert ring.take() == []


def test_a_savepoint_that_is_rolled_back_takes_its_starts_with_it(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    with Session(app) as session, session.begin():
        engine.start(Once(), id="before", session=session)
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            engine.start(Once(), id="inside", session=session)
            with session.begin_nested():
                engine.start(Once(), id="deep", session=session)
            raise ZeroDivisionError
        with session.begin_nested():
            engine.start(Once(), id="kept", session=session)
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                raise ZeroDivisionError
        assert ring.calls == 0  # what a savepoint keeps is not committed yet

    assert ids(ring) == ["before", "kept"]
    assert count(database, "aegis_workflow") == 2


def test_a_conflict_leaves_the_callers_transaction_as_it_was(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    engine.start(Parcel(weight=1), id="p-1", singleton="only")
    ring.take()
    refused: list[tuple[type[Exception], Callable[[Session], object]]] = [
        (StartConflict, lambda s: engine.start(Parcel(weight=2), id="p-1", session=s)),
        (SingletonConflict, lambda s: engine.start(Parcel(), id="p-2", singleton="only", session=s)),
        (InvalidName, lambda s: engine.start(Parcel(), id="no id", session=s)),
        (InvalidData, lambda s: engine.start_many([Parcel(), Start(Parcel(), priority=10)], session=s)),
        (StartConflict, lambda s: engine.start_many([Parcel(), Start(Letter(), id="p-1")], session=s)),
        (WorkflowNotFound, lambda s: engine.send("nobody", "finish", "x", session=s)),
    ]
    with Session(app) as session, session.begin():
        session.execute(insert(ORDERS), {"id": 1, "item": "book"})
        for kind, act in refused:
            with pytest.raises(kind):
                act(session)
        assert session.execute(select(ORDERS.c.item)).scalar_one() == "book"
        engine.start(Parcel(), id="p-3", session=session)

    assert ids(ring) == ["p-3"]
    assert count(database, "aegis_workflow") == 2
    assert count(database, "aegis_transition") == 2


def test_the_callers_objects_are_not_flushed_on_the_way(
    engine: DurableWorkflowEngine, app: Engine, database: Database
) -> None:
    statements: list[str] = []
    with Session(app) as session, session.begin():
        engine.start(Once(), id="o-0", session=session)
        event.listen(session, "before_flush", lambda *_: statements.append("flush"))
        engine.start(Once(), id="o-1", session=session)
        assert statements == []
    assert count(database, "aegis_workflow") == 2


def test_the_same_start_twice_in_one_transaction_is_one(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine
) -> None:
    with Session(app) as session, session.begin():
        first = engine.start(Once(note="x"), id="o-1", session=session)
        again = engine.start(Once(note="x"), id="o-1", session=session)
    assert (first.new, again.new) == (True, False)
    assert ids(ring) == ["o-1"]


def test_two_transactions_that_start_the_same_wait_for_each_other(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine
) -> None:
    handles = []

    def start() -> None:
        with Session(app) as session, session.begin():
            handles.append(engine.start(Once(), id="o-1", session=session))

    with Session(app) as session, session.begin():
        mine = engine.start(Once(), id="o-1", session=session)
        with meanwhile(start) as other:
            other.join(0.3)
            assert other.is_alive()
            session.commit()
    assert (mine.new, handles[0].new) == (True, False)
    assert ids(ring) == ["o-1"]


def test_a_scoped_session_is_the_session_of_this_thread(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine
) -> None:
    sessions = scoped_session(sessionmaker(app))
    engine.start(Once(), id="o-1", session=sessions)
    assert ring.calls == 0
    sessions.commit()
    assert ids(ring) == ["o-1"]
    sessions.remove()


def test_a_session_inside_a_transaction_from_outside_rings_after_that(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    """As test suites of applications have it: the session commits, and the transaction around it does not."""
    with app.connect() as connection:
        around = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            engine.start(Once(), id="o-1", session=session)
            session.commit()
        assert ring.calls == 0
        around.rollback()
    assert ring.calls == 0
    assert count(database, "aegis_workflow") == 0


def test_an_event_is_received_if_the_session_commits(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, bench: Bench
) -> None:
    handle = engine.start(Letter(), id="l-1")
    ring.take()
    with Session(app) as session:
        assert handle.send("finish", "one", key="k", session=session) is False
        session.rollback()
        assert (engine.describe("l-1").inbox, ring.calls) == (0, 0)
        engine.send("l-1", "finish", "one", key="k", session=session)
        session.commit()
    assert ids(ring) == ["l-1"]
    assert run_transition(bench, "l-1", 0) is Ended.COMMITTED
    assert engine.describe("l-1").state == Page.READY


def test_a_workflow_and_its_first_event_in_one_transaction(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, bench: Bench
) -> None:
    with Session(app) as session, session.begin():
        handle = engine.start(Letter(), id="l-1", session=session)
        handle.send("finish", "one", session=session)
    assert ids(ring) == ["l-1"]
    assert run_transition(bench, "l-1", 0) is Ended.COMMITTED


def test_many_are_started_inside_a_transaction(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    with Session(app) as session:
        engine.start_many([Start(Once(), id=f"o-{n}") for n in range(20)], session=session)
        session.rollback()
        assert (count(database, "aegis_workflow"), ring.calls) == (0, 0)
        engine.start_many([Start(Once(), id=f"o-{n}") for n in range(20)], session=session)
        session.commit()
    assert ids(ring) == [f"o-{n}" for n in range(20)]
    assert ring.calls == 1


def test_a_ring_that_fails_does_not_make_the_commit_fail(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no bell")

    ring.look = fail
    with Session(app) as session, session.begin():
        engine.start(Once(), id="o-1", session=session)
    assert count(database, "aegis_workflow") == 1


# --- a connection of SQLAlchemy ---------------------------------------------------------------


def test_a_connection_is_as_good_as_a_session(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    with app.begin() as connection:
        connection.execute(insert(ORDERS), {"id": 1, "item": "book"})
        engine.start(Once(), id="o-1", session=connection)
        assert ring.calls == 0
    assert ids(ring) == ["o-1"]
    with contextlib.suppress(ZeroDivisionError), app.begin() as connection:
        engine.start(Once(), id="o-2", session=connection)
        raise ZeroDivisionError
    assert ring.take() == []
    assert count(database, "aegis_workflow") == 1


def test_a_connection_that_was_not_begun_is_not_committed_for_its_owner(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    with app.connect() as connection:
        engine.start(Once(), id="o-1", session=connection)
        assert count(database, "aegis_workflow") == 0
        connection.commit()
        assert count(database, "aegis_workflow") == 1
        engine.start(Once(), id="o-2", session=connection)  # the next transaction: the one before is done
        assert ids(ring) == ["o-1"]
        connection.rollback()
    assert ring.take() == []
    with app.connect() as connection:  # the same one, from the pool
        connection.execute(select(ORDERS))
        connection.commit()
    assert ring.take() == []


def test_savepoints_of_a_connection(engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine) -> None:
    with app.begin() as connection:
        with contextlib.suppress(ZeroDivisionError), connection.begin_nested():
            engine.start(Once(), id="gone", session=connection)
            raise ZeroDivisionError
        with connection.begin_nested():
            engine.start(Once(), id="kept", session=connection)
    assert ids(ring) == ["kept"]


def test_a_commit_that_fails_starts_nothing(
    engine: DurableWorkflowEngine, ring: RecordingRing, app: Engine, database: Database
) -> None:
    """A constraint that is looked at in the end only."""

    def start(own: Any) -> None:
        own.execute(text("CREATE TEMP TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        own.execute(text("INSERT INTO late VALUES (1), (1)"))
        engine.start(Once(), id="o-1", session=own)

    with pytest.raises(IntegrityError), Session(app) as session, session.begin():
        start(session)
    with pytest.raises(IntegrityError), app.begin() as own:
        start(own)
    assert (count(database, "aegis_workflow"), ring.calls) == (0, 0)


# --- a connection of psycopg2, and Django's ---------------------------------------------------


def test_a_bare_connection_starts_what_its_owner_commits(
    engine: DurableWorkflowEngine, ring: RecordingRing, bare: Any, database: Database
) -> None:
    handle = engine.start(Once(), id="o-1", session=bare)
    assert count(database, "aegis_workflow") == 0
    bare.rollback()
    assert count(database, "aegis_workflow") == 0

    handle = engine.start(Once(), id="o-1", attributes={"customer": 7}, session=bare)
    bare.commit()
    assert (handle.rung, ring.calls) == (False, 0)
    # Nobody rings: the first look does, whatever else is on the queue.
    found = row(database, "o-1")
    assert (found.rings, found.due_at) == (0, found.created_at + GRACE)
    assert handle.ring() is True
    assert ids(ring) == ["o-1"]
    assert row(database, "o-1").rings == 1
    assert engine.describe("o-1").attributes == {"customer": 7}


def test_who_asks_again_where_nobody_rings_leaves_it_to_the_sweep(
    engine: DurableWorkflowEngine, ring: RecordingRing, bare: Any, database: Database
) -> None:
    engine.start(Once(), id="o-1")
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "so", key="k")
    ring.take()
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
    before = row(database, "o-1").due_at, row(database, "l").due_at
    assert engine.start(Once(), id="o-1", session=bare).new is False
    engine.send("l", "finish", "so", key="k", session=bare)
    bare.commit()
    assert ring.take() == []
    assert (row(database, "o-1").due_at, row(database, "l").due_at) == before


def test_a_bare_connection_may_have_cursors_and_json_of_its_own(
    engine: DurableWorkflowEngine, bare: Any, ring: RecordingRing
) -> None:
    """As Django has it: JSON stays text there, and rows are what the application likes."""
    if isinstance(bare, psycopg.Connection):
        bare.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
        bare.adapters.register_loader("jsonb", psycopg.types.string.TextLoader)
    else:
        bare.cursor_factory = psycopg2.extras.RealDictCursor
        psycopg2.extras.register_default_jsonb(bare, loads=lambda text: text)
    engine.start(Letter(), id="l-1")
    engine.send("l-1", "finish", "one", session=bare)
    bare.commit()
    assert engine.ring("l-1") is True
    assert ids(ring) == ["l-1"]
    with bare.cursor() as cursor:
        cursor.execute("""SELECT '{"a": 1}'::jsonb AS a""")
        assert cursor.fetchone() == {"a": '{"a": 1}'}


def test_a_conflict_leaves_a_bare_connection_as_it_was(engine: DurableWorkflowEngine, bare: Any) -> None:
    engine.start(Once(note="x"), id="o-1")
    with bare.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE mine (id int)")
        with pytest.raises(StartConflict):
            engine.start(Once(note="y"), id="o-1", session=bare)
        cursor.execute("SELECT count(*) FROM mine")
        assert cursor.fetchone() == (0,)


@pytest.fixture
def django(database_url: str) -> Iterator[Any]:
    """Django's connection to the same database."""
    parsed = make_url(database_url)
    alias = f"d{uuid.uuid4().hex}"
    connections.databases[alias] = connections.configure_settings(
        {
            "default": {},
            alias: {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parsed.database,
                "USER": parsed.username,
                "HOST": parsed.query["host"],
            },
        }
    )[alias]
    yield connections[alias]
    connections[alias].close()
    del connections[alias]
    del connections.databases[alias]


def test_djangos_connection_says_itself_when_it_has_committed(
    engine: DurableWorkflowEngine, ring: RecordingRing, django: Any, database: Database
) -> None:
    seen: list[int] = []
    ring.look = lambda _: seen.append(count(database, "aegis_workflow"))
    with transaction.atomic(using=django.alias):
        engine.start(Letter(), id="l-1", session=django)
        engine.send("l-1", "finish", "one", session=django)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=django.alias):
            engine.start(Once(), id="gone", session=django)
            raise ZeroDivisionError
        with pytest.raises(StartConflict):
            engine.start(Once(), id="l-1", session=django)
        assert ring.calls == 0
    assert ids(ring) == ["l-1"]
    assert seen == [1]
    with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=django.alias):
        engine.start(Once(), id="gone", session=django)
        raise ZeroDivisionError
    assert ring.take() == []
    assert count(database, "aegis_workflow") == 1


def test_a_commit_of_django_is_counted_as_a_write_and_what_is_rolled_back_is_not(
    engine: DurableWorkflowEngine, django: Any
) -> None:
    with transaction.atomic(using=django.alias):
        engine.start(Once(), id="o-1", session=django)
        assert engine.writes == 0
    assert engine.writes == 1
    with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=django.alias):
        engine.start(Once(), id="gone", session=django)
        raise ZeroDivisionError
    assert engine.writes == 1


def test_a_commit_of_a_bare_connection_is_counted_when_it_is_rung(engine: DurableWorkflowEngine, bare: Any) -> None:
    handle = engine.start(Once(), id="o-1", session=bare)
    bare.commit()
    assert engine.writes == 0  # nobody told
    handle.ring()
    assert engine.writes == 1


def test_djangos_connection_is_none_for_the_engine_that_is_awaited(django: Any) -> None:
    with transaction.atomic(using=django.alias), pytest.raises(ForeignSession, match=r"it blocks.*aegis\.sync"):
        blocking_side(django)


def test_djangos_connection_without_a_transaction_is_refused(engine: DurableWorkflowEngine, django: Any) -> None:
    assert "transaction.atomic" in str(refused(engine, django))


def test_djangos_connection_to_another_kind_of_database_is_refused(engine: DurableWorkflowEngine) -> None:
    with transaction.atomic():
        assert "sqlite3" in str(refused(engine, connection))


# --- what AEGIS cannot be part of -------------------------------------------------------------


def refused(engine: DurableWorkflowEngine, session: object) -> ForeignSession:
    with pytest.raises(ForeignSession) as caught:
        engine.start(Once(), id="o-1", session=session)
    with pytest.raises(ForeignSession):
        engine.send("o-1", "finish", session=session)
    return caught.value


def test_a_database_without_aegis(engine: DurableWorkflowEngine, postgres: PrivatePostgres) -> None:
    with postgres.database("template1") as url:
        other = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
        with Session(other) as session, session.begin():
            session.execute(text("CREATE TABLE mine (id int)"))
            assert "aegis_deployment" in str(refused(engine, session))
            session.execute(text("SELECT * FROM mine"))  # its transaction goes on
        other.dispose()


def test_another_deployment(engine: DurableWorkflowEngine, app: Engine, database: Database) -> None:
    with Session(app) as session, session.begin():
        engine.start(Once(), id="mine", session=session)
    sql(database, "UPDATE aegis_deployment SET name = 'other'")
    app.dispose()
    with Session(app) as session:
        assert "'other'" in str(refused(engine, session))


def test_another_kind_of_database(engine: DurableWorkflowEngine) -> None:
    with Session(create_engine("sqlite://")) as session:
        assert "sqlite" in str(refused(engine, session))


def test_a_session_bound_to_nothing(engine: DurableWorkflowEngine) -> None:
    refused(engine, Session())


def test_autocommit(engine: DurableWorkflowEngine, app: Engine, bare: Any, database: Database) -> None:
    before = everything(database)
    with app.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert "autocommit" in str(refused(engine, connection))
    bare.autocommit = True
    assert "autocommit" in str(refused(engine, bare))
    assert everything(database) == before


def test_a_transaction_that_has_failed(engine: DurableWorkflowEngine, app: Engine) -> None:
    with Session(app) as session:
        with contextlib.suppress(Exception):
            session.execute(text("SELECT 1 / 0"))
        assert "roll it back" in str(refused(engine, session))


def test_what_is_closed(engine: DurableWorkflowEngine, app: Engine, bare: Any) -> None:
    connection = app.connect()
    connection.close()
    assert "closed" in str(refused(engine, connection))
    bare.close()
    assert "closed" in str(refused(engine, bare))


@pytest.mark.parametrize("given", [42, "postgresql://", sqlite3.connect(":memory:"), object()])
def test_what_is_no_session_at_all(engine: DurableWorkflowEngine, given: object) -> None:
    assert type(given).__qualname__ in str(refused(engine, given))


def test_a_server_that_went_away(engine: DurableWorkflowEngine, app: Engine, postgres: PrivatePostgres) -> None:
    with Session(app) as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        postgres.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(DatabaseUnavailable):
            engine.start(Once(), id="o-1", session=session)


def test_an_event_for_one_that_has_ended(engine: DurableWorkflowEngine, app: Engine) -> None:
    engine.start(Letter(), id="l-1")
    engine.cancel("l-1")
    with Session(app) as session, pytest.raises(WrongStatus):
        engine.send("l-1", "finish", "one", session=session)

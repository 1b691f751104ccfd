"""One suite, for PostgreSQL and SQLite, in a file and in memory, and for both engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_servers import DEPLOYMENT, TEMPLATE, PrivatePostgres
from sqlalchemy import text
from store_workflows import SCRIPT, Act
from stores import ENGINES, STORES, Driven, World, make_engine, make_runner

from aegis.persistence.database import Database
from aegis.persistence.migrate import first_rows, upgrade
from aegis.persistence.models import Base


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared_url(postgres: PrivatePostgres) -> Iterator[str]:
    """One PostgreSQL database a file of tests: to make one takes longer than most of these."""
    with postgres.database(TEMPLATE) as url:
        yield url


@pytest.fixture
def database(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of its own for one test."""
    if store == "postgresql":
        made = Database(request.getfixturevalue("shared_url"))
        _clean(made)
        yield made
        made.close()
        return
    made = Database("sqlite://" if store == "memory" else f"sqlite:///{tmp_path / 'aegis.db'}")
    upgrade(made, deployment=DEPLOYMENT)
    yield made
    made.close()


def _clean(database: Database) -> None:
    with database.transaction() as session:
        connection = session.connection()
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # past the append-only triggers
        connection.execute(text("DROP TABLE IF EXISTS seats"))
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
        first_rows(connection, DEPLOYMENT)


@pytest.fixture(params=ENGINES)
def world(request: pytest.FixtureRequest, store: str, database: Database) -> Iterator[World]:
    runner = make_runner(database)
    engine = make_engine(request.param, database, runner.ring)
    if request.param == "blocking":
        yield World(store, database, engine, runner)
        return
    with asyncio.Runner() as loop:
        yield World(store, database, Driven(engine, loop), runner)
        loop.run(engine.close())


@pytest.fixture
def script() -> Iterator[dict[str, Act]]:
    """What the handlers do, by their names; nothing where nothing is said."""
    yield SCRIPT
    SCRIPT.clear()

"""An engine and a worker's bench on the test's own database; no broker, no processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lonely import Lonely
from private_servers import DEPLOYMENT, TEMPLATE, PrivatePostgres, folder
from sqlalchemy import NullPool, create_engine, text
from store_workbench import RecordingRing, make_bench, make_engine
from store_workflows import SCRIPT, Act
from tampering import Scenes

from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.migrate import first_rows, upgrade
from aegis.persistence.models import Base
from aegis.persistence.schema import VERSION_TABLE, wanted
from aegis.tasks.bench import Bench


@pytest.fixture(scope="module")
def shared_url(postgres: PrivatePostgres) -> Iterator[str]:
    """One database a file: to make one takes longer than most of these tests."""
    with postgres.database(TEMPLATE) as url:
        yield url


@pytest.fixture(scope="module")
def scenes(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Histories that are attacked, told once a file."""
    database = Database(shared_url.replace("postgresql://", "postgresql+psycopg2://"))
    try:
        return Scenes.prepare(database, tmp_path_factory.mktemp("outside"))
    finally:
        database.close()


@pytest.fixture
def database_url(shared_url: str) -> str:
    """The file's database, as it was when it was made."""
    cleaner = create_engine(shared_url.replace("postgresql://", "postgresql+psycopg2://"), poolclass=NullPool)
    with cleaner.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # past the append-only triggers
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
        first_rows(connection, DEPLOYMENT)
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :wanted"), {"wanted": wanted()})  # noqa: S608
    return shared_url


@pytest.fixture
def ring() -> RecordingRing:
    return RecordingRing()


@pytest.fixture
def engine(database: Database, ring: RecordingRing) -> DurableWorkflowEngine:
    return make_engine(database, ring)


@pytest.fixture
def bench(database: Database, ring: RecordingRing) -> Bench:
    return make_bench(database, ring)


@pytest.fixture
def script() -> Iterator[dict[str, Act]]:
    """What the handlers do, by their names; nothing where nothing is said."""
    yield SCRIPT
    SCRIPT.clear()


@pytest.fixture(scope="module")
def lonely_server() -> Iterator[PrivatePostgres]:
    with folder("lonely") as root:
        made = PrivatePostgres(root)
        made.start()
        database = Database(made.url(), pool_size=1)
        upgrade(database, deployment=DEPLOYMENT)
        database.close()
        yield made
        made.stop()


@pytest.fixture
def lonely(lonely_server: PrivatePostgres) -> Iterator[Lonely]:
    made = Lonely(lonely_server)
    try:
        yield made
    finally:
        made.waits("")
        made.close()

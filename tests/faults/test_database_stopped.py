"""F11, F19, F27: PostgreSQL stopped, killed, full of connections, or silent after a COMMIT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployment import Deployment, deployed
from fault_workflows import Steps
from local_engine import eventually
from private_servers import TEMPLATE, PrivateBroker, PrivatePostgres, folder
from sqlalchemy import make_url

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade

pytestmark = pytest.mark.faults

MANY = 30


@pytest.fixture
def own_postgres() -> Iterator[PrivatePostgres]:
    with folder("own-postgres") as root:
        server = PrivatePostgres(root)
        server.start()
        database = Database(server.url().replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
        upgrade(database)
        database.close()
        yield server
        server.container.remove()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_stopped_and_started_under_load(
    tmp_path: Path, own_postgres: PrivatePostgres, broker: PrivateBroker, how: str
) -> None:
    with deployed(tmp_path, own_postgres.url(), broker.url) as deployment:
        deployment.beat()
        deployment.worker(concurrency=2)
        for number in range(MANY):
            handle = deployment.engine.start(Steps(pause=0.05), id=f"steps-{number:03d}")
            deployment.ledger.accepted(handle.id)
        eventually("some are done", lambda: len(deployment.engine.list(status="completed")) > 2)
        getattr(own_postgres, how)()
        with pytest.raises(DatabaseUnavailable):
            deployment.engine.start(Steps(), id="nobody-is-there")
        own_postgres.start()
        deployment.await_all("completed", MANY, within=90)
        deployment.assert_sound()
        attempts = [link.attempt for row in deployment.engine.list() for link in deployment.engine.history(row.id)]
        assert max(attempts) == 1, "a database that was away must not consume an attempt"


def test_a_handler_that_outlasts_the_database_is_recorded_once_it_is_back(
    tmp_path: Path, own_postgres: PrivatePostgres, broker: PrivateBroker
) -> None:
    with deployed(tmp_path, own_postgres.url(), broker.url) as deployment:
        deployment.beat()
        deployment.worker()
        deployment.ledger.accepted(deployment.engine.start(Steps(pause=2), id="slow").id)
        eventually("the handler runs", lambda: deployment.effects("slow", 1) == 1)
        own_postgres.stop()
        own_postgres.start()
        deployment.await_status("slow", "completed")
        assert deployment.effects("slow", 1) == 1, "its result was held until the database was back"
        deployment.assert_sound()


@pytest.mark.parametrize("point", ["after claim", "after commit"])
def test_an_answer_that_got_lost_is_looked_up_never_repeated_blindly(
    deploy: Callable[..., Deployment], tmp_path: Path, point: str
) -> None:
    """Executed, then no answer: the claim is taken up again, the commit is found to be there."""
    once = tmp_path / "once"
    deployment = deploy(AEGIS_TEST_FAULT=f"{point}:unknown", AEGIS_TEST_FAULT_ONCE=str(once))
    deployment.worker()
    deployment.ledger.accepted(deployment.engine.start(Steps(), id="steps").id)
    deployment.await_status("steps", "completed")  # without any sweep
    assert once.exists()
    assert [deployment.effects("steps", seq) for seq in (1, 2, 3)] == [1, 1, 1]
    assert [link.attempt for link in deployment.engine.history("steps")] == [1, 1, 1, 1]
    deployment.assert_sound()


def test_no_connection_to_be_had_costs_no_attempt(
    tmp_path: Path, postgres: PrivatePostgres, broker: PrivateBroker
) -> None:
    with postgres.database(TEMPLATE) as url, deployed(tmp_path, url, broker.url) as deployment:
        name = make_url(url).database
        deployment.beat()
        deployment.ledger.accepted(deployment.engine.start(Steps(), id="steps").id)
        # Superusers are not limited: the workers come as somebody else.
        postgres.execute("DO $$ BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        deployment.engine.database.close()
        with deployment.database.statement() as connection:
            connection.exec_driver_sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")
            connection.exec_driver_sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest")
        postgres.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
        worker = deployment.worker(wait=False, AEGIS_DATABASE_URL=url.replace("aegis@", "guest@"))
        worker.wait_for_log("waiting for the database", timeout=30)
        postgres.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
        deployment.await_status("steps", "completed")
        assert {link.attempt for link in deployment.engine.history("steps")} == {1}
        deployment.assert_sound()

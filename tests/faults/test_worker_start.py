"""A worker that cannot work says so when it starts, in one line, and does not take messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployment import deployed
from fault_workflows import Steps
from private_servers import PrivateBroker, PrivatePostgres, folder

from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade

pytestmark = pytest.mark.faults


def test_a_missing_schema_ends_the_worker_at_once(
    tmp_path: Path, postgres: PrivatePostgres, broker: PrivateBroker
) -> None:
    with postgres.database() as url, deployed(tmp_path, url, broker.url) as deployment:
        worker = deployment.worker(wait=False)
        process = worker.container._container.process
        assert process is not None
        assert process.wait(30) == 78
        assert "run `aegis db upgrade`" in worker.logs()
        assert "Traceback" not in worker.logs()


def test_a_database_that_comes_later_is_waited_for(tmp_path: Path, broker: PrivateBroker) -> None:
    with folder("late-postgres") as root:
        postgres = PrivatePostgres(root)
        postgres.start()
        try:
            database = Database(postgres.url().replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
            upgrade(database)
            database.close()
            with deployed(tmp_path, postgres.url(), broker.url) as deployment:
                deployment.engine.start(Steps(), id="steps")
                postgres.stop()
                worker = deployment.worker(wait=False)
                worker.wait_for_log("started without the database", timeout=30)
                postgres.start()
                deployment.await_status("steps", "completed")
        finally:
            postgres.container.remove()

"""Retention runs on beat: it is in the schedule, and a real beat removes what the settings say, and no more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from deployment import Deployment
from fault_workflows import Seasons
from local_engine import eventually
from store_workbench import sql

from aegis.config.settings import Settings
from aegis.core.errors import WorkflowPurged
from aegis.core.names import SYSTEM
from aegis.persistence import log
from aegis.tasks import entry
from aegis.workers.factory import make_app
from aegis.workers.schedule import InProcessScheduler, schedule

DAY = 86400


def test_it_stands_in_the_schedule_beside_everything_else_that_beat_runs() -> None:
    settings = Settings(home=Path("/nonexistent"), broker_url="redis://127.0.0.1:1/0", database_url="postgresql://a/b")
    entries = schedule(settings)
    assert {found["task"] for found in entries.values()} == set(entry.PERIODIC)
    assert entries["aegis-retain"] == {"task": "aegis.retain", "schedule": 300.0, "options": {"expires": 300.0}}
    # And as beat reads it: a task of ours, that runs aside.
    scheduler = InProcessScheduler(app=make_app(settings), lazy=True)
    scheduler.setup_schedule()
    found = scheduler.schedule["aegis-retain"]
    assert (found.task, found.schedule.run_every) == (entry.RETAIN, timedelta(seconds=300))
    assert found.task in scheduler.app.tasks
    assert found.task in entry.SLOW


@pytest.mark.faults
def test_a_real_beat_prunes_and_purges_what_is_old_enough(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(
        AEGIS_PRUNE_KEEP="2",
        AEGIS_PRUNE_AFTER=str(20 * DAY),
        AEGIS_PURGE_AFTER=str(20 * DAY),
        AEGIS_BACKUP_INTERVAL="0",
    )
    engine = deployment.engine
    for name in ("old-ended", "old-open", "young-ended"):
        engine.start(Seasons(), id=name)
        for _ in range(3):
            engine.pause(name)
            engine.resume(name)
    for name in ("old-ended", "young-ended"):
        engine.cancel(name)
    with deployment.database.transaction() as session:
        connection = session.connection()
        assert log.lock(connection)
        log.take_up(connection, 1000)
    for name in ("old-ended", "old-open"):
        past = "interval '30 days'"
        older = f"created_at = created_at - {past}, updated_at = updated_at - {past}"
        sql(deployment.database, f"UPDATE aegis_workflow SET {older} WHERE id = :id", id=name)  # noqa: S608
        sql(deployment.database, f"UPDATE aegis_checkpoint SET at = at - {past} WHERE workflow_id = :id", id=name)  # noqa: S608
    whole = checkpoints(deployment, "young-ended")

    deployment.beat("quick_beat")
    eventually("it has removed both", lambda: len(records(deployment)) == 2)

    assert records(deployment) == [("purged", "system:retention"), ("pruned", "system:retention")]
    with pytest.raises(WorkflowPurged):
        engine.describe("old-ended")
    assert checkpoints(deployment, "old-open") == [0, 5, 6], "the first is never pruned"
    assert checkpoints(deployment, "young-ended") == whole
    assert [engine.verify_integrity(name) for name in ("old-open", "young-ended")] == [(True, None)] * 2
    report = engine.verify_audit_chain("old-open")
    assert [str(finding.code) for finding in report.findings if "PRUNED" in finding.code] == ["CHECKPOINT_PRUNED"]


def records(deployment: Deployment) -> list[tuple[str, str]]:
    """What the system's own chain tells of removals."""
    query = "SELECT event, actor FROM aegis_transition WHERE workflow_id = %s AND seq > 0 ORDER BY seq"
    with deployment.database.statement() as connection:
        return [(event, actor) for event, actor in connection.exec_driver_sql(query, (SYSTEM,))]


def checkpoints(deployment: Deployment, workflow_id: str) -> list[int]:
    query = "SELECT seq FROM aegis_checkpoint WHERE workflow_id = %s ORDER BY seq"
    with deployment.database.statement() as connection:
        return [seq for (seq,) in connection.exec_driver_sql(query, (workflow_id,))]

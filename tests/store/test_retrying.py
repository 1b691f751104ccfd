"""Retrying many: which of them, in how many transactions, and what is left as it is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from event_workflows import Paying
from store_workbench import RecordingRing, everything, row, sql
from store_workflows import Act, Booking, Once

from aegis import Context
from aegis.core.errors import AegisError, InvalidData, InvalidName, NotCanonical
from aegis.persistence import retrying
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

Script = dict[str, Act]


def fail(engine: DurableWorkflowEngine, bench: Bench, script: Script, *ids: str, error: BaseException) -> None:
    def act(_workflow: Any, _ctx: Context) -> None:
        raise error

    script["act"] = act
    for workflow_id in ids:
        engine.start(Once(), id=workflow_id)
        assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
    del script["act"]


@pytest.fixture
def troubled(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: Script
) -> None:
    """Three that failed, one that is quarantined, one that is well, one that was cancelled."""
    fail(engine, bench, script, "a1", "a2", error=OSError("Connection refused by 10.0.0.1"))
    fail(engine, bench, script, "b1", error=ValueError("100% wrong"))
    engine.start(Once(), id="q1")
    sql(database, "UPDATE aegis_workflow SET attempt = 1 WHERE id = 'q1'")
    assert run_transition(bench, "q1", 0) is Ended.COMMITTED
    assert engine.describe("q1").status == "quarantined"
    engine.start(Booking(), id="well")
    fail(engine, bench, script, "gone", error=OSError("Connection refused"))
    engine.cancel("gone")
    ring.take()


def retried(database: Database) -> list[str]:
    with database.statement() as connection:
        return list(
            connection.exec_driver_sql(
                "SELECT workflow_id FROM aegis_transition WHERE event = 'retried' ORDER BY workflow_id"
            ).scalars()
        )


@pytest.mark.usefixtures("troubled")
@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["a1", "a2", "b1", "q1"]),
        ({"status": "failed"}, ["a1", "a2", "b1"]),
        ({"status": "quarantined"}, ["q1"]),
        ({"type": "store.Once"}, ["a1", "a2", "b1", "q1"]),
        ({"type": Once}, ["a1", "a2", "b1", "q1"]),
        ({"type": Booking}, []),
        ({"type": "nobody"}, []),
        ({"state": "open"}, ["a1", "a2", "b1", "q1"]),
        ({"state": "booked"}, []),
        ({"error": "connection REFUSED"}, ["a1", "a2"]),
        ({"error": "OSError"}, ["a1", "a2"]),
        ({"error": "100%"}, ["b1"]),
        ({"error": "1%g"}, []),
        ({"error": "worker died"}, ["q1"]),
        ({"older_than": timedelta(0)}, ["a1", "a2", "b1", "q1"]),
        ({"older_than": timedelta(hours=1)}, []),
        ({"limit": 2}, ["a1", "a2"]),
        ({"limit": 2, "error": "wrong"}, ["b1"]),
        ({"status": "failed", "error": "10.0.0.1", "type": Once, "state": "open"}, ["a1", "a2"]),
    ],
)
def test_those_are_retried_that_everything_is_true_of(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, filters: dict[str, Any], ids: list[str]
) -> None:
    before = everything(database)
    assert engine.retry_all(**filters, dry_run=True) == len(ids)
    assert everything(database) == before
    assert engine.retry_all(**filters, reason="mended") == len(ids)
    assert retried(database) == ids
    assert sorted(bell.workflow_id for bell in ring.take()) == ids
    for workflow_id in ids:
        assert engine.describe(workflow_id).status == "pending"
        assert engine.history(workflow_id)[-1].payload == {"reason": "mended"}
        assert engine.verify_integrity(workflow_id) == (True, None)


@pytest.mark.usefixtures("troubled")
def test_many_are_retried_in_batches(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_BATCH", 2)
    seen: list[list[str]] = []
    ring.look = lambda bells: seen.append([bell.workflow_id for bell in bells])
    assert engine.retry_all() == 4
    assert seen == [["a1", "a2"], ["b1", "q1"]]


@pytest.mark.usefixtures("troubled")
def test_one_that_cannot_be_retried_holds_up_no_other(
    engine: DurableWorkflowEngine, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    sql(database, "UPDATE aegis_checkpoint SET body = '\\x00' WHERE workflow_id = 'a1'")
    sql(database, "DELETE FROM aegis_checkpoint WHERE workflow_id = 'a2'")
    assert engine.retry_all() == 2
    assert retried(database) == ["b1", "q1"]
    assert (row(database, "a1").status, row(database, "a2").status) == ("failed", "failed")


@pytest.mark.usefixtures("troubled")
def test_one_that_somebody_has_locked_is_left_to_them(engine: DurableWorkflowEngine, database: Database) -> None:
    with database.transaction() as session:
        session.connection().exec_driver_sql("SELECT 1 FROM aegis_workflow WHERE id = 'a1' FOR UPDATE")
        assert engine.retry_all() == 3
    assert retried(database) == ["a2", "b1", "q1"]


@pytest.mark.usefixtures("troubled")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"status": "completed"}, InvalidData),
        ({"status": "nonsense"}, InvalidData),
        ({"limit": 0}, InvalidData),
        ({"older_than": timedelta(seconds=-1)}, InvalidData),
        ({"type": "a\0b"}, NotCanonical),
        ({"error": "\ud800"}, NotCanonical),
        ({"reason": "x" * 2001}, InvalidName),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_retried(
    engine: DurableWorkflowEngine, database: Database, options: dict[str, Any], error: type[AegisError]
) -> None:
    before = everything(database)
    with pytest.raises(error):
        engine.retry_all(**options)
    assert everything(database) == before


def test_a_workflow_that_fails_again_at_once_is_not_retried_for_ever(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: Script
) -> None:
    fail(engine, bench, script, "a1", "a2", error=OSError("no"))

    def act(_workflow: Any, _ctx: Context) -> None:
        msg = "still"
        raise OSError(msg)

    script["act"] = act
    # A worker that is quicker than the next batch.
    ring.look = lambda bells: [run_transition(bench, bell.workflow_id, bell.seq) for bell in bells]
    assert engine.retry_all() == 2
    assert {engine.describe(one).status for one in ("a1", "a2")} == {"failed"}


def test_a_quiet_place_is_left_alone(engine: DurableWorkflowEngine, ring: RecordingRing) -> None:
    engine.start(Paying(), id="p")
    ring.take()
    assert engine.retry_all() == 0
    assert ring.calls == 1, "that of the start"

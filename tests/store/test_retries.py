"""Trying again, and giving up: by the kind of error, when the other side says so, and to another state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from event_workflows import Paying, Payment
from store_workbench import make_due, row, run_where_it_is_sent, sql, value
from store_workflows import Act, Once

from aegis import Context, RetryAfter
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

Script = dict[str, Act]
SECOND = timedelta(seconds=1)


def raising(make: Callable[[], BaseException]) -> Act:
    def act(_workflow: Any, _ctx: Context) -> None:
        raise make()

    return act


# --- by the kind of error -------------------------------------------------------------------


def test_an_error_that_is_never_tried_again_gives_up_at_once(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pay"] = raising(lambda: PermissionError("the card is blocked"))
    engine.start(Paying(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.describe("p").state == "claimed"
    assert engine.history("p")[-1].attempt == 1


def test_any_other_error_is_tried_again(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pay"] = raising(lambda: OSError("the line is dead"))
    engine.start(Paying(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    assert row(database, "p").attempt == 1


# --- giving up --------------------------------------------------------------------------------


def test_giving_up_leads_to_the_state_that_is_there_for_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def pay(workflow: Paying, ctx: Context) -> None:
        workflow.tries += 1
        ctx.checkpoint()
        workflow.tries += 100  # lost with the attempt
        msg = "the line is dead"
        raise OSError(msg)

    script["pay"] = pay
    engine.start(Paying(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    make_due(database, "p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    last = engine.history("p")[-1]
    assert (last.event, last.from_state, last.to_state, last.attempt) == ("pay", "due", "claimed", 2)
    assert isinstance(last.payload, dict)
    assert {name: last.payload[name] for name in ("error", "gave_up")} == {
        "error": {"type": "OSError", "message": "the line is dead"},
        "gave_up": True,
    }
    assert len(last.payload["progress"]) == 2  # type: ignore[arg-type]
    assert engine.get("p") == Paying(state=Payment.CLAIMED, tries=2), "as it was last saved"
    found = row(database, "p")
    assert (found.status, found.attempt, found.error, found.entered_seq) == ("waiting", 0, None, 1)
    assert found.entered_at == last.at
    assert engine.verify_integrity("p") == (True, None)


def test_giving_up_on_an_event_consumes_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pay"] = raising(lambda: PermissionError("no"))
    script["book"] = raising(lambda: OSError("no books"))
    engine.start(Paying(), id="p")
    run_transition(bench, "p", 0)
    engine.send("p", "money", 7, key="k", reason="at last")
    assert run_transition(bench, "p", 1) is Ended.COMMITTED
    last = engine.history("p")[-1]
    assert (last.event, last.to_state) == ("book", "written off")
    assert last.payload == {
        "data": 7,
        "key": "k",
        "sender": "user:ada",
        "reason": "at last",
        "error": {"type": "OSError", "message": "no books"},
        "gave_up": True,
    }
    found = row(database, "p")
    assert (found.status, found.inbox) == ("completed", 0)
    assert value(database, "SELECT consumed_seq FROM aegis_event") == 2
    assert engine.verify_integrity("p") == (True, None)


def test_a_handler_that_killed_its_worker_every_time_gives_up_as_well(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    ran: list[int] = []
    script["pay"] = lambda _workflow, _ctx: ran.append(1)
    engine.start(Paying(), id="p")
    sql(database, "UPDATE aegis_workflow SET attempt = 2")  # it was claimed twice, and never heard of again
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert ran == []
    last = engine.history("p")[-1]
    assert (last.event, last.to_state) == ("pay", "claimed")
    assert last.payload == {
        "error": {
            "type": "RuntimeError",
            "message": "its worker died in each of 2 attempts at events.Paying.pay",
        },
        "gave_up": True,
    }


def test_without_such_a_state_it_fails_as_ever(engine: DurableWorkflowEngine, bench: Bench, script: Script) -> None:
    script["act"] = raising(lambda: OSError("no"))
    engine.start(Once(), id="o")
    assert run_transition(bench, "o", 0) is Ended.COMMITTED
    assert engine.describe("o").status == "failed"


# --- when the other side says when ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "within"),
    [
        (lambda: 120, timedelta(seconds=120)),
        (lambda: 0.5, timedelta(seconds=0.5)),
        (lambda: timedelta(minutes=3), timedelta(minutes=3)),
        (lambda: datetime.now(UTC) + timedelta(minutes=5), timedelta(minutes=5)),
        (lambda: datetime.now(UTC) - timedelta(days=5), timedelta(0)),
        (lambda: 0, timedelta(0)),
    ],
)
def test_the_next_attempt_is_when_the_handler_says(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    delay: Callable[[], Any],
    within: timedelta,
) -> None:
    script["pay"] = raising(lambda: RetryAfter(delay()))
    engine.start(Paying(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    found = row(database, "p")
    assert (found.attempt, found.status) == (1, "pending")
    assert within - SECOND < found.ready_at - found.updated_at < within + SECOND
    assert abs(found.due_at - found.ready_at) < SECOND
    assert found.error["type"] == "aegis.core.retry.RetryAfter"


def test_it_counts_as_an_attempt_unless_it_says_otherwise(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pay"] = raising(lambda: RetryAfter(60, counts=False))
    engine.start(Paying(), id="p")
    for _ in range(5):
        assert run_transition(bench, "p", 0) is Ended.FAILED
        assert row(database, "p").attempt == 0
        make_due(database, "p")
    script["pay"] = raising(lambda: RetryAfter(60))
    assert run_transition(bench, "p", 0) is Ended.FAILED
    assert row(database, "p").attempt == 1
    make_due(database, "p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.describe("p").state == "claimed", "it was the last of its attempts"


@pytest.mark.parametrize("nonsense", ["soon", -1, float("nan"), None, datetime(2026, 1, 1), True])  # noqa: DTZ001
def test_what_is_no_time_stops_the_workflow_and_says_why(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, nonsense: Any
) -> None:
    script["act"] = raising(lambda: RetryAfter(nonsense))
    engine.start(Once(), id="o")
    assert run_transition(bench, "o", 0) is Ended.COMMITTED
    error = engine.describe("o").error
    assert error is not None
    assert (error["type"], "RetryAfter is not valid: /delay:" in error["message"]) == (
        "aegis.core.errors.InvalidData",
        True,
    )


def test_why_it_is_to_be_tried_again_is_kept(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def act(_workflow: Any, _ctx: Context) -> None:
        raise RetryAfter(30) from OSError("429 Too Many Requests")

    script["pay"] = act
    engine.start(Paying(), id="p")
    run_where_it_is_sent(bench, "p", 0)
    assert row(database, "p").error["message"] == "to be tried again after 0:00:30 (429 Too Many Requests)"

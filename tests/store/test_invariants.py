"""The checker of all fault tests: silent about a sound history, and loud about each way of being unsound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from store_workbench import claimed, make_due, sql
from store_workflows import Act, Once, Parcel, Relay

from aegis import Context
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import run_transition
from aegis.testing.invariants import Rules, Violation, check
from aegis.testing.invariants import __doc__ as law
from aegis.testing.ledger import ACCEPTED, EFFECT, Entry, Ledger

RULES = Rules(max_attempts={"one": 3, "two": 3, "three": 3, "act": 1, "pack": 3}, silent=["pack"])


@dataclass(frozen=True)
class Case:
    """A database and a ledger in which something is planted."""

    database: Database
    entries: list[Entry]

    def sql(self, statement: str) -> None:
        assert sql(self.database, statement) > 0, "nothing was planted"

    def place(self, seq: int, workflow_id: str = "ended") -> int:
        """Return where the ledger has the last effect of a transition."""
        return max(
            place
            for place, entry in enumerate(self.entries)
            if (entry.kind, entry.workflow_id, entry.seq) == (EFFECT, workflow_id, seq)
        )

    def check(self) -> list[Violation]:
        return check(self.database, self.entries, RULES)


def noting(ledger: Ledger, name: str, flaky: dict[str, int]) -> Act:
    """A handler that leaves its effect in the ledger, and raises in its first attempts where it is flaky."""

    def act(_workflow: object, ctx: Context) -> None:
        ledger.effect(ctx.workflow_id, ctx._position.seq + 1, name, ctx.attempt)
        if ctx.attempt <= flaky.get(name, 0):
            raise RuntimeError

    return act


@pytest.fixture
def case(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act], tmp_path: Path
) -> Case:
    """A sound history of every kind: ended, waiting, failed, quarantined, cancelled, paused, retried, resumed."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    flaky = {"two": 1}
    script |= {name: noting(ledger, name, flaky) for name in ("one", "two", "three", "act")}

    def start(workflow: Relay | Once | Parcel, workflow_id: str) -> None:
        ledger.accepted(engine.start(workflow, id=workflow_id).id)

    def run(workflow_id: str, seq: int, times: int = 1) -> None:
        for _ in range(times):
            make_due(database, workflow_id)
            run_transition(bench, workflow_id, seq)

    for workflow_id in ("ended", "waiting", "cancelled", "paused", "resumed"):
        start(Relay(), workflow_id)
        run(workflow_id, 0)
        if workflow_id == "ended":
            engine.checkpoint(workflow_id)
        run(workflow_id, 1, times=2)  # the first attempt fails
    engine.send("ended", "go")
    run("ended", 2)
    engine.cancel("cancelled")
    engine.pause("paused")
    engine.pause("resumed")
    engine.resume("resumed")
    start(Parcel(), "timer")
    run("timer", 0)
    flaky["act"] = 1
    for workflow_id in ("failed", "retried"):
        start(Once(), workflow_id)
        run(workflow_id, 0)
    del flaky["act"]
    engine.retry("retried")
    run("retried", 2)
    start(Once(), "quarantined")
    claimed(database, "quarantined")
    sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL WHERE id = 'quarantined'")
    run("quarantined", 0)
    return Case(database, ledger.entries())


def test_a_sound_history_has_no_violations(case: Case, engine: DurableWorkflowEngine) -> None:
    statuses = {row.id: row.status for row in engine.list()}
    assert statuses == {
        "ended": "completed",
        "waiting": "waiting",
        "resumed": "waiting",
        "timer": "waiting",
        "cancelled": "cancelled",
        "paused": "paused",
        "failed": "failed",
        "retried": "completed",
        "quarantined": "quarantined",
    }
    assert case.check() == []


def test_nothing_at_all_is_sound(database: Database) -> None:
    assert check(database, [], RULES) == []


# --- one violation of each -------------------------------------------------------------------

Plant = Callable[[Case], object]


def _swap(case: Case, one: int, other: int) -> None:
    case.entries[one], case.entries[other] = case.entries[other], case.entries[one]


def _effect(case: Case, seq: int, name: str, attempt: int = 1, workflow_id: str = "ended") -> None:
    case.entries.append(Entry(kind=EFFECT, workflow_id=workflow_id, seq=seq, name=name, attempt=attempt, pid=1, at=0.0))


def _accept(case: Case, workflow_id: str, kind: str = ACCEPTED) -> None:
    case.entries.append(Entry(kind=kind, workflow_id=workflow_id, seq=0, name="start", attempt=1, pid=1, at=0.0))


def _tried_by_another(case: Case) -> None:
    place = case.place(2, "waiting")
    case.entries[place] = replace(case.entries[place], attempt=1)


def _before_the_winner(case: Case) -> None:
    """The second transition's effect came after the first attempt of the first, but before the one that won."""
    early, late = case.place(1), case.place(2) - 1
    moved = case.entries[early]
    case.entries[early] = replace(moved, attempt=2)
    case.entries.insert(late + 1, moved)


@dataclass(frozen=True)
class Planted:
    """One way to be unsound: the invariant, where it has to be found, and how it is planted."""

    invariant: str
    workflow_id: str
    seq: int | None
    plant: Plant
    along: frozenset[str] = frozenset()
    """What cannot but be broken along with it."""


def _sql(statement: str) -> Plant:
    return lambda case: case.sql(statement)


PLANTED: dict[str, Planted] = {
    "a transition in the middle is missing": Planted(
        "I1",
        "ended",
        2,
        _sql("DELETE FROM aegis_transition WHERE workflow_id = 'ended' AND seq = 2"),
        # It was the one that listed the checkpoint before it; and its effects are without a record.
        frozenset({"I4", "I8"}),
    ),
    "the first transition is missing": Planted(
        "I1", "waiting", 0, _sql("DELETE FROM aegis_transition WHERE workflow_id = 'waiting' AND seq = 0")
    ),
    "all transitions are missing": Planted(
        "I1",
        "waiting",
        0,
        _sql("DELETE FROM aegis_transition WHERE workflow_id = 'waiting'"),
        frozenset({"I2", "I4", "I7", "I8"}),
    ),
    "an envelope was edited": Planted(
        "I2",
        "ended",
        1,
        _sql(
            "UPDATE aegis_transition SET envelope = replace(convert_from(envelope, 'UTF8'), 'worker:w', 'worker:x')"
            "::bytea WHERE workflow_id = 'ended' AND seq = 1"
        ),
    ),
    "an envelope cannot be read": Planted(
        "I2",
        "ended",
        1,
        _sql("UPDATE aegis_transition SET envelope = 'none' WHERE workflow_id = 'ended' AND seq = 1"),
        frozenset({"I3"}),
    ),
    "a hash was edited": Planted(
        "I2",
        "ended",
        1,
        _sql("UPDATE aegis_transition SET hash = sha256('x') WHERE workflow_id = 'ended' AND seq = 1"),
    ),
    "a column to search by was edited": Planted(
        "I2",
        "ended",
        1,
        _sql("UPDATE aegis_transition SET actor = 'user:eve' WHERE workflow_id = 'ended' AND seq = 1"),
    ),
    "a payload was edited": Planted(
        "I8",
        "ended",
        3,
        _sql(
            "UPDATE aegis_payload SET body = replace(convert_from(body, 'UTF8'), 'ada', 'eve')::bytea"
            " WHERE workflow_id = 'ended' AND seq = 3"
        ),
    ),
    "a payload cannot be read": Planted(
        "I8",
        "ended",
        3,
        _sql("UPDATE aegis_payload SET body = 'none' WHERE workflow_id = 'ended' AND seq = 3"),
    ),
    "a transition is recorded without its effect": Planted(
        "I3", "ended", 3, lambda case: case.entries.pop(case.place(3))
    ),
    "only another attempt than the recorded one had the effect": Planted("I3", "waiting", 2, _tried_by_another),
    "an effect came before the transition before it": Planted(
        "I4", "ended", 3, lambda case: _swap(case, case.place(2), case.place(3))
    ),
    "an effect came before the winning attempt of the transition before it": Planted(
        "I4", "ended", 2, _before_the_winner, frozenset({"I3"})
    ),
    "an effect of a transition that is far from its turn": Planted(
        "I4", "waiting", 5, lambda case: _effect(case, 5, "three", workflow_id="waiting")
    ),
    "a workflow is pending for ever": Planted(
        "I5",
        "waiting",
        2,
        _sql("UPDATE aegis_workflow SET status = 'pending' WHERE id = 'waiting'"),
    ),
    "a workflow waits for nothing": Planted(
        "I5", "waiting", 2, _sql("UPDATE aegis_workflow SET accepts = '[]' WHERE id = 'waiting'")
    ),
    "a workflow that was accepted is not there": Planted("I6", "lost", None, lambda case: _accept(case, "lost")),
    "a workflow that had an effect is not there": Planted(
        "I6", "lost", None, lambda case: _accept(case, "lost", EFFECT)
    ),
    "a row was deleted": Planted("I6", "ended", None, _sql("DELETE FROM aegis_workflow WHERE id = 'ended'")),
    "the row's state is not that of its last transition": Planted(
        "I7", "ended", 3, _sql("UPDATE aegis_workflow SET state = 'first' WHERE id = 'ended'")
    ),
    "the row's status is not that of its last transition": Planted(
        "I7", "ended", 3, _sql("UPDATE aegis_workflow SET status = 'cancelled' WHERE id = 'ended'")
    ),
    "the row's head is not the hash of its last transition": Planted(
        "I7", "ended", 3, _sql("UPDATE aegis_workflow SET head = sha256('x') WHERE id = 'ended'")
    ),
    "the last transition is missing": Planted(
        "I7",
        "ended",
        2,
        _sql("DELETE FROM aegis_transition WHERE workflow_id = 'ended' AND seq = 3"),
        frozenset({"I8"}),
    ),
    "a checkpoint was edited": Planted(
        "I8",
        "ended",
        2,
        _sql(
            "UPDATE aegis_checkpoint SET body = replace(convert_from(body, 'UTF8'), 'third', 'first')::bytea"
            " WHERE workflow_id = 'ended' AND seq = 2"
        ),
    ),
    "a checkpoint inside a handler was edited": Planted(
        "I8",
        "ended",
        1,
        _sql(
            "UPDATE aegis_checkpoint SET body = replace(convert_from(body, 'UTF8'), 'second', 'first')::bytea"
            " WHERE workflow_id = 'ended' AND number = 1"
        ),
    ),
    "a checkpoint is missing": Planted(
        "I8", "ended", 1, _sql("DELETE FROM aegis_checkpoint WHERE workflow_id = 'ended' AND seq = 1 AND number = 0")
    ),
    "an effect was had more often than there are attempts": Planted(
        "I9", "ended", 2, lambda case: [_effect(case, 2, "two", attempt) for attempt in (3, 4)]
    ),
    "a transition took more attempts than there are": Planted(
        "I9",
        "ended",
        1,
        _sql("UPDATE aegis_transition SET attempt = 4 WHERE workflow_id = 'ended' AND seq = 1"),
        frozenset({"I2", "I3", "I4"}),
    ),
    "a workflow stays claimed": Planted(
        "I10", "waiting", 2, _sql("UPDATE aegis_workflow SET owner = 'w', owner_pid = 1 WHERE id = 'waiting'")
    ),
    "a workflow stays due": Planted(
        "I10", "waiting", 2, _sql("UPDATE aegis_workflow SET due_at = clock_timestamp() WHERE id = 'waiting'")
    ),
    "a timer ran out, and nobody came": Planted(
        "I10",
        "timer",
        1,
        _sql(
            "UPDATE aegis_workflow SET entered_at = entered_at - interval '8 days', timer_at = timer_at - interval"
            " '8 days', ready_at = ready_at - interval '8 days', due_at = due_at - interval '8 days' WHERE id = 'timer'"
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found_under_its_own_name(case: Case, name: str) -> None:
    planted = PLANTED[name]
    planted.plant(case)
    found = case.check()
    assert (planted.invariant, planted.workflow_id, planted.seq) in {
        (violation.invariant, violation.workflow_id, violation.seq) for violation in found
    }, found
    assert {violation.workflow_id for violation in found} == {planted.workflow_id}, "the others are sound"
    assert {violation.invariant for violation in found} <= {planted.invariant} | planted.along, found
    assert all(str(violation).startswith(f"{violation.invariant} {planted.workflow_id}") for violation in found)


def test_every_invariant_has_a_planted_case() -> None:
    invariants = {f"I{number}" for number in range(1, 11)}
    assert {planted.invariant for planted in PLANTED.values()} == invariants
    assert law is not None
    assert all(f"\n{name} " in law for name in invariants)


def test_the_checker_changes_nothing(case: Case, engine: DurableWorkflowEngine) -> None:
    before = [(row, engine.history(row.id)) for row in engine.list()]
    case.check()
    assert [(row, engine.history(row.id)) for row in engine.list()] == before


# --- the ledger ------------------------------------------------------------------------------


def test_a_ledger_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "none").entries() == []


def test_a_line_that_a_crash_cut_off_does_not_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.accepted("a")
    ledger.effect("a", 1, "one", 2)
    with (tmp_path / "ledger").open("a") as file:
        file.write('{"kind": "eff')
    accepted, effect = ledger.entries()
    assert (accepted.kind, accepted.workflow_id) == (ACCEPTED, "a")
    assert (effect.kind, effect.workflow_id, effect.seq, effect.name, effect.attempt) == (EFFECT, "a", 1, "one", 2)

"""Approvals on a real database: who counts, who does not, what the history says of it, and what it costs to cheat."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from event_workflows import Budget, Desk
from store_workbench import (
    RecordingRing,
    everything,
    let_timer_run_out,
    make_engine,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act

from aegis import Approval, Context
from aegis.core.errors import AlreadyApproved, EventConflict, FourEyes
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

Script = dict[str, Act]


class People:
    """Engines of several people on one database."""

    def __init__(self, database: Database, ring: RecordingRing) -> None:
        self.database, self.ring = database, ring

    def __getattr__(self, name: str) -> DurableWorkflowEngine:
        return make_engine(self.database, self.ring, actor=f"user:{name}")


@pytest.fixture
def people(database: Database, ring: RecordingRing) -> People:
    return People(database, ring)


@pytest.fixture
def asked(people: People, bench: Bench, ring: RecordingRing) -> str:
    """A budget that ada began, that bob submitted, and that waits for two who approve."""
    people.ada.start(Budget(), id="b")
    people.bob.send("b", "submit", 500)
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    ring.take()
    return "b"


def approve(engine: DurableWorkflowEngine, bench: Bench, seq: int, **options: Any) -> Ended:
    engine.send("b", "approve", None, **options)
    return run_where_it_is_sent(bench, "b", seq)


def test_the_last_of_those_that_are_needed_runs_the_handler(
    people: People, bench: Bench, database: Database, script: Script, asked: str
) -> None:
    seen: list[tuple[Approval, ...]] = []
    script["approve"] = lambda _workflow, ctx: seen.append(ctx.approvals)
    people.eve.send(asked, "approve", "fine", key="k-eve", reason="within the plan")
    assert run_where_it_is_sent(bench, asked, 1) is Ended.COMMITTED
    assert seen == [], "one is not enough"
    found = row(database, asked)
    assert (found.state, found.status, found.seq, found.inbox) == ("open", "waiting", 2, 0)
    people.ada.send(asked, "approve", "go on", key="k-ada", reason="it is time")
    assert run_where_it_is_sent(bench, asked, 2) is Ended.COMMITTED

    history = people.ada.history(asked)
    assert [(one.event, one.from_state, one.to_state) for one in history[2:]] == [
        ("approved", "open", "open"),
        ("approve", "open", "passed"),
    ]
    assert history[2].payload == {
        "data": "fine",
        "key": "k-eve",
        "sender": "user:eve",
        "reason": "within the plan",
        "transition": "approve",
        "approvals": 1,
        "four_eyes": True,
    }
    assert history[3].payload == {
        "data": "go on",
        "key": "k-ada",
        "sender": "user:ada",
        "reason": "it is time",
        "approvals": 2,
        "four_eyes": True,
    }
    assert [[(one.sender, one.reason, one.data) for one in approvals] for approvals in seen] == [
        [("user:eve", "within the plan", "fine"), ("user:ada", "it is time", "go on")]
    ]
    assert all(isinstance(one.at, datetime) and one.at.tzinfo for one in seen[0])
    assert people.ada.get(asked) == Budget(state=Desk.PASSED, amount=500, approved_by=["user:eve", "user:ada"])
    assert value(database, "SELECT count(*) FROM aegis_event WHERE consumed_seq IS NULL") == 0
    assert people.ada.verify_integrity(asked) == (True, None)


def test_the_same_sender_is_refused_whether_it_was_counted_already_or_not(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    people.eve.send(asked, "approve", None, key="k")
    before = everything(database)
    with pytest.raises(AlreadyApproved, match="user:eve has sent 'approve' to workflow 'b' already"):
        people.eve.send(asked, "approve", None)
    people.eve.send(asked, "approve", None, key="k")  # asked again, as the answer was lost
    with pytest.raises(EventConflict):
        people.eve.send(asked, "approve", "other", key="k")
    assert everything(database) == before
    run_where_it_is_sent(bench, asked, 1)
    with pytest.raises(AlreadyApproved):
        people.eve.send(asked, "approve", None)
    assert row(database, asked).seq == 2


def test_who_moved_it_on_is_refused_and_who_only_began_it_is_not(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    before = everything(database)
    with pytest.raises(FourEyes, match="workflow 'b' was moved on by user:bob before"):
        people.bob.send(asked, "approve", None)
    assert everything(database) == before
    assert approve(people.ada, bench, 1) is Ended.COMMITTED


def test_an_approval_moves_nothing_on_whoever_sent_it(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    assert approve(people.eve, bench, 1) is Ended.COMMITTED
    assert row(database, asked).steered_by == "user:bob"
    with pytest.raises(FourEyes):
        people.bob.send(asked, "approve", None)
    assert approve(people.ada, bench, 2) is Ended.COMMITTED
    assert row(database, asked).steered_by == "user:ada"


def test_of_a_workflow_older_than_the_column_the_chain_says_who_moved_it_on(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    approve(people.eve, bench, 1)
    sql(database, "UPDATE aegis_workflow SET steered_by = NULL")
    with pytest.raises(FourEyes):
        people.bob.send(asked, "approve", None)
    people.ada.start(Budget(), id="new")
    sql(database, "UPDATE aegis_workflow SET steered_by = NULL")
    people.ada.send("new", "submit", 1)  # no rule is on that
    assert approve(people.ada, bench, 2) is Ended.COMMITTED


def test_what_came_early_counts_and_what_may_not_is_disregarded(
    people: People, bench: Bench, database: Database
) -> None:
    """The rules cannot be judged before the state is entered: then they are."""
    people.ada.start(Budget(), id="b")
    for engine, key in [(people.eve, "e1"), (people.eve, "e2"), (people.bob, "b1"), (people.max, "m1")]:
        engine.send("b", "approve", None, key=key)
    people.bob.send("b", "submit", 500)
    run_transition(bench, "b", 0)
    for seq in range(1, 5):
        assert run_where_it_is_sent(bench, "b", seq) is Ended.COMMITTED
    told = [(one.event, one.payload) for one in people.ada.history("b")[2:]]
    assert [
        (event, payload["sender"], payload["approvals"], payload.get("rule"))  # type: ignore[index, call-overload, union-attr]
        for event, payload in told
    ] == [
        ("approved", "user:eve", 1, None),
        ("disregarded", "user:eve", 1, "already approved"),
        ("disregarded", "user:bob", 1, "four eyes"),
        ("approve", "user:max", 2, None),
    ]
    assert row(database, "b").inbox == 0
    assert people.ada.verify_integrity("b") == (True, None)


def test_other_events_and_the_timer_go_on_while_approvals_are_missing(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    before = row(database, asked)
    approve(people.eve, bench, 1)
    after = row(database, asked)
    assert (after.entered_at, after.entered_seq, after.timer_at) == (
        before.entered_at,
        before.entered_seq,
        before.timer_at,
    )
    assert (after.due_at, after.ready_at, after.following) == (before.timer_at, before.timer_at, "expire")
    let_timer_run_out(database, asked)
    assert run_where_it_is_sent(bench, asked, 2) is Ended.COMMITTED
    assert people.ada.history(asked)[-1].event == "expire"
    assert people.ada.verify_integrity(asked) == (True, None)


def test_a_rejection_overtakes_the_approvals(people: People, bench: Bench, asked: str) -> None:
    approve(people.eve, bench, 1)
    people.eve.send(asked, "reject", "changed my mind")
    run_where_it_is_sent(bench, asked, 2)
    assert people.ada.describe(asked).state == "turned down"
    assert people.ada.verify_integrity(asked) == (True, None)


def test_the_key_of_the_handler_is_the_same_however_many_approved(
    people: People, bench: Bench, database: Database, script: Script, asked: str
) -> None:
    keys: list[str] = []

    def act(_workflow: Any, ctx: Context) -> None:
        keys.append(ctx.key)
        if len(keys) == 1:
            msg = "not now"
            raise OSError(msg)

    script["approve"] = act
    approve(people.eve, bench, 1)
    assert approve(people.ada, bench, 2) is Ended.FAILED
    people.ada.pause(asked)
    people.ada.resume(asked)
    assert run_where_it_is_sent(bench, asked, 4) is Ended.COMMITTED
    assert keys == ["b:2", "b:2"]
    assert people.ada.get(asked).approved_by == ["user:eve", "user:ada"]  # type: ignore[attr-defined]
    assert people.ada.verify_integrity(asked) == (True, None)


def _replaced(column: str, before: str, after: str) -> str:
    return f"{column} = convert_to(replace(convert_from({column}, 'UTF8'), '{before}', '{after}'), 'UTF8')"


@pytest.mark.parametrize(
    "edit",
    [
        f"UPDATE aegis_payload SET {_replaced('body', 'user:eve', 'user:max')}",  # noqa: S608
        "DELETE FROM aegis_payload",
        "DELETE FROM aegis_transition",
        "UPDATE aegis_transition SET event = 'resumed'",
        f"UPDATE aegis_transition SET {_replaced('envelope', 'worker', 'walker')}",  # noqa: S608
    ],
    ids=["another sender", "no payload", "no transition", "another event", "another envelope"],
)
def test_nothing_is_counted_by_a_history_that_was_edited(
    people: People, bench: Bench, database: Database, asked: str, edit: str
) -> None:
    approve(people.eve, bench, 1)
    assert sql(database, edit.replace("user:", r"user\:") + " WHERE seq = 2") == 1
    people.ada.send(asked, "approve", None)
    assert run_where_it_is_sent(bench, asked, 2) is Ended.LEFT
    error = row(database, asked).error
    assert "aegis verify" in error["message"]
    assert row(database, asked).seq == 2


def test_a_rule_that_somebody_got_round_in_the_database_is_found(
    people: People, bench: Bench, database: Database, asked: str
) -> None:
    """The row is edited, so that the worker lets bob through; the chain tells it all the same."""
    approve(people.eve, bench, 1)
    sql(database, "UPDATE aegis_workflow SET steered_by = 'user:nobody'")
    assert approve(people.bob, bench, 2) is Ended.COMMITTED
    valid, finding = people.ada.verify_integrity(asked)
    assert not valid
    assert finding is not None
    assert "transition 3: RULE_BROKEN: expected a sender who did not move it on before, found user:bob" in finding


def test_two_at_once_are_counted_one_after_the_other(
    people: People, bench: Bench, database: Database, ring: RecordingRing, asked: str
) -> None:
    people.eve.send(asked, "approve", None)
    people.ada.send(asked, "approve", None)
    assert run_where_it_is_sent(bench, asked, 1) is Ended.COMMITTED
    found = row(database, asked)
    assert (found.status, found.inbox, found.seq) == ("pending", 1, 2)
    assert run_where_it_is_sent(bench, asked, 2) is Ended.COMMITTED
    assert people.ada.describe(asked).status == "completed"

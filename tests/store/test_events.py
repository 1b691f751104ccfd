"""Events on a real database: refused or kept, guarded, with a reason, and sent by other workflows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from event_workflows import Guarded, Inside, Lock, Mailer, Sorting, Strict, Vote
from sqlalchemy.exc import IntegrityError
from store_workbench import (
    RecordingRing,
    answer_lost,
    everything,
    let_timer_run_out,
    make_due,
    make_engine,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Letter

from aegis import Context
from aegis.core.errors import (
    AegisError,
    EventConflict,
    EventRefused,
    InvalidData,
    InvalidName,
    NotCanonical,
    UnknownEvent,
    WorkflowNotFound,
    WrongStatus,
)
from aegis.persistence import inbox
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

Script = dict[str, Act]


# --- kept, or refused -----------------------------------------------------------------------


def test_an_event_that_is_not_kept_is_refused_where_the_state_does_not_accept_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Strict(), id="s")
    before = everything(database)
    with pytest.raises(EventRefused, match=r"'s' is in state 'shut', .* 'remove' \(it accepts: open\)"):
        engine.send("s", "remove")
    assert everything(database) == before
    engine.send("s", "open", key="k")
    assert run_transition(bench, "s", 0) is Ended.COMMITTED
    engine.send("s", "remove")
    engine.send("s", "open", key="k")  # asked again, as an answer was lost: it was received
    with pytest.raises(EventRefused):
        engine.send("s", "open")
    assert run_transition(bench, "s", 1) is Ended.COMMITTED
    assert engine.get("s").state is Lock.GONE  # type: ignore[attr-defined]


def test_an_event_that_is_kept_is_kept(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "post", "early")
    assert row(database, "l").inbox == 1


def test_an_event_that_nothing_accepts_is_refused_with_those_that_are_and_their_states(
    engine: DurableWorkflowEngine,
) -> None:
    engine.start(Letter(), id="l")
    with pytest.raises(UnknownEvent, match=r"it accepts: finish \(in draft\), post \(in ready\)"):
        engine.send("l", "pots")


# --- why --------------------------------------------------------------------------------------


def test_the_reason_of_an_event_is_kept_and_stands_in_the_history(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    handle = engine.start(Letter(), id="l")
    handle.send("finish", "a", key="k", reason="it is done")
    assert value(database, "SELECT reason FROM aegis_event") == "it is done"
    run_transition(bench, "l", 0)
    told = engine.history("l")[-1].payload
    assert told == {"data": "a", "key": "k", "sender": "user:ada", "reason": "it is done"}
    assert engine.verify_integrity("l") == (True, None)


def test_without_a_reason_the_history_is_as_it_always_was(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a", key="k")
    run_transition(bench, "l", 0)
    assert engine.history("l")[-1].payload == {"data": "a", "key": "k", "sender": "user:ada"}
    assert value(database, "SELECT reason FROM aegis_event") is None


@pytest.mark.parametrize(
    ("reason", "error"), [("x" * 2001, InvalidName), ("\ud800", NotCanonical), ("a\0b", NotCanonical)]
)
def test_a_reason_that_the_history_could_not_keep_is_refused(
    engine: DurableWorkflowEngine, database: Database, reason: str, error: type[AegisError]
) -> None:
    engine.start(Letter(), id="l")
    before = everything(database)
    with pytest.raises(error):
        engine.send("l", "finish", "a", reason=reason)
    assert everything(database) == before


def test_who_moved_it_on_is_who_started_it_and_then_who_sent_the_event_that_was_taken(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Letter(), id="l")
    assert row(database, "l").steered_by == "user:ada"
    grace = make_engine(database, ring, actor="user:grace")
    grace.send("l", "finish", "a")
    assert row(database, "l").steered_by == "user:ada", "it was not taken yet"
    run_transition(bench, "l", 0)
    assert row(database, "l").steered_by == "user:grace"
    engine.pause("l")
    engine.resume("l")
    assert row(database, "l").steered_by == "user:grace", "a pause moves nothing on"


# --- guards -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "event", "state"), [(1, "lift", "light"), (50, "drag", "heavy"), (500, "hoist", "huge")]
)
def test_of_several_automatic_transitions_the_first_whose_guard_says_yes_is_taken(
    engine: DurableWorkflowEngine, bench: Bench, weight: int, event: str, state: str
) -> None:
    engine.start(Sorting(weight=weight), id="s")
    assert run_where_it_is_sent(bench, "s", 0) is Ended.COMMITTED
    last = engine.history("s")[-1]
    assert (last.event, last.to_state, engine.describe("s").status) == (event, state, "completed")
    assert engine.verify_integrity("s") == (True, None)


def test_an_automatic_transition_of_another_queue_is_sent_there(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing
) -> None:
    engine.start(Sorting(weight=500), id="s")
    ring.take()
    assert run_transition(bench, "s", 0) is Ended.LEFT
    assert [(bell.seq, bell.queue) for bell in ring.take()] == [(0, "crane")]


def test_a_guard_that_raises_is_a_failed_attempt_of_its_transition(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def guard(_workflow: Any, _ctx: Context) -> bool:
        msg = "no scales"
        raise OSError(msg)

    script["guard"] = guard
    engine.start(Sorting(), id="s")
    assert run_transition(bench, "s", 0) is Ended.FAILED
    found = row(database, "s")
    assert (found.attempt, found.error["message"]) == (1, "no scales")
    make_due(database, "s")
    assert run_transition(bench, "s", 0) is Ended.COMMITTED
    assert engine.describe("s").status == "failed"
    assert engine.history("s")[-1].payload == {
        "error": {"type": "OSError", "message": "no scales"},
        "transition": "lift",
    }
    del script["guard"]
    engine.retry("s")
    assert run_transition(bench, "s", 2) is Ended.COMMITTED
    assert engine.describe("s").state == "light"


def test_a_guard_that_killed_its_worker_every_time_is_quarantined(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    asked: list[int] = []
    script["guard"] = lambda _workflow, _ctx: asked.append(1)
    engine.start(Sorting(), id="s")
    sql(database, "UPDATE aegis_workflow SET attempt = 5 WHERE id = 's'")  # the default of the other edges
    assert run_transition(bench, "s", 0) is Ended.COMMITTED
    assert asked == [], "it is not asked once more"
    assert engine.describe("s").status == "quarantined"


def _changes(workflow: Any, _ctx: Context) -> bool:
    workflow.words.append("spoilt")
    return True


def _says_nothing(_workflow: Any, _ctx: Context) -> None:
    return None


@pytest.mark.parametrize(
    ("guard", "problem"),
    [
        (_changes, "its guard changed the workflow's data; only its handler may"),
        (_says_nothing, "its guard returned None; it must return True or False"),
        (lambda _workflow, _ctx: "yes", "its guard returned 'yes'; it must return True or False"),
    ],
)
def test_a_guard_that_does_what_it_may_not_stops_the_workflow(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, guard: Act, problem: str
) -> None:
    script["guard"] = guard
    engine.start(Sorting(), id="s")
    assert run_transition(bench, "s", 0) is Ended.COMMITTED
    row_ = engine.describe("s")
    assert row_.status == "failed"
    assert row_.error is not None
    assert (row_.error["type"], row_.error["message"]) == (
        "aegis.core.errors.InvalidHandlerResult",
        f"events.Sorting.lift: {problem}",
    )
    assert engine.get("s") == Sorting()


@pytest.mark.parametrize(
    ("vote", "event"), [(Vote(yes=True, amount=5), "accept"), (Vote(yes=False, amount=99), "reject")]
)
def test_of_several_transitions_on_one_event_the_first_whose_guard_says_yes_takes_it(
    engine: DurableWorkflowEngine, bench: Bench, vote: Vote, event: str
) -> None:
    engine.start(Guarded(), id="g")
    engine.send("g", "vote", vote)
    assert run_transition(bench, "g", 0) is Ended.COMMITTED
    assert engine.history("g")[-1].event == event


def test_an_event_that_no_guard_lets_through_waits_and_those_behind_it_are_taken(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Guarded(), id="g")
    engine.send("g", "vote", Vote(amount=50), key="big")
    ring.take()
    assert run_transition(bench, "g", 0) is Ended.WAITING
    found = row(database, "g")
    assert (found.status, found.inbox, found.attempt) == ("waiting", 1, 0)
    assert found.due_at == found.timer_at, "nothing is looked at again and again"
    engine.send("g", "raise_limit", 60, key="limit")
    assert len(ring.take()) == 1
    assert run_transition(bench, "g", 0) is Ended.COMMITTED
    assert engine.history("g")[-1].event == "raise_limit"
    assert len(ring.take()) == 1, "the state was entered anew: what waited is looked at again"
    assert run_transition(bench, "g", 1) is Ended.COMMITTED
    assert engine.get("g").done == ["accept 50"]  # type: ignore[attr-defined]
    assert row(database, "g").inbox == 0
    assert engine.verify_integrity("g") == (True, None)


def test_many_events_that_no_guard_lets_through_keep_nothing_from_being_taken(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Guarded(), id="g")
    for number in range(20):
        engine.send("g", "vote", Vote(amount=50 + number))
    engine.send("g", "vote", Vote(amount=7))
    assert run_transition(bench, "g", 0) is Ended.COMMITTED
    assert engine.get("g").done == ["accept 7"]  # type: ignore[attr-defined]
    assert row(database, "g").inbox == 20


def test_a_timer_runs_out_beside_an_event_that_no_guard_lets_through(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Guarded(), id="g")
    engine.send("g", "vote", Vote(amount=50))
    run_transition(bench, "g", 0)
    let_timer_run_out(database, "g")
    assert run_transition(bench, "g", 0) is Ended.COMMITTED
    assert engine.history("g")[-1].event == "expire"


# --- from one workflow to another -----------------------------------------------------------------


def mail(*messages: tuple[str, str, Any], **options: Any) -> Act:
    def act(_workflow: Any, ctx: Context) -> None:
        for target, event, payload in messages:
            ctx.send(target, event, payload, **options)

    return act


@pytest.mark.parametrize("kind", [Mailer, Inside])
def test_a_handler_sends_an_event_that_goes_out_with_its_transition(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    ring: RecordingRing,
    script: Script,
    kind: type[Mailer | Inside],
) -> None:
    engine.start(Letter(), id="l")
    engine.start(kind(), id="m")
    ring.take()
    seen: list[int] = []

    def act(workflow: Any, ctx: Context) -> None:
        mail(("l", "finish", "a"), ("l", "post", "b"), reason="as agreed")(workflow, ctx)
        seen.append(value(database, "SELECT count(*) FROM aegis_event"))

    script["mail"] = act
    assert run_transition(bench, "m", 0) is Ended.COMMITTED
    assert seen == [0], "nothing goes out before the transition is recorded"
    assert [(bell.workflow_id, bell.seq) for bell in ring.take()] == [("l", 0)]
    run_transition(bench, "l", 0)
    run_where_it_is_sent(bench, "l", 1)
    told = [transition.payload for transition in engine.history("l")[1:]]
    assert told == [
        {"data": "a", "key": "m:1:finish:1", "sender": "workflow:m", "reason": "as agreed"},
        {"data": "b", "key": "m:1:post:2", "sender": "workflow:m", "reason": "as agreed"},
    ]
    assert engine.verify_integrity("l") == engine.verify_integrity("m") == (True, None)


@pytest.mark.parametrize("kind", [Mailer, Inside])
def test_an_attempt_that_fails_after_it_has_sent_sends_nothing_and_the_next_sends_once(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, kind: type[Mailer | Inside]
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.send("l", "finish", "a")
        if ctx.attempt == 1:
            msg = "no paper"
            raise OSError(msg)

    script["mail"] = act
    engine.start(Letter(), id="l")
    engine.start(kind(), id="m")
    assert run_transition(bench, "m", 0) is Ended.FAILED
    assert value(database, "SELECT count(*) FROM aegis_event") == 0
    make_due(database, "m")
    assert run_transition(bench, "m", 0) is Ended.COMMITTED
    assert value(database, "SELECT count(*) FROM aegis_event") == 1


@pytest.mark.parametrize("kind", [Mailer, Inside])
@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        ([("nobody", "finish", "a")], {}, WorkflowNotFound),
        ([("l", "pots", "a")], {}, UnknownEvent),
        ([("l", "finish", 7)], {}, InvalidData),
        ([("done", "remove", None)], {}, WrongStatus),
        ([("strict", "remove", None)], {}, EventRefused),
        ([("l", "finish", "other")], {"key": "used"}, EventConflict),
        ([("l", "finish", "a")], {"key": "a b"}, InvalidName),
        ([("l", "finish", "a")], {"reason": "x" * 2001}, InvalidName),
    ],
)
def test_what_would_not_be_accepted_is_raised_where_it_is_sent(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    kind: type[Mailer | Inside],
    messages: list[tuple[str, str, Any]],
    options: dict[str, Any],
    error: type[AegisError],
) -> None:
    raised: list[BaseException] = []

    def act(workflow: Any, ctx: Context) -> None:
        try:
            mail(*messages, **options)(workflow, ctx)
        except AegisError as problem:
            raised.append(problem)

    script["mail"] = act
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a", key="used")
    engine.start(Strict(), id="strict")
    engine.start(Letter(), id="done")
    engine.cancel("done")
    engine.start(kind(), id="m")
    before = value(database, "SELECT count(*) FROM aegis_event")
    assert run_transition(bench, "m", 0) is Ended.COMMITTED
    if messages[0][0] == "done":
        assert isinstance(raised[0], UnknownEvent | WrongStatus)
    else:
        assert type(raised[0]) is error
    assert value(database, "SELECT count(*) FROM aegis_event") == before


@pytest.mark.parametrize("kind", [Mailer, Inside])
def test_what_is_not_accepted_any_more_at_the_commit_fails_the_attempt_and_nothing_is_written(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, kind: type[Mailer | Inside]
) -> None:
    def act(_workflow: Any, ctx: Context) -> None:
        ctx.send("l", "finish", "a")
        engine.cancel("l", reason="meanwhile")

    script["mail"] = act
    engine.start(Letter(), id="l")
    engine.start(kind(), id="m")
    assert run_transition(bench, "m", 0) is Ended.FAILED
    found = row(database, "m")
    assert (found.seq, found.attempt, found.error["type"]) == (0, 1, "aegis.core.errors.WrongStatus")
    assert value(database, "SELECT count(*) FROM aegis_event") == 0


def test_a_workflow_may_send_to_itself(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, script: Script
) -> None:
    script["mail"] = mail(("m", "remove", None))
    engine.start(Mailer(), id="m")
    ring.take()
    assert run_transition(bench, "m", 0) is Ended.COMMITTED
    assert {(bell.workflow_id, bell.seq) for bell in ring.take()} == {("m", 1)}
    assert run_transition(bench, "m", 1) is Ended.COMMITTED
    assert engine.describe("m").status == "completed"


def test_two_that_send_to_each_other_at_the_same_time_do_not_wait_for_each_other(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    both = threading.Barrier(2, timeout=20)

    def act(workflow: Mailer, ctx: Context) -> None:
        ctx.send(workflow.note, "remove")
        both.wait()

    script["mail"] = act
    for round_ in range(10):
        one, other = f"a{round_}", f"b{round_}"
        engine.start(Mailer(note=other), id=one)
        engine.start(Mailer(note=one), id=other)
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(lambda name: run_transition(bench, name, 0), (one, other)))
        assert ended == [Ended.COMMITTED, Ended.COMMITTED]
        assert row(database, one).inbox == row(database, other).inbox == 1


@pytest.mark.parametrize("written", [True, False])
def test_a_commit_with_events_whose_answer_is_lost_is_looked_up(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    *,
    written: bool,
) -> None:
    script["mail"] = mail(("l", "finish", "a"))
    engine.start(Letter(), id="l")
    engine.start(Mailer(), id="m")
    with answer_lost(monkeypatch, written=written):
        assert run_transition(bench, "m", 0) is (Ended.COMMITTED if written else Ended.LEFT)
    assert value(database, "SELECT count(*) FROM aegis_event") == int(written)
    assert row(database, "m").seq == int(written)
    if written:
        assert row(database, "l").due_at is not None, "the sweep finds whom it was sent to"


def test_the_inbox_refuses_to_be_told_the_same_key_twice_by_two_at_once(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    """What stands behind the lock: the table itself."""
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a", key="k")
    again = (
        "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at)"
        " SELECT workflow_id, name, key, sender, payload, received_at FROM aegis_event"
    )
    with pytest.raises(IntegrityError, match="aegis_event_once"):
        sql(database, again)


def test_an_event_that_is_judged_only_is_not_written_and_waits_for_nobody(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Letter(), id="l")
    message = inbox.Message(workflow_id="l", event="finish", payload="a", key="k", sender="user:ada")
    with database.transaction() as holder:
        inbox.lock(holder, "l")
        with database.reading() as session:
            inbox.judge(session, message, 1000)  # the row is locked by somebody else
    assert value(database, "SELECT count(*) FROM aegis_event") == 0

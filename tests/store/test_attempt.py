"""One transition from claim to bell on a real database: every way in which an attempt can end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from store_workbench import (
    GRACE,
    MAX_BYTES,
    RecordingRing,
    answer_lost,
    await_lock,
    claimed,
    everything,
    let_timer_run_out,
    make_due,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Booking, Crossing, Decision, Letter, Once, Page, Parcel, Relay, Stage

from aegis import Context
from aegis.core.bell import Bell
from aegis.core.chain import checkpoint_body, checkpoint_commitment
from aegis.core.errors import AegisError, ClaimLost, DatabaseUnavailable, InvalidHandlerResult
from aegis.persistence import inbox, operations, repository, watch
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.inbox import Message
from aegis.persistence.records import Hand
from aegis.tasks import context as context_module
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

SEND = Decision(send=True, comment="now")
SECOND = timedelta(seconds=1)
TERMS = operations.Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES)

Script = dict[str, Act]


def raising(error: BaseException) -> Act:
    def act(_workflow: Any, _ctx: Context) -> None:
        raise error

    return act


def assert_released(database: Database, workflow_id: str) -> None:
    found = row(database, workflow_id)
    assert (found.owner, found.owner_pid, found.owner_thread, found.claimed_at) == (None, None, None, None)


def assert_left(database: Database, workflow_id: str, within: timedelta) -> dict[str, Any]:
    """Nothing is recorded, nothing counted, nobody has it, and it is due again; returns what the row says."""
    found = row(database, workflow_id)
    assert_released(database, workflow_id)
    assert found.attempt == 0
    assert found.due_at is not None
    assert timedelta(0) < found.due_at - found.updated_at <= within
    error: dict[str, Any] = found.error
    return error


@pytest.fixture
def packed(engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing) -> str:
    """A parcel that waits for its decision, or its timer."""
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    ring.take()
    return "p"


# --- what sets a transition off -----------------------------------------------------------


def test_an_automatic_transition(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: Script
) -> None:
    def pack(workflow: Parcel, _ctx: Context) -> None:
        workflow.weight = 7

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    ring.take()

    assert run_transition(bench, "p", 0) is Ended.COMMITTED

    last = engine.history("p")[-1]
    assert (last.seq, last.event, last.from_state, last.to_state) == (1, "pack", "new", "packed")
    assert (last.actor, last.attempt, last.payload) == ("worker:w@test", 1, None)
    assert engine.get("p") == Parcel(state=Stage.PACKED, weight=7)
    assert engine.describe("p").status == "waiting"
    assert_released(database, "p")
    assert engine.verify_integrity("p") == (True, None)
    assert ring.bells == [], "nothing follows until an event comes"


def test_transitions_that_follow_each_other_are_rung_one_by_one_each_on_its_queue(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Relay(), id="r")
    assert ring.take() == [Bell(workflow_id="r", seq=0, queue=None, label="store.Relay.one")]
    run_transition(bench, "r", 0)
    assert ring.take() == [Bell(workflow_id="r", seq=1, queue="fast", label="store.Relay.two")]
    found = row(database, "r")
    assert (found.status, found.rings) == ("pending", 1)
    assert found.due_at - found.ready_at >= GRACE
    run_transition(bench, "r", 1)
    assert ring.take() == []
    assert engine.describe("r").status == "waiting"


def test_the_bell_is_rung_after_the_commit(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a")
    engine.send("l", "post", "b")
    seen: list[int] = []
    ring.look = lambda bells: seen.append(row(database, bells[0].workflow_id).seq)
    run_transition(bench, "l", 0)
    assert seen == [1]


def test_an_event(engine: DurableWorkflowEngine, bench: Bench, database: Database, packed: str) -> None:
    engine.send(packed, "decide", SEND, key="mail-1")
    assert run_transition(bench, packed, 1) is Ended.COMMITTED
    last = engine.history(packed)[-1]
    assert (last.event, last.to_state) == ("decide", "sent")
    assert last.payload == {"data": {"send": True, "comment": "now"}, "key": "mail-1", "sender": "user:ada"}
    assert engine.get(packed) == Parcel(state=Stage.SENT, done=["now"])
    assert (row(database, packed).status, row(database, packed).inbox) == ("completed", 0)
    assert value(database, "SELECT consumed_seq FROM aegis_event") == 2
    assert engine.verify_integrity(packed) == (True, None)


def test_an_event_that_was_kept_is_taken_when_its_state_is_reached(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing
) -> None:
    engine.start(Parcel(), id="p")
    engine.send("p", "decide", SEND)
    ring.take()
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    (bell,) = ring.take()
    assert (bell.workflow_id, bell.seq) == ("p", 1)
    assert run_where_it_is_sent(bench, "p", 1) is Ended.COMMITTED
    assert engine.describe("p").state == "sent"


def test_an_event_that_was_kept_is_rung_on_the_queue_of_its_own_transition(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing
) -> None:
    """As it is when it comes later: its handler may need what only the workers of that queue have."""
    engine.start(Parcel(), id="p")
    engine.send("p", "decide", SEND)
    ring.take()
    run_transition(bench, "p", 0)
    assert [bell.queue for bell in ring.take()] == ["desk"]  # and not on "night", where its timer would be
    assert run_transition(bench, "p", 1) is Ended.COMMITTED


def test_a_kept_event_of_a_state_with_several_queues_is_sent_on_from_the_default_one(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing
) -> None:
    engine.start(Crossing(), id="c")
    engine.send("c", "right")
    ring.take()
    run_transition(bench, "c", 0)
    assert [bell.queue for bell in ring.take()] == [None]
    assert run_transition(bench, "c", 1) is Ended.LEFT
    assert [bell.queue for bell in ring.take()] == ["east"]
    assert engine.describe("c").attempt == 0
    assert run_transition(bench, "c", 1) is Ended.COMMITTED


def test_events_are_taken_in_the_order_in_which_they_came(engine: DurableWorkflowEngine, bench: Bench) -> None:
    engine.start(Letter(), id="l")
    for event, word in [("post", "3"), ("finish", "1"), ("finish", "2"), ("post", "4")]:
        engine.send("l", event, word)
    for seq in (0, 1):
        assert run_where_it_is_sent(bench, "l", seq) is Ended.COMMITTED
    assert engine.get("l") == Letter(state=Page.POSTED, words=["1", "3"])


def test_an_event_that_the_state_does_not_accept_sets_nothing_off(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "post", "early")
    make_due(database, "l")  # a bell from somewhere, and the row says ready
    assert run_transition(bench, "l", 0) is Ended.WAITING
    found = row(database, "l")
    assert (found.status, found.seq, found.attempt, found.inbox) == ("waiting", 0, 0, 1)
    assert (found.ready_at, found.due_at) == (None, None)


def test_an_event_that_comes_at_the_moment_of_the_claim_is_taken(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    """The claim waits for the row that the event locks, and does not see the event itself."""
    engine.start(Letter(), id="l")
    make_due(database, "l")
    ended: list[Ended] = []
    terms = operations.Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES)
    with database.transaction() as session:
        message = Message(workflow_id="l", event="finish", payload="a", key="k", sender="user:ada")
        inbox.send(session, message, terms)
        worker = threading.Thread(target=lambda: ended.append(run_transition(bench, "l", 0)))
        worker.start()
        await_lock(database)
    worker.join(20)
    assert ended == [Ended.COMMITTED]
    assert engine.get("l") == Letter(state=Page.READY, words=["a"])


def test_an_event_that_comes_while_nothing_is_found_to_do_is_not_forgotten(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    ring: RecordingRing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.start(Letter(), id="l")
    make_due(database, "l")
    park = repository.park

    def send_first(*arguments: Any) -> bool:
        engine.send("l", "finish", "a")
        return park(*arguments)

    monkeypatch.setattr(repository, "park", send_first)
    assert run_transition(bench, "l", 0) is Ended.LEFT
    assert_released(database, "l")
    bell = ring.take()[-1]
    assert run_transition(bench, bell.workflow_id, bell.seq) is Ended.COMMITTED
    assert engine.get("l") == Letter(state=Page.READY, words=["a"])


def test_a_timer(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, packed: str
) -> None:
    assert run_transition(bench, packed, 1) is Ended.STALE, "it has not run out"
    let_timer_run_out(database, packed)
    assert run_transition(bench, packed, 1) is Ended.COMMITTED
    last = engine.history(packed)[-1]
    assert (last.event, last.to_state, last.payload) == ("expire", "lost", None)
    assert engine.describe(packed).status == "completed"
    assert ring.bells == []


def test_an_event_that_came_before_the_timer_ran_out_wins_however_late_it_is_handled(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, packed: str
) -> None:
    engine.send(packed, "decide", SEND)
    let_timer_run_out(database, packed)
    sql(database, "UPDATE aegis_event SET received_at = received_at - interval '1 minute'")
    assert run_transition(bench, packed, 1) is Ended.COMMITTED
    assert engine.describe(packed).state == "sent"


def test_an_event_that_came_after_the_timer_ran_out_loses_and_is_kept(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, packed: str
) -> None:
    let_timer_run_out(database, packed, ago=timedelta(minutes=1))
    engine.send(packed, "decide", SEND)
    assert run_where_it_is_sent(bench, packed, 1) is Ended.COMMITTED
    assert engine.describe(packed).state == "lost"
    assert value(database, "SELECT count(*) FROM aegis_event WHERE consumed_seq IS NULL") == 1
    assert engine.verify_integrity(packed) == (True, None)


@pytest.mark.parametrize("seq", [1, 2, 99])
def test_a_bell_for_another_seq_is_stale(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seq: int
) -> None:
    script["pack"] = raising(AssertionError("it ran"))
    engine.start(Parcel(), id="p")
    before = everything(database)
    assert run_transition(bench, "p", seq) is Ended.STALE
    assert everything(database) == before


def test_a_bell_that_comes_twice_runs_once(engine: DurableWorkflowEngine, bench: Bench, packed: str) -> None:
    assert run_transition(bench, packed, 0) is Ended.STALE
    assert [link.seq for link in engine.history(packed)] == [0, 1]


def test_a_bell_for_nobody_is_stale(bench: Bench) -> None:
    assert run_transition(bench, "nobody", 0) is Ended.STALE


def test_a_workflow_of_a_type_that_is_not_known_here_is_left_for_another_worker(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    sql(database, "UPDATE aegis_workflow SET version = 2")
    assert run_transition(bench, "p", 0) is Ended.STALE
    found = row(database, "p")
    assert (found.rings, found.attempt, found.claim) == (0, 0, 0)
    assert found.due_at < datetime.now(UTC) + 2 * SECOND, "it is rung again soon"


def test_a_redelivered_bell_takes_over_from_a_dead_child_of_the_same_worker(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    """Celery puts the message of a child that died back at once; no sweep is needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for workflow_id, worker, ended in (("own", "w@test", Ended.COMMITTED), ("other", "x@test", Ended.STALE)):
        engine.start(Parcel(), id=workflow_id)
        claimed(database, workflow_id, hand=Hand(worker=worker, pid=pid, thread=1))
        assert run_transition(bench, workflow_id, 0) is Ended.STALE
        assert run_transition(bench, workflow_id, 0, redelivered=True) is ended
    assert engine.history("own")[-1].attempt == 2


def test_a_redelivered_bell_leaves_a_living_child_alone(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    claimed(database, "p", hand=Hand(worker="w@test", pid=os.getppid(), thread=1))
    assert run_transition(bench, "p", 0, redelivered=True) is Ended.STALE


# --- what a handler is given -----------------------------------------------------------------


def test_the_context_names_the_workflow_and_the_attempt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    seen: list[tuple[str, str, int]] = []

    def pack(_workflow: Parcel, ctx: Context) -> None:
        seen.append((ctx.workflow_id, ctx.key, ctx.attempt))
        if ctx.attempt < 3:
            msg = "not yet"
            raise RuntimeError(msg)

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    for _ in range(3):
        make_due(database, "p")
        run_transition(bench, "p", 0)
    assert seen == [("p", "p:1", 1), ("p", "p:1", 2), ("p", "p:1", 3)], "the key is the same at every attempt"
    assert engine.history("p")[-1].attempt == 3


def test_the_key_is_another_one_for_the_next_transition(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    keys: list[str] = []
    for name in ("finish", "post"):
        script[name] = lambda _workflow, ctx: keys.append(ctx.key)
    engine.start(Letter(), id="l")
    for seq, event in enumerate(("finish", "post")):
        engine.send("l", event, "x")
        run_transition(bench, "l", seq)
    assert keys == ["l:1", "l:2"]


def test_the_key_stays_the_same_across_a_pause_and_a_retry(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    keys: list[str] = []

    def finish(_workflow: Letter, ctx: Context) -> None:
        keys.append(ctx.key)
        if len(keys) < 7:
            raise RuntimeError

    script["finish"] = finish
    script["post"] = lambda _workflow, ctx: keys.append(ctx.key)
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "x")
    while (found := engine.describe("l")).status != "completed":
        make_due(database, "l")
        run_transition(bench, "l", found.seq)
        match engine.describe("l").status:
            case "pending" if len(keys) == 1:
                engine.pause("l", reason="to look at it")
                engine.resume("l")
            case "failed":
                engine.retry("l")
            case "waiting":
                engine.send("l", "post", "x")
    assert keys[:7] == ["l:1"] * 7, "engine events in between take a seq, and no key"
    moved = [link.seq for link in engine.history("l") if link.event in {"finish", "post"}]
    assert keys[7:] == [f"l:{moved[0] + 1}"]
    assert moved[0] == 5, "paused, resumed, failed, retried came first"


def test_what_a_failed_attempt_changed_is_thrown_away(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    weights: list[int] = []

    def pack(workflow: Parcel, ctx: Context) -> None:
        weights.append(workflow.weight)
        workflow.weight = 99
        if ctx.attempt == 1:
            raise RuntimeError

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert engine.get("p") == Parcel()
    make_due(database, "p")
    run_transition(bench, "p", 0)
    assert weights == [0, 0]


def test_no_transaction_is_open_while_a_handler_runs(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
    )
    open_ones: list[int] = []
    script["pack"] = lambda *_: open_ones.append(value(database, busy))
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert open_ones == [0]


# --- failing and trying again ------------------------------------------------------------------


def test_a_handler_that_raises_is_tried_again_after_a_growing_delay_and_fails_in_the_end(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: Script
) -> None:
    script["pack"] = raising(ValueError("no such street"))
    engine.start(Parcel(), id="p")
    ring.take()
    delays = []
    for attempt in (1, 2):
        assert run_transition(bench, "p", 0) is Ended.FAILED
        found = row(database, "p")
        delays.append(found.ready_at - found.updated_at)
        assert (found.status, found.seq, found.attempt) == ("pending", 0, attempt)
        assert abs(found.due_at - found.ready_at) < SECOND
        assert (found.error["type"], found.error["message"]) == ("ValueError", "no such street")
        assert found.error["attempt"] == attempt
        assert "raise error" in found.error["traceback"]
        assert_released(database, "p")
        assert run_transition(bench, "p", 0) is Ended.STALE, "not before its delay is over"
        make_due(database, "p")
    assert [round(delay.total_seconds()) for delay in delays] == [60, 120]

    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    found, last = row(database, "p"), engine.history("p")[-1]
    assert (found.status, found.state, found.seq, found.due_at) == ("failed", "new", 1, None)
    assert (found.error["message"], found.error["attempt"]) == ("no such street", 3)
    assert (last.event, last.from_state, last.to_state, last.attempt) == ("failed", "new", "new", 3)
    assert last.payload == {"error": {"type": "ValueError", "message": "no such street"}, "transition": "pack"}
    assert engine.get("p") == Parcel()
    assert engine.verify_integrity("p") == (True, None)
    assert ring.bells == []


def test_a_retry_that_succeeds_leaves_no_error_behind(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = raising(RuntimeError("once"))
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    script.clear()
    make_due(database, "p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.describe("p").error is None
    assert engine.history("p")[-1].attempt == 2


def test_resume_does_not_wait_for_the_delay_of_a_retry(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, script: Script
) -> None:
    script["pack"] = raising(RuntimeError("once"))
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    script.clear()
    ring.take()
    assert engine.resume("p")
    (bell,) = ring.take()
    assert run_transition(bench, bell.workflow_id, bell.seq) is Ended.COMMITTED


def test_an_event_handler_that_fails_keeps_its_event(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, packed: str
) -> None:
    script["decide"] = raising(RuntimeError("the van broke down"))
    engine.send(packed, "decide", SEND)
    for _ in range(2):
        make_due(database, packed)
        run_transition(bench, packed, 1)
    found = row(database, packed)
    assert (found.status, found.state, found.inbox) == ("failed", "packed", 1)
    assert value(database, "SELECT count(*) FROM aegis_event WHERE consumed_seq IS NULL") == 1


class Unprintable(Exception):
    """An exception of a user whose text cannot be had."""

    def __str__(self) -> str:
        msg = "no text"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("nul \0 and \ud800"), "nul \\0 and \\ud800"),
        (RuntimeError("x" * 10_000_000), "x" * 2000),
        (RuntimeError(), ""),
        (ExceptionGroup("many", [ValueError("one")]), "many (1 sub-exception)"),
    ],
    ids=["nul and surrogate", "huge", "empty", "group"],
)
def test_whatever_the_text_of_an_error_it_can_be_kept(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, error: Exception, message: str
) -> None:
    script["act"] = raising(error)
    engine.start(Once(), id="o")
    assert run_transition(bench, "o", 0) is Ended.COMMITTED
    found = engine.describe("o")
    assert found.status == "failed"
    assert found.error is not None
    assert found.error["message"] == message
    assert len(found.error["traceback"]) <= 8000
    assert engine.verify_integrity("o") == (True, None)


def test_an_error_without_a_text_counts_as_an_attempt_like_any_other(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    """Left alone it would be tried again for ever."""
    script["act"] = raising(Unprintable())
    engine.start(Once(), id="o")
    run_transition(bench, "o", 0)
    assert engine.describe("o").status == "failed"


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ("nowhere", "it returned 'nowhere'; it must return one of: packed"),
        (Stage.SENT, "it must return one of: packed"),
        (17, "it returned 17"),
    ],
    ids=str,
)
def test_a_handler_that_returns_what_it_may_not_fails_at_once(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, result: object, problem: str
) -> None:
    script["pack"] = lambda *_: result
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    found, last = engine.describe("p"), engine.history("p")[-1]
    assert (found.status, last.event, last.attempt) == ("failed", "failed", 1)
    assert found.error is not None
    assert problem in found.error["message"]
    assert found.error["type"] == "aegis.core.errors.InvalidHandlerResult"


def test_a_handler_that_sets_its_state_fails_at_once(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def pack(workflow: Parcel, _ctx: Context) -> None:
        workflow.state = Stage.LOST

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    found = engine.describe("p")
    assert (found.status, found.state) == ("failed", "new")
    assert found.error is not None
    assert "it set self.state; it must return the target instead" in found.error["message"]


def test_data_that_outgrows_the_limit_fails_with_its_size_and_nothing_is_half_written(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def pack(workflow: Parcel, _ctx: Context) -> None:
        workflow.address = "x" * MAX_BYTES

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    found = engine.describe("p")
    assert (found.status, found.state) == ("failed", "new")
    assert found.error is not None
    assert f"more than the {MAX_BYTES} allowed" in found.error["message"]
    assert [link.event for link in engine.history("p")] == ["created", "failed"]
    assert engine.get("p") == Parcel()
    assert engine.verify_integrity("p") == (True, None)


@pytest.mark.parametrize("extra", [{"n": 2**60}, {"t": "\0"}, {"f": float("nan")}], ids=str)
def test_data_outside_the_domain_fails_at_once(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, extra: dict[str, Any]
) -> None:
    def pack(workflow: Parcel, _ctx: Context) -> None:
        workflow.extra = extra

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert [link.event for link in engine.history("p")] == ["created", "failed"]
    assert engine.verify_integrity("p") == (True, None)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_an_event_that_was_accepted_can_be_taken(
    engine: DurableWorkflowEngine, bench: Bench, packed: str, script: Script, room: int
) -> None:
    """What fits through the door fits into the transition: refused there, it would fail for ever."""
    script["decide"] = lambda workflow, _ctx: workflow.done.clear()
    comment = "x" * (MAX_BYTES - len('{"comment":"","send":true}') - room)
    with suppress(AegisError):
        engine.send(packed, "decide", Decision(send=True, comment=comment))
        assert run_transition(bench, packed, 1) is Ended.COMMITTED
        assert engine.describe(packed).state == "sent"


def test_data_that_was_accepted_can_go_through_every_transition(engine: DurableWorkflowEngine, bench: Bench) -> None:
    """The number of a transition grows, and with it what is written around the same data."""
    empty = len(checkpoint_body("o", 0, Once().to_dict(), max_bytes=MAX_BYTES))
    engine.start(Once(note="x" * (MAX_BYTES - empty)), id="o")
    for _ in range(5):
        engine.pause("o")
        engine.resume("o")
    assert engine.describe("o").seq == 10
    run_transition(bench, "o", 10)
    assert engine.describe("o").seq == 11, "it went on, or was stopped; it does not run for ever"
    assert engine.verify_integrity("o") == (True, None)


def test_a_handler_that_takes_too_long_is_ended_and_tried_again(
    engine: DurableWorkflowEngine, bench: Bench, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    monkeypatch.setattr(Parcel, "definition", _with_timeout(Parcel, "pack", 0.05))
    script["pack"] = lambda *_: time.sleep(20)
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    error = engine.describe("p").error
    assert error is not None
    assert error["message"] == "store.Parcel.pack did not finish within its timeout of 0.05 s"


def _with_timeout(workflow: type[Parcel], name: str, seconds: float) -> Any:
    definition = workflow.definition
    return replace(
        definition,
        edges=tuple(replace(edge, timeout=seconds) if edge.name == name else edge for edge in definition.edges),
    )


def test_a_workflow_whose_every_attempt_died_is_quarantined(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = raising(AssertionError("it ran once more"))
    engine.start(Parcel(), id="p")
    for attempt in (1, 2, 3):
        hand = Hand(worker="x@test", pid=attempt, thread=1)
        assert claimed(database, "p", hand=hand).position.attempt == attempt
        sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    found, last = row(database, "p"), engine.history("p")[-1]
    assert (found.status, found.state, found.due_at) == ("quarantined", "new", None)
    assert (last.event, last.attempt) == ("quarantined", 4)
    message = "its worker died in each of 3 attempts at store.Parcel.pack"
    assert last.payload == {"error": {"type": "RuntimeError", "message": message}, "transition": "pack"}
    assert found.error["message"] == message
    assert engine.verify_integrity("p") == (True, None)


# --- what is left alone ------------------------------------------------------------------------


def test_a_database_that_is_away_costs_no_attempt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = raising(DatabaseUnavailable("postgresql://elsewhere", "gone"))
    engine.start(Parcel(), id="p")
    for times in range(10):
        assert run_transition(bench, "p", 0) is Ended.LEFT
        within = min(SECOND * 2**times, timedelta(minutes=5)) + SECOND
        assert "gone" in assert_left(database, "p", within)["message"]
    script.clear()
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.history("p")[-1].attempt == 1


def rewrite(database: Database, workflow_id: str, state: dict[str, Any]) -> None:
    """Store other data, with a commitment that fits it: as an old version of the class would have."""
    body, salt = checkpoint_body(workflow_id, 0, state, max_bytes=MAX_BYTES), b"s" * 32
    sql(
        database,
        "UPDATE aegis_checkpoint SET body = :body, salt = :salt, commitment = :commitment",
        body=body,
        salt=salt,
        commitment=checkpoint_commitment(salt, body),
    )


def test_data_that_the_class_cannot_read_is_left_alone(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = raising(AssertionError("it ran"))
    engine.start(Parcel(), id="p")
    rewrite(database, "p", {"state": "new", "colour": "red"})
    history = engine.history("p")
    for times in range(5):
        assert run_transition(bench, "p", 0) is Ended.LEFT
        error = assert_left(database, "p", min(31 * 2**times, 301) * SECOND)
        assert "/colour" in error["message"]
    assert engine.history("p") == history


def test_an_event_that_its_handler_cannot_read_any_more_is_left_alone(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, packed: str
) -> None:
    engine.send(packed, "decide", SEND)
    sql(database, """UPDATE aegis_event SET payload = '{"yes": true}'""")
    assert run_transition(bench, packed, 1) is Ended.LEFT
    assert "/send" in assert_left(database, packed, 31 * SECOND)["message"]


def test_a_state_that_the_class_has_no_more_is_left_alone(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = raising(AssertionError("it ran"))
    engine.start(Parcel(), id="p")
    sql(database, "UPDATE aegis_workflow SET state = 'wrapped'")
    assert run_transition(bench, "p", 0) is Ended.LEFT
    error = assert_left(database, "p", 31 * SECOND)
    assert "store.Parcel has no state 'wrapped' any more" in error["message"]


@pytest.mark.parametrize("column", ["body", "salt", "commitment"])
def test_a_checkpoint_that_was_edited_is_left_alone_and_reported(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    caplog: pytest.LogCaptureFixture,
    column: str,
) -> None:
    script["pack"] = raising(AssertionError("it ran"))
    engine.start(Parcel(), id="p")
    edited = {"body": "replace(convert_from(body, 'UTF8'), 'Main', 'Back')::bytea"}.get(column, "sha256('other')")
    sql(database, f"UPDATE aegis_checkpoint SET {column} = {edited}")  # noqa: S608
    assert run_transition(bench, "p", 0) is Ended.LEFT
    error = assert_left(database, "p", 31 * SECOND)
    assert "its checkpoint is not the one that was committed: `aegis verify` tells more" in error["message"]
    assert "left alone workflow_id='p'" in caplog.text
    assert not engine.verify_integrity("p")[0]


def test_a_workflow_whose_checkpoint_is_gone_is_left_alone(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    sql(database, "DELETE FROM aegis_checkpoint")
    with suppress(Exception):  # whatever is said, the workflow is in nobody's hands
        run_transition(bench, "p", 0)
    assert_released(database, "p")


# --- pausing and cancelling while it runs -----------------------------------------------------


def test_a_pause_asked_for_while_a_handler_runs_keeps_its_transition_and_comes_after_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: Script
) -> None:
    script["pack"] = lambda _workflow, ctx: engine.pause(ctx.workflow_id, reason="stock-taking")
    engine.start(Parcel(), id="p")
    ring.take()
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    (bell,) = ring.take()
    assert run_transition(bench, bell.workflow_id, bell.seq) is Ended.COMMITTED
    assert [link.event for link in engine.history("p")] == ["created", "pack", "paused"]
    last = engine.history("p")[-1]
    assert (last.actor, last.payload) == ("user:ada", {"reason": "stock-taking"})
    found = row(database, "p")
    assert (found.status, found.state, found.pausing, found.due_at) == ("paused", "packed", None, None)
    assert engine.verify_integrity("p") == (True, None)
    assert ring.bells == []


def test_a_pause_asked_for_while_the_last_handler_runs_comes_too_late(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["act"] = lambda _workflow, ctx: engine.pause(ctx.workflow_id)
    engine.start(Once(), id="o")
    assert run_transition(bench, "o", 0) is Ended.COMMITTED
    found = row(database, "o")
    assert (found.status, found.pausing, found.due_at) == ("completed", None, None)


def test_a_pause_asked_for_while_a_handler_fails_comes_before_its_retry(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    def pack(_workflow: Parcel, ctx: Context) -> None:
        engine.pause(ctx.workflow_id)
        raise RuntimeError

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.FAILED
    make_due(database, "p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.describe("p").status == "paused"


def test_a_pause_that_was_taken_back_while_the_handler_ran_does_not_come(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def pack(_workflow: Parcel, ctx: Context) -> None:
        engine.pause(ctx.workflow_id)
        engine.resume(ctx.workflow_id)

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert engine.describe("p").status == "waiting"
    assert [link.event for link in engine.history("p")] == ["created", "pack"]


@pytest.mark.parametrize("raises", [False, True])
def test_a_cancel_while_a_handler_runs_leaves_it_unrecorded(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, *, raises: bool
) -> None:
    def pack(_workflow: Parcel, ctx: Context) -> None:
        engine.cancel(ctx.workflow_id)
        if raises:
            raise RuntimeError

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert [link.event for link in engine.history("p")] == ["created", "cancelled"]
    assert engine.describe("p").error is None
    assert engine.verify_integrity("p") == (True, None)


# --- checkpoints inside a handler ---------------------------------------------------------------


def test_the_next_attempt_goes_on_from_what_the_handler_saved(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    began_with: list[list[str]] = []

    def pack(workflow: Parcel, ctx: Context) -> None:
        began_with.append(list(workflow.done))
        workflow.done = [*workflow.done, f"part {ctx.attempt}"]
        ctx.checkpoint()
        workflow.done = [*workflow.done, "unsaved"]
        if ctx.attempt < 3:
            raise RuntimeError

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    for _ in range(3):
        make_due(database, "p")
        run_transition(bench, "p", 0)
    assert began_with == [[], ["part 1"], ["part 1", "part 2"]]
    assert engine.get("p") == Parcel(state=Stage.PACKED, done=["part 1", "part 2", "part 3", "unsaved"])
    with database.statement() as connection:
        listed = repository.progress_of(connection, "p", 0)
        kinds = connection.execute(text("SELECT kind FROM aegis_checkpoint WHERE seq = 0 ORDER BY number")).scalars()
        assert list(kinds) == ["transition", "manual", "manual", "manual"]
    assert engine.history("p")[-1].payload == {"progress": listed}
    assert len(listed) == 3
    assert engine.verify_integrity("p") == (True, None)


def test_what_a_handler_saved_is_the_data_of_its_failure(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def act(workflow: Once, ctx: Context) -> None:
        workflow.note = "saved"
        ctx.checkpoint()
        workflow.note = "unsaved"
        raise RuntimeError

    script["act"] = act
    engine.start(Once(), id="o")
    run_transition(bench, "o", 0)
    assert engine.describe("o").status == "failed"
    assert engine.get("o") == Once(note="saved")
    payload: Any = engine.history("o")[-1].payload
    assert len(payload["progress"]) == 1
    assert engine.verify_integrity("o") == (True, None)


def test_progress_is_saved_only_when_it_is_asked_for(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_module, "LOOKS_PER_INTERVAL", 1e12)  # look each time
    numbers: list[int] = []

    def number() -> int:
        return int(value(database, "SELECT max(number) FROM aegis_checkpoint WHERE seq = 0"))

    def pack(workflow: Parcel, ctx: Context) -> None:
        workflow.weight = 1
        ctx.progress()
        numbers.append(number())
        engine.checkpoint(ctx.workflow_id)
        ctx.progress()
        numbers.append(number())
        ctx.progress()
        numbers.append(number())
        with database.statement() as connection:
            assert watch.ask_for_checkpoints(connection, timedelta(0)) == 1
        ctx.progress()
        numbers.append(number())

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert numbers == [0, 1, 1, 2]
    assert value(database, "SELECT count(*) FROM aegis_checkpoint WHERE kind = 'periodic'") == 2
    assert engine.verify_integrity("p") == (True, None)


def test_progress_asks_the_database_seldom(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(repository, "is_asked", lambda *_: asked.append(1))

    def pack(_workflow: Parcel, ctx: Context) -> None:
        for _ in range(1000):
            ctx.progress()

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert asked == []


def test_progress_goes_on_without_the_database(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "LOOKS_PER_INTERVAL", 1e12)

    def away(*_: object) -> None:
        raise DatabaseUnavailable("test", "gone")

    def pack(_workflow: Parcel, ctx: Context) -> None:
        monkeypatch.setattr(repository, "is_asked", away)
        ctx.progress()

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


@pytest.mark.parametrize("save", ["progress", "checkpoint"])
def test_a_handler_that_lost_its_claim_hears_of_it_when_it_saves(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    save: str,
) -> None:
    monkeypatch.setattr(context_module, "LOOKS_PER_INTERVAL", 1e12)
    heard: list[type[BaseException]] = []

    def pack(_workflow: Parcel, ctx: Context) -> None:
        engine.cancel(ctx.workflow_id)
        try:
            getattr(ctx, save)()
        except BaseException as error:
            heard.append(type(error))
            raise

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert heard == [ClaimLost]
    assert value(database, "SELECT count(*) FROM aegis_checkpoint WHERE number > 0") == 0


def test_a_checkpoint_of_data_that_is_not_valid_fails_the_handler(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    def pack(workflow: Parcel, ctx: Context) -> None:
        workflow.extra = {"n": 2**60}
        ctx.checkpoint()

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert engine.describe("p").status == "failed"


def test_a_checkpoint_from_outside_at_the_moment_of_the_claim_leaves_the_history_intact(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    ended: list[Ended] = []
    with database.transaction() as session:
        assert operations.checkpoint(session, "p", TERMS) is not None
        worker = threading.Thread(target=lambda: ended.append(run_transition(bench, "p", 0)))
        worker.start()
        await_lock(database)
    worker.join(20)
    assert ended == [Ended.COMMITTED]
    assert engine.verify_integrity("p") == (True, None)


def test_a_handler_can_save_although_a_checkpoint_from_outside_came_at_the_moment_of_its_claim(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script
) -> None:
    script["pack"] = lambda _workflow, ctx: ctx.checkpoint()
    engine.start(Parcel(), id="p")
    ended: list[Ended] = []
    with database.transaction() as session:
        assert operations.checkpoint(session, "p", TERMS) is not None
        worker = threading.Thread(target=lambda: ended.append(run_transition(bench, "p", 0)))
        worker.start()
        await_lock(database)
    worker.join(20)
    assert ended == [Ended.COMMITTED]
    assert_released(database, "p")


# --- inside the checkpoint's own transaction ----------------------------------------------------


@pytest.fixture
def seats(database: Database) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """A table of the application's own, and what stands in it."""
    sql(database, "CREATE TABLE seat (workflow_id text NOT NULL, number int NOT NULL UNIQUE DEFERRABLE)")

    def read() -> list[tuple[str, int]]:
        with database.statement() as connection:
            found = connection.execute(text("SELECT workflow_id, number FROM seat ORDER BY number"))
            return [(taken.workflow_id, taken.number) for taken in found]

    yield read
    sql(database, "DROP TABLE seat")


Seats = Callable[[], list[tuple[str, int]]]


def book(ctx: Context, number: int = 1) -> None:
    ctx.session.execute(text("INSERT INTO seat VALUES (:id, :number)"), {"id": ctx.workflow_id, "number": number})


def test_rows_of_a_transactional_handler_commit_with_its_checkpoint(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seats: Seats
) -> None:
    def act(workflow: Booking, ctx: Context) -> None:
        book(ctx)
        workflow.seats = 2
        assert seats() == [], "not before the checkpoint"
        assert row(database, "b").seq == 0

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert seats() == [("b", 1)]
    assert engine.get("b").to_dict() == {"state": "booked", "seats": 2, "note": ""}
    assert engine.describe("b").status == "completed"
    assert engine.verify_integrity("b") == (True, None)


def test_a_transactional_handler_that_raises_leaves_nothing(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        book(ctx)
        if ctx.attempt == 1:
            msg = "sold out"
            raise RuntimeError(msg)

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.FAILED
    assert seats() == []
    found = row(database, "b")
    assert (found.seq, found.attempt, found.error["message"]) == (0, 1, "sold out")
    assert_released(database, "b")
    make_due(database, "b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert seats() == [("b", 1)]


def test_a_transactional_handler_whose_claim_is_lost_leaves_nothing(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        book(ctx)
        engine.cancel(ctx.workflow_id)

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.LOST
    assert seats() == []
    assert [link.event for link in engine.history("b")] == ["created", "cancelled"]


@pytest.mark.parametrize("result", ["nowhere", "open"])
def test_a_transactional_handler_with_a_wrong_result_leaves_nothing(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, seats: Seats, result: str
) -> None:
    def act(_workflow: Booking, ctx: Context) -> str:
        book(ctx)
        return result

    script["book"] = act
    engine.start(Booking(), id="b")
    run_transition(bench, "b", 0)
    assert engine.describe("b").status == "failed"
    assert seats() == []


def test_a_transactional_handler_with_data_beyond_the_limit_leaves_nothing(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, seats: Seats
) -> None:
    def act(workflow: Booking, ctx: Context) -> None:
        book(ctx)
        workflow.note = "x" * MAX_BYTES

    script["book"] = act
    engine.start(Booking(), id="b")
    run_transition(bench, "b", 0)
    assert engine.describe("b").status == "failed"
    assert seats() == []
    assert engine.verify_integrity("b") == (True, None)


def test_a_constraint_that_is_checked_at_the_end_fails_the_attempt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        ctx.session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        book(ctx)
        book(ctx)

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.FAILED
    assert seats() == []
    assert row(database, "b").seq == 0
    assert_released(database, "b")


def test_a_transactional_handler_may_use_savepoints(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        book(ctx, 1)
        with suppress(ZeroDivisionError), ctx.session.begin_nested():
            book(ctx, 2)
            _ = 1 / 0
        book(ctx, 3)

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert seats() == [("b", 1), ("b", 3)]


def test_a_deadlock_in_a_transactional_handler_costs_no_attempt(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: Script, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        book(ctx)
        ctx.session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$"))

    script["book"] = act
    engine.start(Booking(), id="b")
    assert run_transition(bench, "b", 0) is Ended.LEFT
    assert_left(database, "b", 2 * SECOND)
    assert seats() == []


@pytest.mark.parametrize("written", [True, False])
def test_a_transactional_commit_whose_answer_is_lost_is_looked_up(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    seats: Seats,
    monkeypatch: pytest.MonkeyPatch,
    *,
    written: bool,
) -> None:
    script["book"] = lambda _workflow, ctx: book(ctx)
    engine.start(Booking(), id="b")
    with answer_lost(monkeypatch, written=written):
        assert run_transition(bench, "b", 0) is (Ended.COMMITTED if written else Ended.LEFT)
    if not written:
        assert_left(database, "b", 2 * SECOND)
        assert seats() == []
        assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert seats() == [("b", 1)]
    assert engine.verify_integrity("b") == (True, None)


@pytest.mark.parametrize("written", [True, False])
def test_a_commit_whose_answer_is_lost_is_looked_up_and_the_work_is_kept(
    engine: DurableWorkflowEngine,
    bench: Bench,
    ring: RecordingRing,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    *,
    written: bool,
) -> None:
    ran: list[int] = []
    real = repository.commit

    def lose(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(repository, "commit", real)
        if written:
            real(*arguments, **options)
        raise DatabaseUnavailable("test", "the answer got lost")

    script["pack"] = lambda _workflow, ctx: ran.append(ctx.attempt)
    engine.start(Parcel(), id="p")
    engine.send("p", "decide", SEND)
    ring.take()
    monkeypatch.setattr(repository, "commit", lose)
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert ran == [1]
    assert [(bell.workflow_id, bell.seq) for bell in ring.bells] == [("p", 1)]
    assert engine.verify_integrity("p") == (True, None)


def test_a_commit_whose_answer_is_lost_and_whose_claim_is_too_is_lost(
    engine: DurableWorkflowEngine, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any, **__: Any) -> Any:
        engine.cancel("p")
        raise DatabaseUnavailable("test", "the answer got lost")

    engine.start(Parcel(), id="p")
    real = repository.commit
    monkeypatch.setattr("aegis.tasks.transition.repository.commit", _once(lose, real))
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert engine.describe("p").status == "cancelled"


def test_a_claim_that_a_crash_of_the_database_took_back_is_rung_for_at_once(
    engine: DurableWorkflowEngine,
    database: Database,
    bench: Bench,
    ring: RecordingRing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Claims do not wait for the disk; without the bell the workflow would wait until it is due."""

    def crash(*_: Any, **__: Any) -> Any:
        sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL, claim = claim - 1, attempt = 0")
        raise DatabaseUnavailable("test", "the server closed the connection")

    engine.start(Parcel(), id="p")
    ring.take()
    monkeypatch.setattr("aegis.tasks.transition.repository.commit", _once(crash, repository.commit))
    assert run_transition(bench, "p", 0) is Ended.LOST
    assert [(bell.workflow_id, bell.seq) for bell in ring.take()] == [("p", 0)]
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


def _once(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    left = [first]

    def act(*arguments: Any, **options: Any) -> Any:
        return (left.pop() if left else then)(*arguments, **options)

    return act


def test_the_session_is_refused_outside_of_a_transactional_handler(
    engine: DurableWorkflowEngine, bench: Bench, script: Script
) -> None:
    raised: list[BaseException] = []

    def pack(_workflow: Parcel, ctx: Context) -> None:
        try:
            _ = ctx.session
        except BaseException as error:
            raised.append(error)
            raise

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert isinstance(raised[0], InvalidHandlerResult)
    assert "store.Parcel.pack: ctx.session needs @transition(..., transactional=True)" in str(raised[0])
    assert engine.describe("p").status == "failed"


@pytest.mark.parametrize("way", ["checkpoint", "progress"])
def test_a_checkpoint_is_refused_inside_a_transactional_handler(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, way: str, seats: Seats
) -> None:
    def act(_workflow: Booking, ctx: Context) -> None:
        book(ctx)
        getattr(ctx, way)()

    script["book"] = act
    engine.start(Booking(), id="b")
    run_transition(bench, "b", 0)
    error = engine.describe("b").error
    assert error is not None
    assert "a transactional handler is saved as a whole, at its end" in error["message"]
    assert seats() == []


# --- faults of our own --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["commit", "fail_attempt", "progress_of"])
def test_an_unexpected_fault_does_not_leave_the_workflow_claimed(
    engine: DurableWorkflowEngine,
    bench: Bench,
    database: Database,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        msg = "a fault of ours"
        raise LookupError(msg)

    def pack(_workflow: Parcel, ctx: Context) -> None:
        ctx.checkpoint()
        if place == "fail_attempt":
            raise RuntimeError

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    with monkeypatch.context() as patched:
        patched.setattr(repository, place, fault)
        ended = run_transition(bench, "p", 0)
    assert_released(database, "p")
    assert ended in {Ended.LEFT, Ended.FAILED}
    assert engine.describe("p").error is not None
    make_due(database, "p")
    script.clear()
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.verify_integrity("p") == (True, None)


def test_a_row_that_stands_in_the_way_leaves_the_workflow_to_people(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    sql(
        database,
        "INSERT INTO aegis_transition SELECT workflow_id, 1, event, from_state, to_state, actor, attempt, at,"
        " envelope, hash FROM aegis_transition",
    )
    assert run_transition(bench, "p", 0) is Ended.LEFT
    assert "aegis_transition_pkey" in assert_left(database, "p", 11 * SECOND)["message"]


def test_a_fault_after_the_claim_was_lost_is_a_lost_claim(
    engine: DurableWorkflowEngine, bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        msg = "a fault of ours"
        raise LookupError(msg)

    def pack(_workflow: Parcel, ctx: Context) -> None:
        engine.cancel(ctx.workflow_id)
        monkeypatch.setattr(repository, "commit", fault)

    script["pack"] = pack
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.LOST


def test_a_bell_that_raises_does_not_undo_what_is_committed(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing
) -> None:
    def broken(_: object) -> None:
        msg = "the bell fell off"
        raise LookupError(msg)

    engine.start(Parcel(), id="p")
    engine.send("p", "decide", SEND)
    ring.look = broken
    assert run_transition(bench, "p", 0) in {Ended.COMMITTED, Ended.LOST}
    assert engine.describe("p").seq == 1


def test_a_broker_that_is_away_changes_nothing_of_what_is_committed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Parcel(), id="p")
    engine.send("p", "decide", SEND)
    ring.answers = False
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert row(database, "p").due_at is not None, "the sweep rings"


def test_time_is_the_databases_and_never_runs_backwards_in_a_chain(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    sql(database, "UPDATE aegis_workflow SET moved_at = moved_at + interval '1 hour'")
    moved_at = row(database, "p").moved_at
    run_transition(bench, "p", 0)
    assert engine.history("p")[-1].at == moved_at

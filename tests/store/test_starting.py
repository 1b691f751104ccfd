"""Starting on conditions, on a real database: what is written, what it is held to, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from store_workbench import (
    RecordingRing,
    claim,
    everything,
    make_due,
    make_engine,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Alarm, Booking, Letter, Once, Page, Parcel, Stage

from aegis import Context, Retry, Workflow, transition
from aegis.core.bell import Bell
from aegis.core.errors import (
    AegisError,
    DeadlineExceeded,
    InvalidData,
    InvalidName,
    NotCanonical,
    SingletonConflict,
    StartConflict,
    WorkflowPurged,
)
from aegis.core.starting import Start
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition, take

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class Offer(StrEnum):
    MADE = "made"
    OPEN = "open"
    TAKEN = "taken"
    LATE = "late"
    REFUNDED = "refunded"


class Bid(Workflow, name="store.Bid"):
    """It has a way out for its deadline, from either of its states; after that it goes on."""

    state: Offer = Offer.MADE
    late: int = 0

    @transition(Offer.MADE, Offer.OPEN, retry=Retry(max_attempts=3, delay=3600, max_delay=3600, jitter=0))
    def publish(self, ctx: Context) -> None:
        SCRIPTED.get("publish", lambda *_: None)(self, ctx)

    @transition(Offer.OPEN, Offer.TAKEN, on="take")
    def take(self, ctx: Context, _: None) -> None:
        pass

    @transition((Offer.MADE, Offer.OPEN), Offer.LATE, deadline=True, queue="late", retry=Retry(max_attempts=2, delay=0))
    def lapse(self, ctx: Context) -> None:
        SCRIPTED.get("lapse", lambda *_: None)(self, ctx)
        self.late += 1

    @transition(Offer.LATE, Offer.REFUNDED)
    def refund(self, ctx: Context) -> None:
        pass


SCRIPTED: dict[str, Callable[[Bid, Context], Any]] = {}


@pytest.fixture(autouse=True)
def _unscripted() -> Any:
    yield
    SCRIPTED.clear()


def now(database: Database) -> datetime:
    found: datetime = value(database, "SELECT clock_timestamp()")
    return found


def close(one: datetime, other: datetime) -> bool:
    return abs(one - other) < timedelta(seconds=5)


def let_deadline_pass(database: Database, workflow_id: str) -> None:
    """Move a deadline into the past, and what waits for it."""
    past = "clock_timestamp() - interval '1 s'"
    changed = f"deadline = {past}, ready_at = least(ready_at, {past}), due_at = least(due_at, {past})"
    assert sql(database, f"UPDATE aegis_workflow SET {changed} WHERE id = :id", id=workflow_id)  # noqa: S608


def said_first(engine: DurableWorkflowEngine, workflow_id: str) -> Any:
    """What transition 0 says."""
    return engine.history(workflow_id)[0].payload


# --- delay ------------------------------------------------------------------------------


def test_a_delayed_start_is_not_claimed_before(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    handle = engine.start(Once(), id="o", delay=HOUR)
    found = row(database, "o")
    assert (handle.new, handle.rung, ring.calls) == (True, True, 0)
    assert (found.status, found.rings) == ("pending", 0)
    assert found.ready_at == found.due_at == found.entered_at == found.created_at + HOUR
    assert engine.describe("o").begins_at == found.created_at + HOUR
    assert claim(database, "o") is None
    assert run_transition(bench, "o", 0) is Ended.STALE
    assert engine.resume("o") is True
    assert engine.resume_all_pending(Once) == []
    assert row(database, "o").ready_at == found.ready_at
    make_due(database, "o")
    assert run_transition(bench, "o", 0) is Ended.COMMITTED
    assert engine.describe("o").begins_at is None
    assert engine.verify_integrity("o")[0]


def test_timers_of_the_first_state_count_from_the_delay(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Alarm(), id="a", delay=HOUR)
    found = row(database, "a")
    assert found.timer_at == found.created_at + HOUR + timedelta(days=7)
    assert found.ready_at == found.created_at + HOUR


def test_an_event_may_be_sent_before_it_begins(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    engine.start(Letter(), id="l", delay=HOUR)
    engine.send("l", "finish", "one")
    assert ring.calls == 0
    assert (row(database, "l").inbox, claim(database, "l")) == (1, None)
    make_due(database, "l")
    assert run_transition(bench, "l", 0) is Ended.COMMITTED
    assert engine.describe("l").state == Page.READY


def test_one_that_begins_by_waiting_waits_once_its_delay_is_over(
    engine: DurableWorkflowEngine, database: Database, bench: Bench
) -> None:
    engine.start(Letter(), id="l", delay=HOUR)
    make_due(database, "l")
    assert run_transition(bench, "l", 0) is Ended.WAITING
    assert row(database, "l").status == "waiting"
    engine.send("l", "finish", "one")
    assert run_transition(bench, "l", 0) is Ended.COMMITTED


def test_a_pause_does_not_shorten_the_delay(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database
) -> None:
    for workflow in (Once(), Letter(), Alarm()):
        handle = engine.start(workflow, delay=HOUR)
        engine.pause(handle.id)
        assert row(database, handle.id).ready_at is None
        assert engine.resume(handle.id) is True
        found = row(database, handle.id)
        assert (found.status, found.rings) == ("pending", 0)
        assert found.ready_at == found.due_at == found.created_at + HOUR
    assert ring.calls == 0


def test_a_moment_that_has_come_is_no_delay(engine: DurableWorkflowEngine, ring: RecordingRing) -> None:
    engine.start(Once(), id="o", delay=datetime(2020, 1, 1, tzinfo=UTC))
    engine.start(Once(), id="p", delay=timedelta(0))
    assert [bell.workflow_id for bell in ring.take()] == ["o", "p"]
    assert engine.describe("o").begins_at is None


def test_a_delay_until_a_moment_in_any_zone(engine: DurableWorkflowEngine, database: Database) -> None:
    moment = now(database) + HOUR
    engine.start(Once(), id="o", delay=moment)
    assert row(database, "o").ready_at == moment


# --- priority and queue -----------------------------------------------------------------


def test_priority_is_kept_and_rung(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    engine.start(Parcel(), id="p", priority=7)
    assert row(database, "p").priority == engine.describe("p").priority == 7
    run_transition(bench, "p", 0)
    engine.send("p", "decide", {"send": True})
    engine.pause("p")
    engine.resume("p")
    engine.ring("p")
    assert {bell.priority for bell in ring.take()} == {7}


def test_the_home_queue_is_for_transitions_that_name_none(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    handle = engine.start(Letter(), id="l", queue="home")
    assert (row(database, "l").queue, handle.describe().queue) == ("home", "home")
    engine.send("l", "finish", "one")  # names no queue
    assert ring.take()[-1].queue == "home"
    assert run_transition(bench, "l", 0) is Ended.COMMITTED  # not sent elsewhere
    engine.send("l", "post", "two")  # has one of its own
    assert ring.take()[-1].queue == "mail"
    assert run_transition(bench, "l", 1) is Ended.COMMITTED
    engine.start(Once(), id="o", queue="home")
    assert ring.take() == [Bell(workflow_id="o", seq=0, queue="home", label="store.Once.act")]
    assert run_transition(bench, "o", 0) is Ended.COMMITTED


def test_the_home_queue_stays_through_every_move(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    engine.start(Letter(), id="l", queue="home", delay=HOUR)
    make_due(database, "l")
    run_transition(bench, "l", 0)  # parked
    assert row(database, "l").queue == "home"
    engine.pause("l")
    engine.resume("l")
    assert row(database, "l").queue == "home"
    engine.start(Parcel(), id="p", queue="home")
    assert row(database, "p").queue == "belt"  # its own
    del ring


# --- attributes -------------------------------------------------------------------------


def test_workflows_are_found_by_their_attributes(engine: DurableWorkflowEngine, bench: Bench) -> None:
    engine.start(Once(), id="a", attributes={"customer": 7, "vip": True, "city": "Graz", "rate": 1.5})
    engine.start(Once(), id="b", attributes={"customer": 7, "vip": False})
    engine.start(Letter(), id="c", attributes={"customer": "7"})
    engine.start(Once(), id="d")

    def found(**attributes: Any) -> list[str]:
        return sorted(one.id for one in engine.list(attributes=attributes))

    assert found(customer=7) == ["a", "b"]
    assert found(customer=7.0) == ["a", "b"]
    assert found(customer="7") == ["c"]
    assert found(customer=7, vip=True) == ["a"]
    assert found(vip=1) == []
    assert found(rate=1.5, city="Graz") == ["a"]
    assert found(nobody=1) == []
    assert len(engine.list(attributes={})) == 4
    run_transition(bench, "a", 0)
    assert engine.describe("a").attributes == {"customer": 7, "vip": True, "city": "Graz", "rate": 1.5}
    assert [one.id for one in engine.list(attributes={"customer": 7}, status="completed")] == ["a"]


def test_a_handler_changes_what_its_workflow_is_found_by(
    engine: DurableWorkflowEngine, bench: Bench, script: dict[str, Act]
) -> None:
    script["pack"] = lambda _, ctx: ctx.set_attributes({"stage": "packed", "weight": 2.5})
    engine.start(Parcel(), id="p", attributes={"customer": 7})
    assert run_transition(bench, "p", 0) is Ended.COMMITTED
    assert engine.describe("p").attributes == {"stage": "packed", "weight": 2.5}
    assert [one.id for one in engine.list(attributes={"weight": 2.5})] == ["p"]
    assert engine.list(attributes={"customer": 7}) == []
    assert engine.history("p")[-1].payload == {"attributes": {"stage": "packed", "weight": 2.5}}
    engine.send("p", "decide", {"send": True})
    run_where_it_is_sent(bench, "p", 1)
    assert engine.describe("p").attributes == {"stage": "packed", "weight": 2.5}
    assert engine.verify_integrity("p") == (True, None)


@pytest.mark.parametrize("given", [{"a": [1]}, {"no name": 1}, {"a": "\0"}, None, 7])
def test_a_handler_that_sets_what_cannot_be_has_failed(
    engine: DurableWorkflowEngine, bench: Bench, script: dict[str, Act], given: Any
) -> None:
    script["book"] = lambda _, ctx: ctx.set_attributes(given)
    engine.start(Booking(), id="b", attributes={"customer": 7})
    run_transition(bench, "b", 0)
    found = engine.describe("b")
    assert found.status == ("failed" if given is not None else "completed")
    assert found.attributes == ({} if given is None else {"customer": 7})


def test_the_index_is_used(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start_many([Start(Once(), id=f"o-{n:04d}", attributes={"number": n}) for n in range(3000)])
    sql(database, "ANALYZE aegis_workflow")
    with database.statement() as connection:
        seen: list[str] = []
        from sqlalchemy import event  # noqa: PLC0415 - for this one look

        def explain(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if "@>" in statement and not statement.startswith("EXPLAIN"):
                cursor.execute("EXPLAIN " + statement, parameters)
                seen.append("\n".join(line[0] for line in cursor.fetchall()))

        event.listen(connection, "before_cursor_execute", explain)
        from aegis.persistence import history  # noqa: PLC0415 - likewise

        rows = history.summaries(connection, history.Filter(attributes={"number": 77}))
    assert [one.id for one in rows] == ["o-0077"]
    assert "aegis_workflow_attributes" in seen[0]


def test_erasing_takes_the_attributes_and_the_key(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Once(), id="o", attributes={"mail": "ada@example.org"}, singleton="ada")
    run_transition(bench, "o", 0)
    assert engine.erase("o", reason="she asked for it")
    found = row(database, "o")
    assert (found.attributes, found.singleton) == ({}, None)
    left = json.dumps(everything(database))
    assert "ada@example.org" not in left
    assert "'ada'" not in left.replace("user:ada", "")
    assert said_first(engine, "o") is None
    assert engine.verify_integrity("o")[0]
    with pytest.raises(StartConflict, match="erased"):
        engine.start(Once(), id="o", attributes={"mail": "ada@example.org"}, singleton="ada")


# --- list -------------------------------------------------------------------------------


def test_lists_by_the_time_of_the_start(engine: DurableWorkflowEngine) -> None:
    for number in range(5):
        engine.start(Once(), id=f"o-{number}")
    rows = engine.list()
    second, fourth = rows[3].created_at, rows[1].created_at
    between = engine.list(created_after=second, created_before=fourth)
    assert [one.id for one in between] == ["o-2"]


def test_pages_miss_nothing_and_repeat_nothing(engine: DurableWorkflowEngine) -> None:
    """Many of one moment, and others that come while one reads."""
    engine.start_many([Start(Once(), id=f"o-{n:02d}", attributes={"batch": 1}) for n in range(25)])
    seen: list[str] = []
    before = None
    while page := engine.list(attributes={"batch": 1}, before=before, limit=7):
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
        engine.start(Once(), attributes={"batch": 1})
    assert seen == [f"o-{n:02d}" for n in reversed(range(25))]


@pytest.mark.parametrize(
    "wanted",
    [
        {"status": "asleep"},
        {"limit": 0},
        {"created_after": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is what is wrong with it
        {"attributes": {"no name": 1}},
        {"attributes": {"list": [1]}},
        {"attributes": {"text": "\0"}},
        {"type": "\ud800"},
    ],
)
def test_a_filter_that_cannot_be(engine: DurableWorkflowEngine, wanted: dict[str, Any]) -> None:
    with pytest.raises((InvalidData, InvalidName, NotCanonical)):
        engine.list(**wanted)


# --- deadline ---------------------------------------------------------------------------


def test_the_deadline_is_what_it_waits_for_at_most(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l", deadline=HOUR)
    engine.start(Alarm(), id="a", deadline=HOUR)
    engine.start(Alarm(), id="b", deadline=timedelta(days=30))
    for workflow_id in ("l", "a"):
        found = row(database, workflow_id)
        assert found.status == "waiting"
        assert found.deadline == found.ready_at == found.due_at == found.created_at + HOUR
    assert engine.describe("a").timer_at == row(database, "a").created_at + timedelta(days=7)
    assert row(database, "b").ready_at == row(database, "b").timer_at


def test_a_workflow_without_a_way_out_fails_at_its_deadline(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Letter(), id="l", deadline=HOUR)
    let_deadline_pass(database, "l")
    assert run_transition(bench, "l", 0) is Ended.COMMITTED
    found = engine.describe("l")
    assert (found.status, found.state) == ("failed", Page.DRAFT)
    assert found.error is not None
    assert found.error["type"] == "aegis.core.errors.DeadlineExceeded"
    assert engine.history("l")[-1].event == "failed"
    with pytest.raises(DeadlineExceeded, match="--deadline"):
        engine.retry("l")
    with pytest.raises(InvalidData, match="has passed"):
        engine.retry("l", deadline=datetime(2020, 1, 1, tzinfo=UTC))

    ring.take()
    engine.retry("l", deadline=2 * HOUR)
    found = engine.describe("l")
    assert (found.status, close(found.deadline or now(database), now(database) + 2 * HOUR)) == ("waiting", True)
    assert found.ready_at == found.deadline
    engine.send("l", "finish", "one")
    assert run_transition(bench, "l", 2) is Ended.COMMITTED
    assert engine.describe("l").state == Page.READY
    assert engine.verify_integrity("l") == (True, None)


def test_the_deadlines_own_transition_runs_on_its_own_queue_with_all_its_attempts(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    SCRIPTED["publish"] = lambda *_: 1 / 0
    attempts: list[int] = []
    SCRIPTED["lapse"] = lambda _, ctx: attempts.append(ctx.attempt) or (1 / 0 if ctx.attempt == 1 else None)
    engine.start(Bid(), id="b", deadline=timedelta(minutes=30))
    assert run_transition(bench, "b", 0) is Ended.FAILED
    make_due(database, "b")
    assert run_transition(bench, "b", 0) is Ended.FAILED
    found = row(database, "b")
    assert found.ready_at == found.due_at == found.deadline  # no back-off of an hour
    let_deadline_pass(database, "b")
    ring.take()

    assert run_transition(bench, "b", 0) is Ended.LEFT
    assert ring.take() == [Bell(workflow_id="b", seq=0, queue="late", label="store.Bid.lapse")]
    assert (row(database, "b").queue, row(database, "b").attempt) == ("late", 0)
    assert run_transition(bench, "b", 0) is Ended.FAILED
    make_due(database, "b")
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    assert attempts == [1, 2]

    found = row(database, "b")
    assert (found.state, found.status, found.deadline) == (Offer.LATE, "pending", None)
    said = engine.history("b")[-1].payload
    assert isinstance(said, dict)
    assert set(said) == {"deadline"}
    assert run_transition(bench, "b", 1) is Ended.COMMITTED  # it goes on: the deadline is done with
    assert engine.describe("b").status == "completed"
    assert engine.verify_integrity("b") == (True, None)


def test_the_deadline_stops_what_would_begin_and_not_what_runs(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    SCRIPTED["publish"] = lambda *_: let_deadline_pass(database, "b")
    engine.start(Bid(), id="b", deadline=HOUR)
    assert run_transition(bench, "b", 0) is Ended.COMMITTED
    found = row(database, "b")
    assert (found.state, found.status) == (Offer.OPEN, "waiting")
    assert found.ready_at < now(database)
    engine.send("b", "take")  # too late: nothing else begins any more
    assert run_transition(bench, "b", 1) is Ended.LEFT
    assert run_transition(bench, "b", 1) is Ended.COMMITTED
    assert engine.describe("b").state == Offer.LATE


def test_a_paused_one_is_judged_when_it_is_resumed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Letter(), id="l", deadline=HOUR)
    engine.pause("l")
    assert sql(database, "UPDATE aegis_workflow SET deadline = clock_timestamp() - interval '1 s' WHERE id = 'l'")
    assert row(database, "l").ready_at is None
    engine.resume("l")
    assert run_transition(bench, "l", 2) is Ended.COMMITTED
    assert engine.describe("l").status == "failed"


def test_the_deadline_holds_for_every_state_and_parking_keeps_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p", deadline=HOUR)
    run_transition(bench, "p", 0)
    found = row(database, "p")
    assert (found.state, found.ready_at, found.due_at) == (Stage.PACKED, found.deadline, found.deadline)
    engine.start(Letter(), id="l", delay=timedelta(minutes=1), deadline=HOUR)
    make_due(database, "l")
    assert run_transition(bench, "l", 0) is Ended.WAITING
    assert row(database, "l").ready_at == row(database, "l").deadline


def test_what_has_ended_has_no_deadline_to_meet(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Once(), id="o", deadline=HOUR)
    run_transition(bench, "o", 0)
    assert (row(database, "o").status, row(database, "o").due_at) == ("completed", None)


def test_a_deadline_handler_that_always_fails_is_retried_and_then_given_up(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    SCRIPTED["lapse"] = lambda *_: 1 / 0
    engine.start(Bid(), id="b", deadline=HOUR)
    let_deadline_pass(database, "b")
    ended = [run_transition(bench, "b", 0) for _ in range(3)]
    assert ended == [Ended.LEFT, Ended.FAILED, Ended.COMMITTED]
    found = engine.describe("b")
    assert (found.status, (found.error or {})["type"]) == ("failed", "ZeroDivisionError")
    engine.retry("b")  # it was not the deadline that stopped it
    assert [run_transition(bench, "b", 2) for _ in range(2)] == [Ended.FAILED, Ended.COMMITTED]
    SCRIPTED.clear()
    engine.retry("b", deadline=HOUR)  # with time again, it begins where it was
    assert run_where_it_is_sent(bench, "b", 4) is Ended.COMMITTED
    assert engine.describe("b").state == Offer.OPEN


# --- singleton --------------------------------------------------------------------------


def test_a_key_is_for_one_of_a_type_that_has_not_ended(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Once(), id="a", singleton="nightly")
    before = everything(database)
    with pytest.raises(SingletonConflict) as caught:
        engine.start(Once(), id="b", singleton="nightly")
    assert (caught.value.holder, caught.value.status, caught.value.state) == ("a", "pending", "open")
    attached = engine.start(Once(note="other"), id="b", singleton="nightly", attach=True)
    assert (attached.id, attached.new, attached.rung) == ("a", False, True)
    assert engine.start(Once(), id="a", singleton="nightly").new is False
    assert everything(database) == before

    engine.start(Letter(), id="other-type", singleton="nightly")
    engine.start(Once(), id="other-key", singleton="daily")
    run_transition(bench, "a", 0)
    assert engine.start(Once(), id="b", singleton="nightly").new is True
    engine.cancel("b")
    assert engine.start(Once(), id="c", singleton="nightly", attach=True).id == "c"


def test_one_that_failed_keeps_its_key(engine: DurableWorkflowEngine, bench: Bench, script: dict[str, Act]) -> None:
    script["act"] = lambda *_: 1 / 0
    engine.start(Once(), id="a", singleton="k")
    run_transition(bench, "a", 0)
    with pytest.raises(SingletonConflict, match="failed"):
        engine.start(Once(), singleton="k")


@pytest.mark.parametrize("attach", [True, False])
def test_of_many_at_once_one_has_the_key(database: Database, ring: RecordingRing, *, attach: bool) -> None:
    engine = make_engine(database, ring)

    def start(number: int) -> str | None:
        try:
            return engine.start(Once(), id=f"o-{number}", singleton="k", attach=attach).id
        except SingletonConflict as conflict:
            assert not attach
            return conflict.holder

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(start, range(24)))
    assert value(database, "SELECT count(*) FROM aegis_workflow") == 1
    assert told == {value(database, "SELECT id FROM aegis_workflow")}
    assert len(ring.bells) == 1


# --- started again ----------------------------------------------------------------------


def test_a_repeated_start_has_to_say_the_same(engine: DurableWorkflowEngine, database: Database) -> None:
    given: dict[str, Any] = {"priority": 3, "queue": "home", "attributes": {"customer": 7}, "singleton": "k"}
    engine.start(Once(), id="o", delay=HOUR, deadline=2 * HOUR, **given)
    before = everything(database)
    assert engine.start(Once(), id="o", delay=2 * HOUR, deadline=3 * HOUR, **given).new is False
    for name, other in (
        ("priority", 4),
        ("queue", "other"),
        ("attributes", {"customer": 8}),
        ("attributes", {}),
        ("singleton", "l"),
        ("queue", None),
    ):
        with pytest.raises(StartConflict, match=name):
            engine.start(Once(), id="o", **given | {name: other})
    assert everything(database) == before


def test_who_asks_again_after_long_is_rung_for_ahead_of_the_rest(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database
) -> None:
    """The answer was lost, and the bell with it: who is told "accepted" is not to wait for the sweep."""
    engine.start(Once(), id="o")
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "so", key="k")
    ring.take()
    engine.start(Once(), id="o")
    engine.send("l", "finish", "so", key="k")
    assert ring.take() == [], "its bell is on its way, for all that is known"
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
    handle = engine.start(Once(), id="o")
    assert (handle.new, handle.rung) == (False, True)
    engine.send("l", "finish", "so", key="k")
    assert [(bell.workflow_id, bell.seq, bell.priority) for bell in ring.take()] == [("o", 0, 1), ("l", 0, 1)]
    engine.start(Once(), id="o")
    engine.send("l", "finish", "so", key="k")
    assert ring.take() == [], "once in a grace"


def test_who_asks_again_for_what_is_in_hand_or_waits_rings_nobody(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    engine.start(Once(), id="o", delay=HOUR)
    engine.start(Once(), id="claimed")
    engine.start(Letter(), id="l")
    assert take(bench, "claimed", 0, redelivered=False) is not None
    ring.take()
    sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s' WHERE due_at IS NOT NULL")
    for again in (Start(Once(), id="o", delay=HOUR), Start(Once(), id="claimed"), Start(Letter(), id="l")):
        assert engine.start_many([again])[0].new is False
    assert ring.take() == []


def test_who_ask_again_for_the_same_in_other_orders_wait_for_nobody(database: Database, ring: RecordingRing) -> None:
    """Each takes what it gets: two who repeat the same starts crosswise never lock each other out."""
    names = [f"o-{number}" for number in range(40)]
    make_engine(database, ring).start_many(Start(Once(), id=name) for name in names)
    ring.take()
    for _ in range(5):
        sql(database, "UPDATE aegis_workflow SET due_at = clock_timestamp() - interval '1 s'")
        orders = [names, names[::-1], names[20:] + names[:20]]
        rings = [RecordingRing() for _ in orders]
        engines = [make_engine(database, each) for each in rings]

        def again(engine: DurableWorkflowEngine, order: list[str]) -> bool:
            return any(handle.new for handle in engine.start_many(Start(Once(), id=name) for name in order))

        with ThreadPoolExecutor(3) as pool:
            assert not any(pool.map(again, engines, orders))
        rung = [bell.workflow_id for each in rings for bell in each.take()]
        assert sorted(rung) == sorted(names), "each is rung for once"


def test_the_history_tells_what_was_asked_for(engine: DurableWorkflowEngine) -> None:
    engine.start(Once(), id="plain")
    assert said_first(engine, "plain") is None
    engine.start(Once(), id="o", delay=HOUR, priority=3, attributes={"customer": 7})
    said = said_first(engine, "o")
    assert said.pop("begins_at") == engine.describe("o").entered_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert said == {"priority": 3, "attributes": {"customer": 7}}
    assert engine.verify_integrity("o") == (True, None)


# --- many -------------------------------------------------------------------------------


def test_many_are_written_in_few_statements_and_rung_at_once(
    engine: DurableWorkflowEngine, ring: RecordingRing, database: Database, bench: Bench
) -> None:
    from sqlalchemy import event  # noqa: PLC0415 - for this one look

    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    handles = engine.start_many([Start(Once(note=str(n)), id=f"o-{n:04d}") for n in range(1000)])
    assert [handle.id for handle in handles] == [f"o-{n:04d}" for n in range(1000)]
    assert all(handle.new and handle.rung for handle in handles)
    assert len(statements) <= 10
    assert (ring.calls, len(ring.bells)) == (1, 1000)
    assert value(database, "SELECT count(*) FROM aegis_checkpoint") == 1000
    for workflow_id in ("o-0000", "o-0999"):
        assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
        assert engine.verify_integrity(workflow_id) == (True, None)


def test_many_take_workflows_and_starts_and_give_random_ids(engine: DurableWorkflowEngine) -> None:
    handles = engine.start_many([Once(), Start(Once(), priority=9), Start(Letter(), delay=HOUR)])
    assert len({handle.id for handle in handles}) == 3
    assert [handle.describe().priority for handle in handles] == [0, 9, 0]
    assert engine.start_many([]) == []


def test_many_are_idempotent_by_id(engine: DurableWorkflowEngine, ring: RecordingRing) -> None:
    engine.start(Once(), id="o-3")
    ring.take()
    handles = engine.start_many([Start(Once(), id=f"o-{n}") for n in (5, 3, 1, 5)])
    assert [(handle.id, handle.new) for handle in handles] == [
        ("o-5", True),
        ("o-3", False),
        ("o-1", True),
        ("o-5", False),
    ]
    assert sorted(bell.workflow_id for bell in ring.take()) == ["o-1", "o-5"]


def test_keys_within_many(engine: DurableWorkflowEngine, database: Database) -> None:
    first = Start(Once(), id="a", singleton="k")
    with pytest.raises(SingletonConflict):
        engine.start_many([first, Start(Once(), id="b", singleton="k")])
    assert value(database, "SELECT count(*) FROM aegis_workflow") == 0
    handles = engine.start_many([first, Start(Once(), id="b", singleton="k", attach=True)])
    assert [(handle.id, handle.new) for handle in handles] == [("a", True), ("a", False)]


def purge(engine: DurableWorkflowEngine, database: Database) -> None:
    sql(database, "INSERT INTO aegis_removal VALUES ('purged', 1, 'purged', 0, :head)", head=b"x" * 32)
    del engine


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Start(Once(note="other"), id="there"), StartConflict),
        (Start(Letter(), id="there"), StartConflict),
        (Start(Once(), id="no id"), InvalidName),
        (Start(Once(), id="aegis:x"), InvalidName),
        (Start(Once(note="x" * 300_000)), NotCanonical),
        (Start(Once(note="\0")), NotCanonical),
        (Start(Parcel(state=Stage.SENT)), InvalidData),
        (Start(Once(), priority=10), InvalidData),
        (Start(Once(), id="purged"), WorkflowPurged),
        (Start(Once(), id="o-0500", queue="x"), StartConflict),
        ("no workflow", InvalidData),
    ],
)
def test_of_many_all_or_none(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, bad: Any, kind: type[AegisError]
) -> None:
    engine.start(Once(), id="there")
    purge(engine, database)
    ring.take()
    before = everything(database)
    good = [Start(Once(), id=f"o-{n:04d}") for n in range(600)]
    with pytest.raises(kind):
        engine.start_many([*good, bad])
    assert everything(database) == before
    assert ring.take() == []


def test_many_at_once_of_the_same_do_not_lock_each_other_out(database: Database, ring: RecordingRing) -> None:
    engine = make_engine(database, ring)
    ids = [f"o-{n:03d}" for n in range(200)]

    def start(order: int) -> int:
        some = ids if order % 2 else ids[::-1]
        return sum(handle.new for handle in engine.start_many([Start(Once(), id=one) for one in some]))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(start, range(12))) == 200


# --- what cannot be ---------------------------------------------------------------------

NAIVE = datetime(2099, 1, 1)  # noqa: DTZ001 - that is what is wrong with it
BAD: list[tuple[dict[str, Any], str]] = [
    ({"delay": timedelta(seconds=-1)}, "/delay"),
    ({"delay": timedelta(days=40_000)}, "/delay"),
    ({"delay": 5}, "/delay"),
    ({"delay": "10m"}, "/delay"),
    ({"delay": NAIVE}, "no time zone"),
    ({"delay": datetime(9999, 1, 1, tzinfo=UTC)}, "/delay"),
    ({"deadline": timedelta(0)}, "/deadline"),
    ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "/deadline"),
    ({"deadline": NAIVE}, "no time zone"),
    ({"deadline": HOUR, "delay": HOUR}, "/deadline"),
    ({"deadline": HOUR, "delay": 2 * HOUR}, "/deadline"),
    ({"priority": -1}, "/priority"),
    ({"priority": 10}, "/priority"),
    ({"priority": True}, "/priority"),
    ({"priority": 1.0}, "/priority"),
    ({"priority": None}, "/priority"),
    ({"queue": ""}, "queue"),
    ({"queue": "a b"}, "queue"),
    ({"queue": "x" * 129}, "queue"),
    ({"queue": 7}, "queue"),
    ({"attributes": [1]}, "/attributes"),
    ({"attributes": {"": 1}}, "attribute"),
    ({"attributes": {"a b": 1}}, "attribute"),
    ({"attributes": {"é": 1}}, "attribute"),
    ({"attributes": {"x" * 129: 1}}, "attribute"),
    ({"attributes": {1: 1}}, "attribute"),
    ({"attributes": {"a": None}}, "/attributes/a"),
    ({"attributes": {"a": [1]}}, "/attributes/a"),
    ({"attributes": {"a": {"b": 1}}}, "/attributes/a"),
    ({"attributes": {"a": float("nan")}}, "/attributes/a"),
    ({"attributes": {"a": float("inf")}}, "/attributes/a"),
    ({"attributes": {"a": 2**53}}, "/attributes/a"),
    ({"attributes": {"a": "\0"}}, "/attributes/a"),
    ({"attributes": {"a": "\ud800"}}, "/attributes/a"),
    ({"attributes": {"a": Stage.NEW}}, "/attributes/a"),
    ({"attributes": {"a": "x" * 20_000}}, "bytes"),
    ({"attributes": {f"a{n}": n for n in range(33)}}, "at most 32"),
    ({"singleton": ""}, "singleton key"),
    ({"singleton": "a b"}, "singleton key"),
    ({"singleton": 7}, "singleton key"),
    ({"singleton": "x" * 129}, "singleton key"),
    ({"attach": True}, "/attach"),
    ({"attach": 1, "singleton": "k"}, "/attach"),
]


@pytest.mark.parametrize(("given", "says"), BAD, ids=[f"{n}-{next(iter(one))}" for n, (one, _) in enumerate(BAD)])
def test_a_condition_that_cannot_be_is_refused_and_nothing_is_written(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, given: dict[str, Any], says: str
) -> None:
    before = everything(database)
    with pytest.raises((InvalidData, InvalidName, NotCanonical)) as caught:
        engine.start(Once(), id="o", **given)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert everything(database) == before
    assert ring.calls == 0


@pytest.mark.parametrize("given", [7, "10m", NAIVE, timedelta(seconds=-1), timedelta(days=40_000)])
def test_a_retry_with_a_deadline_that_cannot_be(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act], given: Any
) -> None:
    script["act"] = lambda *_: 1 / 0
    engine.start(Once(), id="o")
    run_transition(bench, "o", 0)
    before = everything(database)
    with pytest.raises(InvalidData, match="/deadline"):
        engine.retry("o", deadline=given)
    assert everything(database) == before

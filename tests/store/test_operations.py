"""The engine's verbs on a real database: what each writes, what it refuses, and what it rings."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from store_workbench import (
    GRACE,
    MAX_BYTES,
    RecordingRing,
    claimed,
    everything,
    make_due,
    make_engine,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Alarm, Booking, Decision, Letter, Once, Page, Parcel, Stage

from aegis import Context, Workflow, transition
from aegis.core.bell import Bell
from aegis.core.chain import checkpoint_commitment
from aegis.core.errors import (
    AegisError,
    DefinitionError,
    EventConflict,
    HistoryBroken,
    InvalidData,
    InvalidName,
    NotCanonical,
    StartConflict,
    UnknownEvent,
    UnknownWorkflowType,
    WaitTimeout,
    WorkflowNotCompleted,
    WorkflowNotFound,
    WrongStatus,
)
from aegis.persistence import repository
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.models import STATUSES
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

SEND = Decision(send=True, comment="now")


def count(database: Database, table: str, workflow_id: str) -> int:
    return int(value(database, f"SELECT count(*) FROM {table} WHERE workflow_id = :id", id=workflow_id))  # noqa: S608


def packed(engine: DurableWorkflowEngine, bench: Bench, workflow_id: str = "p") -> str:
    """A parcel that waits for its decision."""
    engine.start(Parcel(), id=workflow_id)
    assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
    return workflow_id


# --- start ------------------------------------------------------------------------------


def test_start_writes_the_row_transition_0_and_checkpoint_0(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    handle = engine.start(Parcel(weight=3), id="p-1")

    found = row(database, "p-1")
    assert (handle.id, handle.rung) == ("p-1", True)
    assert (found.type, found.version, found.state, found.status) == ("store.Parcel", 1, "new", "pending")
    assert (found.seq, found.claim, found.attempt, found.inbox) == (0, 0, 0, 0)
    assert (found.following, found.accepts, found.queue, found.timer_at) == ("pack", [], "belt", None)
    assert found.definition == Parcel.definition.fingerprint
    assert found.ready_at == found.created_at
    assert found.due_at == found.created_at + GRACE
    assert found.rings == 1

    (first,) = engine.history("p-1")
    assert (first.seq, first.event, first.from_state, first.to_state) == (0, "created", None, "new")
    assert (first.actor, first.attempt, first.payload) == ("user:ada", 1, None)
    assert first.hash == bytes(found.head).hex()
    assert (
        value(database, "SELECT kind FROM aegis_checkpoint WHERE workflow_id = 'p-1' AND seq = 0 AND number = 0")
        == "transition"
    )
    assert engine.get("p-1") == Parcel(weight=3)
    assert engine.verify_integrity("p-1") == (True, None)
    assert ring.take() == [Bell(workflow_id="p-1", seq=0, queue="belt", label="store.Parcel.pack")]


def test_start_of_a_workflow_that_waits_for_an_event_rings_nothing(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    assert engine.start(Letter(), id="l").rung
    found = row(database, "l")
    assert (found.status, found.ready_at, found.due_at, found.rings) == ("waiting", None, None, 0)
    assert found.accepts == ["finish"]
    assert ring.calls == 0


def test_start_of_a_workflow_that_waits_for_a_timer_is_due_when_it_runs_out(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    engine.start(Alarm(), id="p")
    found = row(database, "p")
    assert (found.status, found.following, found.queue) == ("waiting", "ring", "night")
    assert found.timer_at == found.ready_at == found.due_at == found.entered_at + timedelta(days=7)
    assert ring.calls == 0


def test_the_same_start_again_gives_a_handle_and_writes_nothing(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    engine.start(Parcel(weight=3, extra={"a": [1, 2.5, None]}), id="p-1")
    before, ring.bells = everything(database), []

    again = engine.start(Parcel(weight=3, extra={"a": [1, 2.5, None]}), id="p-1")

    assert again.id == "p-1"
    assert not again.new
    assert everything(database) == before
    assert ring.bells == []


def test_the_same_start_again_is_the_same_however_far_it_has_come(engine: DurableWorkflowEngine, bench: Bench) -> None:
    packed(engine, bench, "p")
    engine.cancel("p")
    assert engine.start(Parcel(), id="p").id == "p"
    assert engine.describe("p").status == "cancelled"


def test_a_start_with_other_input_names_every_place_that_differs(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Parcel(address="Main Street 1", weight=3, extra={"deep": {"a": 1, "b": 2}}), id="p-1")
    before = everything(database)

    with pytest.raises(StartConflict) as conflict:
        engine.start(Parcel(address="Back Lane 2", weight=3, extra={"deep": {"a": 1, "b": 7}}), id="p-1")

    assert conflict.value.workflow_id == "p-1"
    assert conflict.value.differences == (
        '/address: "Main Street 1" then, "Back Lane 2" now',
        "/extra/deep/b: 2 then, 7 now",
    )
    assert everything(database) == before


@pytest.mark.parametrize(
    ("before", "now"), [(True, 1), (False, 0), ([True], [1]), ({"x": None}, {})], ids=["true", "false", "list", "null"]
)
def test_a_start_whose_json_differs_is_another_start(engine: DurableWorkflowEngine, before: Any, now: Any) -> None:
    """Python takes True for 1; JSON does not, and the two have different bytes."""
    engine.start(Parcel(extra={"flag": before}), id="p")
    with pytest.raises(StartConflict):
        engine.start(Parcel(extra={"flag": now}), id="p")


def test_a_number_that_json_writes_the_same_is_the_same_start(engine: DurableWorkflowEngine) -> None:
    engine.start(Parcel(extra={"n": 1.0}), id="p")
    assert engine.start(Parcel(extra={"n": 1}), id="p").id == "p"


def test_a_key_with_a_slash_is_escaped_in_the_pointer(engine: DurableWorkflowEngine) -> None:
    engine.start(Parcel(extra={"a/b": 1, "c~d": 1}), id="p")
    with pytest.raises(StartConflict) as conflict:
        engine.start(Parcel(extra={"a/b": 2, "c~d": 2}), id="p")
    assert conflict.value.differences == ("/extra/a~1b: 1 then, 2 now", "/extra/c~0d: 1 then, 2 now")


def test_a_start_of_another_type_under_the_same_id_is_refused(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Parcel(), id="x")
    before = everything(database)
    with pytest.raises(StartConflict, match=r"type: store\.Parcel then, store\.Letter now"):
        engine.start(Letter(), id="x")
    assert everything(database) == before


@pytest.mark.parametrize("workflow_id", ["a", "0", "A-z_9.:@/+=~", "x" * 128])
def test_ids_that_are_fit(engine: DurableWorkflowEngine, workflow_id: str) -> None:
    assert engine.start(Letter(), id=workflow_id).describe().id == workflow_id


@pytest.mark.parametrize(
    "workflow_id",
    [
        "",
        " ",
        "a b",
        "a\n",
        "\na",
        "-a",
        ".a",
        "/a",
        "x" * 129,
        "ä",
        "a\0b",
        "\ud800",
        "a'b",
        'a"b',
        "a;b",
        "a\\b",
        "a%b",
    ],
    ids=repr,
)
def test_ids_that_are_not(engine: DurableWorkflowEngine, database: Database, workflow_id: str) -> None:
    before = everything(database)
    with pytest.raises(InvalidName, match="is not a workflow id: use 1 to 128 letters"):
        engine.start(Letter(), id=workflow_id)
    assert everything(database) == before


def test_without_an_id_each_start_gets_one_of_its_own(engine: DurableWorkflowEngine) -> None:
    first, second = engine.start(Letter()), engine.start(Letter())
    assert first.id != second.id
    assert {row.id for row in engine.list()} == {first.id, second.id}


def test_data_beyond_the_limit_is_refused_with_its_size(engine: DurableWorkflowEngine, database: Database) -> None:
    before = everything(database)
    with pytest.raises(NotCanonical, match=f"more than the {MAX_BYTES} allowed"):
        engine.start(Parcel(address="x" * MAX_BYTES), id="p")
    assert everything(database) == before


@pytest.mark.parametrize(
    ("extra", "pointer"),
    [
        ({"a": [0, "\0"]}, "/a/1"),
        ({"n": 2**53}, "/n"),
        ({"k\0": 1}, "/k\0"),
        ({"e": 1e300}, "/e"),
        ({"f": float("nan")}, "/f"),
        ({"f": float("inf")}, "/f"),
    ],
    ids=["nul", "integer", "key", "float", "nan", "infinity"],
)
def test_data_outside_the_domain_is_refused_with_its_place(
    engine: DurableWorkflowEngine, database: Database, extra: dict[str, Any], pointer: str
) -> None:
    before = everything(database)
    with pytest.raises(NotCanonical) as refused:
        engine.start(Parcel(extra=extra), id="p")
    assert refused.value.pointer == f"/state/extra{pointer}"
    assert everything(database) == before


def test_data_that_no_longer_fits_its_declaration_is_refused(engine: DurableWorkflowEngine, database: Database) -> None:
    parcel = Parcel()
    parcel.__dict__["weight"] = "heavy"  # past pydantic's validation
    with pytest.raises(InvalidData) as refused:
        engine.start(parcel, id="p")
    assert [pointer for pointer, _ in refused.value.problems] == ["/weight"]
    assert value(database, "SELECT count(*) FROM aegis_workflow") == 0


def test_a_class_cannot_begin_in_a_final_state() -> None:
    class Only(StrEnum):
        END = "end"
        OTHER = "other"

    with pytest.raises(DefinitionError, match="cannot be reached from 'end'"):

        class Finished(Workflow, name="store.Finished"):
            state: Only = Only.END

            @transition(Only.OTHER, Only.END)
            def never(self, ctx: Context) -> None: ...


@pytest.mark.parametrize("state", [Stage.PACKED, Stage.SENT])
def test_a_start_anywhere_but_at_the_beginning_is_refused(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, state: Stage
) -> None:
    """The data may be a client's, who must not leap over the handlers that come first."""
    before = everything(database)
    with pytest.raises(InvalidData, match=f"/state: it is '{state}'; a new workflow is in 'new'"):
        engine.start(Parcel.from_dict({"state": state.value}), id="p")
    assert everything(database) == before
    assert ring.calls == 0


def test_two_starts_of_one_id_at_once_make_one_workflow_and_two_handles(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    for number in range(20):
        together = threading.Barrier(2)

        def start(_: int, workflow_id: str = f"p-{number}", together: threading.Barrier = together) -> str:
            together.wait(10)
            return engine.start(Parcel(weight=1), id=workflow_id).id

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(start, range(2))) == [f"p-{number}"] * 2
    assert value(database, "SELECT count(*) FROM aegis_workflow") == 20
    assert value(database, "SELECT count(*) FROM aegis_transition") == 20
    assert len(ring.bells) == 20, "only the start that was accepted rings"


def test_two_different_starts_of_one_id_at_once_are_one_workflow_and_one_conflict(
    engine: DurableWorkflowEngine,
) -> None:
    for number in range(20):
        together = threading.Barrier(2)

        def start(weight: int, workflow_id: str = f"p-{number}", together: threading.Barrier = together) -> str:
            together.wait(10)
            try:
                engine.start(Parcel(weight=weight), id=workflow_id)
            except StartConflict:
                return "refused"
            return "accepted"

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(start, (1, 2))) == ["accepted", "refused"]


def test_the_bell_is_rung_after_the_commit(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    seen: list[int] = []

    def look(bells: Sequence[Bell]) -> None:
        for bell in bells:
            with database.statement() as connection:  # another connection than the one that writes
                found = connection.exec_driver_sql(
                    "SELECT count(*) FROM aegis_workflow WHERE id = %s AND seq = %s AND status = 'pending'",
                    (bell.workflow_id, bell.seq),
                )
                seen.append(found.scalar_one())

    ring.look = look
    engine.start(Parcel(), id="p")
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a")
    engine.pause("p")
    engine.resume("p")
    run_transition(bench, "l", 0)
    engine.send("l", "post", "b")
    engine.resume_all_pending(Parcel)
    assert seen == [1, 1, 1, 1, 1]


def test_a_broker_that_is_away_is_told_by_the_handle_and_loses_nothing(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    ring.answers = False
    assert not engine.start(Parcel(), id="p").rung
    engine.start(Letter(), id="l")
    assert not engine.send("l", "finish", "a")
    assert [handle.rung for handle in engine.resume_all_pending(Parcel)] == [False]
    assert row(database, "p").due_at is not None
    assert row(database, "l").due_at is not None


# --- send -------------------------------------------------------------------------------


def test_an_event_wakes_who_waits_for_it_on_the_queue_of_its_own_transition(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    packed(engine, bench)
    ring.take()

    assert engine.send("p", "decide", SEND, key="mail-1")

    found = row(database, "p")
    assert ring.take() == [Bell(workflow_id="p", seq=1, queue="desk", label="store.Parcel.decide")]
    assert (found.status, found.inbox, found.queue, found.rings) == ("pending", 1, "desk", 1)
    assert found.due_at == found.ready_at + GRACE
    with database.statement() as connection:
        event = connection.exec_driver_sql("SELECT * FROM aegis_event").one()
    assert (event.workflow_id, event.name, event.key, event.sender) == ("p", "decide", "mail-1", "user:ada")
    assert bytes(event.payload) == b'{"comment":"now","send":true}'
    assert event.consumed_seq is None


def test_the_same_event_key_is_received_once(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND, key="mail-1")
    before, ring.bells = everything(database), []
    assert engine.send("p", "decide", {"send": True, "comment": "now"}, key="mail-1")
    assert everything(database) == before
    assert ring.bells == []


def test_the_same_event_key_is_received_once_even_after_it_was_consumed(
    engine: DurableWorkflowEngine, bench: Bench
) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a", key="k")
    run_transition(bench, "l", 0)
    engine.send("l", "finish", "a", key="k")
    assert engine.describe("l").seq == 1
    assert count(bench.database, "aegis_event", "l") == 1


def test_two_sends_of_one_key_at_once_are_received_once(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing
) -> None:
    for number in range(20):
        engine.start(Letter(), id=f"l-{number}")
        together = threading.Barrier(2)

        def send(_: int, workflow_id: str = f"l-{number}", together: threading.Barrier = together) -> bool:
            together.wait(10)
            return engine.send(workflow_id, "finish", "a", key="k")

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(send, range(2))) == [True, True]
    assert value(database, "SELECT count(*) FROM aegis_event") == 20
    assert value(database, "SELECT sum(inbox) FROM aegis_workflow") == 20
    assert len(ring.bells) == 20


@pytest.mark.parametrize(
    ("event", "payload"),
    [("decide", {"send": False, "comment": "now"}), ("decide", {"send": True, "comment": "later"})],
    ids=["other payload", "another"],
)
def test_a_key_that_was_used_for_something_else_is_a_conflict(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, event: str, payload: dict[str, Any]
) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND, key="mail-1")
    before = everything(database)
    with pytest.raises(EventConflict, match="already received an event under the key 'mail-1'"):
        engine.send("p", event, payload, key="mail-1")
    assert everything(database) == before


def test_a_key_that_was_used_for_another_event_is_a_conflict(engine: DurableWorkflowEngine) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a", key="k")
    with pytest.raises(EventConflict):
        engine.send("l", "post", "a", key="k")


def test_one_key_may_be_used_on_two_workflows(engine: DurableWorkflowEngine, database: Database) -> None:
    for workflow_id in ("a", "b"):
        engine.start(Letter(), id=workflow_id)
        engine.send(workflow_id, "finish", "x", key="k")
    assert value(database, "SELECT count(*) FROM aegis_event") == 2


def test_without_a_key_each_send_is_an_event_of_its_own(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "finish", "a")
    engine.send("l", "finish", "a")
    assert count(database, "aegis_event", "l") == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "\0", "é"], ids=repr)
def test_keys_that_are_not_fit(engine: DurableWorkflowEngine, database: Database, key: str) -> None:
    engine.start(Letter(), id="l")
    before = everything(database)
    with pytest.raises(InvalidName, match=r"is not an? event key"):
        engine.send("l", "finish", "a", key=key)
    assert everything(database) == before


def test_an_unknown_event_names_those_that_are_accepted(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    before = everything(database)
    with pytest.raises(
        UnknownEvent, match=r"store\.Letter accepts no event 'burn'; it accepts: finish \(in draft\), post \(in ready\)"
    ):
        engine.send("l", "burn", "a")
    assert everything(database) == before


@pytest.mark.parametrize(
    ("payload", "pointers"),
    [
        ({}, ["/send"]),
        ({"send": "perhaps"}, ["/send"]),
        ({"send": True, "comment": 7}, ["/comment"]),
        ({"send": [], "comment": {}}, ["/send", "/comment"]),
        (None, [""]),
        (17, [""]),
    ],
    ids=repr,
)
def test_a_wrong_payload_is_refused_with_its_place(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, payload: object, pointers: list[str]
) -> None:
    packed(engine, bench)
    before = everything(database)
    with pytest.raises(InvalidData) as refused:
        engine.send("p", "decide", payload)
    assert refused.value.what == "the payload of 'decide'"
    assert [pointer for pointer, _ in refused.value.problems] == pointers
    assert everything(database) == before


def test_a_payload_outside_the_domain_is_refused(engine: DurableWorkflowEngine, bench: Bench) -> None:
    packed(engine, bench)
    before = everything(bench.database)
    for payload in ({"send": True, "comment": "\0"}, {"send": True, "comment": "x" * MAX_BYTES}):
        with pytest.raises(NotCanonical):
            engine.send("p", "decide", payload)
    assert everything(bench.database) == before


def test_an_event_is_kept_until_a_state_accepts_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing
) -> None:
    engine.start(Letter(), id="l")
    assert engine.send("l", "post", "second")
    assert (row(database, "l").status, row(database, "l").inbox, ring.calls) == ("waiting", 1, 0)

    engine.send("l", "finish", "first")
    assert run_transition(bench, "l", 0) is Ended.COMMITTED
    assert row(database, "l").status == "pending", "the kept event is to be taken now"
    assert run_where_it_is_sent(bench, "l", 1) is Ended.COMMITTED
    assert engine.get("l") == Letter(state=Page.POSTED, words=["first", "second"])
    assert row(database, "l").inbox == 0


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_an_ended_workflow_takes_no_events(
    engine: DurableWorkflowEngine, database: Database, bring: Bring, status: str
) -> None:
    workflow_id = bring(status)
    before = everything(database)
    with pytest.raises(WrongStatus, match=f"is {status}; the event 'decide' needs one that is not ended"):
        engine.send(workflow_id, "decide", SEND)
    assert everything(database) == before


@pytest.mark.parametrize("status", ["pending", "paused", "failed", "quarantined"])
def test_an_event_does_not_wake_a_workflow_that_does_not_wait(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, bring: Bring, status: str
) -> None:
    workflow_id = bring(status)
    before = row(database, workflow_id)
    ring.take()
    assert engine.send(workflow_id, "decide", SEND)
    after = row(database, workflow_id)
    assert after.inbox == before.inbox + 1
    assert (after.status, after.ready_at, after.due_at) == (before.status, before.ready_at, before.due_at)
    assert ring.bells == []


def test_an_event_does_not_cut_short_the_delay_of_a_retry(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: dict[str, Act]
) -> None:
    script["decide"] = refuse
    packed(engine, bench)
    engine.send("p", "decide", SEND)
    assert run_transition(bench, "p", 1) is Ended.FAILED
    before = row(database, "p")
    ring.take()
    engine.send("p", "decide", Decision(send=False))
    assert row(database, "p").ready_at == before.ready_at
    assert ring.bells == []


def test_an_event_while_the_handler_runs_is_taken_by_the_state_that_follows(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, script: dict[str, Act]
) -> None:
    script["pack"] = lambda _workflow, ctx: engine.send(ctx.workflow_id, "decide", SEND) and None
    engine.start(Parcel(), id="p")
    run_transition(bench, "p", 0)
    assert run_where_it_is_sent(bench, "p", 1) is Ended.COMMITTED
    assert engine.describe("p").state == "sent"


def test_a_send_to_nobody_is_refused(engine: DurableWorkflowEngine) -> None:
    with pytest.raises(WorkflowNotFound, match="there is no workflow 'nobody'"):
        engine.send("nobody", "decide", SEND)


def test_a_send_to_a_type_that_is_not_loaded_is_refused(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    sql(database, "UPDATE aegis_workflow SET type = 'Elsewhere'")
    before = everything(database)
    with pytest.raises(UnknownWorkflowType, match="AEGIS_WORKFLOWS"):
        engine.send("l", "finish", "a")
    assert everything(database) == before


def test_the_sender_of_an_event_stands_in_the_history(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    packed(engine, bench)
    make_engine(database, RecordingRing(), actor="app:shop").send("p", "decide", SEND, key="mail-1")
    run_transition(bench, "p", 1)
    last = engine.history("p")[-1]
    assert last.actor == "worker:w@test"
    assert last.payload == {"data": {"send": True, "comment": "now"}, "key": "mail-1", "sender": "app:shop"}


# --- pause, resume, retry, cancel ---------------------------------------------------------

Bring = Callable[[str], str]


def refuse(*_: object) -> None:
    raise RuntimeError("no such street")


@pytest.fixture
def bring(engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act]) -> Bring:
    """Bring a parcel into a status, by what leads there in production; ``running`` is pending in some hand."""

    def complete(workflow_id: str) -> None:
        run_transition(bench, workflow_id, 0)
        engine.send(workflow_id, "decide", SEND)
        run_transition(bench, workflow_id, 1)

    def fail(workflow_id: str) -> None:
        script["pack"] = refuse
        for _ in range(3):
            make_due(database, workflow_id)
            run_transition(bench, workflow_id, 0)
        del script["pack"]

    def die(workflow_id: str) -> None:
        for _ in range(3):  # attempts that nobody ever heard of again
            claimed(database, workflow_id)
            sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL WHERE id = :id", id=workflow_id)
        run_transition(bench, workflow_id, 0)

    ways: dict[str, Callable[[str], object]] = {
        "pending": lambda _: None,
        "running": lambda workflow_id: claimed(database, workflow_id),
        "waiting": lambda workflow_id: run_transition(bench, workflow_id, 0),
        "paused": engine.pause,
        "completed": complete,
        "cancelled": engine.cancel,
        "failed": fail,
        "quarantined": die,
    }

    def make(status: str) -> str:
        workflow_id = f"p-{status}"
        engine.start(Parcel(), id=workflow_id)
        ways[status](workflow_id)
        assert engine.describe(workflow_id).status == ("pending" if status == "running" else status)
        return workflow_id

    return make


@dataclass(frozen=True)
class Does:
    """What a verb does to a workflow in some status: an entry in the history, and the status after it."""

    event: str
    status: str


NOTHING, REFUSED = "nothing", "refused"
VERBS: dict[str, dict[str, Does | str]] = {
    "pause": {
        "pending": Does("paused", "paused"),
        "waiting": Does("paused", "paused"),
        "paused": NOTHING,
        "completed": REFUSED,
        "failed": REFUSED,
        "cancelled": REFUSED,
        "quarantined": REFUSED,
    },
    "resume": {
        "pending": NOTHING,
        "waiting": NOTHING,
        "paused": Does("resumed", "pending"),
        "completed": REFUSED,
        "failed": REFUSED,
        "cancelled": REFUSED,
        "quarantined": REFUSED,
    },
    "retry": {
        "pending": REFUSED,
        "waiting": REFUSED,
        "paused": REFUSED,
        "completed": REFUSED,
        "failed": Does("retried", "pending"),
        "cancelled": REFUSED,
        "quarantined": Does("retried", "pending"),
    },
    "cancel": {
        "pending": Does("cancelled", "cancelled"),
        "waiting": Does("cancelled", "cancelled"),
        "paused": Does("cancelled", "cancelled"),
        "completed": REFUSED,
        "failed": Does("cancelled", "cancelled"),
        "cancelled": NOTHING,
        "quarantined": Does("cancelled", "cancelled"),
    },
}


def test_the_table_of_verbs_knows_every_status() -> None:
    assert all(set(row) == set(STATUSES) for row in VERBS.values())


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_in_every_status(
    engine: DurableWorkflowEngine, database: Database, bring: Bring, verb: str, status: str
) -> None:
    workflow_id = bring(status)
    history, data, state = engine.history(workflow_id), engine.get(workflow_id), engine.describe(workflow_id).state
    expected = VERBS[verb][status]
    act = getattr(make_engine(database, RecordingRing(), actor="user:grace"), verb)

    if expected == REFUSED:
        before = everything(database)
        with pytest.raises(WrongStatus) as refused:
            act(workflow_id, reason="because")
        assert (refused.value.workflow_id, refused.value.status) == (workflow_id, status)
        assert status not in refused.value.allowed
        assert everything(database) == before
        return

    act(workflow_id, reason="because")
    after = engine.history(workflow_id)
    assert after[: len(history)] == history
    if isinstance(expected, Does):
        (entry,) = after[len(history) :]
        assert (entry.event, entry.actor, entry.payload) == (expected.event, "user:grace", {"reason": "because"})
        assert (entry.from_state, entry.to_state) == (state, state)
        assert engine.describe(workflow_id).status == expected.status
    else:
        assert after == history
        assert engine.describe(workflow_id).status == status
    assert engine.get(workflow_id) == data
    assert engine.verify_integrity(workflow_id) == (True, None)


@pytest.mark.parametrize(("verb", "status"), [("pause", "pending"), ("resume", "paused"), ("retry", "failed")])
def test_a_verb_without_a_reason_leaves_no_payload(
    engine: DurableWorkflowEngine, bring: Bring, verb: str, status: str
) -> None:
    workflow_id = bring(status)
    getattr(engine, verb)(workflow_id)
    assert engine.history(workflow_id)[-1].payload is None


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_for_nobody_is_refused(engine: DurableWorkflowEngine, verb: str) -> None:
    with pytest.raises(WorkflowNotFound):
        getattr(engine, verb)("nobody")


def test_nothing_begins_on_a_paused_workflow_and_a_resumed_one_goes_on(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, bring: Bring
) -> None:
    workflow_id = bring("paused")
    found = row(database, workflow_id)
    assert (found.ready_at, found.due_at) == (None, None)
    assert run_transition(bench, workflow_id, found.seq) is Ended.STALE
    ring.take()

    assert engine.resume(workflow_id)

    assert ring.take() == [Bell(workflow_id=workflow_id, seq=2, queue="belt", label="store.Parcel.pack")]
    assert run_transition(bench, workflow_id, 2) is Ended.COMMITTED
    assert engine.describe(workflow_id).state == "packed"


def test_a_timer_goes_on_counting_through_a_pause(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, bring: Bring
) -> None:
    workflow_id = bring("waiting")
    timer_at = row(database, workflow_id).timer_at
    engine.pause(workflow_id)
    ring.take()
    engine.resume(workflow_id)
    found = row(database, workflow_id)
    assert (found.status, found.timer_at, found.ready_at, found.due_at) == ("waiting", timer_at, timer_at, timer_at)
    assert ring.bells == [], "there is nothing to do yet"

    engine.pause(workflow_id)
    ago = "entered_at = entered_at - interval '8 days', timer_at = timer_at - interval '8 days'"
    sql(database, f"UPDATE aegis_workflow SET {ago}")  # noqa: S608 - it ran out during the pause
    engine.resume(workflow_id)
    assert run_transition(bench, workflow_id, row(database, workflow_id).seq) is Ended.COMMITTED
    assert engine.describe(workflow_id).state == "lost"


def test_an_event_that_came_during_a_pause_is_taken_after_it(
    engine: DurableWorkflowEngine, bench: Bench, ring: RecordingRing, bring: Bring
) -> None:
    workflow_id = bring("waiting")
    engine.pause(workflow_id)
    engine.send(workflow_id, "decide", SEND)
    ring.take()
    assert engine.resume(workflow_id)
    (bell,) = ring.take()
    assert run_where_it_is_sent(bench, bell.workflow_id, bell.seq) is Ended.COMMITTED
    assert engine.describe(workflow_id).state == "sent"


def test_a_pause_while_a_handler_runs_is_noted_and_recorded_by_the_next_claim(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, bring: Bring
) -> None:
    workflow_id = bring("running")
    history = engine.history(workflow_id)
    engine.pause(workflow_id, reason="stock-taking")
    found = row(database, workflow_id)
    assert (found.status, found.owner) == ("pending", "w@test"), "the handler may finish"
    assert found.pausing == {"actor": "user:ada", "reason": "stock-taking"}
    assert engine.history(workflow_id) == history


def test_a_resume_takes_back_a_pause_that_was_only_asked_for(
    engine: DurableWorkflowEngine, database: Database, ring: RecordingRing, bring: Bring
) -> None:
    workflow_id = bring("running")
    engine.pause(workflow_id)
    ring.take()
    engine.resume(workflow_id)
    assert row(database, workflow_id).pausing is None
    assert ring.bells == [], "it is in somebody's hands"


def test_a_pause_of_a_running_workflow_refuses_what_could_never_be_recorded(
    engine: DurableWorkflowEngine, database: Database, bring: Bring
) -> None:
    """The same reasons are refused as where nothing runs; accepted, they could never go into the chain."""
    workflow_id = bring("running")
    before = everything(database)
    for reason in ("x" * (MAX_BYTES + 1), "nul \0", "lone \ud800"):
        with pytest.raises(AegisError):
            engine.pause(workflow_id, reason=reason)
        assert everything(database) == before


@pytest.mark.parametrize("reason", ["x" * (MAX_BYTES + 1), "nul \0", "lone \ud800"], ids=["large", "nul", "surrogate"])
@pytest.mark.parametrize(
    ("verb", "status"), [("pause", "pending"), ("resume", "paused"), ("retry", "failed"), ("cancel", "pending")]
)
def test_a_reason_outside_the_domain_is_refused(
    engine: DurableWorkflowEngine, database: Database, bring: Bring, verb: str, status: str, reason: str
) -> None:
    workflow_id = bring(status)
    before = everything(database)
    with pytest.raises((NotCanonical, InvalidName)):
        getattr(engine, verb)(workflow_id, reason=reason)
    assert everything(database) == before


def test_resume_rings_a_pending_workflow_again(
    engine: DurableWorkflowEngine, ring: RecordingRing, bring: Bring
) -> None:
    workflow_id = bring("pending")
    ring.take()
    assert engine.resume(workflow_id)
    assert ring.take() == [Bell(workflow_id=workflow_id, seq=0, queue="belt", label="store.Parcel.pack")]


def test_a_cancelled_workflow_gives_up_its_claim(
    engine: DurableWorkflowEngine, database: Database, bring: Bring
) -> None:
    workflow_id = bring("running")
    engine.cancel(workflow_id)
    found = row(database, workflow_id)
    assert (found.status, found.owner, found.due_at, found.ready_at) == ("cancelled", None, None, None)


def test_a_retry_begins_with_all_its_attempts(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, bring: Bring
) -> None:
    for status in ("failed", "quarantined"):
        workflow_id = bring(status)
        ring.take()
        assert engine.retry(workflow_id)
        found = row(database, workflow_id)
        assert (found.attempt, found.error) == (0, None)
        assert [bell.seq for bell in ring.take()] == [found.seq]


def test_a_retried_event_handler_gets_its_event_again(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, script: dict[str, Act]
) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND)
    script["decide"] = refuse
    for _ in range(2):
        make_due(database, "p")
        run_transition(bench, "p", 1)
    assert engine.describe("p").status == "failed"
    script.clear()
    ring.take()
    engine.retry("p", reason="another van")
    (bell,) = ring.take()
    assert run_transition(bench, "p", bell.seq) is Ended.COMMITTED
    assert engine.get("p").state is Stage.SENT  # type: ignore[attr-defined]


# --- checkpoint ---------------------------------------------------------------------------


def test_a_checkpoint_of_an_idle_workflow_is_kept_verified_and_listed_by_the_next_transition(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    packed(engine, bench)
    first, second = engine.checkpoint("p"), engine.checkpoint("p")

    assert first is not None
    assert second is not None
    assert [(kept.seq, kept.number, kept.kind) for kept in (first, second)] == [(1, 1, "manual"), (1, 2, "manual")]
    assert first.commitment != second.commitment, "each has a salt of its own"
    assert engine.verify_integrity("p") == (True, None)
    assert engine.get("p") == Parcel(state=Stage.PACKED)

    engine.send("p", "decide", SEND)
    run_transition(bench, "p", 1)
    payload: Any = engine.history("p")[-1].payload
    assert payload["progress"] == [first.commitment, second.commitment]
    assert engine.verify_integrity("p") == (True, None)


@pytest.mark.parametrize(("verb", "status"), [("pause", "waiting"), ("resume", "paused"), ("cancel", "waiting")])
def test_a_checkpoint_is_listed_by_an_entry_of_the_engine_too(
    engine: DurableWorkflowEngine, bring: Bring, verb: str, status: str
) -> None:
    workflow_id = bring(status)
    kept = engine.checkpoint(workflow_id)
    assert kept is not None
    getattr(engine, verb)(workflow_id, reason="why")
    assert engine.history(workflow_id)[-1].payload == {"reason": "why", "progress": [kept.commitment]}
    assert engine.verify_integrity(workflow_id) == (True, None)


def test_a_checkpoint_of_an_ended_workflow_is_one_more_copy(engine: DurableWorkflowEngine, bring: Bring) -> None:
    workflow_id = bring("completed")
    assert engine.checkpoint(workflow_id) is not None
    assert engine.verify_integrity(workflow_id) == (True, None)


def test_a_running_handler_is_asked_for_a_checkpoint(
    engine: DurableWorkflowEngine, database: Database, bring: Bring
) -> None:
    workflow_id = bring("running")
    assert engine.checkpoint(workflow_id) is None
    assert row(database, workflow_id).checkpoint_asked_at is not None
    assert count(database, "aegis_checkpoint", workflow_id) == 1


def test_a_checkpoint_of_nobody_is_refused(engine: DurableWorkflowEngine) -> None:
    with pytest.raises(WorkflowNotFound):
        engine.checkpoint("nobody")


@pytest.mark.parametrize("verbs", [["checkpoint"], ["pause", "resume"]], ids=" and ".join)
def test_no_verb_gives_new_hashes_to_data_that_was_edited(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act], verbs: list[str]
) -> None:
    """A worker leaves such a workflow alone; a copy under a fresh commitment must not let it run on."""
    ran: list[str] = []
    script["pack"] = lambda workflow, _ctx: ran.append(workflow.address)
    engine.start(Parcel(address="true"), id="p")
    sql(database, "UPDATE aegis_checkpoint SET body = replace(convert_from(body, 'UTF8'), 'true', 'lies')::bytea")
    assert run_transition(bench, "p", 0) is Ended.LEFT

    with contextlib.suppress(AegisError):
        for verb in verbs:
            getattr(engine, verb)("p")

    run_transition(bench, "p", row(database, "p").seq)
    assert ran == [], "it ran on data that nobody committed"


# --- reading ------------------------------------------------------------------------------


def test_load_gives_the_data_as_a_transition_left_it(engine: DurableWorkflowEngine, bench: Bench) -> None:
    engine.start(Letter(), id="l")
    for seq, (event, word) in enumerate([("finish", "a"), ("post", "b")]):
        engine.send("l", event, word)
        run_transition(bench, "l", seq)
    assert engine.load("l", seq=0) == Letter()
    assert engine.load("l", seq=1) == Letter(state=Page.READY, words=["a"])
    assert engine.load("l", seq=2) == engine.load("l") == Letter(state=Page.POSTED, words=["a", "b"])
    assert engine.handle("l").at(1) == engine.load("l", seq=1)


def test_load_of_what_is_not_there(engine: DurableWorkflowEngine) -> None:
    engine.start(Letter(), id="l")
    with pytest.raises(WorkflowNotFound, match="workflow 'l' has no checkpoint at seq 7"):
        engine.load("l", seq=7)
    with pytest.raises(WorkflowNotFound, match="no checkpoint at seq -1"):
        engine.load("l", seq=-1)
    with pytest.raises(WorkflowNotFound, match="there is no workflow 'nobody'"):
        engine.load("nobody")


def test_load_refuses_data_that_was_edited(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(words=["true"]), id="l")
    sql(database, "UPDATE aegis_checkpoint SET body = replace(convert_from(body, 'UTF8'), 'true', 'lies')::bytea")
    with pytest.raises(HistoryBroken, match="workflow 'l', transition 0: its checkpoint is not"):
        engine.load("l")


def test_load_of_a_type_that_is_not_loaded(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    sql(database, "UPDATE aegis_workflow SET type = 'Elsewhere'")
    with pytest.raises(UnknownWorkflowType):
        engine.get("l")


def test_get_gives_what_the_handler_saved_so_far(
    engine: DurableWorkflowEngine, bench: Bench, script: dict[str, Act]
) -> None:
    def save(workflow: Any, ctx: Context) -> None:
        workflow.weight = 5
        ctx.checkpoint()
        assert engine.get("p") == Parcel(weight=5)
        assert engine.load("p", seq=0) == Parcel()

    script["pack"] = save
    engine.start(Parcel(), id="p")
    assert run_transition(bench, "p", 0) is Ended.COMMITTED


def test_describe_tells_where_a_workflow_is(engine: DurableWorkflowEngine, bring: Bring) -> None:
    running, waiting = engine.describe(bring("running")), engine.describe(bring("waiting"))
    assert (running.running, running.worker, running.attempt, running.following) == (True, "w@test", 1, "pack")
    assert (waiting.running, waiting.accepts, waiting.following) == (False, ("decide",), "expire")
    assert waiting.timer_at is not None
    failed = engine.describe(bring("failed"))
    assert failed.error is not None
    assert (failed.error["type"], failed.error["message"]) == ("RuntimeError", "no such street")


@pytest.mark.parametrize("verb", ["describe", "history", "verify_integrity", "handle", "get", "wait_for_end"])
def test_reading_of_nobody_is_refused(engine: DurableWorkflowEngine, verb: str) -> None:
    with pytest.raises(WorkflowNotFound, match="there is no workflow 'nobody'"):
        getattr(engine, verb)("nobody")


@pytest.mark.parametrize("workflow_id", ["nul \0", "lone \ud800"], ids=["nul", "surrogate"])
def test_an_id_that_no_workflow_can_have_is_refused_in_our_own_words(
    engine: DurableWorkflowEngine, workflow_id: str
) -> None:
    for verb in (*VERBS, "checkpoint", "describe", "history", "verify_integrity", "get", "handle", "wait"):
        with pytest.raises(AegisError):
            getattr(engine, verb)(workflow_id)
    with pytest.raises(AegisError):
        engine.send(workflow_id, "finish", "a")


def test_history_tells_each_link_with_the_one_before(engine: DurableWorkflowEngine, bench: Bench) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND, key="k")
    run_transition(bench, "p", 1)
    links = engine.handle("p").history()
    assert [(link.seq, link.event, link.from_state, link.to_state) for link in links] == [
        (0, "created", None, "new"),
        (1, "pack", "new", "packed"),
        (2, "decide", "packed", "sent"),
    ]
    assert [link.prev for link in links[1:]] == [link.hash for link in links[:-1]]
    assert [link.at for link in links] == sorted(link.at for link in links)
    assert all(link.at.tzinfo is not None for link in links)


def test_list_filters_by_type_status_and_state(engine: DurableWorkflowEngine, bring: Bring) -> None:
    for status in STATUSES:
        bring(status)
    engine.start(Letter(), id="l")

    def ids(**filters: Any) -> set[str]:
        return {found.id for found in engine.list(**filters)}

    assert len(ids()) == len(STATUSES) + 1
    assert ids(type=Letter) == ids(type="store.Letter") == {"l"}
    assert ids(type="Elsewhere") == set()
    assert ids(status="waiting") == {"l", "p-waiting"}
    assert ids(status="waiting", type=Parcel) == {"p-waiting"}
    assert ids(state="packed") == {"p-waiting"}
    assert ids(state="sent", status="completed") == {"p-completed"}
    assert len(ids(limit=3)) == 3


def test_list_refuses_a_status_that_there_is_not(engine: DurableWorkflowEngine) -> None:
    with pytest.raises(InvalidData, match="'sleeping' is none of pending, waiting, paused"):
        engine.list(status="sleeping")


@pytest.mark.parametrize("filters", [{"limit": -1}, {"state": "\0"}, {"type": "\0"}], ids=["limit", "state", "type"])
def test_list_refuses_in_our_own_words_what_the_database_would(
    engine: DurableWorkflowEngine, filters: dict[str, Any]
) -> None:
    engine.start(Letter(), id="l")
    with contextlib.suppress(AegisError):
        assert engine.list(**filters) == []


def test_paging_meets_each_of_250_workflows_once_newest_first(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for number in range(250):
        engine.start(Letter(), id=f"l-{number:03d}")
    # Many at the same moment: the id decides between them, also across pages.
    sql(database, "UPDATE aegis_workflow SET created_at = date_trunc('second', created_at)")

    seen, before = [], None
    while page := engine.list(type=Letter, before=before, limit=100):
        assert len(page) in {100, 50}
        seen += page
        before = (page[-1].created_at, page[-1].id)
        engine.start(Letter(), id=f"late-{len(seen)}")  # what comes meanwhile does not disturb

    assert len(seen) == 250
    assert sorted(found.id for found in seen) == [f"l-{number:03d}" for number in range(250)]
    order = [(found.created_at, found.id) for found in seen]
    assert order == sorted(order, reverse=True)
    assert len({found.created_at for found in seen}) < 250


# --- ringing in bulk ----------------------------------------------------------------------


def test_resume_all_pending_rings_what_could_run_and_is_in_nobodys_hands(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, ring: RecordingRing, bring: Bring
) -> None:
    for status in (*STATUSES, "running"):
        bring(status)
    engine.start(Once(), id="other-type")
    engine.start(Parcel(), id="later")
    sql(database, "UPDATE aegis_workflow SET ready_at = clock_timestamp() + interval '1 hour' WHERE id = 'later'")
    packed(engine, bench, "with-event")
    engine.send("with-event", "decide", SEND)
    sql(database, "UPDATE aegis_workflow SET rings = 5, due_at = clock_timestamp() WHERE id = 'p-pending'")
    ring.take()
    ring.calls = 0

    handles = engine.resume_all_pending(Parcel)

    assert {handle.id for handle in handles} == {"p-pending", "with-event"}
    assert {(bell.workflow_id, bell.seq, bell.queue) for bell in ring.bells} == {
        ("p-pending", 0, "belt"),
        ("with-event", 1, "desk"),
    }
    assert ring.calls == 1, "all of them in one publish"
    found = row(database, "p-pending")
    assert found.rings == 1
    assert found.due_at > datetime.now(UTC) + GRACE / 2


def test_resume_all_pending_with_nothing_to_ring(engine: DurableWorkflowEngine, ring: RecordingRing) -> None:
    assert engine.resume_all_pending(Parcel) == []
    assert ring.calls == 0


# --- waiting ------------------------------------------------------------------------------


def test_wait_returns_the_data_of_a_workflow_that_completes_meanwhile(
    engine: DurableWorkflowEngine, bench: Bench
) -> None:
    handle = engine.start(Once(note="done"), id="o")
    timer = threading.Timer(0.1, lambda: run_transition(bench, "o", 0))
    timer.start()
    assert handle.wait(timeout=20) == Once.from_dict({"state": "booked", "note": "done"})
    timer.join()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_wait_gives_up_and_tells_where_the_workflow_is(engine: DurableWorkflowEngine, timeout: float) -> None:
    engine.start(Letter(), id="l")
    began = time.monotonic()
    for wait in (engine.wait, engine.wait_for_end):
        with pytest.raises(WaitTimeout, match="it is waiting in state 'draft'") as late:
            wait("l", timeout=timeout)
        assert (late.value.workflow_id, late.value.timeout) == ("l", timeout)
    assert time.monotonic() - began >= 2 * timeout


@pytest.mark.parametrize("status", ["failed", "quarantined", "cancelled"])
def test_wait_tells_how_else_a_workflow_ended(engine: DurableWorkflowEngine, bring: Bring, status: str) -> None:
    workflow_id = bring(status)
    with pytest.raises(WorkflowNotCompleted) as ended:
        engine.wait(workflow_id, timeout=0)
    assert (ended.value.workflow_id, ended.value.status) == (workflow_id, status)
    assert bool(ended.value.reason) == (status != "cancelled")
    assert engine.wait_for_end(workflow_id, timeout=0).status == status


def test_a_paused_workflow_has_not_ended(engine: DurableWorkflowEngine, bring: Bring) -> None:
    with pytest.raises(WaitTimeout, match="it is paused"):
        engine.wait_for_end(bring("paused"), timeout=0)


# --- verify -------------------------------------------------------------------------------

LIES = b"\x00\x01 not json"


@dataclass(frozen=True)
class Edit:
    """An edit of the database behind AEGIS's back, and what the verification has to say first."""

    statement: str
    seq: int
    code: str


EDITS = {
    "envelope": Edit(
        "UPDATE aegis_transition SET envelope = replace(convert_from(envelope, 'UTF8'), 'worker:w', 'worker:x')::bytea"
        " WHERE seq = 1",
        1,
        "HASH_MISMATCH",
    ),
    "envelope that is no JSON": Edit("UPDATE aegis_transition SET envelope = :lies WHERE seq = 1", 1, "HASH_MISMATCH"),
    "envelope that is empty": Edit("UPDATE aegis_transition SET envelope = '' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "hash": Edit("UPDATE aegis_transition SET hash = sha256('other') WHERE seq = 1", 1, "HASH_MISMATCH"),
    "event column": Edit("UPDATE aegis_transition SET event = 'pick' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "from_state column": Edit("UPDATE aegis_transition SET from_state = 'x' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "to_state column": Edit("UPDATE aegis_transition SET to_state = 'x' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "actor column": Edit("UPDATE aegis_transition SET actor = 'user:eve' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "attempt column": Edit("UPDATE aegis_transition SET attempt = 2 WHERE seq = 1", 1, "HASH_MISMATCH"),
    "at column": Edit("UPDATE aegis_transition SET at = at + interval '1 us' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "at column beyond all time": Edit("UPDATE aegis_transition SET at = 'infinity' WHERE seq = 1", 1, "HASH_MISMATCH"),
    "checkpoint body": Edit(
        "UPDATE aegis_checkpoint SET body = replace(convert_from(body, 'UTF8'), 'Main', 'Back')::bytea WHERE seq = 1",
        1,
        "CHECKPOINT_MISMATCH",
    ),
    "checkpoint body that is no JSON": Edit(
        "UPDATE aegis_checkpoint SET body = :lies WHERE seq = 1", 1, "CHECKPOINT_MISMATCH"
    ),
    "checkpoint salt": Edit(
        "UPDATE aegis_checkpoint SET salt = sha256('other') WHERE seq = 1", 1, "CHECKPOINT_MISMATCH"
    ),
    "checkpoint commitment": Edit(
        "UPDATE aegis_checkpoint SET commitment = sha256('other') WHERE seq = 1", 1, "CHECKPOINT_MISMATCH"
    ),
    "checkpoint gone": Edit("DELETE FROM aegis_checkpoint WHERE seq = 1", 1, "CHECKPOINT_MISMATCH"),
    "checkpoint between transitions": Edit(
        "INSERT INTO aegis_checkpoint SELECT workflow_id, seq, 1, 'manual', body, salt, commitment, at"
        " FROM aegis_checkpoint WHERE seq = 1",
        1,
        "CHECKPOINT_MISMATCH",
    ),
    "payload body": Edit(
        "UPDATE aegis_payload SET body = replace(convert_from(body, 'UTF8'), 'now', 'yes')::bytea WHERE seq = 2",
        2,
        "PAYLOAD_MISMATCH",
    ),
    "payload body that is no JSON": Edit("UPDATE aegis_payload SET body = :lies WHERE seq = 2", 2, "PAYLOAD_MISMATCH"),
    "payload gone": Edit("DELETE FROM aegis_payload WHERE seq = 2", 2, "PAYLOAD_MISMATCH"),
    "payload where there was none": Edit(
        "INSERT INTO aegis_payload VALUES ('p', 1, '{}', sha256('salt'))", 1, "PAYLOAD_MISMATCH"
    ),
    "workflow state": Edit("UPDATE aegis_workflow SET state = 'kept'", 2, "ROW_STATE_MISMATCH"),
    "workflow status": Edit("UPDATE aegis_workflow SET status = 'cancelled'", 2, "ROW_STATE_MISMATCH"),
    "workflow type": Edit("UPDATE aegis_workflow SET type = 'store.Letter'", 2, "ROW_STATE_MISMATCH"),
    "workflow definition": Edit("UPDATE aegis_workflow SET definition = 'sha256:0'", 2, "ROW_STATE_MISMATCH"),
    "workflow head": Edit("UPDATE aegis_workflow SET head = sha256('other')", 2, "HEAD_MISMATCH"),
    "workflow seq": Edit("UPDATE aegis_workflow SET seq = 3", 2, "HEAD_MISMATCH"),
    "first transition gone": Edit("DELETE FROM aegis_transition WHERE seq = 0", 0, "SEQ_GAP"),
    "middle transition gone": Edit("DELETE FROM aegis_transition WHERE seq = 1", 1, "SEQ_GAP"),
    "last transition gone": Edit("DELETE FROM aegis_transition WHERE seq = 2", 1, "HEAD_MISMATCH"),
    "all transitions gone": Edit("DELETE FROM aegis_transition", 0, "HEAD_MISMATCH"),
    "deployment's name": Edit("UPDATE aegis_deployment SET name = 'other'", 0, "PREV_MISMATCH"),
}


@pytest.mark.parametrize("name", EDITS)
def test_verify_integrity_names_the_transition_that_was_edited(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, name: str
) -> None:
    edit = EDITS[name]
    packed(engine, bench)
    engine.send("p", "decide", SEND, key="mail-1")
    run_transition(bench, "p", 1)
    assert engine.verify_integrity("p") == (True, None)

    assert sql(database, edit.statement, **({"lies": LIES} if ":lies" in edit.statement else {}))

    intact, problem = engine.verify_integrity("p")
    assert not intact
    assert problem is not None
    assert problem.startswith(f"workflow 'p', transition {edit.seq}: {edit.code}: expected ")


def test_verify_integrity_names_a_link_that_was_edited_and_rehashed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND)
    run_transition(bench, "p", 1)
    sql(
        database,
        "UPDATE aegis_transition SET actor = 'worker:x@test',"
        " envelope = replace(convert_from(envelope, 'UTF8'), 'worker:w', 'worker:x')::bytea WHERE seq = 1",
    )
    sql(
        database,
        r"UPDATE aegis_transition SET hash = sha256('aegis/transition/v1\012'::bytea || envelope) WHERE seq = 1",
    )
    intact, problem = engine.verify_integrity("p")
    assert not intact
    assert problem is not None
    assert problem.startswith("workflow 'p', transition 1: PREV_MISMATCH")


def test_verify_integrity_names_a_checkpoint_inside_a_handler_that_was_edited(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    packed(engine, bench)
    engine.checkpoint("p")
    engine.send("p", "decide", SEND)
    run_transition(bench, "p", 1)
    body = bytes(value(database, "SELECT body FROM aegis_checkpoint WHERE number = 1")).replace(b"Main", b"Back")
    salt = bytes(value(database, "SELECT salt FROM aegis_checkpoint WHERE number = 1"))
    # Whoever edits the body and its commitment still cannot edit what the next transition lists.
    sql(
        database,
        "UPDATE aegis_checkpoint SET body = :body, commitment = :commitment WHERE number = 1",
        body=body,
        commitment=checkpoint_commitment(salt, body),
    )
    intact, problem = engine.verify_integrity("p")
    assert not intact
    assert problem is not None
    assert "transition 1: CHECKPOINT_MISMATCH: expected listed by the next transition" in problem


def test_history_can_be_read_where_a_record_was_edited_to_something_unreadable(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    """Whoever looks into a broken history gets an error of ours, that says where it is broken."""
    packed(engine, bench)
    sql(database, "UPDATE aegis_transition SET envelope = :lies WHERE seq = 1", lies=LIES)
    with pytest.raises(HistoryBroken, match="workflow 'p', transition 1"):
        engine.history("p")


# --- one event, one transition --------------------------------------------------------------


def test_an_event_is_consumed_in_the_transition_that_took_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    packed(engine, bench)
    engine.send("p", "decide", SEND)
    engine.send("p", "decide", Decision(send=False))
    run_transition(bench, "p", 1)
    with database.statement() as connection:
        consumed = connection.exec_driver_sql("SELECT consumed_seq FROM aegis_event ORDER BY id").scalars().all()
        assert repository.next_event(connection, "p", ["decide"]) is not None, "the second is kept"
    assert consumed == [2, None]
    assert row(database, "p").inbox == 1


def test_workflows_do_not_disturb_each_other(engine: DurableWorkflowEngine, bench: Bench) -> None:
    for number in range(5):
        engine.start(Booking(seats=number), id=f"b-{number}")
    for number in range(5):
        assert run_transition(bench, f"b-{number}", 0) is Ended.COMMITTED
    assert [engine.get(f"b-{number}").to_dict()["seats"] for number in range(5)] == list(range(5))
    assert all(engine.verify_integrity(f"b-{number}")[0] for number in range(5))

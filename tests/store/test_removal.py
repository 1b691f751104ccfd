"""Removing on purpose, on a real database: what goes, what stays, what is refused, and that it all verifies."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from store_workbench import (
    GRACE,
    MAX_BYTES,
    RecordingRing,
    await_lock,
    everything,
    make_engine,
    meanwhile,
    row,
    run_where_it_is_sent,
    sql,
    value,
)
from store_workflows import Act, Decision, Letter, Once, Parcel

from aegis.config.settings import Settings
from aegis.core.chain import MacKey
from aegis.core.errors import (
    AegisError,
    CheckpointPruned,
    ConfigurationError,
    DataErased,
    HistoryBroken,
    InvalidData,
    InvalidName,
    NotCanonical,
    StartConflict,
    UnknownWorkflowType,
    WorkflowNotFound,
    WorkflowPurged,
    WrongStatus,
)
from aegis.core.finding import Code
from aegis.core.names import SYSTEM, SYSTEM_TYPE
from aegis.core.removal import removals_digest
from aegis.core.starting import Start
from aegis.persistence import history, log, removal, walk
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.persistence.removal import span_text
from aegis.tasks.bench import Bench
from aegis.tasks.retention import Retained, retain
from aegis.tasks.transition import Ended, run_transition
from aegis.testing.invariants import Rules, check
from aegis.testing.ledger import ACCEPTED, Entry

WHO = "Ada Lovelace, 12 Square"
TERMS = Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES)
NONE = timedelta(0)
DAY = timedelta(days=1)
DATA = ("aegis_payload", "aegis_checkpoint", "aegis_event")


@contextmanager
def unchanged(database: Database) -> Iterator[None]:
    before = everything(database)
    yield
    assert everything(database) == before


def sent(engine: DurableWorkflowEngine, bench: Bench, workflow_id: str = "p") -> str:
    """A parcel that has completed at seq 2, with a secret in its data and in the event that it took."""
    engine.start(Parcel(address=WHO), id=workflow_id)
    assert run_transition(bench, workflow_id, 0) is Ended.COMMITTED
    engine.send(workflow_id, "decide", Decision(send=True, comment=f"to {WHO}"), key="mail-1")
    assert run_where_it_is_sent(bench, workflow_id, 1) is Ended.COMMITTED
    return workflow_id


def long(engine: DurableWorkflowEngine, workflow_id: str, seq: int, *, ended: bool = False) -> str:
    """A letter at ``seq``, by being paused and resumed; cancelled with one transition more, if it has ended."""
    engine.start(Letter(words=["first"]), id=workflow_id)
    for number in range(seq):
        (engine.resume if number % 2 else engine.pause)(workflow_id)
    if ended:
        engine.cancel(workflow_id)
    return workflow_id


def logged(database: Database) -> None:
    """Give everything its place in the log, as beat does."""
    with database.transaction() as session:
        assert log.lock(session.connection())
        log.take_up(session.connection(), 10_000)
    missing = (
        "SELECT count(*) FROM aegis_transition t LEFT JOIN aegis_log l USING (workflow_id, seq) WHERE l.seq IS NULL"
    )
    assert value(database, missing) == 0


def age(database: Database, workflow_id: str, days: int) -> None:
    """Let a workflow, and its checkpoints, be as many days older."""
    past = f"interval '{days} days'"
    sql(
        database,
        f"UPDATE aegis_workflow SET created_at = created_at - {past}, updated_at = updated_at - {past} WHERE id = :id",  # noqa: S608
        id=workflow_id,
    )
    sql(database, f"UPDATE aegis_checkpoint SET at = at - {past} WHERE workflow_id = :id", id=workflow_id)  # noqa: S608


def seqs(database: Database, table: str, workflow_id: str) -> list[int]:
    with database.statement() as connection:
        found = connection.execute(
            text(f"SELECT seq FROM {table} WHERE workflow_id = :id ORDER BY 1"),  # noqa: S608
            {"id": workflow_id},
        )
        return list(found.scalars())


def rows_of(database: Database, table: str, workflow_id: str) -> int:
    column = "id" if table == "aegis_workflow" else "workflow_id"
    return int(value(database, f"SELECT count(*) FROM {table} WHERE {column} = :id", id=workflow_id))  # noqa: S608


def codes(engine: DurableWorkflowEngine, workflow_id: str) -> set[str]:
    """What the verification of a workflow tells; no failure may be among it."""
    report = engine.verify_audit_chain(workflow_id)
    assert report.valid, report
    return {finding.code for finding in report.findings}


def records(engine: DurableWorkflowEngine) -> list[dict[str, Any]]:
    """What the system's chain tells, after its beginning; it has to verify."""
    codes(engine, SYSTEM)
    first, *links = engine.history(SYSTEM)
    assert (first.event, first.to_state) == ("created", "open")
    told = []
    for link in links:
        assert isinstance(link.payload, dict)
        told.append({"event": link.event, "actor": link.actor, **link.payload})
    return told


def removals(database: Database) -> list[tuple[str, int, str, int, bytes | None]]:
    with database.statement() as connection:
        found = connection.execute(
            text("SELECT workflow_id, system_seq, kind, through_seq, head FROM aegis_removal ORDER BY 2, 1")
        )
        return [(*one[:4], None if one[4] is None else bytes(one[4])) for one in found]


# --- erase ------------------------------------------------------------------------------------


def test_erasing_leaves_no_data_and_no_salt_and_a_chain_that_verifies(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    before = engine.history("p")
    assert any(WHO in repr(rows) for rows in everything(database).values()), "else nothing is shown"

    assert engine.erase("p", reason="request 17")

    left = everything(database)
    assert not any(WHO in repr(rows) for rows in left.values())
    assert [rows_of(database, table, "p") for table in DATA] == [1, 1, 0], "those of the erasure itself"
    found = row(database, "p")
    assert (found.status, found.state, found.seq, found.error, found.inbox) == ("completed", "sent", 3, None, 0)
    assert (found.due_at, found.ready_at) == (None, None)
    *earlier, last = engine.history("p")
    assert [link.hash for link in earlier] == [link.hash for link in before]
    assert [link.payload for link in earlier] == [None] * 3
    assert (last.event, last.actor, last.from_state, last.to_state) == ("erased", "user:ada", "sent", "sent")
    assert last.payload == {"reason": "request 17", "through": 2, "status": "completed"}
    assert codes(engine, "p") == {Code.PAYLOAD_ERASED, Code.CHECKPOINT_PRUNED}
    assert engine.verify_integrity("p") == (True, None)


def test_what_was_erased_is_told_and_not_misread(engine: DurableWorkflowEngine, bench: Bench) -> None:
    sent(engine, bench)
    engine.erase("p", reason="request 17")
    for read in (
        lambda: engine.get("p"),
        lambda: engine.wait("p"),
        *((lambda seq=seq: engine.load("p", seq=seq)) for seq in range(4)),
    ):
        with pytest.raises(DataErased, match=r"the data of workflow 'p' at transition \d was erased"):
            read()
    with pytest.raises(WorkflowNotFound, match="no checkpoint at seq 4"):
        engine.load("p", seq=4)
    with pytest.raises(WorkflowNotFound):
        engine.load("p", seq=-1)
    assert engine.describe("p").status == "completed"


def test_a_cancelled_workflow_stays_cancelled_and_its_unread_events_and_error_go(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, script: dict[str, Act]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(WHO)

    script["act"] = fail
    engine.start(Once(note=WHO), id="o")
    run_transition(bench, "o", 0)
    engine.cancel("o", reason=f"{WHO} asked for it")
    assert sql(database, "UPDATE aegis_workflow SET error = '{\"message\": \"it was Ada\"}' WHERE id = 'o'")
    engine.start(Letter(), id="l")
    engine.send("l", "post", WHO)
    engine.cancel("l")
    assert row(database, "l").inbox == 1

    for workflow_id in ("o", "l"):
        assert engine.erase(workflow_id, reason="request 18")
        found = row(database, workflow_id)
        assert (found.status, found.inbox, found.error) == ("cancelled", 0, None)
        codes(engine, workflow_id)
    assert not any(WHO in repr(rows) or "it was Ada" in repr(rows) for rows in everything(database).values())


def test_checkpoints_beside_the_transitions_own_go_too(engine: DurableWorkflowEngine, database: Database) -> None:
    long(engine, "l", 1)
    engine.checkpoint("l")
    engine.cancel("l")
    engine.checkpoint("l")
    assert seqs(database, "aegis_checkpoint", "l") == [0, 1, 1, 2, 2]
    engine.erase("l", reason="request 19")
    assert seqs(database, "aegis_checkpoint", "l") == [3]
    last = engine.history("l")[-1]
    assert isinstance(last.payload, dict)
    assert len(last.payload["progress"]) == 1, "it says that there was one"  # type: ignore[arg-type]
    codes(engine, "l")
    engine.checkpoint("l")
    codes(engine, "l")
    with pytest.raises(DataErased):
        engine.get("l")


def test_erasing_again_changes_nothing(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    sent(engine, bench)
    assert engine.erase("p", reason="request 17")
    with unchanged(database):
        assert not engine.erase("p", reason="request 17, again")


def test_data_that_came_back_is_erased_again(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    """Somebody restored a table: what was said of the first erasure stays."""
    sent(engine, bench)
    engine.erase("p", reason="request 17")
    back = "INSERT INTO aegis_event (workflow_id, name, key, sender, payload, received_at)"
    sql(database, f"{back} VALUES ('p', 'decide', 'k', 'user:ada', '\"Ada\"', clock_timestamp())")
    assert engine.erase("p", reason="request 18")
    first, second = engine.history("p")[-2:]
    assert isinstance(first.payload, dict)
    assert isinstance(second.payload, dict)
    assert (first.payload["reason"], second.payload["reason"]) == ("request 17", "request 18")
    assert second.payload["through"] == 3
    assert rows_of(database, "aegis_event", "p") == 0
    codes(engine, "p")


@pytest.mark.parametrize("workflow", [Parcel(), Parcel(address=WHO), Letter()], ids=["other", "same", "type"])
def test_an_erased_id_is_not_started_again(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, workflow: Parcel | Letter
) -> None:
    sent(engine, bench)
    engine.erase("p", reason="request 17")
    told = "its data was erased" if isinstance(workflow, Parcel) else "type: store.Parcel then"
    with unchanged(database), pytest.raises(StartConflict, match=told):
        engine.start(workflow, id="p")


def test_a_first_checkpoint_that_vanished_is_no_erasure(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    sql(database, "DELETE FROM aegis_checkpoint")
    with unchanged(database), pytest.raises(HistoryBroken, match="its first checkpoint is missing"):
        engine.start(Parcel(), id="p")


@pytest.mark.parametrize("status", ["pending", "waiting", "paused", "failed", "quarantined"])
def test_only_what_has_ended_is_erased_or_purged(
    engine: DurableWorkflowEngine, database: Database, status: str
) -> None:
    long(engine, "l", 1)  # paused
    logged(database)
    assert sql(database, "UPDATE aegis_workflow SET status = :status WHERE id = 'l'", status=status)
    removing: list[Callable[[], object]] = [
        lambda: engine.erase("l", reason="request 17"),
        lambda: engine.purge("l"),
        lambda: engine.purge("l", older_than=NONE),
    ]
    for remove in removing:
        with unchanged(database), pytest.raises(WrongStatus, match="aegis cancel") as refused:
            remove()
        assert (refused.value.workflow_id, refused.value.status) == ("l", status)
    with unchanged(database):
        assert engine.purge(older_than=NONE) == 0


@pytest.mark.parametrize("reason", ["", " ", "\n\t", "x" * 2001, "\0", "\ud800"], ids=repr)
def test_a_reason_that_is_none(engine: DurableWorkflowEngine, bench: Bench, database: Database, reason: str) -> None:
    sent(engine, bench)
    with unchanged(database), pytest.raises((InvalidName, NotCanonical)):
        engine.erase("p", reason=reason)


@pytest.mark.parametrize("reason", ["x" * 2001, "\0", "\ud800"], ids=["long", "nul", "surrogate"])
def test_a_reason_that_the_records_cannot_keep(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, reason: str
) -> None:
    sent(engine, bench)
    logged(database)
    removing: list[Callable[[], object]] = [
        lambda: engine.prune(keep=1, older_than=NONE, reason=reason),
        lambda: engine.purge("p", reason=reason),
        lambda: engine.purge(older_than=NONE, reason=reason),
    ]
    for remove in removing:
        with unchanged(database), pytest.raises((InvalidName, NotCanonical)):
            remove()


@pytest.mark.parametrize(
    ("workflow_id", "error"),
    [("nobody", WorkflowNotFound), (SYSTEM, InvalidName), ("aegis:other", InvalidName), ("a b", InvalidName)],
)
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_ids_of_which_nothing_is_removed(
    engine: DurableWorkflowEngine, database: Database, workflow_id: str, error: type[AegisError], *, begun: bool
) -> None:
    if begun:
        long(engine, "l", 4)
        assert engine.prune(keep=1, older_than=NONE) == 3
    with unchanged(database), pytest.raises(error):
        engine.erase(workflow_id, reason="request 17")
    with unchanged(database), pytest.raises(error):
        engine.purge(workflow_id)


# --- prune ------------------------------------------------------------------------------------


def test_pruning_keeps_the_newest_and_the_first(engine: DurableWorkflowEngine, database: Database) -> None:
    long(engine, "l", 9)
    engine.checkpoint("l")
    engine.resume("l")  # seq 10; there is a second checkpoint at 9

    assert engine.prune(keep=3, older_than=NONE) == 7

    assert seqs(database, "aegis_checkpoint", "l") == [0, 8, 9, 9, 10]
    assert removals(database) == [("l", 1, "pruned", 7, None)]
    (record,) = records(engine)
    assert record == {
        "event": "pruned",
        "actor": "user:ada",
        "reason": "all but the newest 3 of a workflow, older than 0s",
        "workflows": 1,
        "digest": removals_digest([("l", "pruned", 7, None)]).hex(),
    }
    assert codes(engine, "l") == {Code.CHECKPOINT_PRUNED}
    assert engine.verify_integrity("l") == (True, None)
    assert engine.get("l") == engine.load("l", seq=0) == engine.load("l", seq=8) == Letter(words=["first"])
    assert not engine.start(Letter(words=["first"]), id="l").new, "the same start is still the same"
    for seq in range(1, 8):
        with pytest.raises(CheckpointPruned, match=f"at transition {seq} was pruned"):
            engine.load("l", seq=seq)
    with pytest.raises(WorkflowNotFound):
        engine.load("l", seq=11)
    with unchanged(database):
        assert engine.prune(keep=3, older_than=NONE) == 0


def test_a_workflow_that_was_pruned_goes_on(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    engine.start(Parcel(weight=5), id="p")
    run_transition(bench, "p", 0)
    for act in (engine.pause, engine.resume, engine.pause, engine.resume):
        act("p")
    engine.checkpoint("p")
    assert engine.prune(keep=1, older_than=NONE) == 4
    engine.send("p", "decide", Decision(send=True, comment="now"))
    assert run_where_it_is_sent(bench, "p", 5) is Ended.COMMITTED
    assert engine.get("p") == Parcel(state="sent", weight=5, done=["now"])  # type: ignore[arg-type]
    assert engine.prune(keep=1, older_than=NONE) == 2, "with the one beside it"
    codes(engine, "p")


def test_only_what_is_old_enough_is_pruned(engine: DurableWorkflowEngine, database: Database) -> None:
    long(engine, "old", 5)
    long(engine, "young", 5)
    age(database, "old", 90)
    for _ in range(3):
        (engine.pause if engine.describe("old").status != "paused" else engine.resume)("old")  # seq 6, 7, 8: of today

    with unchanged(database):
        assert engine.prune(keep=1, older_than=91 * DAY) == 0
    assert engine.prune(keep=1, older_than=89 * DAY, reason="as the policy says") == 5

    assert seqs(database, "aegis_checkpoint", "old") == [0, 6, 7, 8]
    assert seqs(database, "aegis_checkpoint", "young") == [0, 1, 2, 3, 4, 5]
    rule = "as the policy says (all but the newest 1 of a workflow, older than 89d)"
    assert [record["reason"] for record in records(engine)] == [rule]
    codes(engine, "old")


def test_what_is_pruned_is_taken_in_bounded_pieces(
    engine: DurableWorkflowEngine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_MOST", 4)
    monkeypatch.setattr(walk, "_PAGE", 2)
    for number in range(5):
        long(engine, f"l-{number}", 6)

    assert engine.prune(keep=2, older_than=NONE) == 20

    for number in range(5):
        assert seqs(database, "aegis_checkpoint", f"l-{number}") == [0, 5, 6]
        codes(engine, f"l-{number}")
    assert [record["workflows"] for record in records(engine)] == [1] * 5, "four checkpoints a piece"


@pytest.mark.parametrize(
    ("keep", "older_than", "pointer"),
    [
        (0, DAY, "/keep"),
        (-1, DAY, "/keep"),
        (1_000_001, DAY, "/keep"),
        (10**30, DAY, "/keep"),
        (1, -timedelta(microseconds=1), "/older_than"),
        (1, timedelta(days=36_501), "/older_than"),
        (1, timedelta.max, "/older_than"),
        (1, timedelta.min, "/older_than"),
    ],
)
def test_limits_that_cannot_be(
    engine: DurableWorkflowEngine, database: Database, keep: int, older_than: timedelta, pointer: str
) -> None:
    long(engine, "l", 4, ended=True)
    logged(database)
    with unchanged(database), pytest.raises(InvalidData, match=pointer):
        engine.prune(keep=keep, older_than=older_than)
    if pointer == "/older_than":
        with unchanged(database), pytest.raises(InvalidData, match=pointer):
            engine.purge(older_than=older_than)
        with unchanged(database), pytest.raises(InvalidData, match=pointer):
            engine.purge("l", older_than=older_than)


# --- purge ------------------------------------------------------------------------------------


def test_purging_leaves_a_stub_and_the_leaves(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    sent(engine, bench)
    sent(engine, bench, "other")
    logged(database)
    leaves = seqs(database, "aegis_log", "p")
    head = bytes(row(database, "p").head)

    assert engine.purge("p") == 1

    for table in ("aegis_workflow", "aegis_transition", *DATA):
        assert rows_of(database, table, "p") == 0, table
        assert rows_of(database, table, "other") > 0, table
    assert seqs(database, "aegis_log", "p") == leaves == [0, 1, 2]
    assert removals(database) == [("p", 1, "purged", 2, head)]
    assert records(engine) == [
        {
            "event": "purged",
            "actor": "user:ada",
            "reason": "by its id",
            "workflows": 1,
            "digest": removals_digest([("p", "purged", 2, head)]).hex(),
        }
    ]
    assert codes(engine, "p") == {Code.PURGED}
    assert engine.verify_integrity("p") == (True, None)
    codes(engine, "other")
    logged(database)
    assert engine._auditor.everything().valid


def test_a_purged_id_is_told_apart_from_one_that_never_was(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    logged(database)
    engine.purge("p")
    asking: list[Callable[[], object]] = [
        lambda: engine.describe("p"),
        lambda: engine.handle("p"),
        lambda: engine.get("p"),
        lambda: engine.load("p", seq=1),
        lambda: engine.history("p"),
        lambda: engine.wait("p", timeout=1),
        lambda: engine.start(Parcel(address=WHO), id="p"),
        lambda: engine.start(Letter(), id="p"),
        lambda: engine.send("p", "decide", Decision(send=True), key="mail-1"),
        lambda: engine.pause("p"),
        lambda: engine.resume("p"),
        lambda: engine.retry("p"),
        lambda: engine.cancel("p"),
        lambda: engine.checkpoint("p"),
        lambda: engine.erase("p", reason="request 17"),
        lambda: engine.purge("p"),
    ]
    for ask in asking:
        with unchanged(database), pytest.raises(WorkflowPurged, match="its id is never used again"):
            ask()
    with pytest.raises(WorkflowNotFound):
        engine.describe("never")


def test_all_that_is_old_enough_is_purged(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    for name in ("old-1", "old-2", "young"):
        sent(engine, bench, name)
    long(engine, "cancelled", 2, ended=True)
    long(engine, "open", 2)
    for name in ("old-1", "old-2", "cancelled", "open"):
        age(database, name, 90)
    logged(database)

    with unchanged(database):
        assert engine.purge(older_than=91 * DAY) == 0
    assert engine.purge(older_than=89 * DAY, reason="policy 4") == 3

    assert {found.id for found in engine.list()} == {"young", "open"}
    assert [one[0] for one in removals(database)] == ["cancelled", "old-1", "old-2"]
    (record,) = records(engine)
    assert (record["reason"], record["workflows"]) == ("policy 4 (ended, and unchanged for 89d)", 3)
    for name in ("old-1", "old-2", "young", "cancelled", "open"):
        codes(engine, name)
    with unchanged(database), pytest.raises(WrongStatus, match="needs one that is unchanged for 1d"):
        engine.purge("young", older_than=DAY)
    assert engine.purge("young", older_than=NONE) == 1


def test_what_is_not_in_the_log_yet_is_left_for_the_next_time(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    long(engine, "l", 2)
    logged(database)
    engine.cancel("l")
    with unchanged(database), pytest.raises(WrongStatus, match="in the log to its end"):
        engine.purge("l")
    with unchanged(database):
        assert engine.purge(older_than=NONE) == 0
    sent(engine, bench)
    logged(database)
    assert engine.purge(older_than=NONE) == 2


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE aegis_transition SET hash = sha256('x') WHERE workflow_id = 'l' AND seq = 1",
        "UPDATE aegis_workflow SET head = sha256('x') WHERE id = 'l'",
        "DELETE FROM aegis_transition WHERE workflow_id = 'l' AND seq = 1",
    ],
)
def test_what_is_not_what_the_log_says_is_kept_as_evidence(
    engine: DurableWorkflowEngine, database: Database, edit: str
) -> None:
    long(engine, "l", 2, ended=True)
    long(engine, "sound", 2, ended=True)
    logged(database)
    assert sql(database, edit) == 1
    with unchanged(database), pytest.raises(HistoryBroken, match="it is not what the log says"):
        engine.purge("l")
    assert engine.purge(older_than=NONE) == 1
    assert rows_of(database, "aegis_workflow", "l") == 1


def test_what_is_purged_is_taken_in_bounded_pieces(
    engine: DurableWorkflowEngine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_MOST", 6)
    monkeypatch.setattr(walk, "_PAGE", 4)
    for number in range(7):
        long(engine, f"l-{number}", 10 if number == 2 else 1, ended=True)  # three transitions each, but one twelve
    long(engine, "open", 1)
    logged(database)

    assert engine.purge(older_than=NONE) == 7

    assert [record["workflows"] for record in records(engine)] == [2, 1, 2, 2]
    assert [found.id for found in engine.list()] == ["open"]
    for number in range(7):
        assert codes(engine, f"l-{number}") == {Code.PURGED}


def test_what_was_erased_or_pruned_before_can_be_purged(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    engine.erase("p", reason="request 17")
    long(engine, "l", 5, ended=True)
    engine.prune(keep=1, older_than=NONE)
    logged(database)
    assert engine.purge(older_than=NONE) == 2
    assert codes(engine, "p") == codes(engine, "l") == {Code.PURGED}
    assert [one[2] for one in removals(database)] == ["pruned", "purged", "purged"]


def test_a_purge_of_everything_has_to_say_how_old(engine: DurableWorkflowEngine, database: Database) -> None:
    with unchanged(database), pytest.raises(InvalidData, match="/older_than"):
        engine.purge()


# --- the system's chain --------------------------------------------------------------------------


def test_the_systems_chain_is_read_and_verified_but_not_listed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    with pytest.raises(WorkflowNotFound):
        engine.describe(SYSTEM)
    long(engine, "l", 4)
    engine.prune(keep=1, older_than=NONE)
    found = engine.describe(SYSTEM)
    assert (found.type, found.state, found.status, found.seq) == (SYSTEM_TYPE, "open", "completed", 1)
    assert (found.following, found.accepts, found.due_at) == (None, (), None)
    assert [one.id for one in engine.list()] == ["l"]
    assert engine.list(type=SYSTEM_TYPE) == engine.list(status="completed") == []
    with database.statement() as connection:
        assert history.counts(connection) == {"waiting": 1}
        assert history.newest_ids(connection, 5, longest=100) == ["l"]
    assert codes(engine, SYSTEM) == set()


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_nobody_starts_or_steers_the_systems_chain(
    engine: DurableWorkflowEngine, database: Database, *, begun: bool
) -> None:
    if begun:
        long(engine, "l", 4)
        engine.prune(keep=1, older_than=NONE)
    for name in (SYSTEM, "aegis:mine"):
        with unchanged(database), pytest.raises(InvalidName, match="is the system's own"):
            engine.start(Letter(), id=name)
    steering: list[Callable[[], object]] = [
        lambda: engine.send(SYSTEM, "finish", "x"),
        lambda: engine.pause(SYSTEM),
        lambda: engine.resume(SYSTEM),
        lambda: engine.retry(SYSTEM),
        lambda: engine.cancel(SYSTEM),
    ]
    for steer in steering:
        with unchanged(database), pytest.raises((WrongStatus, UnknownWorkflowType, WorkflowNotFound)):
            steer()


def test_the_systems_chain_is_neither_pruned_nor_purged(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    for number in range(4):
        long(engine, "l" * (number + 1), 4)
        engine.prune(keep=1, older_than=NONE)
    engine.checkpoint(SYSTEM)
    age(database, SYSTEM, 90)
    logged(database)
    with unchanged(database):
        assert engine.prune(keep=1, older_than=NONE) == engine.purge(older_than=NONE) == 0
    sent(engine, bench)
    engine.prune(keep=1, older_than=NONE)
    assert len(records(engine)) == 5


def test_records_and_erasures_carry_the_code_of_the_key(
    database: Database, ring: RecordingRing, bench: Bench, engine: DurableWorkflowEngine
) -> None:
    key = MacKey(id="k1", secret=b"x" * 32, required_from=datetime(2020, 1, 1, tzinfo=UTC))
    sealed = DurableWorkflowEngine(
        database, ring, Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES, mac_key=key)
    )
    sent(engine, bench)
    sealed.erase("p", reason="request 17")
    assert value(database, "SELECT mac_key FROM aegis_transition WHERE event = 'erased'") == "k1"
    logged(database)
    sealed.purge("p")
    with database.statement() as connection:
        query = text("SELECT hash, mac, mac_key FROM aegis_transition WHERE workflow_id = :id ORDER BY seq")
        links = connection.execute(query, {"id": SYSTEM}).all()
    assert len(links) == 2
    for link in links:
        assert (bytes(link.mac), link.mac_key) == (key.code(bytes(link.hash)), "k1")


# --- several at once ------------------------------------------------------------------------------


def at_once(*acts: Callable[[], object]) -> list[Any]:
    """Do things in threads of their own, all beginning at the same moment."""
    together = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> object:
        together.wait(10)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def test_removals_at_once_remove_everything_once(engine: DurableWorkflowEngine, database: Database) -> None:
    for round_ in range(5):
        names = [long(engine, f"l-{round_}-{number}", 5, ended=True) for number in range(6)]
        assert sum(at_once(*[lambda: engine.prune(keep=1, older_than=NONE)] * 3)) == 30
        logged(database)
        assert sum(at_once(*[lambda: engine.purge(older_than=NONE)] * 3)) == 6
        for name in names:
            assert codes(engine, name) == {Code.PURGED}
    assert len(records(engine)) == 10


def test_first_removals_at_once_begin_one_chain(engine: DurableWorkflowEngine, database: Database) -> None:
    for round_ in range(10):
        for table in ("workflow WHERE id", "transition WHERE workflow_id", "checkpoint WHERE workflow_id"):
            sql(database, f"DELETE FROM aegis_{table} = :id", id=SYSTEM)  # noqa: S608
        sql(database, "DELETE FROM aegis_payload WHERE workflow_id = :id", id=SYSTEM)
        sql(database, "DELETE FROM aegis_log WHERE workflow_id = :id", id=SYSTEM)
        sql(database, "DELETE FROM aegis_removal")
        names = [long(engine, f"l-{round_}-{number}", 1, ended=True) for number in range(3)]
        with database.transaction() as session:
            log.take_up(session.connection(), 10_000)
        at_once(*[lambda name=name: engine.purge(name) for name in names])  # type: ignore[misc]
        assert [record["workflows"] for record in records(engine)] == [1, 1, 1]


def test_a_first_removal_waits_for_one_that_began_the_chain(engine: DurableWorkflowEngine, database: Database) -> None:
    for name in ("a", "b"):
        long(engine, name, 1, ended=True)
    logged(database)
    with database.transaction() as session:
        removal.purge_one(session, "a", TERMS)
        other = meanwhile(lambda: engine.purge("b"))
        other.__enter__()
        await_lock(database)
    other.__exit__(None, None, None)
    assert [(one[0], one[1]) for one in removals(database)] == [("a", 1), ("b", 2)]
    assert len(records(engine)) == 2


def test_a_first_removal_begins_the_chain_that_another_gave_up(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    for name in ("a", "b"):
        long(engine, name, 1, ended=True)
    logged(database)
    with database.engine.connect() as connection, connection.begin() as transaction:
        session = removal.Session(connection)
        removal.purge_one(session, "a", TERMS)
        with meanwhile(lambda: engine.purge("b")):
            await_lock(database)
            transaction.rollback()
    assert [(one[0], one[1]) for one in removals(database)] == [("b", 1)]
    assert engine.describe("a").status == "cancelled"
    assert len(records(engine)) == 1


def test_a_start_that_waits_for_a_purge_is_refused(engine: DurableWorkflowEngine, database: Database) -> None:
    """It began when the id was still taken, and could have it once the purge has committed."""
    long(engine, "l", 1, ended=True)
    logged(database)

    def start() -> None:
        with pytest.raises(WorkflowPurged):
            engine.start(Letter(words=["first"]), id="l")

    with database.engine.connect() as connection, connection.begin() as transaction:
        removal.purge_one(removal.Session(connection), "l", TERMS)
        with meanwhile(start):
            await_lock(database)
            transaction.commit()
    assert rows_of(database, "aegis_workflow", "l") == rows_of(database, "aegis_transition", "l") == 0
    assert codes(engine, "l") == {Code.PURGED}


def test_pruning_waits_for_no_worker_and_no_worker_for_it(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    engine.start(Parcel(), id="p")
    long(engine, "l", 5)
    with database.transaction() as session:
        session.execute(text("SELECT 1 FROM aegis_workflow FOR UPDATE"))
        with meanwhile(lambda: engine.prune(keep=2, older_than=NONE)):
            pass  # it ends while every row is locked
    assert seqs(database, "aegis_checkpoint", "l") == [0, 4, 5]
    with database.transaction() as session:
        piece = removal.prune(session, walk.BEGINNING, TERMS, keep=1, older_than=NONE)
        assert piece.removed == 1
        with meanwhile(lambda: run_transition(bench, "p", 0)), meanwhile(lambda: engine.resume("l")):
            pass
    assert row(database, "p").seq == 1
    assert row(database, "l").seq == 6


def test_pruning_while_transitions_are_made_harms_none(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    names = [f"p-{number}" for number in range(10)]
    over = threading.Event()

    def work() -> None:
        try:
            for name in names:
                engine.start(Parcel(), id=name)
                assert run_transition(bench, name, 0) is Ended.COMMITTED
                for act in (engine.pause, engine.checkpoint, engine.resume) * 3:
                    act(name)
                engine.send(name, "decide", Decision(send=True))
                assert run_where_it_is_sent(bench, name, 7) is Ended.COMMITTED
        finally:
            over.set()

    removed = 0
    with meanwhile(work):
        while not over.is_set():
            removed += engine.prune(keep=1, older_than=NONE)
    removed += engine.prune(keep=1, older_than=NONE)
    assert removed == 10 * (7 + 3)
    for name in names:
        assert seqs(database, "aegis_checkpoint", name) == [0, 8]
        codes(engine, name)
    records(engine)


def test_a_purge_waits_for_an_erasure_and_leaves_what_changed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    """Its stub would tell of a head that is not the last one."""
    sent(engine, bench)
    logged(database)
    removed: list[int] = []
    with database.engine.connect() as connection, connection.begin() as transaction:
        removal.erase(removal.Session(connection), "p", "request 17", TERMS)
        with meanwhile(lambda: removed.append(engine.purge(older_than=NONE))):
            await_lock(database)
            transaction.commit()
    assert removed == [0]
    assert codes(engine, "p") == {Code.PAYLOAD_ERASED, Code.CHECKPOINT_PRUNED}
    logged(database)
    assert engine.purge(older_than=NONE) == 1
    assert codes(engine, "p") == {Code.PURGED}


def test_erasing_at_once_erases_once(engine: DurableWorkflowEngine, bench: Bench, database: Database) -> None:
    for number in range(5):
        sent(engine, bench, name := f"p-{number}")
        told = at_once(*[lambda name=name: engine.erase(name, reason="request 17")] * 3)  # type: ignore[misc]
        assert sorted(told) == [False, False, True]
        assert [link.event for link in engine.history(name)].count("erased") == 1
        codes(engine, name)


def test_erasing_and_pruning_at_once_go_through(engine: DurableWorkflowEngine, database: Database) -> None:
    for round_ in range(10):
        long(engine, name := f"l-{round_}", 20, ended=True)
        at_once(
            lambda name=name: engine.erase(name, reason="request 17"),  # type: ignore[misc]
            lambda: engine.prune(keep=1, older_than=NONE),
        )
        assert seqs(database, "aegis_checkpoint", name) == [22]
        codes(engine, name)


# --- cut off --------------------------------------------------------------------------------------


class CutOff(Exception):
    """Somebody pulled the plug."""


@contextmanager
def cut_off_at(database: Database, statement: int) -> Iterator[None]:
    """Let the statement of that number, and what comes after it, never reach the database."""
    numbers = itertools.count()

    def look(*_: object) -> None:
        if next(numbers) >= statement:
            raise CutOff

    event.listen(database.engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", look)


@pytest.mark.parametrize("what", ["erase", "prune", "purge", "purge all"])
def test_what_is_cut_off_leaves_nothing_half_removed(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, what: str
) -> None:
    sent(engine, bench)
    logged(database)
    removing: dict[str, Callable[[], object]] = {
        "erase": lambda: engine.erase("p", reason="request 17"),
        "prune": lambda: engine.prune(keep=1, older_than=NONE),
        "purge": lambda: engine.purge("p"),
        "purge all": lambda: engine.purge(older_than=NONE),
    }
    before = everything(database)
    for number in itertools.count():
        try:
            with cut_off_at(database, number):
                removing[what]()
            break
        except CutOff:
            assert everything(database) == before
    assert number > 5, "it takes several statements"
    assert everything(database) != before
    codes(engine, "p")


def test_what_is_removed_inside_a_transaction_that_fails_is_still_there(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    logged(database)
    for remove in (
        lambda session: removal.purge_one(session, "p", TERMS),
        lambda session: removal.erase(session, "p", "request 17", TERMS),
    ):
        with unchanged(database), pytest.raises(CutOff):
            fail_after(database, remove)


def fail_after(database: Database, act: Callable[[removal.Session], object]) -> None:
    with database.transaction() as session:
        act(session)
        raise CutOff


# --- the application's rights -------------------------------------------------------------------------


@pytest.fixture
def as_application(database_url: str) -> Iterator[Database]:
    """The same database for somebody who has no more than the application's role."""
    url = database_url.replace("postgresql://", "postgresql+psycopg2://")
    made = Database(f"{url}&options=-crole%3Daegis_app")
    yield made
    made.close()


def test_the_applications_role_removes_through_the_functions_and_in_no_other_way(
    engine: DurableWorkflowEngine, bench: Bench, database: Database, as_application: Database, ring: RecordingRing
) -> None:
    assert value(as_application, "SELECT current_user") == "aegis_app"
    limited = make_engine(as_application, ring)
    limited.start(Parcel(), id="by-the-role")
    sent(engine, bench)
    long(engine, "l", 5, ended=True)
    delete = "DELETE FROM aegis_transition WHERE workflow_id = 'l'"
    for statement, told in (
        (delete, "permission denied"),
        (f"SET LOCAL aegis.purge = 'l'; {delete}", "permission denied"),
        ("SELECT aegis_purge('l')", "no record says"),
        ("DELETE FROM aegis_removal", "permission denied"),
        ("UPDATE aegis_removal SET through_seq = 9", "permission denied"),
        ("TRUNCATE aegis_transition", "permission denied"),
    ):
        refusal = (DBAPIError, ConfigurationError)  # the right is missing, or the function says no
        with unchanged(database), pytest.raises(refusal, match=told), as_application.transaction() as session:
            session.execute(text(statement))

    assert limited.erase("p", reason="request 17")
    assert limited.prune(keep=1, older_than=NONE) == 5
    logged(as_application)
    assert limited.purge("l") == 1
    assert limited.purge(older_than=NONE) == 1
    for name in ("p", "l"):
        assert codes(engine, name) == {Code.PURGED}


def test_the_owner_cannot_delete_transitions_either(engine: DurableWorkflowEngine, database: Database) -> None:
    long(engine, "l", 1, ended=True)
    with unchanged(database), pytest.raises(DBAPIError, match="append-only"), database.transaction() as session:
        session.execute(text("DELETE FROM aegis_transition WHERE workflow_id = 'l'"))


# --- what beat does -------------------------------------------------------------------------------


def settings(**given: float) -> Settings:
    return Settings(home=Path("/nonexistent"), **given)  # type: ignore[arg-type]


def test_without_settings_nothing_is_removed_and_nothing_asked(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    age(database, "p", 9000)
    logged(database)
    with unchanged(database), cut_off_at(database, 0):
        assert retain(settings(), database) == Retained()
        assert retain(settings(prune_after=1), database) == Retained()


def test_retention_removes_what_its_settings_say(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench, "old")
    long(engine, "open", 5)
    long(engine, "young", 5, ended=True)
    for name in ("old", "open"):
        age(database, name, 30)
    logged(database)
    month = settings(prune_keep=2, prune_after=86400 * 20, purge_after=86400 * 20)

    assert retain(month, database) == Retained(purged=1, pruned=3)

    assert {found.id for found in engine.list()} == {"open", "young"}
    assert seqs(database, "aegis_checkpoint", "open") == [0, 4, 5]
    assert [(record["event"], record["actor"]) for record in records(engine)] == [
        ("purged", "system:retention"),
        ("pruned", "system:retention"),
    ]
    with unchanged(database):
        assert retain(month, database) == Retained()


def test_retention_does_a_bounded_part_each_time_and_goes_on_from_there(
    engine: DurableWorkflowEngine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "_PAGE", 2)
    monkeypatch.setattr("aegis.tasks.retention._MOST_PIECES", 1)
    for number in range(6):
        long(engine, f"l-{number}", 4)
    always = settings(prune_keep=1)
    assert [retain(always, database).pruned for _ in range(5)] == [6, 6, 6, 0, 0]
    long(engine, "first-again", 4)
    age(database, "first-again", 1)
    assert sum(retain(always, database).pruned for _ in range(5)) == 3, "at the end it begins anew"


# --- what the checker of all fault tests makes of it ------------------------------------------------------


def test_the_invariants_hold_for_what_was_removed_on_purpose(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    for name in ("erased", "pruned", "purged"):
        sent(engine, bench, name)
    engine.erase("erased", reason="request 17")
    logged(database)
    engine.purge("purged")
    engine.prune(keep=1, older_than=NONE)
    entries = [
        Entry(kind=ACCEPTED, workflow_id=name, seq=0, name="", attempt=0, pid=1, at=0.0)
        for name in ("erased", "pruned", "purged")
    ]
    rules = Rules(max_attempts={}, silent=["pack", "decide"])
    assert check(database, entries, rules) == []
    never = [*entries, Entry(kind=ACCEPTED, workflow_id="never", seq=0, name="", attempt=0, pid=1, at=0.0)]
    assert [violation.invariant for violation in check(database, never, rules)] == ["I6"]
    assert sql(database, "UPDATE aegis_removal SET through_seq = 9 WHERE kind = 'purged'")
    assert {violation.workflow_id for violation in check(database, entries, rules)} == {SYSTEM}


# --- spans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        (NONE, "0s"),
        (timedelta(seconds=45), "45s"),
        (timedelta(minutes=30), "30m"),
        (timedelta(hours=36), "36h"),
        (timedelta(days=90), "90d"),
        (timedelta(seconds=90.5), "90.5s"),
    ],
)
def test_a_span_is_told_as_it_is_given(span: timedelta, shown: str) -> None:
    assert span_text(span) == shown


def test_a_row_that_somebody_removed_does_not_begin_again_over_its_history(
    engine: DurableWorkflowEngine, bench: Bench, database: Database
) -> None:
    sent(engine, bench)
    sql(database, "DELETE FROM aegis_workflow WHERE id = 'p'")
    with unchanged(database), pytest.raises(HistoryBroken, match="its row is gone, and its history is there"):
        engine.start_many([Start(Letter(), id="q"), Start(Letter(), id="p")])

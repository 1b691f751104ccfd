"""What a worker says to the database: who gets a claim, and that nothing is written without one."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import text
from store_workbench import (
    GRACE,
    HAND,
    MAX_BYTES,
    RecordingRing,
    await_lock,
    claim,
    claimed,
    everything,
    let_timer_run_out,
    make_due,
    make_engine,
    meanwhile,
    move_of,
    row,
    sql,
    value,
)
from store_workflows import Decision, Letter, Parcel, Stage

from aegis.core.chain import checkpoint_commitment
from aegis.core.errors import DatabaseUnavailable
from aegis.persistence import moves, operations, repository
from aegis.persistence.database import Database, in_transaction
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.persistence.records import Claim, Following, Hand, Move, Moved, Snapshot
from aegis.persistence.repository import Outcome
from aegis.persistence.statements import CLAIM, COMMIT

OTHER = Hand(worker="x@test", pid=4712, thread=1)
TERMS = Terms(actor="user:ada", grace=GRACE, max_bytes=MAX_BYTES)
SECOND = timedelta(seconds=1)


def commit(database: Database, move: Move) -> Moved | None:
    return repository.commit(database.run, move, grace=GRACE)


def snapshot_of(held: Claim, number: int = 1, **data: Any) -> Snapshot:
    return moves.snapshot_of(held.position, held.snapshot.data | data, number, max_bytes=MAX_BYTES)


def save(database: Database, held: Claim, made: Snapshot, kind: str = "manual") -> bool:
    with database.statement() as connection:
        return repository.save_progress(connection, held.position, made, kind)


def take_away(database: Database, workflow_id: str = "p", hand: Hand = OTHER) -> Claim:
    """Give a workflow that is in some hand into another, as a sweep and a second worker do."""
    assert sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL WHERE id = :id", id=workflow_id)
    return claimed(database, workflow_id, row(database, workflow_id).seq, hand)


@pytest.fixture
def parcel(engine: DurableWorkflowEngine, ring: RecordingRing) -> str:
    """A parcel that is ready to be packed."""
    workflow_id = engine.start(Parcel(weight=2), id="p").id
    ring.take()
    return workflow_id


# --- claim ------------------------------------------------------------------------------


def test_a_claim_takes_the_workflow_in_hand_and_brings_its_data(database: Database, parcel: str) -> None:
    before = row(database, parcel)
    held = claimed(database, parcel)
    after = row(database, parcel)

    assert (after.owner, after.owner_pid, after.owner_thread) == (HAND.worker, HAND.pid, HAND.thread)
    assert (after.claim, after.attempt, after.seq, after.status) == (1, 1, 0, "pending")
    assert before.updated_at < after.claimed_at <= held.now
    assert held.position.workflow_id == parcel
    assert (held.position.claim, held.position.attempt, held.position.head) == (1, 1, bytes(after.head))
    assert held.position.following == Following(
        name="pack", accepts=(), timer_at=None, queue="belt", event_queue="belt"
    )
    assert held.snapshot.data == Parcel(weight=2).to_dict()
    assert held.snapshot.number == 0
    assert checkpoint_commitment(held.snapshot.salt, held.snapshot.body) == held.snapshot.commitment
    assert held.event is None


@pytest.mark.parametrize("seq", [1, 2**62])
def test_a_claim_of_another_seq_gets_nothing(database: Database, parcel: str, seq: int) -> None:
    before = everything(database)
    assert claim(database, parcel, seq) is None
    assert everything(database) == before


def test_a_claim_of_a_seq_that_is_over_gets_nothing(database: Database, parcel: str) -> None:
    assert commit(database, move_of(claimed(database, parcel)))
    let_timer_run_out(database, parcel)
    before = everything(database)
    assert claim(database, parcel, 0) is None
    assert everything(database) == before


@pytest.mark.parametrize("ready_at", ["NULL", "clock_timestamp() + interval '1 minute'"])
def test_a_claim_of_what_is_not_ready_gets_nothing(database: Database, parcel: str, ready_at: str) -> None:
    sql(database, f"UPDATE aegis_workflow SET ready_at = {ready_at}")  # noqa: S608
    before = everything(database)
    assert claim(database, parcel) is None
    assert everything(database) == before


@pytest.mark.parametrize(
    "hand",
    [OTHER, replace(HAND, worker="x@test"), replace(HAND, pid=1), replace(HAND, thread=2)],
    ids=["somebody else", "another worker", "another process", "another thread"],
)
def test_a_claim_of_what_another_hand_holds_gets_nothing(database: Database, parcel: str, hand: Hand) -> None:
    claimed(database, parcel, hand=HAND)
    before = everything(database)
    assert claim(database, parcel, hand=hand) is None
    assert everything(database) == before


@pytest.mark.parametrize("known", [[], ["store.Letter/1"], ["store.Parcel/2"], ["store.Parcel"], ["Parcel/1"]], ids=str)
def test_a_claim_of_a_type_or_version_that_the_worker_does_not_know_gets_nothing(
    database: Database, parcel: str, known: list[str]
) -> None:
    before = everything(database)
    assert claim(database, parcel, known=known) is None
    assert everything(database) == before


@pytest.mark.parametrize("workflow_id", ["nobody", "", "p' OR '1'='1", "%(claim)s"])
def test_a_claim_of_nobody_gets_nothing(database: Database, parcel: str, workflow_id: str) -> None:
    assert claim(database, workflow_id) is None


def test_the_same_hand_takes_again_what_it_holds_without_another_attempt(database: Database, parcel: str) -> None:
    """Its claim was not answered; a hand that asks for work holds none."""
    first, second = claimed(database, parcel), claimed(database, parcel)
    assert (first.position.claim, second.position.claim) == (1, 2)
    assert (first.position.attempt, second.position.attempt) == (1, 1)


def test_a_sibling_takes_over_from_a_process_that_is_gone_and_its_attempt_has_counted(
    database: Database, parcel: str
) -> None:
    claimed(database, parcel)
    sibling = replace(HAND, pid=4999)
    assert claim(database, parcel, hand=sibling, gone=[1, 2]) is None
    taken = claimed(database, parcel, hand=sibling, gone=[1, HAND.pid])
    assert (taken.position.claim, taken.position.attempt) == (2, 2)
    assert row(database, parcel).owner_pid == 4999


def test_a_process_of_another_worker_is_not_taken_for_gone(database: Database, parcel: str) -> None:
    """The same number may be a living process on another host."""
    claimed(database, parcel)
    assert claim(database, parcel, hand=OTHER, gone=[HAND.pid]) is None


def test_a_claim_brings_the_oldest_event_that_the_state_accepts(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    engine.start(Letter(), id="l")
    engine.send("l", "post", "too early", key="a")
    engine.send("l", "finish", "first", key="b")
    engine.send("l", "finish", "second", key="c")
    held = claimed(database, "l")
    assert held.position.inbox == 3
    assert held.event is not None
    assert (held.event.name, held.event.key, held.event.sender) == ("finish", "b", "user:ada")
    assert held.event.payload == b'"first"'
    assert held.event.received_at <= held.now


def test_a_claim_brings_the_newest_checkpoint(engine: DurableWorkflowEngine, database: Database, parcel: str) -> None:
    engine.checkpoint(parcel)
    engine.checkpoint(parcel)
    assert claimed(database, parcel).snapshot.number == 2


def test_the_token_only_ever_grows(engine: DurableWorkflowEngine, database: Database, parcel: str) -> None:
    """Handing the same token out twice would let a zombie from before commit."""
    tokens = [claimed(database, parcel).position.claim]
    tokens.append(take_away(database).position.claim)
    held = take_away(database, hand=HAND)
    tokens.append(held.position.claim)
    with database.statement() as connection:
        assert repository.leave(connection, held.position, None, timedelta(0))
    held = claimed(database, parcel)
    tokens.append(held.position.claim)
    assert commit(database, move_of(held))
    engine.send(parcel, "decide", Decision(send=True))
    tokens.append(claimed(database, parcel, 1).position.claim)
    assert tokens == [1, 2, 3, 4, 5]


def test_a_claim_does_not_wait_for_the_disk_and_everything_after_it_does(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    cursor = database._direct.held._cursor
    cursor.execute("SHOW synchronous_commit")
    assert cursor.fetchone() == ("on",)
    assert commit(database, move_of(held))


def test_of_eight_threads_that_race_for_a_workflow_exactly_one_wins(
    engine: DurableWorkflowEngine, database: Database
) -> None:
    rounds, racers = 50, 8
    for number in range(rounds):
        engine.start(Parcel(), id=f"p-{number}")
    together = threading.Barrier(racers)

    def race(racer: int) -> list[str]:
        won = []
        for number in range(rounds):
            together.wait(30)
            hand = Hand(worker=f"w{racer % 2}@test", pid=racer, thread=racer)
            if claim(database, f"p-{number}", hand=hand) is not None:
                won.append(f"p-{number}")
        return won

    with ThreadPoolExecutor(racers) as pool:
        winners = Counter(workflow_id for won in pool.map(race, range(racers)) for workflow_id in won)
    assert winners == {f"p-{number}": 1 for number in range(rounds)}
    assert value(database, "SELECT count(*) FROM aegis_workflow WHERE claim = 1 AND attempt = 1") == rounds


# --- commit -----------------------------------------------------------------------------


def test_a_commit_moves_the_row_and_records_the_transition_with_its_checkpoint(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held = claimed(database, parcel)
    move = move_of(held)
    assert commit(database, move) == Moved(workflow_id=parcel, seq=1, ready=False, queue="night")

    found = row(database, parcel)
    assert (found.seq, found.state, found.status, bytes(found.head)) == (1, "packed", "waiting", move.link.hash)
    assert (found.following, found.accepts) == ("expire", ["decide"])
    assert (found.claim, found.attempt, found.owner, found.owner_pid, found.owner_thread) == (1, 0, None, None, None)
    assert found.claimed_at is None
    assert found.moved_at == found.entered_at == held.now
    assert found.timer_at == found.ready_at == found.due_at == held.now + timedelta(days=7)
    assert engine.get(parcel).state is Stage.PACKED  # type: ignore[attr-defined]
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_commit_into_a_final_state_puts_the_row_at_rest(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    commit(database, move_of(claimed(database, parcel)))
    engine.send(parcel, "decide", Decision(send=True), key="k")
    held = claimed(database, parcel, 1)
    moved = commit(database, move_of(held, "decide", "sent", event=held.event))
    found = row(database, parcel)
    assert moved is not None
    assert not moved.ready
    assert (found.status, found.due_at, found.ready_at, found.owner, found.inbox) == ("completed", None, None, None, 0)
    assert value(database, "SELECT consumed_seq FROM aegis_event") == 2
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_commit_into_a_state_with_an_event_waiting_is_ready_at_once(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held = claimed(database, parcel)
    engine.send(parcel, "decide", Decision(send=True))
    moved = commit(database, move_of(held))
    assert moved is not None
    assert moved.ready
    found = row(database, parcel)
    assert (found.status, found.inbox, found.rings) == ("pending", 1, 1)
    assert found.due_at - found.ready_at >= GRACE


def test_a_commit_after_a_pause_was_asked_for_is_ready_for_it_at_once(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held = claimed(database, parcel)
    engine.pause(parcel, reason="why")
    moved = commit(database, move_of(held))
    assert moved is not None
    assert moved.ready
    assert row(database, parcel).pausing == {"actor": "user:ada", "reason": "why"}


def test_a_commit_with_an_older_claim_writes_nothing_at_all(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    engine.send(parcel, "decide", Decision(send=True))
    zombie = claimed(database, parcel)
    heir = take_away(database)
    before = everything(database)
    late = replace(
        move_of(zombie, progress=["00" * 32]),  # with a payload and an event: every table is asked for a row
        event_id=value(database, "SELECT id FROM aegis_event"),
    )
    assert commit(database, late) is None
    assert everything(database) == before
    assert commit(database, move_of(heir)) is not None


def test_a_commit_after_the_heir_committed_writes_nothing_at_all(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    zombie = claimed(database, parcel)
    assert commit(database, move_of(take_away(database)))
    before = everything(database)
    assert commit(database, move_of(zombie)) is None
    assert everything(database) == before
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_commit_that_is_said_twice_is_recorded_once(database: Database, parcel: str) -> None:
    move = move_of(claimed(database, parcel))
    assert commit(database, move)
    before = everything(database)
    assert commit(database, move) is None
    assert everything(database) == before


@pytest.mark.parametrize("verb", ["cancel", "cancel while it is on its way"])
def test_a_commit_after_a_cancel_writes_nothing(
    engine: DurableWorkflowEngine, database: Database, parcel: str, verb: str
) -> None:
    move = move_of(claimed(database, parcel))
    answers: list[Moved | None] = []
    if verb == "cancel":
        engine.cancel(parcel)
        answers.append(commit(database, move))
    else:
        with database.transaction() as session:
            operations.cancel(session, parcel, "", TERMS)
            late = threading.Thread(target=lambda: answers.append(commit(database, move)))
            late.start()
            await_lock(database)
        late.join(20)
    assert answers == [None]
    assert [link.event for link in engine.history(parcel)] == ["created", "cancelled"]
    assert value(database, "SELECT count(*) FROM aegis_checkpoint") == 2
    assert engine.describe(parcel).status == "cancelled"
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_claim_that_was_released_and_taken_by_nobody_may_still_commit(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    """Nobody else can have done the work: what a worker did that was thought dead is not thrown away."""
    held = claimed(database, parcel)
    sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL")
    assert commit(database, move_of(held)) is not None
    assert engine.verify_integrity(parcel) == (True, None)


@pytest.mark.parametrize("table", ["transition", "checkpoint", "payload"])
def test_the_primary_keys_stand_behind_the_fence(database: Database, parcel: str, table: str) -> None:
    """A row that is there already, from wherever it came, makes the commit fail as a whole."""
    held = claimed(database, parcel)
    rows = {
        "transition": "INSERT INTO aegis_transition SELECT workflow_id, 1, event, from_state, to_state, actor, attempt,"
        " at, envelope, hash FROM aegis_transition",
        "checkpoint": "INSERT INTO aegis_checkpoint SELECT workflow_id, 1, number, kind, body, salt, commitment, at"
        " FROM aegis_checkpoint",
        "payload": "INSERT INTO aegis_payload VALUES ('p', 1, '{}', sha256('salt'))",
    }
    assert sql(database, rows[table]) == 1
    before = everything(database)
    with pytest.raises(psycopg2.errors.UniqueViolation, match=f"aegis_{table}_pkey"):
        commit(database, move_of(held, progress=["00" * 32]))
    assert everything(database) == before


def test_one_event_makes_one_transition(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    for word in ("a", "b"):
        engine.send("l", "finish", word)
    sql(database, "UPDATE aegis_event SET consumed_seq = 1 WHERE payload = '\"a\"'")
    with pytest.raises(Exception, match="aegis_event_consumed"):
        sql(database, "UPDATE aegis_event SET consumed_seq = 1 WHERE payload = '\"b\"'")


# --- letting go -------------------------------------------------------------------------


def test_a_failed_attempt_waits_for_its_delay_and_stays_counted(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    with database.statement() as connection:
        assert repository.fail_attempt(connection, held.position, {"message": "no"}, 60 * SECOND)
    found = row(database, parcel)
    assert (found.status, found.attempt, found.claim, found.owner) == ("pending", 1, 1, None)
    assert (found.error, found.rings, found.seq) == ({"message": "no"}, 0, 0)
    assert found.claimed_at is None
    # A delay of the retry is due when it ends; nobody rings before.
    assert abs(found.ready_at - held.now - 60 * SECOND) < 10 * SECOND
    assert abs(found.due_at - found.ready_at) < SECOND
    assert claim(database, parcel) is None
    make_due(database, parcel)
    assert claimed(database, parcel).position.attempt == 2


def test_a_workflow_that_is_left_was_not_attempted(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    ready_at = row(database, parcel).ready_at
    with database.statement() as connection:
        assert repository.leave(connection, held.position, {"message": "away"}, 60 * SECOND)
    found = row(database, parcel)
    assert (found.status, found.attempt, found.claim, found.owner) == ("pending", 0, 1, None)
    assert (found.error, found.rings, found.ready_at) == ({"message": "away", "times": 1}, 0, ready_at)
    assert abs(found.due_at - held.now - 60 * SECOND) < 10 * SECOND
    with database.statement() as connection:
        assert repository.leave(connection, claimed(database, parcel).position, None, SECOND)
    assert row(database, parcel).error is None


def test_a_workflow_is_parked_until_an_event_or_its_timer(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    for timer_at in (None, held.now + 60 * SECOND):
        held = claimed(database, parcel)
        waits = Following(name="expire", accepts=("decide",), timer_at=timer_at, queue="night", event_queue="desk")
        with database.statement() as connection:
            assert repository.park(connection, held.position, waits)
        found = row(database, parcel)
        assert (found.status, found.following, found.accepts, found.queue) == (
            "waiting",
            "expire",
            ["decide"],
            "night",
        )
        assert found.timer_at == found.ready_at == found.due_at == timer_at
        assert (found.attempt, found.owner, found.rings, found.claim) == (0, None, 0, held.position.claim)
        make_due(database, parcel)


def test_a_workflow_is_not_parked_if_an_event_came_meanwhile(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Letter(), id="l")
    make_due(database, "l")
    held = claimed(database, "l")
    engine.send("l", "post", "early")
    before = everything(database)
    with database.statement() as connection:
        assert not repository.park(connection, held.position, held.position.following)
    assert everything(database) == before


@pytest.mark.parametrize("ending", ["fail_attempt", "leave", "park", "save_progress"])
@pytest.mark.parametrize("loss", ["taken", "released", "cancelled", "moved on"])
def test_nothing_is_written_for_a_claim_that_is_lost(
    engine: DurableWorkflowEngine, database: Database, parcel: str, ending: str, loss: str
) -> None:
    held = claimed(database, parcel)
    match loss:
        case "taken":
            take_away(database)
        case "released":
            sql(database, "UPDATE aegis_workflow SET owner = NULL, owner_pid = NULL")
        case "cancelled":
            engine.cancel(parcel)
        case "moved on":
            commit(database, move_of(held))
    before = everything(database)
    rest: dict[str, tuple[Any, ...]] = {
        "fail_attempt": ({"message": "no"}, SECOND),
        "leave": (None, SECOND),
        "park": (held.position.following,),
        "save_progress": (snapshot_of(held), "manual"),
    }
    with database.statement() as connection:
        assert getattr(repository, ending)(connection, held.position, *rest[ending]) is False
    assert everything(database) == before


def test_a_workflow_of_a_strange_type_is_handed_over(database: Database, parcel: str) -> None:
    before = row(database, parcel)
    with database.statement() as connection:
        assert repository.hand_over(connection, parcel, 0, ["store.Letter/1"], SECOND)
    after = row(database, parcel)
    assert after.rings == 0
    assert after.due_at != before.due_at
    assert (after.ready_at, after.attempt, after.claim, after.owner) == (before.ready_at, 0, 0, None)


@pytest.mark.parametrize("why", ["known", "claimed", "other seq", "not ready", "nobody"])
def test_a_workflow_is_not_handed_over_without_need(database: Database, parcel: str, why: str) -> None:
    if why == "claimed":
        claimed(database, parcel)
    if why == "not ready":
        sql(database, "UPDATE aegis_workflow SET ready_at = clock_timestamp() + interval '1 hour'")
    before = everything(database)
    with database.statement() as connection:
        assert not repository.hand_over(
            connection,
            "nobody" if why == "nobody" else parcel,
            1 if why == "other seq" else 0,
            ["store.Parcel/1"] if why == "known" else [],
            SECOND,
        )
    assert everything(database) == before


# --- checkpoints inside a handler -------------------------------------------------------


def test_progress_is_kept_and_what_was_asked_is_answered(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held = claimed(database, parcel)
    engine.checkpoint(parcel)
    before = row(database, parcel)
    assert before.checkpoint_asked_at is not None
    assert save(database, held, snapshot_of(held, weight=3), "periodic")
    after = row(database, parcel)
    assert after.checkpoint_asked_at is None
    assert after.checkpointed_at > before.checkpointed_at
    assert (after.owner, after.claim, after.attempt, after.seq) == (HAND.worker, 1, 1, 0)
    assert engine.get(parcel) == Parcel(weight=3)
    assert value(database, "SELECT kind FROM aegis_checkpoint WHERE number = 1") == "periodic"
    taken = take_away(database)
    assert (taken.snapshot.number, taken.snapshot.data["weight"]) == (1, 3)


def test_progress_that_is_written_twice_is_there_once(database: Database, parcel: str) -> None:
    """The first answer got lost."""
    held = claimed(database, parcel)
    made = snapshot_of(held, weight=3)
    assert save(database, held, made)
    assert save(database, held, made)
    assert value(database, "SELECT count(*) FROM aegis_checkpoint WHERE number = 1") == 1


def test_progress_never_overwrites_other_progress(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    first = snapshot_of(held, weight=3)
    assert save(database, held, first)
    assert not save(database, held, snapshot_of(held, weight=4))
    kept = value(database, "SELECT commitment FROM aegis_checkpoint WHERE number = 1")
    assert bytes(kept) == first.commitment


def test_progress_is_listed_in_its_order(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    made = [snapshot_of(held, number, weight=number) for number in range(1, 12)]
    for snapshot in made:
        assert save(database, held, snapshot)
    with database.statement() as connection:
        assert repository.progress_of(connection, parcel, 0) == [snapshot.commitment.hex() for snapshot in made]
        assert repository.progress_of(connection, parcel, 1) == []


def test_whether_a_checkpoint_is_asked_for(engine: DurableWorkflowEngine, database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    answers = []
    with database.statement() as connection:
        answers.append(repository.is_asked(connection, held.position))
        engine.checkpoint(parcel)
        answers.append(repository.is_asked(connection, held.position))
        take_away(database)
        answers.append(repository.is_asked(connection, held.position))
    assert answers == [False, True, None]


def test_who_has_a_workflow_in_hand(database: Database, parcel: str) -> None:
    with database.statement() as connection:
        assert repository.owner_of(connection, parcel) is None
        assert repository.owner_of(connection, "nobody") is None
        claimed(database, parcel)
        assert repository.owner_of(connection, parcel) == (HAND.worker, HAND.pid)


# --- a commit that was not answered -------------------------------------------------------


def outcome_of(database: Database, move: Move) -> Outcome:
    with database.statement() as connection:
        return repository.outcome_of(connection, move)


def test_a_commit_that_was_recorded_is_known_by_its_hash(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    move = move_of(claimed(database, parcel))
    commit(database, move)
    assert outcome_of(database, move) is Outcome.RECORDED
    engine.cancel(parcel)
    assert outcome_of(database, move) is Outcome.RECORDED, "it stays recorded, however far the workflow has gone"


def test_a_commit_that_was_not_recorded_may_be_tried_again_while_the_claim_is_ours(
    database: Database, parcel: str
) -> None:
    move = move_of(claimed(database, parcel))
    assert outcome_of(database, move) is Outcome.STILL_OURS
    assert commit(database, move) is not None


@pytest.mark.parametrize("loss", ["taken", "recorded by another", "cancelled", "gone"])
def test_a_commit_whose_claim_is_lost_is_lost(
    engine: DurableWorkflowEngine, database: Database, parcel: str, loss: str
) -> None:
    move = move_of(claimed(database, parcel))
    match loss:
        case "taken":
            take_away(database)
        case "recorded by another":
            commit(database, move_of(take_away(database)))
        case "cancelled":
            engine.cancel(parcel)
        case "gone":
            sql(database, "DELETE FROM aegis_workflow")
    assert outcome_of(database, move) is Outcome.LOST


def test_where_a_recorded_move_left_its_workflow(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    move = move_of(claimed(database, parcel))
    moved = commit(database, move)
    with database.statement() as connection:
        assert repository.moved_to(connection, move) == moved
        engine.send(parcel, "decide", Decision(send=True))
        ready = repository.moved_to(connection, move)
        assert ready is not None
        assert ready.ready
        engine.cancel(parcel)
        assert repository.moved_to(connection, move) is None


# --- how the statements get there ---------------------------------------------------------


def prepared(database: Database) -> set[str]:
    cursor = database._direct.held._cursor
    cursor.execute("SELECT name FROM pg_prepared_statements")
    return {name for (name,) in cursor.fetchall()}


def test_the_hot_statements_are_prepared_once_on_a_connection(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    assert prepared(database) == {CLAIM.name}
    commit(database, move_of(held))
    assert prepared(database) == {CLAIM.name, COMMIT.name}


def test_the_statements_work_where_their_prepared_names_vanish(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    """Behind a pooler, every transition may meet another server connection."""
    held = claimed(database, parcel)
    database._direct.held._cursor.execute("DEALLOCATE ALL")
    assert claimed(database, parcel).position.claim == held.position.claim + 1
    assert prepared(database) == set(), "that connection goes on with plain text"
    assert commit(database, move_of(claimed(database, parcel))) is not None
    assert prepared(database) == set()
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_commit_works_where_its_prepared_name_vanishes(database: Database, parcel: str) -> None:
    first = claimed(database, parcel)
    commit(database, move_of(first))
    make_engine(database, RecordingRing()).start(Parcel(), id="q")
    held = claimed(database, "q")
    database._direct.held._cursor.execute("DEALLOCATE ALL")
    assert commit(database, move_of(held)) is not None
    assert row(database, "q").seq == 1


def test_a_name_that_somebody_else_has_prepared_is_the_same_statement(database_url: str) -> None:
    database = Database(database_url.replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
    try:
        make_engine(database, RecordingRing()).start(Parcel(), id="p")
        shared = database.engine.raw_connection()
        shared.cursor().execute(CLAIM.prepare)
        shared.dbapi_connection.commit()  # type: ignore[union-attr]
        shared.close()
        assert claim(database, "p") is not None
        assert prepared(database) == {CLAIM.name}
    finally:
        database.close()


def test_a_commit_inside_a_transaction_is_part_of_it(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held = claimed(database, parcel)
    before = everything(database)
    with suppress(ZeroDivisionError), database.transaction() as session:
        assert repository.commit(in_transaction(session), move_of(held), grace=GRACE) is not None
        assert session.execute(text("SELECT seq FROM aegis_workflow")).scalar_one() == 1
        _ = 1 / 0
    assert everything(database) == before

    with database.transaction() as session:
        moved = repository.commit(in_transaction(session), move_of(held), grace=GRACE)
        assert everything(database) == before, "nobody else sees it yet"
    assert moved is not None
    assert engine.verify_integrity(parcel) == (True, None)


def test_a_lost_commit_inside_a_transaction_is_none(database: Database, parcel: str) -> None:
    held = claimed(database, parcel)
    take_away(database)
    with database.transaction() as session:
        assert repository.commit(in_transaction(session), move_of(held), grace=GRACE) is None


def test_a_thread_that_ended_leaves_no_autocommit_behind_for_a_transaction(database_url: str) -> None:
    """Its connection goes back to the pool; a transaction that gets it must still be one."""
    database = Database(database_url.replace("postgresql://", "postgresql+psycopg2://"), pool_size=1)
    try:
        make_engine(database, RecordingRing()).start(Parcel(), id="p")
        with meanwhile(lambda: claimed(database, "p")):
            pass
        gc.collect()
        with suppress(ZeroDivisionError), database.transaction() as session:
            session.execute(text("DELETE FROM aegis_workflow"))
            _ = 1 / 0
        assert value(database, "SELECT count(*) FROM aegis_workflow") == 1, "it was not rolled back"
    finally:
        database.close()


def test_a_connection_that_broke_off_is_replaced(database: Database, parcel: str) -> None:
    claimed(database, parcel)
    pid = database._direct.held._connection.info.backend_pid
    sql(database, "SELECT pg_terminate_backend(:pid)", pid=pid)
    with pytest.raises(DatabaseUnavailable):
        claim(database, parcel)
    assert claimed(database, parcel).position.attempt == 1, "the same hand, the same attempt"


def test_a_statement_that_the_database_refuses_is_not_taken_for_one_that_is_away(
    database: Database, parcel: str
) -> None:
    with pytest.raises(psycopg2.errors.NumericValueOutOfRange):
        claim(database, parcel, seq=2**70)
    assert claim(database, parcel) is not None, "the connection is as good as before"


# --- two at once ------------------------------------------------------------------------


def test_a_claim_that_waits_for_a_checkpoint_knows_of_it(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    """By its number: it sees the row as it is now, but the other tables as they were when it began to wait."""
    held: list[Claim] = []
    with database.transaction() as session:
        kept = operations.checkpoint(session, parcel, TERMS)
        worker = threading.Thread(target=lambda: held.append(claimed(database, parcel)))
        worker.start()
        await_lock(database)
    worker.join(20)
    assert kept is not None
    assert held[0].position.checkpoint_number == 1
    with database.statement() as connection:
        found = repository.newest_snapshot(connection, parcel, 0)
    assert found is not None
    assert (found.number, found.commitment.hex()) == (1, kept.commitment)


def test_a_claim_that_waits_for_a_pause_gets_nothing(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    held: list[Claim | None] = []
    with database.transaction() as session:
        operations.pause(session, parcel, "", TERMS)
        worker = threading.Thread(target=lambda: held.append(claim(database, parcel)))
        worker.start()
        await_lock(database)
    worker.join(20)
    assert held == [None]
    assert engine.describe(parcel).status == "paused"


def test_a_pause_that_waits_for_a_claim_is_asked_of_the_one_who_runs(
    engine: DurableWorkflowEngine, database: Database, parcel: str
) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE aegis_workflow SET owner = 'w', owner_pid = 1, claim = 1"))
        person = threading.Thread(target=lambda: engine.pause(parcel, reason="why"))
        person.start()
        await_lock(database)
    person.join(20)
    assert row(database, parcel).pausing == {"actor": "user:ada", "reason": "why"}
    assert engine.describe(parcel).status == "pending"

"""Earlier states: by transition or by time, and only what is seen to be what was committed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from store_workbench import everything, sql, value
from store_workflows import Relay

from aegis.core.chain import checkpoint_commitment, transition_hash
from aegis.core.errors import AegisError, HistoryBroken, InvalidData, WorkflowNotFound
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine, Handle
from aegis.tasks.bench import Bench
from aegis.tasks.transition import run_transition

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def handle(engine: DurableWorkflowEngine, bench: Bench) -> Handle[Relay]:
    """A workflow that took all of its steps; its state tells which one it is at."""
    made = engine.start(Relay(), id="r")
    for seq in range(3):
        run_transition(bench, "r", seq)
    return made


def at_of(database: Database, seq: int) -> datetime:
    found: datetime = value(database, "SELECT at FROM aegis_transition WHERE workflow_id = 'r' AND seq = :s", s=seq)
    return found


def test_a_moment_is_that_of_the_transition_before_it(handle: Handle[Relay], database: Database) -> None:
    links = handle.history()
    assert len(links) > 2
    for link in links:
        at = at_of(database, link.seq)
        assert str(handle.at(link.seq).to_dict()["state"]) == link.to_state
        assert handle.at(at).to_dict() == handle.at(link.seq).to_dict()
        if link.seq and at_of(database, link.seq - 1) < at:
            assert handle.at(at - MICROSECOND).to_dict() == handle.at(link.seq - 1).to_dict()
    assert handle.at(datetime.now(UTC) + timedelta(days=1)).to_dict() == handle.get().to_dict()


@pytest.mark.parametrize("edited", [0, 1, 2])
@pytest.mark.parametrize("hours", [-2, 2])
def test_a_time_that_is_not_the_committed_one_is_not_gone_by(
    handle: Handle[Relay], database: Database, edited: int, hours: int
) -> None:
    """Whichever transition's time was edited: never another state than the one of that moment."""
    moments = [at_of(database, seq) for seq in range(3)]
    true = [handle.at(moment).to_dict() for moment in moments]
    moved = "UPDATE aegis_transition SET at = at + :hours * interval '1 hour' WHERE workflow_id = 'r' AND seq = :s"
    assert sql(database, moved, hours=hours, s=edited) == 1
    refused: list[HistoryBroken] = []
    for moment, state in zip(moments, true, strict=True):
        try:
            assert handle.at(moment).to_dict() == state
        except HistoryBroken as error:
            refused.append(error)
    assert {error.seq for error in refused} == {edited}
    assert all("and what was committed says" in str(error) for error in refused)


def test_a_transition_that_is_missing_is_not_passed_over(handle: Handle[Relay], database: Database) -> None:
    moment = at_of(database, 1)
    sql(database, "DELETE FROM aegis_transition WHERE workflow_id = 'r' AND seq = 1")
    with pytest.raises(HistoryBroken, match="transition 1: it is missing"):
        handle.at(moment)


def test_what_was_not_there_is_said(handle: Handle[Relay], engine: DurableWorkflowEngine, database: Database) -> None:
    before = everything(database)
    with pytest.raises(InvalidData, match="is before"):
        handle.at(at_of(database, 0) - MICROSECOND)
    with pytest.raises(InvalidData, match="no time zone"):
        handle.at(datetime(2026, 11, 24))  # noqa: DTZ001 - that is what is refused
    with pytest.raises(InvalidData, match="not both"):
        engine.load("r", seq=1, at=datetime.now(UTC))
    for seq in (-1, 99, 2**62):
        with pytest.raises(WorkflowNotFound):
            handle.at(seq)
    with pytest.raises(WorkflowNotFound):
        engine.load("nobody", at=datetime.now(UTC))
    assert everything(database) == before


def forge(database: Database, seq: int, *, rehashed: bool) -> None:
    """Put another checkpoint in, with a commitment that fits it; ``rehashed``: with an envelope that fits as well."""
    where = "workflow_id = 'r' AND seq = :s"
    found = bytes(value(database, f"SELECT body FROM aegis_checkpoint WHERE {where}", s=seq))  # noqa: S608
    body = found.replace(b'"state":{', b'"state":{"extra":1,', 1)
    commitment = checkpoint_commitment(b"s" * 32, body)
    forged = "UPDATE aegis_checkpoint SET body = :b, salt = :salt, commitment = :c WHERE "
    assert sql(database, forged + where, b=body, salt=b"s" * 32, c=commitment, s=seq)
    if rehashed:
        envelope = bytes(value(database, f"SELECT envelope FROM aegis_transition WHERE {where}", s=seq))  # noqa: S608
        start = envelope.index(b'"checkpoint":"') + len(b'"checkpoint":"')
        envelope = envelope[:start] + commitment.hex().encode() + envelope[start + 64 :]
        assert sql(database, f"UPDATE aegis_transition SET envelope = :e WHERE {where}", e=envelope, s=seq)  # noqa: S608
        assert transition_hash(envelope) != bytes(
            value(database, f"SELECT hash FROM aegis_transition WHERE {where}", s=seq)  # noqa: S608
        )


@pytest.mark.parametrize("rehashed", [False, True])
@pytest.mark.parametrize("seq", [0, 1])
def test_a_checkpoint_that_was_not_committed_is_not_shown(
    handle: Handle[Relay], database: Database, seq: int, *, rehashed: bool
) -> None:
    """Its own commitment fits; that is no more than what whoever changed it can write as well."""
    forge(database, seq, rehashed=rehashed)
    with pytest.raises(HistoryBroken, match=f"transition {seq}"):
        handle.at(seq)
    handle.at(2)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE aegis_checkpoint SET body = 'nothing'::bytea",
        "UPDATE aegis_checkpoint SET seq = seq + 100 WHERE seq = 1",
        "UPDATE aegis_transition SET envelope = 'nothing'::bytea",
        "UPDATE aegis_transition SET hash = decode(repeat('00', 32), 'hex')",
        "UPDATE aegis_transition SET workflow_id = 'other' WHERE seq = 1",
    ],
)
def test_whatever_was_edited_is_refused_and_never_a_fault(handle: Handle[Relay], database: Database, edit: str) -> None:
    assert sql(database, edit)
    with pytest.raises(AegisError):
        handle.at(1)

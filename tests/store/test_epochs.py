"""A new epoch: what was begun before is void, also where one goes back to the same backup twice."""

from __future__ import annotations

import pytest
from store_workbench import GRACE, HAND, MAX_BYTES, claimed, move_of, row, sql, value
from store_workflows import Parcel

from aegis.persistence import epoch, repository, watch
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.operations import Terms
from aegis.persistence.watch import Worker

TERMS = Terms(actor="system:recovery", grace=GRACE, max_bytes=MAX_BYTES)
EPOCH = "SELECT epoch FROM aegis_deployment"
# What the columns hold at the most, and what a record in the chain does.
MOST = 2**63 - 1
MOST_RECORDED = 2**53 - 1


def begin(database: Database) -> int:
    with database.transaction() as session:
        return epoch.begin(session, {"to": "a test", "lost": 0}, TERMS)


def put_back(database: Database, claim: int = 0) -> None:
    """What a restore of one and the same backup leaves of the numbers: what they were in it."""
    sql(
        database,
        "UPDATE aegis_workflow SET claim = :claim, owner = NULL, owner_pid = NULL, owner_thread = NULL",
        claim=claim,
    )
    sql(database, "UPDATE aegis_deployment SET epoch = 1")


def lives(database: Database, worker: Worker) -> bool:
    with database.statement() as connection:
        return watch.beat(connection, worker)


def test_two_lives_of_one_backup_have_nothing_in_common(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    first = begin(database)
    of_the_first = Worker(id="w@first", host="h", pid=1, pids=(7,), queues=("belt",), types=(), epoch=first)
    held = claimed(database, "p")
    assert lives(database, of_the_first)

    put_back(database)
    second = begin(database)
    taken = claimed(database, "p")
    assert second != first
    assert taken.position.seq == held.position.seq  # the row is the same but for its claim
    assert not lives(database, of_the_first)
    assert repository.commit(database.run, move_of(held), grace=GRACE) is None
    assert row(database, "p").seq == 0
    assert repository.commit(database.run, move_of(taken), grace=GRACE) is not None


def test_numbers_go_up_and_nobody_can_tell_how_far(engine: DurableWorkflowEngine, database: Database) -> None:
    engine.start(Parcel(), id="p")
    claims, epochs = {0}, {1}
    for _ in range(20):
        claim, number = row(database, "p").claim, value(database, EPOCH)
        assert begin(database) == value(database, EPOCH) > number
        assert row(database, "p").claim > claim + 2**32 - 1
        claims.add(row(database, "p").claim)
        epochs.add(value(database, EPOCH))
        put_back(database)
    assert len(claims) == len(epochs) == 21


@pytest.mark.parametrize("claim", [2**62 - 1, MOST])
def test_no_number_of_recoveries_leaves_the_range(
    engine: DurableWorkflowEngine, database: Database, monkeypatch: pytest.MonkeyPatch, claim: int
) -> None:
    engine.start(Parcel(), id="p")
    monkeypatch.setattr(epoch.secrets, "randbelow", lambda bound: bound - 1)  # the longest step each time
    sql(database, "UPDATE aegis_workflow SET claim = :claim", claim=claim)
    sql(database, "UPDATE aegis_deployment SET epoch = :epoch", epoch=claim)
    for _ in range(3):
        assert 0 < begin(database) <= MOST_RECORDED
        # So far, and all that one epoch can still claim.
        assert 2**32 <= row(database, "p").claim <= MOST - 2**32
        assert claimed(database, "p", hand=HAND).position.claim == row(database, "p").claim

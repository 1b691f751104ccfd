"""What the store tests work with: a bell that writes down, a worker's bench without a worker, plain SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from store_workflows import Parcel

from aegis.config.settings import Settings
from aegis.core.bell import Bell
from aegis.core.errors import DatabaseUnavailable
from aegis.core.machine import WaitingEvent
from aegis.core.workflow import registry
from aegis.persistence import moves, repository
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.models import Base
from aegis.persistence.operations import Terms
from aegis.persistence.records import Claim, Hand, Move
from aegis.tasks.bench import Bench
from aegis.tasks.transition import Ended, run_transition

GRACE = timedelta(seconds=5)
MAX_BYTES = 256 * 1024
HAND = Hand(worker="w@test", pid=4711, thread=1)


class RecordingRing:
    """A bell that writes down what it is rung for; ``answers`` is what it returns, ``look`` is called first."""

    def __init__(self) -> None:
        self.bells: list[Bell] = []
        self.calls = 0
        self.answers = True
        self.look: Callable[[Sequence[Bell]], object] | None = None

    def __call__(self, bells: Sequence[Bell], /) -> bool:
        self.calls += 1
        if self.look is not None:
            self.look(bells)
        self.bells += bells
        return self.answers

    def take(self) -> list[Bell]:
        """Return what was rung since the last look, and forget it."""
        taken, self.bells = self.bells, []
        return taken


def make_engine(database: Database, ring: RecordingRing, *, actor: str = "user:ada") -> DurableWorkflowEngine:
    return DurableWorkflowEngine(database, ring, Terms(actor=actor, grace=GRACE, max_bytes=MAX_BYTES))


def make_bench(database: Database, ring: RecordingRing, *, worker: str = "w@test", **settings: Any) -> Bench:
    return Bench(Settings(home=Path("/nonexistent"), **settings), database, ring, worker)


def claim(database: Database, workflow_id: str, seq: int = 0, hand: Hand = HAND, **options: Any) -> Claim | None:
    """Claim as a worker that knows every type."""
    return repository.claim(
        database.run, workflow_id, seq, hand, known=options.pop("known", registry.known()), **options
    )


def claimed(database: Database, workflow_id: str, seq: int = 0, hand: Hand = HAND, **options: Any) -> Claim:
    """The same, where it has to succeed."""
    found = claim(database, workflow_id, seq, hand, **options)
    assert found is not None
    return found


def move_of(
    held: Claim,
    edge: str = "pack",
    target: str = "packed",
    *,
    event: WaitingEvent | None = None,
    progress: Sequence[str] = (),
) -> Move:
    """The transition that a handler of a parcel would end in."""
    return moves.advance(
        held.position,
        Parcel.definition,
        next(one for one in Parcel.definition.edges if one.name == edge),
        target,
        {**held.snapshot.data, "state": target},
        event=event,
        progress=progress,
        actor=f"worker:{HAND.worker}",
        at=held.now,
        max_bytes=MAX_BYTES,
    )


def run_where_it_is_sent(bench: Bench, workflow_id: str, seq: int) -> Ended:
    """Run a transition, also where it is first sent on to the queue of an event that was kept."""
    before = row(bench.database, workflow_id).queue
    ended = run_transition(bench, workflow_id, seq)
    if ended is Ended.LEFT and row(bench.database, workflow_id).queue != before:
        return run_transition(bench, workflow_id, seq)
    return ended


# --- answers that get lost ----------------------------------------------------------------


@contextmanager
def answer_lost(monkeypatch: pytest.MonkeyPatch, *, written: bool) -> Iterator[None]:
    """Let the answer to the next COMMIT of a transaction get lost, after or before it was written."""
    real = Database.transaction
    lost: list[bool] = []

    @contextmanager
    def broken(self: Database) -> Iterator[Any]:
        if lost:
            with real(self) as session:
                yield session
            return
        lost.append(True)
        with suppress(_Undo), real(self) as session:
            yield session
            if not written:
                raise _Undo
        raise DatabaseUnavailable("test", "the answer got lost")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "transaction", broken)
        yield


class _Undo(Exception):
    pass


# --- plain SQL --------------------------------------------------------------------------


def sql(database: Database, statement: str, **parameters: Any) -> int:
    """Run one statement as a superuser can, past all triggers; return how many rows it changed."""
    with database.transaction() as session:
        connection = session.connection()
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        return connection.execute(text(statement), parameters).rowcount


def value(database: Database, query: str, **parameters: Any) -> Any:
    """Return the one value that a query gives."""
    with database.statement() as connection:
        return connection.execute(text(query), parameters).scalar_one()


def row(database: Database, workflow_id: str) -> Any:
    """Return a workflow's row, with every column."""
    with database.statement() as connection:
        return connection.execute(text("SELECT * FROM aegis_workflow WHERE id = :id"), {"id": workflow_id}).one()


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of AEGIS: two of these are equal if nothing at all was written."""
    with database.snapshot() as connection:
        return {
            table.name: sorted(
                (tuple(map(repr, found)) for found in connection.execute(table.select())),
            )
            for table in Base.metadata.sorted_tables
        }


def make_due(database: Database, workflow_id: str) -> None:
    """Let the delay of a retry, or of being left alone, be over."""
    past = "ready_at = clock_timestamp() - interval '1 s', due_at = clock_timestamp() - interval '1 s'"
    assert sql(database, f"UPDATE aegis_workflow SET {past} WHERE id = :id", id=workflow_id)  # noqa: S608


def let_timer_run_out(database: Database, workflow_id: str, *, ago: timedelta = timedelta(seconds=1)) -> None:
    """Move a waiting workflow back in time, until its timer ran out ``ago``."""
    assert sql(
        database,
        """
        UPDATE aegis_workflow
        SET entered_at = entered_at - (timer_at - clock_timestamp()) - :ago,
            timer_at = clock_timestamp() - :ago, ready_at = clock_timestamp() - :ago,
            due_at = clock_timestamp() - :ago
        WHERE id = :id AND timer_at IS NOT NULL
        """,
        id=workflow_id,
        ago=ago,
    )


# --- two at once ------------------------------------------------------------------------


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[threading.Thread]:
    """Let something go on in a thread of its own; whatever it raises is raised at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
    assert not thread.is_alive()
    for error in raised:
        raise error


def await_lock(database: Database) -> None:
    """Wait until some connection to this database waits for a lock that another one holds."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 20
    while not value(database, waiting):
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.005)

"""The repository: what a worker says to the database for one transition.

Two statements are hot, ``claim`` and ``commit``, one round trip each. The guard is in the write:
no row comes back from a claim that is somebody else's, none from a write whose claim was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    LargeBinary,
    Text,
    Update,
    cast,
    func,
    literal,
    null,
    select,
    update,
)

from ..core.canonical import canonical
from ..core.machine import Edge, WaitingEvent
from . import sql, sqlite
from .models import CheckpointRow, EventRow, TransitionRow, WorkflowRow
from .records import Claim, Following, Hand, Move, Moved, Position, Snapshot
from .statements import CLAIM, COMMIT, EVENT, POSITION, SNAPSHOT, Hot
from .vouch import vouch

_UNOWNED: Final[Mapping[str, Any]] = {
    "owner": null(),
    "owner_pid": null(),
    "owner_thread": null(),
    "claimed_at": null(),
    "checkpoint_asked_at": null(),
}


LONGEST_LEAVE: Final = timedelta(minutes=5)

Runner: TypeAlias = Callable[[Hot, Mapping[str, Any]], Sequence[Any] | None]
"""What runs a hot statement and returns its row: a worker's own connection, or a transaction."""


def claim(
    run: Runner, workflow_id: str, seq: int, hand: Hand, *, known: Sequence[str], gone: Sequence[int] = ()
) -> Claim | None:
    """Take a workflow in hand, if it still is at ``seq``, ready, and nobody's.

    ``known`` are the types (``type/version``) that this worker can run; ``gone`` are pids of
    its own worker that it knows to be dead.
    """
    row = run(
        CLAIM,
        {
            "workflow_id": workflow_id,
            "seq": seq,
            "worker": hand.worker,
            "pid": hand.pid,
            "thread": hand.thread,
            "known": list(known),
            "gone": list(gone),
        },
    )
    if row is None:
        return None
    position, rest = row[: len(POSITION)], row[len(POSITION) :]
    snapshot, event = rest[1 : 1 + len(SNAPSHOT)], rest[1 + len(SNAPSHOT) :]
    return Claim(
        position=read_position(position),
        now=rest[0],
        snapshot=None if snapshot[0] is None else read_snapshot(snapshot),
        event=None if event[0] is None else _read_event(event),
    )


def commit(run: Runner, move: Move, *, grace: timedelta) -> Moved | None:
    """Record a transition and move the row on; None means that the claim was lost.

    Nothing at all is written then. ``grace`` is how long after a ring the next one is due.
    """
    row = run(COMMIT, _parameters(move, grace))
    return None if row is None else Moved(workflow_id=row[0], seq=row[1], ready=row[2], queue=row[3])


class Outcome(Enum):
    """What became of a commit that was never answered."""

    RECORDED = "recorded"
    STILL_OURS = "still ours"
    LOST = "lost"


def outcome_of(connection: Connection, move: Move) -> Outcome:
    """Look up what became of a commit whose answer was lost; ours is known by its hash."""
    outcome = _outcome_of(connection, move)
    vouch(connection)
    return outcome


def _outcome_of(connection: Connection, move: Move) -> Outcome:
    envelope = move.link.envelope
    stored = connection.execute(
        select(TransitionRow.hash).where(
            TransitionRow.workflow_id == envelope.workflow_id, TransitionRow.seq == envelope.seq
        )
    ).scalar_one_or_none()
    if stored is not None:
        return Outcome.RECORDED if bytes(stored) == move.link.hash else Outcome.LOST
    held = connection.execute(
        select(WorkflowRow.id).where(
            WorkflowRow.id == envelope.workflow_id,
            WorkflowRow.seq == envelope.seq - 1,
            WorkflowRow.claim == move.claim,
        )
    ).one_or_none()
    return Outcome.LOST if held is None else Outcome.STILL_OURS


def taken_back(connection: Connection, move: Move) -> Moved | None:
    """Return where a workflow stands whose claim a crash of the database took back; None if that is not what happened.

    A claim does not wait for the disk, so the row may be as it was before; and its bell was heard already.
    """
    envelope = move.link.envelope
    row = connection.execute(
        select(WorkflowRow.seq, WorkflowRow.queue).where(
            WorkflowRow.id == envelope.workflow_id,
            WorkflowRow.seq == envelope.seq - 1,
            # Everybody else's would be higher than ours.
            WorkflowRow.claim < move.claim,
        )
    ).one_or_none()
    return None if row is None else Moved(workflow_id=envelope.workflow_id, seq=row.seq, ready=True, queue=row.queue)


def moved_to(connection: Connection, move: Move) -> Moved | None:
    """Return where a recorded move left its workflow, as long as it is still there."""
    envelope = move.link.envelope
    row = connection.execute(
        select(WorkflowRow.due_at.is_not(None) & (WorkflowRow.rings > 0), WorkflowRow.queue).where(
            WorkflowRow.id == envelope.workflow_id, WorkflowRow.seq == envelope.seq
        )
    ).one_or_none()
    return (
        None if row is None else Moved(workflow_id=envelope.workflow_id, seq=envelope.seq, ready=row[0], queue=row[1])
    )


# --- letting a claim go without a transition --------------------------------------------


def fail_attempt(
    connection: Connection, position: Position, error: Mapping[str, Any], delay: timedelta, *, counts: bool = True
) -> bool:
    """Note a failed attempt and when the next may begin; False means that the claim was lost.

    One that does not count is as if it had not been.
    """
    # No back-off sleeps past the deadline.
    again = sql.least(sql.now() + delay, WorkflowRow.deadline)
    return _wrote(
        connection,
        _held(position).values(
            status="pending",
            ready_at=again,
            due_at=again,
            rings=0,
            attempt=WorkflowRow.attempt if counts else sql.greatest(WorkflowRow.attempt - 1, 0),
            error=dict(error),
            updated_at=sql.now(),
            **_UNOWNED,
        ),
    )


def leave(connection: Connection, position: Position, error: Mapping[str, Any] | None, delay: timedelta) -> bool:
    """Put a claim back as if it had not been taken: the attempt does not count.

    ``delay`` doubles each time that it happens again before anything else does: nothing else
    bounds how often, and what takes the database down would do so every second.
    """
    before = sql.count_in(WorkflowRow.error, "times")
    kept = literal(None if error is None else dict(error), WorkflowRow.__table__.c.error.type)
    doubled = func.power(2, sql.least(before, 20)) * sql.span(delay)
    told = null() if error is None else sql.with_count(kept, "times", before + 1)
    return _wrote(
        connection,
        _held(position).values(
            attempt=sql.greatest(WorkflowRow.attempt - 1, 0),
            due_at=sql.now() + sql.least(doubled, sql.span(LONGEST_LEAVE)),
            rings=0,
            error=told,
            updated_at=sql.now(),
            **_UNOWNED,
        ),
    )


def send_elsewhere(connection: Connection, position: Position, queue: str | None, grace: timedelta) -> bool:
    """Put a claim back for the workers of another queue, which are rung now; False: the claim was lost."""
    return _wrote(
        connection,
        _held(position).values(
            queue=queue,
            attempt=sql.greatest(WorkflowRow.attempt - 1, 0),
            due_at=sql.now() + grace,
            rings=1,
            updated_at=sql.now(),
            **_UNOWNED,
        ),
    )


def turn(connection: Connection, position: Position, edge: Edge, grace: timedelta) -> bool:
    """Put a claim back for the transition of the passed deadline, with all its attempts; False: the claim was lost."""
    return _wrote(
        connection,
        _held(position).values(
            status="pending",
            following=edge.name,
            timer_at=null(),
            queue=position.queue_of(edge),
            ready_at=sql.now(),
            due_at=sql.now() + grace,
            rings=1,
            attempt=0,
            updated_at=sql.now(),
            **_UNOWNED,
        ),
    )


def park(connection: Connection, position: Position, following: Following) -> bool:
    """Let a workflow wait for what follows; False if an event came in the meantime, or the claim was lost."""
    wakes_at = sql.least(literal(following.timer_at, sql.MOMENT), WorkflowRow.deadline)
    return _wrote(
        connection,
        _held(position)
        .where(WorkflowRow.inbox == position.inbox)
        .values(
            status="waiting",
            following=following.name,
            accepts=list(following.accepts),
            queue=following.queue or position.home_queue,
            timer_at=following.timer_at,
            ready_at=wakes_at,
            due_at=wakes_at,
            rings=0,
            attempt=0,
            updated_at=sql.now(),
            **_UNOWNED,
        ),
    )


def hand_over(connection: Connection, workflow_id: str, seq: int, known: Sequence[str], delay: timedelta) -> bool:
    """Have a workflow that this worker cannot run rung again soon, for one that can; False if it is not so."""
    kind = WorkflowRow.type + "/" + cast(WorkflowRow.version, Text)
    return _wrote(
        connection,
        update(WorkflowRow)
        .where(
            WorkflowRow.id == workflow_id,
            WorkflowRow.seq == seq,
            WorkflowRow.owner.is_(None),
            WorkflowRow.ready_at <= sql.now(),
            kind.not_in(list(known)),
        )
        .values(
            due_at=sql.now() + delay,
            strayed=WorkflowRow.strayed + 1,
            rings=0,
        ),
    )


# --- inside a handler -------------------------------------------------------------------


def save_progress(connection: Connection, position: Position, snapshot: Snapshot, kind: str) -> bool:
    """Keep a checkpoint taken inside a handler; False means that the claim was lost."""
    if connection.dialect.name == "sqlite":
        return _save_plainly(connection, position, snapshot, kind)
    held = (
        _held(position)
        .values(checkpoint_number=snapshot.number, checkpointed_at=sql.now(), checkpoint_asked_at=null())
        .returning(WorkflowRow.id, WorkflowRow.seq)
        .cte("held")
    )
    columns = {
        "workflow_id": held.c.id,
        "seq": held.c.seq,
        "number": literal(snapshot.number),
        "kind": literal(kind),
        "body": literal(snapshot.body),
        "salt": literal(snapshot.salt),
        "commitment": literal(snapshot.commitment),
        "mac": literal(snapshot.mac, LargeBinary),
        "mac_key": literal(snapshot.mac_key, Text),
        "at": sql.now(),
    }
    written = sql.upsert(CheckpointRow).from_select(list(columns), select(*columns.values()))
    # Written twice where the first answer got lost; the number is ours alone as long as the claim is.
    again = written.on_conflict_do_update(
        index_elements=["workflow_id", "seq", "number"],
        set_={"kind": written.excluded.kind},
        where=CheckpointRow.commitment == written.excluded.commitment,
    )
    return _wrote(connection, again)


def _save_plainly(connection: Connection, position: Position, snapshot: Snapshot, kind: str) -> bool:
    """Do the same in two statements."""
    with sqlite.atomically(connection):
        newer = {"checkpoint_number": snapshot.number, "checkpointed_at": sql.now(), "checkpoint_asked_at": null()}
        if not _wrote(connection, _held(position).values(newer)):
            return False
        written = sql.upsert(CheckpointRow).values(
            workflow_id=position.workflow_id,
            seq=position.seq,
            number=snapshot.number,
            kind=kind,
            body=snapshot.body,
            salt=snapshot.salt,
            commitment=snapshot.commitment,
            mac=snapshot.mac,
            mac_key=snapshot.mac_key,
            at=sql.now(),
        )
        again = written.on_conflict_do_update(
            index_elements=["workflow_id", "seq", "number"],
            set_={"kind": written.excluded.kind},
            where=CheckpointRow.commitment == written.excluded.commitment,
        )
        return _wrote(connection, again)


def is_asked(connection: Connection, position: Position) -> bool | None:
    """Whether a checkpoint was asked of the handler; None means that the claim was lost."""
    return connection.execute(
        select(WorkflowRow.checkpoint_asked_at.is_not(None)).where(*_fence(position))
    ).scalar_one_or_none()


def progress_of(connection: Connection, workflow_id: str, seq: int) -> list[str]:
    """Return the commitments of the checkpoints since transition ``seq``, for the next to list."""
    found = connection.execute(
        select(CheckpointRow.commitment)
        .where(CheckpointRow.workflow_id == workflow_id, CheckpointRow.seq == seq, CheckpointRow.number > 0)
        .order_by(CheckpointRow.number)
    ).scalars()
    return [bytes(commitment).hex() for commitment in found]


def newest_snapshot(connection: Connection, workflow_id: str, seq: int) -> Snapshot | None:
    """Return the newest checkpoint at ``seq``, if there is one at all."""
    table = CheckpointRow.__table__.c
    row = connection.execute(
        select(*(table[name] for name in SNAPSHOT))
        .where(table.workflow_id == workflow_id, table.seq == seq)
        .order_by(table.number.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else read_snapshot(row)


def next_event(
    connection: Connection, workflow_id: str, accepts: Collection[str], *, after: int = 0
) -> WaitingEvent | None:
    """Return the oldest event that was received ``after`` another, not consumed, and is accepted."""
    row = connection.execute(
        select(*(EventRow.__table__.c[name] for name in EVENT))
        .where(
            EventRow.workflow_id == workflow_id,
            EventRow.id > after,
            EventRow.consumed_seq.is_(None),
            EventRow.name.in_(accepts),
        )
        .order_by(EventRow.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else _read_event(row)


def owner_of(connection: Connection, workflow_id: str) -> tuple[str, int] | None:
    """Return the worker and the pid that have a workflow in hand."""
    row = connection.execute(
        select(WorkflowRow.owner, WorkflowRow.owner_pid).where(WorkflowRow.id == workflow_id)
    ).one_or_none()
    return None if row is None or row[0] is None or row[1] is None else (row[0], row[1])


# --- rows and records -------------------------------------------------------------------


def _fence(position: Position) -> tuple[ColumnElement[bool], ...]:
    return (
        WorkflowRow.id == position.workflow_id,
        WorkflowRow.seq == position.seq,
        WorkflowRow.claim == position.claim,
    )


def _held(position: Position) -> Update:
    """Return an update that changes nothing unless the claim still holds."""
    return update(WorkflowRow).where(*_fence(position), WorkflowRow.owner.is_not(None))


def _wrote(connection: Connection, statement: Any) -> bool:
    result: CursorResult[Any] = connection.execute(statement)
    return result.rowcount == 1


def read_position(row: Sequence[Any]) -> Position:
    """Return the record of the columns ``POSITION``, in their order."""
    named = dict(zip(POSITION, row, strict=True))
    queue = named.pop("queue")
    following = Following(
        name=named.pop("following"),
        accepts=tuple(named.pop("accepts")),
        timer_at=named.pop("timer_at"),
        queue=queue,
        event_queue=queue,
    )
    return Position(workflow_id=named.pop("id"), head=bytes(named.pop("head")), following=following, **named)


def read_snapshot(row: Sequence[Any]) -> Snapshot:
    """Return the record of the columns ``SNAPSHOT``, in their order."""
    return Snapshot(body=bytes(row[0]), number=row[1], salt=bytes(row[2]), commitment=bytes(row[3]))


def _read_event(row: Sequence[Any]) -> WaitingEvent:
    named = dict(zip(EVENT, row, strict=True))
    return WaitingEvent(payload=bytes(named.pop("payload")), **named)


def _parameters(move: Move, grace: timedelta) -> dict[str, Any]:
    link, envelope, following = move.link, move.link.envelope, move.following
    return {
        "workflow_id": envelope.workflow_id,
        "seq": envelope.seq,
        "claim": move.claim,
        "version": move.version,
        "definition": envelope.definition,
        "from_state": envelope.from_state,
        "state": envelope.to_state,
        "status": move.status,
        "event": envelope.event,
        "actor": envelope.actor,
        "attempt": envelope.attempt,
        "at": envelope.at,
        "envelope": link.body,
        "hash": link.hash,
        "mac": link.mac,
        "mac_key": link.mac_key,
        "checkpoint": link.checkpoint,
        "checkpoint_salt": link.checkpoint_salt,
        "commitment": envelope.checkpoint,
        "payload": link.payload,
        "payload_salt": link.payload_salt,
        "event_id": move.event_id,
        "steered_by": move.steered_by,
        "following": following.name,
        "accepts": canonical(list(following.accepts)).decode(),
        "timer_at": following.timer_at,
        "queue": following.queue,
        "event_queue": following.event_queue,
        "at_once": following.at_once,
        "ended": following.ended,
        "entered_at": move.entered_at,
        "entered_seq": move.entered_seq,
        "deadline_met": move.deadline_met,
        "attributes": None if move.attributes is None else canonical(dict(move.attributes)).decode(),
        "error": None if move.error is None else canonical(dict(move.error)).decode(),
        "grace": grace,
    }

"""The engine's verbs, each inside one transaction of its caller; what they return wants to be rung.

Written once against a synchronous ``Session``: an async engine reaches them through
``AsyncSession.run_sync``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.orm import Session

from ..core.bell import Bell, overdue
from ..core.canonical import Json, canonical
from ..core.chain import MacKey, checkpoint_commitment, timestamp
from ..core.errors import DeadlineExceeded, HistoryBroken, InvalidData, InvalidName, WrongStatus
from ..core.machine import Definition
from ..core.names import check_name
from ..core.recovery import is_overdue
from ..core.starting import Moment, check_moment, moment_of
from . import effects, moves, seal, sql
from .database import in_transaction
from .history import not_found
from .models import CheckpointRow, WorkflowRow
from .records import Checkpoint, Position, Snapshot
from .repository import commit, newest_snapshot, progress_of, read_position
from .statements import POSITION
from .waiting import waits_by_another

_OPEN: Final = ("pending", "waiting")
# What a bell is made of.
_RUNG: Final = tuple(WorkflowRow.__table__.c[name] for name in ("id", "seq", "type", "queue", "following", "priority"))
_MOST_REASON: Final = 2_000
_ANY_SIZE: Final = 2**30
_NOTHING_MORE: Final[Mapping[str, Json]] = {}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On whose behalf, and within which bounds, a verb is carried out."""

    actor: str
    grace: timedelta
    max_bytes: int
    mac_key: MacKey | None = None
    checkpoint_on_transition: bool = True
    """Of what it starts: whether each transition is recorded by itself."""
    mac_keys: tuple[MacKey, ...] = ()
    """All that are known here; what was made before the newest carries the code of an older one."""

    @property
    def known_keys(self) -> tuple[MacKey, ...]:
        """Every key that codes can be verified with."""
        return self.mac_keys or (() if self.mac_key is None else (self.mac_key,))


# --- pause, resume, retry, cancel ---------------------------------------------------------


def awake(now: datetime, terms: Terms) -> dict[str, Any]:
    """Return what makes a workflow ready now: it is rung at once."""
    return {"status": "pending", "ready_at": now, "due_at": now + terms.grace, "rings": 1}


def pause(
    session: Session, workflow_id: str, reason: str, terms: Terms, *, said: Mapping[str, Json] = _NOTHING_MORE
) -> None:
    """Let nothing more begin; a handler that runs now may finish, and its transition is kept.

    ``said`` goes into the history beside the reason; not of a pause that comes after a handler.

    Raises:
        WorkflowNotFound, WrongStatus: nothing was written.

    """
    check_reason(reason)
    position, status, now = lock(session, workflow_id)
    if status == "paused":
        return
    _need(position, status, "pausing", _OPEN)
    if _is_claimed(session, workflow_id):
        asked = {"actor": terms.actor, "reason": reason}
        session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(pausing=asked, updated_at=now))
        return
    _intervene(session, position, "paused", "paused", reason, now, terms, said=said)


def resume(session: Session, workflow_id: str, reason: str, terms: Terms) -> Bell | None:
    """Go on after a pause; a workflow that is merely pending is rung, also before its retry is due.

    One that waits, with events that its state did not take when they came, looks at them again:
    a new deployment may have taught the state to take them.

    Raises:
        WorkflowNotFound, WrongStatus: nothing was written.

    """
    check_reason(reason)
    position, status, now = lock(session, workflow_id)
    if status in _OPEN:
        changes: dict[str, Any] = {"pausing": None, "updated_at": now}
        ready = (status == "pending" or position.inbox > 0) and not _is_claimed(session, workflow_id)
        ready = ready and not _is_held_back(position, now)  # a delayed start is no delay of a retry
        if ready:  # whoever resumes it does not want to wait for the delay of its retry
            changes |= awake(now, terms)
        session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(**changes))
        return _bell(position, position.seq) if ready else None
    _need(position, status, "resuming", ("paused", *_OPEN))
    return _intervene(session, position, "resumed", None, reason, now, terms)


def retry(
    session: Session, workflow_id: str, reason: str, terms: Terms, *, deadline: Moment | None = None
) -> Bell | None:
    """Try again what a workflow failed at, or was quarantined for, with all its attempts; ``deadline`` is a new one.

    Raises:
        WorkflowNotFound, WrongStatus, InvalidData: nothing was written.
        DeadlineExceeded: its deadline has passed, and no other was given; likewise.

    """
    check_reason(reason)
    check_moment("/deadline", deadline)
    position, status, now = lock(session, workflow_id)
    _need(position, status, "retrying", ("failed", "quarantined"))
    moment, passed = moment_of("/deadline", deadline, now), position.deadline
    if moment is None:
        if passed is not None and is_overdue(passed, now=now) and _was_overdue(session, workflow_id):
            raise DeadlineExceeded(workflow_id, timestamp(passed), position.state)
        return _intervene(session, position, "retried", None, reason, now, terms)
    if moment <= now:
        raise InvalidData("the retry", [("/deadline", f"{timestamp(moment)} has passed")])
    session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(deadline=moment))
    return _intervene(session, position, "retried", None, reason, now, terms, said={"deadline": timestamp(moment)})


def _was_overdue(session: Session, workflow_id: str) -> bool:
    """Whether it is the deadline that a workflow failed at, and not a handler."""
    error = session.execute(select(WorkflowRow.error).where(WorkflowRow.id == workflow_id)).scalar_one()
    kind = f"{DeadlineExceeded.__module__}.{DeadlineExceeded.__qualname__}"
    return isinstance(error, dict) and error.get("type") == kind


def cancel(session: Session, workflow_id: str, reason: str, terms: Terms) -> None:
    """End a workflow here; a handler that runs now finds its claim lost, and is not recorded.

    Raises:
        WorkflowNotFound, WrongStatus: nothing was written.

    """
    check_reason(reason)
    position, status, now = lock(session, workflow_id)
    if status == "cancelled":
        return
    _need(position, status, "cancelling", (*_OPEN, "paused", "failed", "quarantined"))
    # By a handler that is never recorded now: what it did outside stays done.
    done = effects.told(session.connection(), position)
    said: dict[str, Json] = {"effects": list(done)} if done else {}
    _intervene(session, position, "cancelled", "cancelled", reason, now, terms, said=said)


def _intervene(
    session: Session,
    position: Position,
    event: str,
    status: str | None,
    reason: str,
    now: datetime,
    terms: Terms,
    *,
    said: Mapping[str, Json] = _NOTHING_MORE,
) -> Bell | None:
    connection = session.connection()
    move = moves.intervene(
        position,
        event,
        newest(session, position, terms.known_keys).data,
        status=status,
        payload={**({"reason": reason} if reason else {}), **said},
        progress=progress_of(connection, position.workflow_id, position.seq),
        actor=terms.actor,
        at=max(now, position.moved_at),
        mac_key=terms.mac_key,
    )
    moved = commit(in_transaction(session), move, grace=terms.grace)
    assert moved is not None, "the row is locked: nobody can have moved it"  # noqa: S101
    if status is None and _is_held_back(position, now):
        _hold_back(session, position)
        return None
    return _bell(position, moved.seq) if moved.ready else None


def _is_held_back(position: Position, now: datetime) -> bool:
    """Whether its start was delayed, until a moment that has not come."""
    return position.entered_seq == 0 and position.entered_at > now


def _hold_back(session: Session, position: Position) -> None:
    """Let a delayed start that was paused, and is not any more, keep its delay."""
    begins = {"status": "pending", "ready_at": position.entered_at, "due_at": position.entered_at, "rings": 0}
    session.execute(update(WorkflowRow).where(WorkflowRow.id == position.workflow_id).values(begins))


def check_reason(reason: str) -> None:
    """Refuse a reason that the history could not keep.

    Raises:
        InvalidName, NotCanonical: it is too long, or no text.

    """
    if len(reason) > _MOST_REASON:
        raise InvalidName("reason", reason, f"it has {len(reason)} characters; say it in {_MOST_REASON}")
    canonical({"reason": reason})


# --- checkpoints, and ringing in bulk -----------------------------------------------------


def checkpoint(session: Session, workflow_id: str, terms: Terms) -> Checkpoint | None:
    """Keep one more checkpoint of a workflow's data; where a handler runs, ask it for one (None).

    Raises:
        WorkflowNotFound: there is no such workflow.

    """
    position, _, now = lock(session, workflow_id)
    if _is_claimed(session, workflow_id):
        asked = update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(checkpoint_asked_at=now)
        session.execute(asked)
        return None
    made = moves.copy_of(position, newest(session, position, terms.known_keys), terms.mac_key)
    session.execute(
        insert(CheckpointRow).values(
            workflow_id=workflow_id,
            seq=position.seq,
            number=made.number,
            kind="manual",
            body=made.body,
            salt=made.salt,
            commitment=made.commitment,
            mac=made.mac,
            mac_key=made.mac_key,
            at=now,
        )
    )
    newer = {"checkpoint_number": made.number, "checkpointed_at": now}
    session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(newer))
    return Checkpoint(
        workflow_id=workflow_id,
        seq=position.seq,
        number=made.number,
        kind="manual",
        commitment=made.commitment.hex(),
        at=now,
    )


def ring_pending(session: Session, definition: Definition, terms: Terms, *, after: str, limit: int) -> list[Bell]:
    """Return bells for workflows of a type that nobody has in hand and that have something to look at.

    Those that could run now, those that wait while there are events for them, those that wait and are of an older
    version: they are upgraded then; and those that would run sooner by this definition than by the one that they
    wait by. By their ids, at most ``limit`` of those after ``after``.
    """
    changed = or_(WorkflowRow.inbox > 0, WorkflowRow.version.in_(definition.upgrades), waits_by_another(definition))
    some = (
        select(WorkflowRow.id)
        .where(
            WorkflowRow.id > after,
            WorkflowRow.type == definition.type,
            WorkflowRow.owner.is_(None),
            or_(WorkflowRow.ready_at <= sql.now(), and_(WorkflowRow.status == "waiting", changed)),
        )
        .order_by(WorkflowRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("some")  # once: as a mere subquery PostgreSQL may plan it for each row anew, and the limit is none
    )
    now = sql.now()
    rows = session.execute(
        update(WorkflowRow)
        .where(WorkflowRow.id.in_(select(some.c.id)))
        .values(status="pending", ready_at=sql.least(WorkflowRow.ready_at, now), due_at=now + terms.grace, rings=1)
        .returning(*_RUNG)
    )
    return sorted(map(_bell_of, rows), key=lambda bell: bell.workflow_id)


def ring(session: Session, workflow_ids: Sequence[str], terms: Terms) -> list[Bell]:
    """Return bells for those of the workflows that could run now and that nobody has in hand.

    Raises:
        InvalidName: one of them is no id.

    """
    ids = [check_name("workflow id", workflow_id) for workflow_id in workflow_ids]
    now = sql.now()
    rows = session.execute(
        update(WorkflowRow)
        .where(WorkflowRow.id.in_(ids), WorkflowRow.owner.is_(None), WorkflowRow.ready_at <= now)
        .values(due_at=now + terms.grace, rings=1)
        .returning(*_RUNG)
    )
    return [_bell_of(row) for row in rows]


def ring_overdue(session: Session, workflow_ids: Collection[str], terms: Terms) -> dict[str, Bell]:
    """Return bells for those of the workflows that could run, that nobody has in hand, and that were not heard of.

    For whoever asks for something again: the answer was lost, and with it the bell, perhaps. Once in a grace for
    each. What somebody else has locked is in hand, or rung for, by him: this waits for nobody.
    """
    if not workflow_ids:
        return {}
    now = sql.now()
    silent = (
        select(WorkflowRow.id)
        .where(
            WorkflowRow.id.in_(workflow_ids),
            WorkflowRow.owner.is_(None),
            WorkflowRow.ready_at <= now,
            WorkflowRow.due_at <= now,
        )
        .with_for_update(skip_locked=True)
    )
    rows = session.execute(
        update(WorkflowRow)
        .where(WorkflowRow.id.in_(silent))
        .values(due_at=now + terms.grace, rings=1)
        .returning(*_RUNG)
    )
    bells = [_bell_of(row) for row in rows]
    return {bell.workflow_id: replace(bell, priority=overdue(bell.priority)) for bell in bells}


# --- shared -------------------------------------------------------------------------------


def lock(session: Session, workflow_id: str, *, hold: bool = True) -> tuple[Position, str, datetime]:
    """Lock a workflow's row; return where it is, its status, and the database's time. Without ``hold``, only look.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.

    """
    check_name("workflow id", workflow_id)
    table = WorkflowRow.__table__.c
    query = select(*(table[name] for name in POSITION), table.status, sql.now()).where(table.id == workflow_id)
    row = session.execute(query.with_for_update() if hold else query).one_or_none()
    if row is None:
        raise not_found(session.connection(), workflow_id)
    return read_position(row[: len(POSITION)]), row[-2], row[-1]


def lock_all(session: Session, workflow_ids: Collection[str]) -> None:
    """Lock the rows of several workflows, in one order; those that are not there are left out."""
    session.execute(
        select(WorkflowRow.id).where(WorkflowRow.id.in_(workflow_ids)).order_by(WorkflowRow.id).with_for_update()
    )


def newest(session: Session, position: Position, keys: Sequence[MacKey] = ()) -> Snapshot:
    """Return the newest checkpoint of a workflow; with ``keys``, one inside a handler has to carry its code.

    Raises:
        HistoryBroken: it is not the one that was committed; nothing may be built on it.

    """
    found = newest_snapshot(session.connection(), position.workflow_id, position.seq)
    if (
        found is None
        or found.number != position.checkpoint_number
        or checkpoint_commitment(found.salt, found.body) != found.commitment
        or not seal.is_vouched_for(session.connection(), position, found, keys)
    ):
        problem = "its checkpoint is not the one that was committed; `aegis verify` tells more"
        raise HistoryBroken(position.workflow_id, position.seq, problem)
    return found


def _is_claimed(session: Session, workflow_id: str) -> bool:
    return session.execute(select(WorkflowRow.owner.is_not(None)).where(WorkflowRow.id == workflow_id)).scalar_one()


def _need(position: Position, status: str, operation: str, allowed: tuple[str, ...]) -> None:
    if status not in allowed:
        raise WrongStatus(position.workflow_id, status, operation, allowed)


def label_of(type_name: str, following: str | None) -> str:
    """Return what a bell is called in logs."""
    return f"{type_name}.{following}" if following else type_name


def _bell_of(row: Any) -> Bell:
    label = label_of(row.type, row.following)
    return Bell(workflow_id=row.id, seq=row.seq, queue=row.queue, label=label, priority=row.priority)


def _bell(position: Position, seq: int) -> Bell:
    return Bell(
        workflow_id=position.workflow_id,
        seq=seq,
        queue=position.following.queue,
        label=label_of(position.type, position.following.name),
        priority=position.priority,
    )

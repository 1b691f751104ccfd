"""The engine's verbs, each inside one transaction of its caller; what they return wants to be rung.

Written once against a synchronous ``Session``: an async engine reaches them through
``AsyncSession.run_sync``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.orm import Session

from ..core.bell import Bell
from ..core.canonical import canonical, load, pointer_step
from ..core.chain import Link, MacKey, checkpoint_commitment
from ..core.errors import (
    EventConflict,
    HistoryBroken,
    InvalidData,
    InvalidName,
    StartConflict,
    WorkflowPurged,
    WrongStatus,
)
from ..core.names import check_name, check_new_id
from ..core.workflow import Workflow, read_payload, registry, snapshot, state_of
from . import moves, sql
from .database import in_transaction
from .history import is_erased, is_purged, not_found
from .models import ENDED, CheckpointRow, DeploymentRow, EventRow, TransitionRow, WorkflowRow
from .records import Checkpoint, Following, Position, Snapshot
from .repository import commit, newest_snapshot, progress_of, read_position
from .schema import no_deployment_name
from .statements import POSITION

_OPEN: Final = ("pending", "waiting")
_MOST_REASON: Final = 2_000
_ANY_SIZE: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On whose behalf, and within which bounds, a verb is carried out."""

    actor: str
    grace: timedelta
    max_bytes: int
    mac_key: MacKey | None = None


# --- start ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Started:
    """What became of a start: whether it is a new workflow, and what to ring for it."""

    new: bool
    bell: Bell | None


def start(session: Session, workflow: Workflow, workflow_id: str, terms: Terms) -> Started:
    """Accept a workflow, unless it was started with the same input before.

    Raises:
        InvalidName, InvalidData, NotCanonical: nothing was written.
        StartConflict: the id was taken with other input.
        WorkflowPurged: it was taken once, and is never used again.

    """
    check_new_id(workflow_id)
    data, definition = snapshot(workflow), workflow.definition
    if state_of(workflow) != definition.initial:
        # The data may come from outside, and whoever sends it must not leap over what comes first.
        problem = f"it is {state_of(workflow)!r}; a new workflow is in {definition.initial!r}: leave it out"
        raise InvalidData(f"the data of {definition.type}", [("/state", problem)])
    named = session.execute(select(DeploymentRow.name, sql.now())).one_or_none()
    if named is None:
        raise no_deployment_name()
    deployment, now = named
    link, following = moves.begin(
        definition,
        workflow_id,
        state_of(workflow),
        data,
        deployment=deployment,
        actor=terms.actor,
        at=now,
        max_bytes=terms.max_bytes,
        mac_key=terms.mac_key,
    )
    at_once = following.at_once
    accepted = session.execute(
        sql.upsert(WorkflowRow)
        .values(
            id=workflow_id,
            type=definition.type,
            version=definition.version,
            definition=definition.fingerprint,
            state=state_of(workflow),
            status="pending" if at_once else "waiting",
            seq=0,
            head=link.hash,
            following=following.name,
            accepts=list(following.accepts),
            queue=following.queue,
            moved_at=now,
            entered_at=now,
            timer_at=following.timer_at,
            ready_at=now if at_once else following.timer_at,
            due_at=now + terms.grace if at_once else following.timer_at,
            rings=1 if at_once else 0,
            checkpointed_at=now,
            created_at=now,
            updated_at=now,
        )
        .on_conflict_do_nothing()
        .returning(WorkflowRow.id)
    ).one_or_none()
    if accepted is None:
        _same_start(session, workflow, workflow_id, data)
        return Started(new=False, bell=None)
    if write_first(session, link):
        raise WorkflowPurged(workflow_id)
    return Started(new=True, bell=_bell(workflow_id, 0, definition.type, following) if at_once else None)


def write_first(session: Session, link: Link) -> bool:
    """Write transition 0 and its checkpoint, once the row is there; return whether the id was purged before.

    It is asked here, where the id is ours already: whoever purged it has committed, and no other can.
    """
    envelope = link.envelope
    purged = session.execute(
        insert(TransitionRow)
        .values(
            workflow_id=envelope.workflow_id,
            seq=0,
            event=envelope.event,
            from_state=None,
            to_state=envelope.to_state,
            actor=envelope.actor,
            attempt=envelope.attempt,
            at=envelope.at,
            envelope=link.body,
            hash=link.hash,
            mac=link.mac,
            mac_key=link.mac_key,
        )
        .returning(is_purged(envelope.workflow_id))
    ).scalar_one()
    session.execute(
        insert(CheckpointRow).values(
            workflow_id=envelope.workflow_id,
            seq=0,
            number=0,
            kind="transition",
            body=link.checkpoint,
            salt=link.checkpoint_salt,
            commitment=envelope.checkpoint,
            at=envelope.at,
        )
    )
    return bool(purged)


def _same_start(session: Session, workflow: Workflow, workflow_id: str, data: Mapping[str, Any]) -> None:
    connection = session.connection()
    type_name = session.execute(select(WorkflowRow.type).where(WorkflowRow.id == workflow_id)).scalar_one_or_none()
    if type_name is None:  # purged, since we were told that it is there
        raise not_found(connection, workflow_id)
    if type_name != workflow.definition.type:
        raise StartConflict(workflow_id, [f"type: {type_name} then, {workflow.definition.type} now"])
    body = session.execute(
        select(CheckpointRow.body).where(
            CheckpointRow.workflow_id == workflow_id, CheckpointRow.seq == 0, CheckpointRow.number == 0
        )
    ).scalar_one_or_none()
    if body is None:
        if is_erased(connection, workflow_id, 0):
            raise StartConflict(workflow_id, ["its data was erased: nothing is left to compare with"])
        raise HistoryBroken(workflow_id, 0, "its first checkpoint is missing; `aegis verify` tells more")
    before: Any = load(bytes(body))
    if found := differences(before["state"], dict(data)):
        raise StartConflict(workflow_id, found)


_NOTHING: Final = object()


def differences(before: object, now: object, pointer: str = "") -> list[str]:
    """Return where two JSON values differ, as lines for a person.

    They are compared by their canonical bytes: to Python, ``True == 1`` and ``1 == 1.0``.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in differences(before.get(key, _NOTHING), now.get(key, _NOTHING), pointer + pointer_step(key))
        ]
    then, given = _shown(before), _shown(now)
    return [] if then == given else [f"{pointer or '/'}: {_cut(then)} then, {_cut(given)} now"]


def _shown(value: object) -> str:
    return "nothing" if value is _NOTHING else canonical(value, max_bytes=_ANY_SIZE).decode()


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - a line's worth


# --- send -------------------------------------------------------------------------------


def send(session: Session, workflow_id: str, event: str, payload: object, key: str, terms: Terms) -> Bell | None:
    """Accept an event for a workflow; it is kept until a state takes it.

    Returns None if it was received before, or does not set anything off yet.

    Raises:
        UnknownWorkflowType, UnknownEvent, InvalidData, NotCanonical, InvalidName: nothing was written.
        WorkflowNotFound, WrongStatus, EventConflict: nothing was written.

    """
    check_name("event key", key)
    position, status, now = lock(session, workflow_id)
    workflow = registry.get(position.type)
    _, data = read_payload(workflow, event, payload)
    body = canonical(data, max_bytes=terms.max_bytes)
    canonical({"data": data}, max_bytes=_ANY_SIZE)  # as it will go into the chain, one level deeper
    received = select(EventRow.name, EventRow.payload).where(EventRow.workflow_id == workflow_id, EventRow.key == key)
    # First: who asks again because an answer was lost hears the same, however far the workflow has come.
    if (before := session.execute(received).one_or_none()) is not None:
        if (before.name, bytes(before.payload)) != (event, body):
            raise EventConflict(workflow_id, key, event)
        return None
    if status in ENDED:
        raise WrongStatus(workflow_id, status, f"the event {event!r}", ["not ended"])
    # The row is locked: no other sender comes between the question and this.
    session.execute(
        insert(EventRow).values(
            workflow_id=workflow_id, name=event, key=key, sender=terms.actor, payload=body, received_at=now
        )
    )
    changes: dict[str, Any] = {"inbox": WorkflowRow.inbox + 1, "updated_at": now}
    edge = workflow.definition.on_event(position.state, event)
    # A handler's retry keeps its delay: an event wakes only who waits. Whether it waits for this one is said
    # by its row as well: the code of whoever sends may be older than that of the workers.
    wakes = status == "waiting" and (edge is not None or event in position.following.accepts)
    queue = None if edge is None else edge.queue
    if wakes:
        changes |= _awake(now, terms) | {"queue": queue}
    session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(**changes))
    label = _label(position.type, None if edge is None else edge.name)
    return Bell(workflow_id=workflow_id, seq=position.seq, queue=queue, label=label) if wakes else None


def _awake(now: datetime, terms: Terms) -> dict[str, Any]:
    return {"status": "pending", "ready_at": now, "due_at": now + terms.grace, "rings": 1}


# --- pause, resume, retry, cancel ---------------------------------------------------------


def pause(session: Session, workflow_id: str, reason: str, terms: Terms) -> None:
    """Let nothing more begin; a handler that runs now may finish, and its transition is kept.

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
    _intervene(session, position, "paused", "paused", reason, now, terms)


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
        if ready:  # whoever resumes it does not want to wait for the delay of its retry
            changes |= _awake(now, terms)
        session.execute(update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(**changes))
        return _bell(workflow_id, position.seq, position.type, position.following) if ready else None
    _need(position, status, "resuming", ("paused", *_OPEN))
    return _intervene(session, position, "resumed", None, reason, now, terms)


def retry(session: Session, workflow_id: str, reason: str, terms: Terms) -> Bell | None:
    """Try again what a workflow failed at, or was quarantined for, with all its attempts.

    Raises:
        WorkflowNotFound, WrongStatus: nothing was written.

    """
    check_reason(reason)
    position, status, now = lock(session, workflow_id)
    _need(position, status, "retrying", ("failed", "quarantined"))
    return _intervene(session, position, "retried", None, reason, now, terms)


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
    _intervene(session, position, "cancelled", "cancelled", reason, now, terms)


def _intervene(
    session: Session, position: Position, event: str, status: str | None, reason: str, now: datetime, terms: Terms
) -> Bell | None:
    connection = session.connection()
    move = moves.intervene(
        position,
        event,
        newest(session, position).data,
        status=status,
        payload={"reason": reason} if reason else {},
        progress=progress_of(connection, position.workflow_id, position.seq),
        actor=terms.actor,
        at=max(now, position.moved_at),
        mac_key=terms.mac_key,
    )
    moved = commit(in_transaction(session), move, grace=terms.grace)
    assert moved is not None, "the row is locked: nobody can have moved it"  # noqa: S101
    return _bell(moved.workflow_id, moved.seq, position.type, position.following) if moved.ready else None


def check_reason(reason: str) -> None:
    """Refuse a reason that the history could not keep.

    Raises:
        InvalidName, NotCanonical: it is too long, or no text.

    """
    if len(reason) > _MOST_REASON:
        raise InvalidName("reason", reason, f"it has {len(reason)} characters; say it in {_MOST_REASON}")
    canonical({"reason": reason})


# --- checkpoints, and ringing in bulk -----------------------------------------------------


def checkpoint(session: Session, workflow_id: str) -> Checkpoint | None:
    """Keep one more checkpoint of a workflow's data; where a handler runs, ask it for one (None).

    Raises:
        WorkflowNotFound: there is no such workflow.

    """
    position, _, now = lock(session, workflow_id)
    if _is_claimed(session, workflow_id):
        asked = update(WorkflowRow).where(WorkflowRow.id == workflow_id).values(checkpoint_asked_at=now)
        session.execute(asked)
        return None
    made = moves.copy_of(newest(session, position))
    session.execute(
        insert(CheckpointRow).values(
            workflow_id=workflow_id,
            seq=position.seq,
            number=made.number,
            kind="manual",
            body=made.body,
            salt=made.salt,
            commitment=made.commitment,
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


def ring_pending(session: Session, type_name: str, terms: Terms, *, after: str, limit: int) -> list[Bell]:
    """Return bells for workflows of a type that nobody has in hand and that have something to look at.

    Those that could run now, and those that wait while there are events for them. By their ids, at
    most ``limit`` of those after ``after``.
    """
    some = (
        select(WorkflowRow.id)
        .where(
            WorkflowRow.id > after,
            WorkflowRow.type == type_name,
            WorkflowRow.owner.is_(None),
            or_(
                WorkflowRow.ready_at <= sql.now(),
                and_(WorkflowRow.status == "waiting", WorkflowRow.inbox > 0),
            ),
        )
        .order_by(WorkflowRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    now = sql.now()
    rows = session.execute(
        update(WorkflowRow)
        .where(WorkflowRow.id.in_(some))
        .values(status="pending", ready_at=sql.least(WorkflowRow.ready_at, now), due_at=now + terms.grace, rings=1)
        .returning(WorkflowRow.id, WorkflowRow.seq, WorkflowRow.queue, WorkflowRow.following)
    )
    bells = [
        Bell(workflow_id=row.id, seq=row.seq, queue=row.queue, label=_label(type_name, row.following)) for row in rows
    ]
    return sorted(bells, key=lambda bell: bell.workflow_id)


# --- shared -------------------------------------------------------------------------------


def lock(session: Session, workflow_id: str) -> tuple[Position, str, datetime]:
    """Lock a workflow's row; return where it is, its status, and the database's time.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.

    """
    check_name("workflow id", workflow_id)
    table = WorkflowRow.__table__.c
    row = session.execute(
        select(*(table[name] for name in POSITION), table.status, sql.now())
        .where(table.id == workflow_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise not_found(session.connection(), workflow_id)
    return read_position(row[: len(POSITION)]), row[-2], row[-1]


def newest(session: Session, position: Position) -> Snapshot:
    """Return the newest checkpoint of a workflow.

    Raises:
        HistoryBroken: it is not the one that was committed; nothing may be built on it.

    """
    found = newest_snapshot(session.connection(), position.workflow_id, position.seq)
    if (
        found is None
        or found.number != position.checkpoint_number
        or checkpoint_commitment(found.salt, found.body) != found.commitment
    ):
        problem = "its checkpoint is not the one that was committed; `aegis verify` tells more"
        raise HistoryBroken(position.workflow_id, position.seq, problem)
    return found


def _is_claimed(session: Session, workflow_id: str) -> bool:
    return session.execute(select(WorkflowRow.owner.is_not(None)).where(WorkflowRow.id == workflow_id)).scalar_one()


def _need(position: Position, status: str, operation: str, allowed: tuple[str, ...]) -> None:
    if status not in allowed:
        raise WrongStatus(position.workflow_id, status, operation, allowed)


def _label(type_name: str, following: str | None) -> str:
    return f"{type_name}.{following}" if following else type_name


def _bell(workflow_id: str, seq: int, type_name: str, following: Following) -> Bell:
    return Bell(workflow_id=workflow_id, seq=seq, queue=following.queue, label=_label(type_name, following.name))

"""The inbox: accepting an event for a workflow, or saying why not. Inside one transaction of its caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, insert, or_, select, update
from sqlalchemy.orm import Session

from ..core.bell import Bell
from ..core.canonical import canonical
from ..core.errors import AlreadyApproved, EventConflict, EventRefused, FourEyes, WrongStatus
from ..core.machine import Definition, Edge
from ..core.names import check_name
from ..core.workflow import read_payload, registry
from .approvals import steered_by
from .models import ENDED, EventRow, WorkflowRow
from .operations import Terms, awake, check_reason, label_of, lock, ring_overdue
from .records import Position

_ANY_SIZE: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Message:
    """An event on its way to a workflow; the same ``key`` is received once."""

    workflow_id: str
    event: str
    payload: object
    key: str
    sender: str
    reason: str = ""


def send(session: Session, message: Message, terms: Terms, *, rung: bool = True) -> Bell | None:
    """Accept an event for a workflow; it is kept until a state takes it.

    Without ``rung`` nobody is going to ring. Returns None if it does not set anything off yet, or was received
    before and is on its way.

    Raises:
        UnknownWorkflowType, UnknownEvent, InvalidData, NotCanonical, InvalidName: nothing was written.
        WorkflowNotFound, WrongStatus, EventConflict: nothing was written.
        EventRefused, AlreadyApproved, FourEyes: nothing was written.

    """
    _check_words(message)
    position, status, now = lock(session, message.workflow_id)
    body = _acceptable(session, message, position, status, terms.max_bytes)
    if body is None:
        return ring_overdue(session, [message.workflow_id], terms).get(message.workflow_id) if rung else None
    # The row is locked: no other sender comes between the questions and this.
    session.execute(
        insert(EventRow).values(
            workflow_id=message.workflow_id,
            name=message.event,
            key=message.key,
            sender=message.sender,
            reason=message.reason or None,
            payload=body,
            received_at=now,
        )
    )
    changes: dict[str, Any] = {"inbox": WorkflowRow.inbox + 1, "updated_at": now}
    edges = _definition(position).on_event(position.state, message.event)
    edge = edges[0] if edges else None
    # A handler's retry keeps its delay: an event wakes only who waits. Whether it waits for this one is said
    # by its row as well: the code of whoever sends may be older than that of the workers.
    # One of another version is looked at by whoever upgrades it: what it takes then is not known here.
    known = edge is not None or message.event in position.following.accepts or _is_of_another_version(position)
    wakes = status == "waiting" and known
    queue = position.queue_of(edge)
    if wakes:
        changes |= awake(now, terms) | {"queue": queue}
    session.execute(update(WorkflowRow).where(WorkflowRow.id == message.workflow_id).values(**changes))
    label = label_of(position.type, None if edge is None else edge.name)
    if not wakes:
        return None
    return Bell(workflow_id=message.workflow_id, seq=position.seq, queue=queue, label=label, priority=position.priority)


def judge(session: Session, message: Message, max_bytes: int) -> None:
    """Say of an event that is sent later whether it would be accepted now; nothing is written or locked.

    Raises:
        AegisError: as ``send`` would.

    """
    _check_words(message)
    position, status, _ = lock(session, message.workflow_id, hold=False)
    _acceptable(session, message, position, status, max_bytes)


def _check_words(message: Message) -> None:
    check_name("event key", message.key)
    check_reason(message.reason)


def _definition(position: Position) -> Definition:
    return registry.get(position.type).definition


def _is_of_another_version(position: Position) -> bool:
    return position.version != _definition(position).version


def _acceptable(session: Session, message: Message, position: Position, status: str, max_bytes: int) -> bytes | None:
    """Return an event's payload as it is stored; None if the event was received before."""
    _, data = read_payload(registry.get(position.type), message.event, message.payload)
    body = canonical(data, max_bytes=max_bytes)
    canonical({"data": data}, max_bytes=_ANY_SIZE)  # as it will go into the chain, one level deeper
    received = select(EventRow.name, EventRow.payload).where(
        EventRow.workflow_id == message.workflow_id, EventRow.key == message.key
    )
    # First: who asks again because an answer was lost hears the same, however far the workflow has come.
    if (before := session.execute(received).one_or_none()) is not None:
        if (before.name, bytes(before.payload)) != (message.event, body):
            raise EventConflict(message.workflow_id, message.key, message.event)
        return None
    if status in ENDED:
        raise WrongStatus(message.workflow_id, status, f"the event {message.event!r}", ["not ended"])
    definition = _definition(position)
    edges = definition.on_event(position.state, message.event)
    taken = bool(edges) or message.event in position.following.accepts or _is_of_another_version(position)
    if not (taken or definition.keeps(message.event)):
        raise EventRefused(message.workflow_id, message.event, position.state, position.following.accepts)
    _check_rules(session, message, position, edges)
    return body


def _check_rules(session: Session, message: Message, position: Position, edges: Sequence[Edge]) -> None:
    """Refuse what could not count, as far as it can be known: which edge guards choose, they say when it is taken."""
    four_eyes = bool(edges) and all(edge.four_eyes for edge in edges)
    if four_eyes and steered_by(session.connection(), message.workflow_id) == message.sender:
        raise FourEyes(message.workflow_id, message.event, message.sender)
    if len(edges) == 1 and edges[0].approvals > 1:
        sent = _sent_before(message, position, guarded=edges[0].guard is not None)
        if session.execute(sent).first() is not None:
            raise AlreadyApproved(message.workflow_id, message.event, message.sender)


def _sent_before(message: Message, position: Position, *, guarded: bool) -> Select[Any]:
    """Return the query for events of that sender that count already, or will: a guard may let one wait for ever."""
    counted = EventRow.consumed_seq > position.entered_seq
    return select(EventRow.id).where(
        EventRow.workflow_id == message.workflow_id,
        EventRow.name == message.event,
        EventRow.sender == message.sender,
        counted if guarded else or_(counted, EventRow.consumed_seq.is_(None)),
    )

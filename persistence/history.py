"""What people and programs read: lists, timelines, earlier states, and whether all of it is intact."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, literal, select, tuple_

from ..core.canonical import Json, canonical, load
from ..core.chain import checkpoint_commitment
from ..core.errors import HistoryBroken, InvalidData, WorkflowNotFound
from ..core.names import check_name
from ..core.verify import Finding, StoredCheckpoint, StoredTransition, StoredWorkflow, verify
from .models import CheckpointRow, PayloadRow, TransitionRow, WorkflowRow
from .records import WorkflowSummary, WorkflowTransition
from .schema import deployment_name

_SUMMARY = (
    *("id", "type", "version", "state", "status", "seq", "following", "accepts", "attempt", "owner"),
    *("inbox", "pausing", "timer_at", "ready_at", "due_at", "error", "created_at", "updated_at"),
)


def summary(connection: Connection, workflow_id: str) -> WorkflowSummary:
    """Return one workflow's row.

    Raises:
        WorkflowNotFound: there is no such workflow.

    """
    check_name("workflow id", workflow_id)
    row = connection.execute(_summaries().where(WorkflowRow.id == workflow_id)).one_or_none()
    if row is None:
        raise WorkflowNotFound(workflow_id)
    return _read_summary(row)


def summaries(
    connection: Connection,
    *,
    type_name: str | None = None,
    status: str | None = None,
    state: str | None = None,
    before: tuple[datetime, str] | None = None,
    limit: int = 100,
) -> list[WorkflowSummary]:
    """Return workflows, the newest first; ``before`` is ``(created_at, id)`` of the last one seen.

    Raises:
        InvalidData, NotCanonical: a filter that nothing can match.

    """
    canonical([type_name, status, state])  # PostgreSQL takes no U+0000 and no lone surrogates
    if limit < 1:
        raise InvalidData("the filter", [("/limit", f"{limit} is not 1 or more")])
    query = _summaries().order_by(WorkflowRow.created_at.desc(), WorkflowRow.id.desc()).limit(limit)
    if type_name is not None:
        query = query.where(WorkflowRow.type == type_name)
    if status is not None:
        query = query.where(WorkflowRow.status == status)
    if state is not None:
        query = query.where(WorkflowRow.state == state)
    if before is not None:
        created_at, workflow_id = before
        query = query.where(
            tuple_(WorkflowRow.created_at, WorkflowRow.id) < tuple_(literal(created_at), literal(workflow_id))
        )
    return [_read_summary(row) for row in connection.execute(query)]


def counts(connection: Connection) -> dict[str, int]:
    """Return how many workflows there are, by status."""
    rows = connection.execute(select(WorkflowRow.status, func.count()).group_by(WorkflowRow.status))
    return {row[0]: row[1] for row in rows}


def transitions(connection: Connection, workflow_id: str) -> list[WorkflowTransition]:
    """Return a workflow's transitions, the first first.

    Raises:
        WorkflowNotFound: there is no such workflow.
        HistoryBroken: a record cannot even be read.

    """
    check_name("workflow id", workflow_id)
    rows = connection.execute(_stored_transitions(workflow_id)).all()
    if not rows:
        raise WorkflowNotFound(workflow_id)
    return [_read_transition(row) for row in rows]


def data_at(connection: Connection, workflow_id: str, seq: int | None = None) -> tuple[str, dict[str, Any]]:
    """Return a workflow's type and its data: the newest, or as transition ``seq`` left it.

    Raises:
        WorkflowNotFound: there is no such workflow, or no checkpoint at ``seq``.
        HistoryBroken: the checkpoint is not the one that was committed.

    """
    row = summary(connection, workflow_id)
    query = select(CheckpointRow.seq, CheckpointRow.body, CheckpointRow.salt, CheckpointRow.commitment).where(
        CheckpointRow.workflow_id == workflow_id, CheckpointRow.seq == (row.seq if seq is None else seq)
    )
    if seq is None:
        query = query.order_by(CheckpointRow.number.desc()).limit(1)
    else:
        query = query.where(CheckpointRow.number == 0)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise WorkflowNotFound(workflow_id, row.seq if seq is None else seq)
    body = bytes(found.body)
    if checkpoint_commitment(bytes(found.salt), body) != bytes(found.commitment):
        raise HistoryBroken(workflow_id, found.seq, "its checkpoint is not the one that was committed")
    members: Any = load(body)
    return row.type, members["state"]


def findings(connection: Connection, workflow_id: str) -> list[Finding]:
    """Verify a workflow's whole history; nothing means that it is intact.

    Raises:
        WorkflowNotFound: there is no such workflow.

    """
    check_name("workflow id", workflow_id)
    deployment = deployment_name(connection)
    row = connection.execute(select(WorkflowRow.__table__).where(WorkflowRow.id == workflow_id)).one_or_none()
    if row is None:
        raise WorkflowNotFound(workflow_id)
    stored = StoredWorkflow(
        workflow_id=row.id,
        type=row.type,
        definition=row.definition,
        state=row.state,
        status=row.status,
        seq=row.seq,
        head=bytes(row.head),
    )
    chain = [
        StoredTransition(
            workflow_id=t.workflow_id,
            seq=t.seq,
            event=t.event,
            from_state=t.from_state,
            to_state=t.to_state,
            actor=t.actor,
            attempt=t.attempt,
            at=t.at,
            envelope=bytes(t.envelope),
            hash=bytes(t.hash),
            payload=None if t.body is None else bytes(t.body),
            payload_salt=None if t.salt is None else bytes(t.salt),
        )
        for t in connection.execute(_stored_transitions(workflow_id))
    ]
    snapshots = [
        StoredCheckpoint(
            workflow_id=c.workflow_id,
            seq=c.seq,
            number=c.number,
            body=bytes(c.body),
            salt=bytes(c.salt),
            commitment=bytes(c.commitment),
        )
        for c in connection.execute(
            select(CheckpointRow.__table__)
            .where(CheckpointRow.workflow_id == workflow_id)
            .order_by(CheckpointRow.seq, CheckpointRow.number)
        )
    ]
    return verify(stored, chain, snapshots, deployment=deployment)


def newest_ids(connection: Connection, count: int, *, longest: int) -> list[str]:
    """Return the ids of the newest workflows that have at most so many transitions."""
    newest = select(WorkflowRow.id, WorkflowRow.seq).order_by(WorkflowRow.created_at.desc()).limit(count).subquery()
    return list(connection.execute(select(newest.c.id).where(newest.c.seq <= longest)).scalars())


def page_of_ids(connection: Connection, *, after: str, limit: int) -> list[str]:
    """Return the next ids after ``after``; going on from the last one goes through all."""
    query = select(WorkflowRow.id).where(WorkflowRow.id > after).order_by(WorkflowRow.id).limit(limit)
    return list(connection.execute(query).scalars())


def _summaries() -> Select[Any]:
    return select(*(WorkflowRow.__table__.c[name] for name in _SUMMARY))


def _read_summary(row: Any) -> WorkflowSummary:
    named = dict(zip(_SUMMARY, row, strict=True))
    return WorkflowSummary(worker=named.pop("owner"), accepts=tuple(named.pop("accepts")), **named)


def _stored_transitions(workflow_id: str) -> Select[Any]:
    table = TransitionRow.__table__
    payload = PayloadRow.__table__
    return (
        select(table, payload.c.body, payload.c.salt)
        .outerjoin(payload, (payload.c.workflow_id == table.c.workflow_id) & (payload.c.seq == table.c.seq))
        .where(table.c.workflow_id == workflow_id)
        .order_by(table.c.seq)
    )


def _read_transition(row: Any) -> WorkflowTransition:
    try:
        envelope: Any = load(bytes(row.envelope))
        prev: str = envelope["prev"]
        payload: Json = None if row.body is None else load(bytes(row.body))
    except (ValueError, LookupError, TypeError, RecursionError):
        problem = "its record cannot be read; `aegis verify` tells more"
        raise HistoryBroken(row.workflow_id, row.seq, problem) from None
    return WorkflowTransition(
        workflow_id=row.workflow_id,
        seq=row.seq,
        event=row.event,
        from_state=row.from_state,
        to_state=row.to_state,
        actor=row.actor,
        attempt=row.attempt,
        at=row.at,
        hash=bytes(row.hash).hex(),
        prev=prev,
        payload=payload,
    )

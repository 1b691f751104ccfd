"""What people and programs read: lists, timelines, earlier states, and whether all of it is intact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, Connection, Select, func, literal, literal_column, select, tuple_

from ..core.canonical import Json, canonical, is_canonical, load
from ..core.chain import checkpoint_commitment, payload_commitment, timestamp, transition_hash
from ..core.errors import (
    AegisError,
    CheckpointPruned,
    DataErased,
    HistoryBroken,
    InvalidData,
    WorkflowNotFound,
    WorkflowPurged,
)
from ..core.names import SYSTEM, check_name
from ..core.starting import Attribute, check_attributes
from . import sql
from .models import STATUSES, CheckpointRow, PayloadRow, RemovalRow, TransitionRow, WorkflowRow
from .records import WorkflowSummary, WorkflowTransition

_SUMMARY = (
    *("id", "type", "version", "state", "status", "seq", "following", "accepts", "attempt", "owner"),
    *("inbox", "pausing", "timer_at", "ready_at", "due_at", "priority", "home_queue", "attributes"),
    *("deadline", "singleton", "entered_at", "error", "created_at", "updated_at"),
)

_NOT_THE_SYSTEM = WorkflowRow.id != SYSTEM


def summary(connection: Connection, workflow_id: str) -> WorkflowSummary:
    """Return one workflow's row.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.

    """
    check_name("workflow id", workflow_id)
    row = connection.execute(_summaries().where(WorkflowRow.id == workflow_id)).one_or_none()
    if row is None:
        raise not_found(connection, workflow_id)
    return _read_summary(row)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which workflows to list: those of which all of it is true."""

    type: str | None = None
    status: str | None = None
    state: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """What they were started with, or say of themselves since: all of these, whatever else."""
    created_after: datetime | None = None
    created_before: datetime | None = None

    def check(self) -> None:
        """Refuse a filter that nothing can match.

        Raises:
            InvalidData, InvalidName, NotCanonical: say what is wrong with it.

        """
        canonical([self.type, self.status, self.state])  # PostgreSQL takes no U+0000 and no lone surrogates
        check_attributes(self.attributes)
        if self.status is not None and self.status not in STATUSES:
            raise InvalidData("the filter", [("/status", f"{self.status!r} is none of {', '.join(STATUSES)}")])
        for name, moment in (("created_after", self.created_after), ("created_before", self.created_before)):
            if moment is not None and moment.utcoffset() is None:
                raise InvalidData("the filter", [(f"/{name}", f"{moment.isoformat()} has no time zone")])

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Yield what has to be true of a row."""
        for column, wanted in (
            (WorkflowRow.type, self.type),
            (WorkflowRow.status, self.status),
            (WorkflowRow.state, self.state),
        ):
            if wanted is not None:
                yield column == wanted
        if self.attributes:
            yield sql.holds(WorkflowRow.attributes, canonical(check_attributes(self.attributes)).decode())
            # What the index of the attributes leaves out: said, so that it is used.
            yield literal_column("aegis_workflow.attributes <> '{}'", Boolean)
        if self.created_after is not None:
            yield WorkflowRow.created_at > self.created_after
        if self.created_before is not None:
            yield WorkflowRow.created_at < self.created_before


EVERYTHING: Final = Filter()


def summaries(
    connection: Connection,
    wanted: Filter = EVERYTHING,
    *,
    before: tuple[datetime, str] | None = None,
    limit: int = 100,
) -> list[WorkflowSummary]:
    """Return workflows, the newest first; ``before`` is ``(created_at, id)`` of the last one seen.

    The system's own is not among them.

    Raises:
        InvalidData, InvalidName, NotCanonical: a filter that nothing can match.

    """
    wanted.check()
    if limit < 1:
        raise InvalidData("the filter", [("/limit", f"{limit} is not 1 or more")])
    query = _summaries().where(_NOT_THE_SYSTEM, *wanted.conditions())
    if before is not None:
        created_at, workflow_id = before
        query = query.where(
            tuple_(WorkflowRow.created_at, WorkflowRow.id) < tuple_(sql.moment(created_at), literal(workflow_id))
        )
    newest_first = query.order_by(WorkflowRow.created_at.desc(), WorkflowRow.id.desc()).limit(limit)
    return [_read_summary(row) for row in connection.execute(newest_first)]


def counts(connection: Connection) -> dict[str, int]:
    """Return how many workflows there are, by status."""
    query = select(WorkflowRow.status, func.count()).where(_NOT_THE_SYSTEM)
    rows = connection.execute(query.group_by(WorkflowRow.status))
    return {row[0]: row[1] for row in rows}


def transitions(connection: Connection, workflow_id: str) -> list[WorkflowTransition]:
    """Return a workflow's transitions, the first first.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.
        HistoryBroken: a record cannot even be read.

    """
    check_name("workflow id", workflow_id)
    rows = connection.execute(_stored_transitions(workflow_id)).all()
    if not rows:
        raise not_found(connection, workflow_id)
    return [_read_transition(row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A workflow's data, and the class that it is of: its version as it was then."""

    type: str
    version: int
    data: dict[str, Any]


def data_at(connection: Connection, workflow_id: str, seq: int | None = None) -> Stored:
    """Return a workflow's data: the newest, or as transition ``seq`` left it.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more, or no checkpoint at ``seq``.
        DataErased, CheckpointPruned: it was removed on purpose.
        HistoryBroken: the checkpoint is not the one that was committed.

    """
    row = summary(connection, workflow_id)
    table = CheckpointRow.__table__.c
    query = (
        select(table.seq, table.number, table.body, table.salt, table.commitment, TransitionRow.envelope)
        .add_columns(TransitionRow.hash)
        .join_from(
            CheckpointRow,
            TransitionRow,
            (TransitionRow.workflow_id == table.workflow_id) & (TransitionRow.seq == table.seq),
        )
        .where(table.workflow_id == workflow_id, table.seq == (row.seq if seq is None else seq))
    )
    query = query.order_by(table.number.desc()).limit(1) if seq is None else query.where(table.number == 0)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise _no_checkpoint(connection, workflow_id, row.seq if seq is None else seq)
    data = _verified(workflow_id, found)
    if not data:  # that of any other transition holds the state at least
        raise DataErased(workflow_id, found.seq)
    version = row.version if seq is None else version_at(connection, workflow_id, seq, row.version)
    return Stored(type=row.type, version=version, data=data)


def version_at(connection: Connection, workflow_id: str, seq: int, newest: int) -> int:
    """Return the version that a workflow was of then: the one that the next upgrade of it says it came from.

    Raises:
        HistoryBroken: that is not the one that was committed.

    """
    links, payloads = TransitionRow.__table__.c, PayloadRow.__table__.c
    row = connection.execute(
        select(links.seq, links.envelope, payloads.body, payloads.salt)
        .outerjoin_from(
            TransitionRow, PayloadRow, (payloads.workflow_id == links.workflow_id) & (payloads.seq == links.seq)
        )
        .where(links.workflow_id == workflow_id, links.event == "upgraded", links.seq > seq)
        .order_by(links.seq)
        .limit(1)
    ).one_or_none()
    if row is None:
        return newest
    body = None if row.body is None else bytes(row.body)
    said: Any = load(body) if body is not None and is_canonical(body) else None
    version = said.get("from_version") if isinstance(said, dict) else None
    told: Any = load(bytes(row.envelope)) if is_canonical(bytes(row.envelope)) else None
    committed = told.get("payload") if isinstance(told, dict) else None
    if type(version) is not int or body is None or payload_commitment(bytes(row.salt), body).hex() != committed:
        problem = "what it was upgraded from is not what was committed; `aegis verify` tells more"
        raise HistoryBroken(workflow_id, row.seq, problem)
    return version


def _verified(workflow_id: str, found: Any) -> dict[str, Any]:
    """Return the data in a checkpoint, once it is seen to be what its transition committed to.

    One that was made since, inside a handler, no transition has committed to yet: it has its own
    commitment alone.
    """
    body, commitment, envelope = bytes(found.body), bytes(found.commitment), bytes(found.envelope)
    members: Any = load(body) if is_canonical(body) else None
    told: Any = load(envelope) if is_canonical(envelope) else None
    if (
        not isinstance(members, dict)
        or not isinstance(told, dict)
        or checkpoint_commitment(bytes(found.salt), body) != commitment
        or transition_hash(envelope) != bytes(found.hash)
        or (told.get("wf"), told.get("seq")) != (workflow_id, found.seq)
        or (members.get("workflow_id"), members.get("seq")) != (workflow_id, found.seq)
        or (found.number == 0 and told.get("checkpoint") != commitment.hex())
    ):
        problem = "its checkpoint is not the one that was committed; `aegis verify` tells more"
        raise HistoryBroken(workflow_id, found.seq, problem)
    data: dict[str, Any] = members["state"]
    return data


def seq_at(connection: Connection, workflow_id: str, moment: datetime) -> int:
    """Return the transition that a workflow was at, at that moment.

    It is found by the columns for searching, and given only if the envelopes have the same times: of the one
    that is found, and of the one that follows it.

    Raises:
        WorkflowNotFound, WorkflowPurged: there is no such workflow, or none any more.
        InvalidData: it was not there yet.
        HistoryBroken: a time is not the one that was committed.

    """
    check_name("workflow id", workflow_id)
    table = TransitionRow.__table__.c
    last, first = connection.execute(
        select(func.max(table.seq).filter(table.at <= moment), func.min(table.seq)).where(
            table.workflow_id == workflow_id
        )
    ).one()
    if first is None:
        raise not_found(connection, workflow_id)
    links = connection.execute(
        select(table.seq, func.coalesce(sql.iso(table.at), "").label("at"), table.envelope, table.hash)
        .where(table.workflow_id == workflow_id, table.seq >= (first if last is None else last))
        .order_by(table.seq)
        .limit(2)
    ).all()
    for seq, link in enumerate(links, 0 if last is None else last):
        _check_time(workflow_id, seq, link)
    if last is None:
        raise InvalidData("the moment", [("/", f"{timestamp(moment)} is before {links[0].at}, when it began")])
    return int(last)


def _check_time(workflow_id: str, seq: int, link: Any) -> None:
    """Check that this is the transition ``seq``, and its time in the column the one in its envelope.

    Raises:
        HistoryBroken: it is not.

    """
    if link.seq != seq:
        raise HistoryBroken(workflow_id, seq, "it is missing; `aegis verify` tells more")
    body = bytes(link.envelope)
    told: Any = load(body) if is_canonical(body) else None
    at = told.get("at") if isinstance(told, dict) else None
    if transition_hash(body) != bytes(link.hash) or at != link.at:
        problem = f"it says that it was made at {link.at}, and what was committed says {at}; `aegis verify` tells more"
        raise HistoryBroken(workflow_id, link.seq, problem)


def _no_checkpoint(connection: Connection, workflow_id: str, seq: int) -> AegisError:
    """Return what to say of a checkpoint that is not there."""
    if is_erased(connection, workflow_id, seq):
        return DataErased(workflow_id, seq)
    pruned = _removals(workflow_id).where(RemovalRow.kind == "pruned", RemovalRow.through_seq >= seq).exists()
    if seq > 0 and connection.execute(select(pruned)).scalar_one():
        return CheckpointPruned(workflow_id, seq)
    return WorkflowNotFound(workflow_id, seq)


# --- what was removed on purpose ------------------------------------------------------------


def is_erased(connection: Connection, workflow_id: str, seq: int) -> bool:
    """Whether the data that transition ``seq`` left was erased since."""
    erased = select(TransitionRow.seq).where(
        TransitionRow.workflow_id == workflow_id, TransitionRow.event == "erased", TransitionRow.seq > seq
    )
    return seq >= 0 and connection.execute(select(erased.exists())).scalar_one()


def is_purged(workflow_id: str) -> ColumnElement[bool]:
    """Return the condition that a workflow of that id was purged."""
    return _removals(workflow_id).where(RemovalRow.kind == "purged").exists()


def not_found(connection: Connection, workflow_id: str) -> AegisError:
    """Return what to say of a workflow that is not there: that it never was, or that it was purged."""
    purged = connection.execute(select(is_purged(workflow_id))).scalar_one()
    return WorkflowPurged(workflow_id) if purged else WorkflowNotFound(workflow_id)


def purged_ids(connection: Connection) -> set[str]:
    """Return the ids of all workflows that were purged."""
    return set(connection.execute(select(RemovalRow.workflow_id).where(RemovalRow.kind == "purged")).scalars())


def _removals(workflow_id: str) -> Select[Any]:
    return select(RemovalRow.system_seq).where(RemovalRow.workflow_id == workflow_id)


# --- ids and rows -----------------------------------------------------------------------------


def newest_ids(connection: Connection, count: int, *, longest: int) -> list[str]:
    """Return the ids of the newest workflows that have at most so many transitions."""
    query = select(WorkflowRow.id, WorkflowRow.seq).where(_NOT_THE_SYSTEM)
    newest = query.order_by(WorkflowRow.created_at.desc()).limit(count).subquery()
    return list(connection.execute(select(newest.c.id).where(newest.c.seq <= longest)).scalars())


def _summaries() -> Select[Any]:
    return select(*(WorkflowRow.__table__.c[name] for name in _SUMMARY))


def _read_summary(row: Any) -> WorkflowSummary:
    named = dict(zip(_SUMMARY, row, strict=True))
    return WorkflowSummary(
        worker=named.pop("owner"), accepts=tuple(named.pop("accepts")), queue=named.pop("home_queue"), **named
    )


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

"""What one database has and another has not: a copy beside what it was taken of, or beside what was anchored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, and_, case, func, null, select, tuple_, union_all
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from ..core.anchor import Entry
from ..core.effect import Status
from ..core.errors import LogBroken
from ..core.loss import loss_digest
from . import log, sql
from .absent import LOSS
from .effects import read
from .models import EffectRow, EventRow, TransitionRow, WorkflowRow
from .operations import Terms, check_reason
from .records import Effect
from .system import append, hold

_E: Final = EffectRow.__table__.c
_T: Final = TransitionRow.__table__.c
_BATCH: Final = 500
_OVERTAKEN: Final = 1000
_LONGEST_RESULT: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An event that was received, as whoever sent it knows it."""

    workflow_id: str
    name: str
    key: str
    sender: str
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Something that was done outside, or may have been: as the database of before has it."""

    workflow_id: str
    seq: int
    """The one in its key."""
    name: str
    status: str
    """``begun``, ``done`` or ``in doubt`` there."""
    key: str
    transition: str | None
    attempt: int
    actor: str
    begun_at: datetime
    result: str | None = None
    """What came of it, as JSON, where it is done and that is short."""

    @property
    def told(self) -> str:
        """What there is to say of it to whoever has to find out."""
        told = f"{self.status} in the database of before"
        return told if self.result is None else f"{told}, with {self.result}"


def positions(connection: Connection) -> Iterator[tuple[str, int]]:
    """Go through all workflows by their ids, byte by byte, each with its newest transition."""
    order = WorkflowRow.id.collate("C")
    query = select(WorkflowRow.id, WorkflowRow.seq).order_by(order)
    for row in connection.execute(query.execution_options(stream_results=True, max_row_buffer=5000)):
        yield row[0], row[1]


def furthest(connection: Connection) -> Iterator[tuple[str, int]]:
    """Go through the same, also where somebody removed rows: what transitions tell that are there still counts."""
    told = union_all(
        select(WorkflowRow.id.label("id"), WorkflowRow.seq.label("seq")),
        select(_T.workflow_id, func.max(_T.seq)).group_by(_T.workflow_id),
    ).subquery()
    query = select(told.c.id, func.max(told.c.seq)).group_by(told.c.id).order_by(told.c.id.collate("C"))
    for row in connection.execute(query.execution_options(stream_results=True, max_row_buffer=5000)):
        yield row[0], row[1]


def missing(connection: Connection, entries: Sequence[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
    """Return those entries of a log, with their places, whose transitions are not there as they were logged."""
    lost = []
    for first in range(0, len(entries), _BATCH):
        some = entries[first : first + _BATCH]
        keys = [(entry.workflow_id, entry.seq) for _, entry in some]
        rows = connection.execute(
            select(_T.workflow_id, _T.seq, _T.hash).where(tuple_(_T.workflow_id, _T.seq).in_(keys))
        )
        there = {(row[0], row[1]): bytes(row[2]) for row in rows}
        lost += [(index, entry) for index, entry in some if there.get((entry.workflow_id, entry.seq)) != entry.hash]
    return lost


def events_after(connection: Connection, newest: Collection[int], most: int) -> tuple[int, list[Sent]]:
    """Return how many events came after those that another database has as its newest, and the first of them."""
    # A number is given before the commit: what was under way at the point has a lower one than the newest there.
    begins = min(newest) if len(newest) >= _OVERTAKEN else 0
    later = and_(EventRow.id > begins, EventRow.id.not_in(newest))
    total = connection.execute(select(func.count()).where(later)).scalar_one()
    columns = (EventRow.workflow_id, EventRow.name, EventRow.key, EventRow.sender, EventRow.received_at)
    rows = connection.execute(select(*columns).where(later).order_by(EventRow.id).limit(most))
    return total, [Sent(workflow_id=row[0], name=row[1], key=row[2], sender=row[3], received_at=row[4]) for row in rows]


def newest_events(connection: Connection) -> set[int]:
    """Return the numbers of the newest events: more than are ever under way at one moment."""
    return set(connection.scalars(select(EventRow.id).order_by(EventRow.id.desc()).limit(_OVERTAKEN)))


# --- effects --------------------------------------------------------------------------------------


def effects(connection: Connection) -> Iterator[Outside]:
    """Go through all effects by their workflows, byte by byte, their seqs and their names."""
    short = case((sql.bytes_in(_E.result) <= _LONGEST_RESULT, _E.result))
    query = select(
        *(_E.workflow_id, _E.seq, _E.name, _E.status, _E.key, _E.transition, _E.attempt, _E.actor, _E.begun_at),
        short.label("result"),
    ).order_by(_E.workflow_id.collate("C"), _E.seq, _E.name.collate("C"))
    for row in connection.execute(query.execution_options(stream_results=True, max_row_buffer=5000)):
        members = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        body = members.pop("result")
        yield Outside(result=None if body is None else bytes(body).decode(), **members)


def there(connection: Connection, workflow_ids: Sequence[str]) -> set[str]:
    """Return those of the workflows that there are."""
    found: set[str] = set()
    for first in range(0, len(workflow_ids), _BATCH):
        some = workflow_ids[first : first + _BATCH]
        found |= set(connection.execute(select(WorkflowRow.id).where(WorkflowRow.id.in_(some))).scalars())
    return found


def take_over(session: Session, found: Sequence[Outside]) -> None:
    """Write down what was done outside, or may have been, after the point that the database was put back to.

    As begun, by nobody who is still there: whoever comes to it asks the provider, does it again with the same key,
    or leaves it to a person, as after any attempt that was broken off.
    """
    for first in range(0, len(found), _BATCH):
        rows = [
            {
                "workflow_id": one.workflow_id,
                "seq": one.seq,
                "name": one.name,
                "transition": one.transition,
                "status": Status.IN_DOUBT.value if one.status == Status.IN_DOUBT.value else Status.BEGUN.value,
                "key": one.key,
                "claim": 0,
                "attempt": one.attempt,
                "actor": one.actor,
                "error": {"type": "aegis.Recovered", "message": one.told},
                "begun_at": one.begun_at,
            }
            for one in found[first : first + _BATCH]
        ]
        add = upsert(EffectRow)
        # What is in doubt stays so: a person has to say.
        status = case((_E.status == Status.IN_DOUBT.value, _E.status), else_=add.excluded.status)
        changes = {"status": status, "claim": 0, "error": add.excluded.error, "ended_at": null()}
        session.execute(
            add.on_conflict_do_update(
                index_elements=["workflow_id", "seq", "name"], set_=changes, where=_E.status != Status.DONE.value
            ),
            rows,
        )


def newest(connection: Connection) -> tuple[str, int] | None:
    """Return the transition that was made last; None if there is none."""
    found = connection.execute(
        select(_T.workflow_id, _T.seq).order_by(_T.at.desc(), _T.seq.desc()).limit(1)
    ).one_or_none()
    return None if found is None else (found[0], found[1])


# --- accepting --------------------------------------------------------------------------------


def accept(session: Session, entries: Sequence[tuple[int, Entry]], reason: str, terms: Terms) -> tuple[int, int]:
    """Bring the log to where the anchors have it, with a record of exactly what of that is gone.

    ``entries`` are all that is anchored from the end of the log on, with their places. Those whose
    transitions are there get their places; the others are taken over as lost. Return how many are
    lost, and the record's seq in the system's chain.

    Raises:
        LogBroken: the log has gone on in the meantime.
        InvalidData, NotCanonical: a reason that cannot be.

    """
    check_reason(reason)
    connection = session.connection()
    system = hold(session, terms)
    if not log.lock(connection):
        raise LogBroken(entries[0][0], "another process adds to it at this moment; try again")
    before = log.state(connection)
    if [index for index, _ in entries] != list(range(before.size, before.size + len(entries))):
        raise LogBroken(before.size, "it has gone on since the anchors were read; try again")
    gone = missing(connection, entries)
    seq = append(
        session,
        system,
        LOSS,
        {"reason": reason, "entries": len(gone), "first": before.size, "digest": loss_digest(gone).hex()},
        terms,
    )
    log.take_over(connection, before.size, [entry for _, entry in entries], {index for index, _ in gone}, seq)
    return len(gone), seq


def stopped(connection: Connection, actor: str) -> list[str]:
    """Return the workflows that are paused, and were by that actor."""
    newest = and_(_T.workflow_id == WorkflowRow.id, _T.seq == WorkflowRow.seq)
    query = (
        select(WorkflowRow.id)
        .join(TransitionRow, newest)
        .where(WorkflowRow.status == "paused", _T.actor == actor)
        .order_by(WorkflowRow.id)
    )
    return list(connection.execute(query).scalars())


def open_effects(connection: Connection, most: int) -> tuple[int, list[Effect]]:
    """Return how many effects there are of which nobody knows how they went, and the first of them.

    Not what a handler is doing at this moment: that one will say.
    """
    doing = (
        select(WorkflowRow.id)
        .where(WorkflowRow.id == _E.workflow_id, WorkflowRow.owner.is_not(None), WorkflowRow.claim == _E.claim)
        .exists()
    )
    unknown = (_E.status.in_([Status.BEGUN.value, Status.IN_DOUBT.value]), ~doing)
    total = connection.execute(select(func.count()).select_from(EffectRow).where(*unknown)).scalar_one()
    order = (_E.begun_at, _E.workflow_id, _E.seq, _E.name)
    return total, [read(row) for row in connection.execute(select(*_E).where(*unknown).order_by(*order).limit(most))]


def transaction_of(connection: Connection, workflow_id: str, seq: int) -> tuple[int, datetime] | None:
    """Return the transaction in which a transition was committed, and its time; None if it is not there."""
    row = connection.execute(select(_T.xact, _T.at).where(_T.workflow_id == workflow_id, _T.seq == seq)).one_or_none()
    return None if row is None else (row[0], row[1])

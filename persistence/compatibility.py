"""What is stored, held against the definitions in the code: page by page, and no more than a page in memory.

Nothing is written or locked. Workflows go on meanwhile: it tells of how things were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, type_coerce
from sqlalchemy.sql import Subquery

from ..core.compatibility import Group, Problem, Problems, StoredData, StoredEvent
from ..core.names import SYSTEM
from ..core.workflow import Registry
from . import sql
from .database import Database
from .models import ENDED, CheckpointRow, EventRow, WorkflowRow

_PAGE: Final = 500

_W: Final = WorkflowRow.__table__.c
_C: Final = CheckpointRow.__table__.c
_E: Final = EventRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """What was found, and how much was looked at: of the data and the events perhaps a sample alone."""

    problems: tuple[Problem, ...]
    workflows: int
    """That have not ended."""
    data: int
    events: int


def check(database: Database, known: Registry, *, sample: int | None = None) -> Compatibility:
    """Compare the definitions in the code with all workflows that have not ended.

    ``sample``: of each type, version and state, read the data of at most so many, the oldest and the newest of them;
    and of each event of a type at most so many.
    """
    problems = Problems(known)
    workflows = data = events = 0
    with database.statement() as connection:
        for group in map(_group, connection.execute(_groups())):
            problems.group(group)
            workflows += group.count
    for stored in _stored_data(database, sample):
        problems.data(stored)
        data += 1
    for event in _stored_events(database, sample):
        problems.event(event)
        events += 1
    return Compatibility(problems=tuple(problems), workflows=workflows, data=data, events=events)


def _is_live() -> ColumnElement[bool]:
    return and_(_W.status.not_in(ENDED), _W.id != SYSTEM)


def _groups() -> Select[Any]:
    timer = type_coerce(case((_W.status == "waiting", _W.timer_at - _W.entered_at)), sql.SPAN)
    place = (_W.type, _W.version, _W.definition, _W.state, _W.status, _W.following, _W.accepts, timer)
    return select(*place, func.count(), func.min(_W.id), func.max(_W.id)).where(_is_live()).group_by(*place)


def _group(row: Any) -> Group:
    return Group(
        type=row[0],
        version=row[1],
        definition=row[2],
        state=row[3],
        status=row[4],
        following=row[5],
        accepts=tuple(row[6]),
        timer=row[7],
        count=row[8],
        examples=tuple(dict.fromkeys((row[9], row[10]))),
    )


# --- data -----------------------------------------------------------------------------------------


def _stored_data(database: Database, sample: int | None) -> Iterator[StoredData]:
    newest = and_(_C.workflow_id == _W.id, _C.seq == _W.seq, _C.number == _W.checkpoint_number)
    query = (
        select(_W.id, _W.type, _W.version, _W.state, _C.body, _C.salt, _C.commitment)
        .select_from(WorkflowRow)
        .outerjoin(CheckpointRow, newest)
        .where(_is_live())
        .order_by(_W.id)
        .limit(_PAGE)
    )
    if sample is not None:
        chosen = _sample_of_workflows(sample)
        query = query.join(chosen, chosen.c.id == _W.id)
    after = ""
    while rows := _page(database, query.where(_W.id > after)):
        after = rows[-1].id
        for row in rows:
            body = None if row.body is None else bytes(row.body)
            salt, commitment = bytes(row.salt or b""), bytes(row.commitment or b"")
            yield StoredData(
                workflow_id=row.id,
                type=row.type,
                version=row.version,
                state=row.state,
                body=body,
                salt=salt,
                commitment=commitment,
            )


def _sample_of_workflows(sample: int) -> Subquery:
    """Return the ids of the oldest and the newest of each place: what differs in them, differs with their age."""
    place = (_W.type, _W.version, _W.state)
    first = func.row_number().over(partition_by=place, order_by=(_W.created_at, _W.id)).label("first")
    last = func.row_number().over(partition_by=place, order_by=(_W.created_at.desc(), _W.id.desc())).label("last")
    ranked = select(_W.id, first, last).where(_is_live()).subquery()
    some = or_(ranked.c.first <= sample // 2, ranked.c.last <= sample - sample // 2)
    return select(ranked.c.id).where(some).subquery()


# --- events -----------------------------------------------------------------------------------------


def _stored_events(database: Database, sample: int | None) -> Iterator[StoredEvent]:
    query = (
        select(_E.id, _E.workflow_id, _E.name, _E.payload, _W.type, _W.version)
        .join_from(EventRow, WorkflowRow, _W.id == _E.workflow_id)
        .where(_is_live(), _E.consumed_seq.is_(None))
        .order_by(_E.id)
        .limit(_PAGE)
    )
    if sample is not None:
        number = func.row_number().over(partition_by=(_W.type, _W.version, _E.name), order_by=_E.id.desc())
        waiting = (
            select(_E.id, number.label("number"))
            .join_from(EventRow, WorkflowRow, _W.id == _E.workflow_id)
            .where(_is_live(), _E.consumed_seq.is_(None))
            .subquery()
        )
        query = query.join(waiting, and_(waiting.c.id == _E.id, waiting.c.number <= sample))
    after = 0
    while rows := _page(database, query.where(_E.id > after)):
        after = rows[-1].id
        for row in rows:
            yield StoredEvent(
                workflow_id=row.workflow_id,
                type=row.type,
                version=row.version,
                name=row.name,
                payload=bytes(row.payload),
            )


def _page(database: Database, query: Select[Any]) -> list[Any]:
    with database.statement() as connection:
        return list(connection.execute(query))

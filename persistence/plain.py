"""The hot statements where a database cannot do them in one: the same writes, one after the other.

To be run in a transaction that nobody else writes in between, which in SQLite is any that writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Text, bindparam, insert, literal_column, select
from sqlalchemy.types import TypeEngine

from . import sql
from .models import CheckpointRow, EventRow, PayloadRow, TransitionRow, WorkflowRow
from .statements import (
    CLAIM,
    EVENT,
    POSITION,
    SNAPSHOT,
    Hot,
    checkpoint_of,
    consuming,
    moving,
    payload_of,
    taking,
    transition_of,
)

# SQLAlchemy keeps the columns' own names for itself.
_OURS: Final = "given_"

_W: Final = WorkflowRow.__table__.c
_C: Final = CheckpointRow.__table__.c
_E: Final = EventRow.__table__.c


class _Bound:
    """Parameters as SQLAlchemy binds them."""

    def given(self, name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> ColumnElement[Any]:
        return bindparam(_OURS + name, type_=type_)

    def among(self, column: ColumnElement[Any], name: str, type_: type[TypeEngine[Any]]) -> ColumnElement[bool]:
        return column.in_(bindparam(_OURS + name, type_=type_(), expanding=True))

    def document(self, name: str) -> ColumnElement[Any]:
        return bindparam(_OURS + name, type_=Text)  # it comes as text, and is kept as such

    @property
    def no_list(self) -> ColumnElement[Any]:
        return literal_column("'[]'", Text)


_WORDS: Final = _Bound()
_KEY: Final = bindparam(_OURS + "workflow_id", type_=_W.id.type), bindparam(_OURS + "seq", type_=_W.seq.type)

_TAKE: Final = taking(_WORDS).returning(*(_W[name] for name in POSITION), sql.now())
_NEWEST: Final = (
    select(*(_C[name] for name in SNAPSHOT))
    .where(_C.workflow_id == _KEY[0], _C.seq == _KEY[1])
    .order_by(_C.number.desc())
    .limit(1)
)
_WAITING: Final = (
    select(*(_E[name] for name in EVENT))
    .where(
        _E.workflow_id == _KEY[0],
        _E.consumed_seq.is_(None),
        _E.name.in_(bindparam(_OURS + "accepts", type_=Text(), expanding=True)),
    )
    .order_by(_E.id)
    .limit(1)
)

_MOVE: Final = moving(_WORDS)
_RECORD: Final = insert(TransitionRow).values(transition_of(_WORDS, *_KEY))
_SAVE: Final = insert(CheckpointRow).values(checkpoint_of(_WORDS, *_KEY))
_ATTACH: Final = insert(PayloadRow).values(payload_of(_WORDS, *_KEY))
_CONSUME: Final = consuming(_WORDS, *_KEY)


def run(connection: Connection, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
    """Do what a hot statement does; return the row that it would return."""
    given = {_OURS + name: value for name, value in parameters.items()}
    return _claim(connection, given) if hot is CLAIM else _commit(connection, given)


def _claim(connection: Connection, given: Mapping[str, Any]) -> Sequence[Any] | None:
    claimed = connection.execute(_TAKE, given).one_or_none()
    if claimed is None:
        return None
    newest = connection.execute(_NEWEST, given).one_or_none()
    waiting = None
    if claimed.inbox > 0 and claimed.accepts:
        waiting = connection.execute(_WAITING, {**given, _OURS + "accepts": claimed.accepts}).one_or_none()
    return (*claimed, *(newest or [None] * len(SNAPSHOT)), *(waiting or [None] * len(EVENT)))


def _commit(connection: Connection, given: Mapping[str, Any]) -> Sequence[Any] | None:
    moved = connection.execute(_MOVE, given).one_or_none()
    if moved is None:
        return None
    connection.execute(_RECORD, given)
    connection.execute(_SAVE, given)
    if given[_OURS + "payload"] is not None:
        connection.execute(_ATTACH, given)
    if given[_OURS + "event_id"] is not None:
        connection.execute(_CONSUME, given)
    return moved

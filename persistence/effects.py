"""Effects on the outside world: the intent is written before, what came of it after.

A worker begins one only while its claim holds. How it ended it says of the effect that it began
itself: whoever took it over has put another claim there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Select,
    and_,
    delete,
    literal,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from ..core.canonical import Json, load
from ..core.effect import Status
from . import sql
from .models import EffectRow, WorkflowRow
from .records import Effect, Position
from .recovered import key_seq, key_seq_of_row

_E: Final = EffectRow.__table__.c
_W: Final = WorkflowRow.__table__.c


# --- by a worker, for a handler -------------------------------------------------------------


def begin(connection: Connection, position: Position, name: str, transition: str, key: str, actor: str) -> bool:
    """Write down that an effect is about to happen; False: it is written down already, or the claim was lost."""
    columns = {
        "workflow_id": _W.id,
        "seq": key_seq(position),
        "name": literal(name),
        "transition": literal(transition),
        "status": literal(Status.BEGUN.value),
        "key": literal(key),
        "claim": literal(position.claim),
        "attempt": literal(position.attempt),
        "actor": literal(actor),
        "begun_at": sql.now(),
    }
    # Locked: whoever takes the workflow over at this moment comes before, or after, but not in between.
    held = select(*columns.values()).where(*_held(position)).with_for_update()
    return _wrote(connection, upsert(EffectRow).from_select(list(columns), held).on_conflict_do_nothing())


def find(connection: Connection, position: Position, name: str) -> Effect | None:
    """Return what is written down of an effect of this transition; None: nothing, or the claim was lost."""
    held = select(_W.id).where(*_held(position)).exists()
    row = connection.execute(select(*_E).where(*_named(position, name), held)).one_or_none()
    return None if row is None else read(row)


def take_over(connection: Connection, position: Position, name: str, transition: str, actor: str) -> bool:
    """Begin an effect again that another attempt began; False: the claim was lost."""
    held = select(_W.id).where(*_held(position)).exists()
    return _wrote(
        connection,
        update(EffectRow)
        .where(*_named(position, name), _E.status != Status.DONE.value, held)
        .values(
            status=Status.BEGUN.value,
            transition=transition,
            claim=position.claim,
            attempt=position.attempt,
            actor=actor,
            begun_at=sql.now(),
            ended_at=null(),
            error=null(),
        ),
    )


def finish(connection: Connection, position: Position, name: str, result: bytes) -> bool:
    """Write down what came of an effect that this claim began; False: somebody else has it by now.

    Also where the claim was lost meanwhile, for example to a person who cancelled: it did happen.
    """
    return _end(connection, position, name, Status.DONE, result=result, error=null())


def give_up(connection: Connection, position: Position, name: str, status: Status, error: Mapping[str, Any]) -> bool:
    """Write down that an effect that this claim began did not end well: ``begun``, ``not done`` or ``in doubt``."""
    return _end(connection, position, name, status, error=dict(error))


def doubt(connection: Connection, position: Position, name: str, error: Mapping[str, Any]) -> bool:
    """Write down that nobody knows whether an effect of an earlier attempt happened; False: the claim was lost."""
    held = select(_W.id).where(*_held(position)).exists()
    return _wrote(
        connection,
        update(EffectRow)
        .where(*_named(position, name), _E.status.in_([Status.BEGUN.value, Status.IN_DOUBT.value]), held)
        .values(status=Status.IN_DOUBT.value, error=dict(error), ended_at=sql.now()),
    )


def _end(connection: Connection, position: Position, name: str, status: Status, **values: Any) -> bool:
    # Written twice where the first answer got lost: it is the same.
    return _wrote(
        connection,
        update(EffectRow)
        .where(*_named(position, name), _E.claim == position.claim, _E.status.in_([Status.BEGUN.value, status.value]))
        .values(status=status.value, ended_at=sql.now(), **values),
    )


# --- for whoever moves the workflow on ---------------------------------------------------------


def told(connection: Connection, position: Position) -> list[dict[str, Json]]:
    """Return what the next transition has to say of the effects since its state was entered, in their order.

    Of one whose outcome nobody knows, the result is null; a person who said how one went is named.
    """
    rows = connection.execute(
        select(*_E)
        .where(
            _E.workflow_id == position.workflow_id,
            _E.seq == key_seq(position),
            _E.status != Status.NOT_DONE.value,
        )
        .order_by(_E.begun_at, _E.name)
    )
    return [_told(row) for row in rows]


def _told(row: Any) -> dict[str, Json]:
    result = None if row.result is None else hashlib.sha256(bytes(row.result)).hexdigest()
    said: dict[str, Json] = {"name": row.name, "key": row.key, "result": result}
    return said if row.resolved_by is None else said | {"resolved_by": row.resolved_by, "reason": row.reason}


def open_effects(connection: Connection, workflow_id: str) -> list[str]:
    """Return the names of the effects that no transition tells of yet.

    Those of the state that the workflow is in; and after a recovery, those of states that it was in before.
    """
    names = (
        select(_E.name)
        .join_from(EffectRow, WorkflowRow, _W.id == _E.workflow_id)
        .where(_E.workflow_id == workflow_id, _E.seq >= key_seq_of_row())
        .order_by(_E.name)
    )
    return list(connection.execute(names).scalars())


# --- for people, and for whoever removes ---------------------------------------------------------


def listed(
    connection: Connection, workflow_id: str | None = None, *, in_doubt: bool = False, limit: int | None = None
) -> list[Effect]:
    """Return effects of one workflow, or of all, in their order; ``in_doubt``: those alone."""
    query = select(*_E).order_by(_E.begun_at, _E.workflow_id, _E.seq, _E.name)
    if workflow_id is not None:
        query = query.where(_E.workflow_id == workflow_id)
    if in_doubt:
        query = query.where(_E.status == Status.IN_DOUBT.value)
    return [read(row) for row in connection.execute(query.limit(limit))]


def delete_of(ids: Sequence[str]) -> Delete:
    """Return the statement that removes all effects of some workflows."""
    return delete(EffectRow).where(_E.workflow_id.in_(ids))


def delete_old(ids: Sequence[str], keep: int, until: Any, most: int) -> Delete:
    """Return the statement that removes some old effects, where a transition tells of them that is old itself."""
    old: Select[Any] = (
        select(_E.workflow_id, _E.seq, _E.name)
        .join_from(EffectRow, WorkflowRow, _W.id == _E.workflow_id)
        .where(_E.workflow_id.in_(ids), _E.seq <= _W.seq - keep, _E.seq < key_seq_of_row(), _E.begun_at < until)
        .limit(most)
    )
    return delete(EffectRow).where(tuple_(_E.workflow_id, _E.seq, _E.name).in_(old))


# --- rows and records -------------------------------------------------------------------------------


def _named(position: Position, name: str) -> tuple[ColumnElement[bool], ...]:
    return (_E.workflow_id == position.workflow_id, _E.seq == key_seq(position), _E.name == name)


def _held(position: Position) -> tuple[ColumnElement[bool], ...]:
    return (
        _W.id == position.workflow_id,
        and_(_W.seq == position.seq, _W.claim == position.claim),
        _W.owner.is_not(None),
    )


def _wrote(connection: Connection, statement: Any) -> bool:
    result: CursorResult[Any] = connection.execute(statement)
    return result.rowcount == 1


def read(row: Any) -> Effect:
    """Return the record of a row."""
    members = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    body = members.pop("result")
    return Effect(result=None if body is None else load(bytes(body)), **members)

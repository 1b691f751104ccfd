"""What a recovery left behind in a workflow: which keys its handlers go by, and what may be done already.

A recovery puts a pause into the history of what had gone on, and a person may have to say more before
it goes on again. None of that may move the keys of what is made again: the provider knows those of before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, case, func, literal, or_, select

from ..core.canonical import Json, load
from ..core.chain import ENGINE_EVENTS
from ..core.names import RECOVERY
from .models import LogRow, PayloadRow, TransitionRow, WorkflowRow
from .records import Position

_L: Final = LogRow.__table__.c
_P: Final = PayloadRow.__table__.c
_T: Final = TransitionRow.__table__.c
_W: Final = WorkflowRow.__table__.c

LEAST_STEP: Final = 2**32
"""The least by which a recovery raises every claim: more claims than one workflow ever sees, so that none of before
can be equal to one of after."""
_THROUGH: Final = "may_be_done_through"
_PAUSED: Final = "paused"
_UPGRADED: Final = "upgraded"


def was_there(position: Position) -> bool:
    """Whether a workflow was in the database when that was put back: its claims have jumped.

    Then it may have gone on before, even if nobody knows of it any more.
    """
    return position.claim >= LEAST_STEP


def seq_of(connection: Connection, position: Position) -> int:
    """Return the seq that a handler's key and its effects go by."""
    return connection.execute(select(key_seq(position))).scalar_one()


def key_seq(position: Position) -> ColumnElement[int]:
    """Return the seq that a handler's key and its effects go by: the same at every attempt, and after a recovery."""
    first = literal(position.entered_seq + 1, BigInteger)
    if not was_there(position):
        return first
    entered = literal(position.entered_seq, BigInteger)
    return first - _beside(literal(position.workflow_id), entered).scalar_subquery()


def key_seq_of_row() -> ColumnElement[int]:
    """Return the same for statements that have the workflow's row."""
    beside = _beside(_W.id, _W.entered_seq).correlate(WorkflowRow.__table__).scalar_subquery()
    return _W.entered_seq + 1 - case((_W.claim >= LEAST_STEP, beside), else_=literal(0, BigInteger))


def _beside(workflow_id: ColumnElement[str], entered: ColumnElement[int]) -> Select[Any]:
    """Count what the engine itself recorded since a recovery paused a workflow first, up to where it entered its state.

    What is made again has to get the numbers that it had, whatever it takes now until a person has let it go on.
    """
    first = TransitionRow.__table__.alias("first").c
    paused = select(func.min(first.seq)).where(
        first.workflow_id == _T.workflow_id, first.actor == RECOVERY, first.event == _PAUSED
    )
    # An upgrade into another state is where a handler's key begins, as any transition that enters one is.
    stays = or_(_T.event != _UPGRADED, _T.from_state == _T.to_state)
    return select(func.count()).where(
        _T.workflow_id == workflow_id,
        _T.seq.between(paused.scalar_subquery(), entered),
        _T.event.in_(list(ENGINE_EVENTS)),
        stays,
    )


def gone_through(connection: Connection, position: Position) -> int:
    """Return the seq, as effects count, up to which a workflow had come, or had begun something; -1: none is known.

    That is what its pause says, and what was anchored, and is accepted as lost.
    """
    lost: int | None = connection.execute(
        select(func.max(_L.seq)).where(_L.workflow_id == position.workflow_id, _L.lost_seq.is_not(None))
    ).scalar_one()
    paused = _paused_through(connection, position.workflow_id) if was_there(position) else -1
    # The handler that came after what was anchored may have been running.
    return max(paused, -1 if lost is None else lost + 1)


def _paused_through(connection: Connection, workflow_id: str) -> int:
    said = (
        select(_P.body)
        .join_from(TransitionRow, PayloadRow, (_P.workflow_id == _T.workflow_id) & (_P.seq == _T.seq))
        .where(_T.workflow_id == workflow_id, _T.actor == RECOVERY, _T.event == _PAUSED)
        .order_by(_T.seq.desc())
        .limit(1)
    )
    body = connection.execute(said).scalar_one_or_none()
    payload: Any = None if body is None else load(bytes(body))
    through = payload.get(_THROUGH) if isinstance(payload, dict) else None
    return through if isinstance(through, int) else -1


def said(through: int) -> Mapping[str, Json]:
    """Return what the pause of a recovery says beside its reason."""
    return {_THROUGH: through}


def is_stopped(connection: Connection, position: Position, status: str) -> bool:
    """Whether a workflow is paused, and was by a recovery."""
    newest = select(_T.actor).where(_T.workflow_id == position.workflow_id, _T.seq == position.seq)
    return status == _PAUSED and connection.execute(newest).scalar_one_or_none() == RECOVERY

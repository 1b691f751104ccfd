"""What was approved since a workflow entered its state, read from its chain; and who moved it on before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, select

from ..core.approval import APPROVED, Approval, Standing
from ..core.canonical import Json, load
from ..core.chain import ENGINE_EVENTS, payload_commitment, transition_hash
from ..core.errors import HistoryBroken
from .models import PayloadRow, TransitionRow, WorkflowRow
from .records import Position

_T: Final = TransitionRow.__table__.c
_P: Final = PayloadRow.__table__.c
_MINE: Final = (_P.workflow_id == _T.workflow_id) & (_P.seq == _T.seq)


def standing(connection: Connection, position: Position, transition: str) -> Standing:
    """Return what counts for a transition of the state that the workflow is in.

    Raises:
        HistoryBroken: the chain since then is not what was committed; nothing may be counted by it.

    """
    return Standing(
        steered_by=steered_by(connection, position.workflow_id),
        approvals=tuple(
            _approval(row, said)
            for row, said in _since(connection, position)
            if row.event == APPROVED and said.get("transition") == transition
        ),
    )


def steered_by(connection: Connection, workflow_id: str) -> str | None:
    """Return who moved a workflow on from outside: who started it, or sent the event that was last taken."""
    known = connection.execute(select(WorkflowRow.steered_by).where(WorkflowRow.id == workflow_id)).scalar_one()
    return _as_the_chain_says(connection, workflow_id) if known is None else known


def _as_the_chain_says(connection: Connection, workflow_id: str) -> str | None:
    """Return the same of a workflow that is older than the column."""
    rows = connection.execute(
        select(_T.seq, _T.event, _T.actor, _P.body)
        .outerjoin_from(TransitionRow, PayloadRow, _MINE)
        .where(_T.workflow_id == workflow_id)
        .order_by(_T.seq.desc())
    )
    for row in rows:
        said: Any = None if row.body is None else load(bytes(row.body))
        if row.event not in ENGINE_EVENTS and isinstance(said, dict) and isinstance(said.get("sender"), str):
            return str(said["sender"])
        if row.seq == 0:
            return str(row.actor)
    return None


def _since(connection: Connection, position: Position) -> list[tuple[Any, Mapping[str, Json]]]:
    """Return the transitions since the state was entered, with what they say, known to be those that lead to now."""
    if position.entered_seq == position.seq:
        return []
    rows = connection.execute(
        select(_T.seq, _T.event, _T.at, _T.envelope, _T.hash, _P.body, _P.salt)
        .outerjoin_from(TransitionRow, PayloadRow, _MINE)
        .where(_T.workflow_id == position.workflow_id, _T.seq > position.entered_seq)
        .order_by(_T.seq)
    ).all()
    prev: Json = None
    found = []
    for row in rows:
        told = _told(row, prev)
        if told is None:
            raise HistoryBroken(position.workflow_id, row.seq, "it was edited; `aegis verify` tells more")
        found.append((row, told))
        prev = bytes(row.hash).hex()
    if prev != position.head.hex():
        raise HistoryBroken(
            position.workflow_id, position.seq, "the chain does not lead to it; `aegis verify` tells more"
        )
    return found


def _told(row: Any, prev: Json) -> Mapping[str, Json] | None:
    """Return what a transition's payload says; None if it is not the one that was committed, after that one."""
    if transition_hash(bytes(row.envelope)) != bytes(row.hash):
        return None
    envelope: Any = load(bytes(row.envelope))
    committed = None if row.body is None else payload_commitment(bytes(row.salt), bytes(row.body)).hex()
    if (envelope["event"], envelope["payload"]) != (row.event, committed) or prev not in {None, envelope["prev"]}:
        return None
    said: Any = {} if row.body is None else load(bytes(row.body))
    return said if isinstance(said, dict) else {}


def _approval(row: Any, said: Mapping[str, Json]) -> Approval:
    reason = said.get("reason")
    return Approval(
        sender=str(said.get("sender")),
        reason=None if reason is None else str(reason),
        at=row.at,
        data=said.get("data"),
    )

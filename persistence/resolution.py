"""Resolution: a person says how an effect went that nobody here knows of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import literal, null, select, update
from sqlalchemy.orm import Session

from ..core.bell import Bell
from ..core.effect import Happened, Status, recorded
from ..core.errors import DidNotHappen, EffectNotFound, InvalidData, InvalidName, WrongStatus
from . import effects, operations, sql
from .models import EffectRow, WorkflowRow
from .operations import Terms, check_reason, lock

_E: Final = EffectRow.__table__.c
_OPEN: Final = (Status.BEGUN.value, Status.IN_DOUBT.value, Status.NOT_DONE.value)


def resolve(
    session: Session,
    workflow_id: str,
    name: str,
    answer: Happened[Any] | DidNotHappen,
    reason: str,
    terms: Terms,
    *,
    retry: bool = False,
) -> Bell | None:
    """Write down how an effect went: what came of it, or that it is to be done again; then ``retry`` at once.

    Who said so, and why, goes into the history with the transition that tells of the effect.

    Raises:
        InvalidName, InvalidData, NotCanonical: a name, a reason or a result that cannot be; nothing was written.
        WorkflowNotFound, WorkflowPurged, EffectNotFound: there is nothing to resolve.
        WrongStatus: a handler runs at this moment, the effect is done, or there is nothing to retry.

    """
    if not reason.strip():
        raise InvalidName("reason", reason, "say how it is known: that goes into the history")
    check_reason(reason)
    values = _values_of(answer, terms)
    position, _, _ = lock(session, workflow_id)
    running = select(WorkflowRow.owner.is_not(None)).where(WorkflowRow.id == workflow_id)
    if session.execute(running).scalar_one():
        raise WrongStatus(workflow_id, "running", "resolving an effect", ["in nobody's hands, such as paused"])
    seq = effects.seq_of(position)
    known = select(_E.name, _E.status).where(_E.workflow_id == workflow_id, _E.seq == seq)
    statuses: dict[str, str] = {row.name: row.status for row in session.execute(known)}
    if name not in statuses:
        raise EffectNotFound(workflow_id, name, statuses)
    if statuses[name] not in _OPEN:
        raise WrongStatus(workflow_id, f"past the effect {name!r}, which is {statuses[name]}", "resolving it", _OPEN)
    session.execute(
        update(EffectRow)
        .where(_E.workflow_id == workflow_id, _E.seq == seq, _E.name == name)
        .values(
            # A worker that was presumed dead began it, and may come back: what it says does not count any more.
            **values,
            transition=null(),
            claim=0,
            resolved_by=terms.actor,
            reason=reason,
            error=null(),
            ended_at=sql.now(),
        )
    )
    return operations.retry(session, workflow_id, reason, terms) if retry else None


def _values_of(answer: object, terms: Terms) -> Mapping[str, Any]:
    if isinstance(answer, Happened):
        body = recorded(answer.result, max_bytes=terms.max_bytes)
        return {"status": Status.DONE.value, "result": literal(body)}
    if isinstance(answer, DidNotHappen) or answer is DidNotHappen:
        return {"status": Status.NOT_DONE.value}
    raise InvalidData("the answer", [("", f"{answer!r} is neither Happened(result) nor DidNotHappen()")])

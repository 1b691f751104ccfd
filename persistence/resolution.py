"""Resolution: a person says how an effect went that nobody here knows of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import insert, literal, null, select, update
from sqlalchemy.orm import Session

from ..core.bell import Bell
from ..core.effect import Happened, Status, recorded
from ..core.errors import DidNotHappen, EffectNotFound, InvalidData, InvalidName, WorkflowNotFound, WrongStatus
from ..core.names import check_name
from . import operations, recovered, sql
from .models import EffectRow, WorkflowRow
from .operations import Terms, check_reason, lock
from .records import Position

_E: Final = EffectRow.__table__.c
_OPEN: Final = (Status.BEGUN.value, Status.IN_DOUBT.value, Status.NOT_DONE.value)
_UNKNOWN: Final = (Status.BEGUN.value, Status.IN_DOUBT.value)
_Known = dict[tuple[int, str], str]
"""The status of each effect of a workflow, by its seq and its name."""


def resolve(
    session: Session,
    workflow_id: str,
    name: str,
    answer: Happened[Any] | DidNotHappen,
    reason: str,
    terms: Terms,
    *,
    seq: int | None = None,
    retry: bool = False,
) -> Bell | None:
    """Write down how an effect went: what came of it, or that it is to be done again; then ``retry`` at once.

    Who said so, and why, goes into the history with the transition that tells of the effect. Without ``seq``, which
    is the one in its key, it is the effect of the state that the workflow is in, or else the only one of that name
    that is open. Of a workflow that a recovery paused it may also be one that the database does not know.

    Raises:
        InvalidName, InvalidData, NotCanonical: a name, a reason or a result that cannot be; nothing was written.
        WorkflowNotFound, WorkflowPurged, EffectNotFound: there is nothing to resolve.
        WrongStatus: a handler runs at this moment, the effect is done, or there is nothing to retry.

    """
    if not reason.strip():
        raise InvalidName("reason", reason, "say how it is known: that goes into the history")
    check_reason(reason)
    values = _values_of(answer, terms)
    position, status = _lock(session, workflow_id)
    known = _statuses(session, workflow_id)
    current = None if position is None else recovered.seq_of(session.connection(), position)
    stopped = position is not None and recovered.is_stopped(session.connection(), position, status)
    chosen = _choose(known, workflow_id, name, current, stopped=stopped) if seq is None else seq
    found = None if chosen is None else known.get((chosen, name))
    if chosen is None or (found is None and not (stopped and current is not None and chosen >= current)):
        raise EffectNotFound(workflow_id, name, _names(known, current))
    if found is None:
        _add(session, workflow_id, name, chosen, _said(values, reason, terms), terms)
    elif found not in _OPEN:
        raise WrongStatus(workflow_id, f"past the effect {name!r}, which is {found}", "resolving it", _OPEN)
    else:
        session.execute(
            update(EffectRow)
            .where(_E.workflow_id == workflow_id, _E.seq == chosen, _E.name == name)
            .values(**_said(values, reason, terms))
        )
    return operations.retry(session, workflow_id, reason, terms) if retry else None


def _lock(session: Session, workflow_id: str) -> tuple[Position | None, str]:
    """Lock the workflow that nobody may be running; None where a recovery has left nothing but effects of it.

    Raises:
        WorkflowNotFound, WorkflowPurged: there are none either.
        WrongStatus: a handler runs.

    """
    try:
        position, status, _ = lock(session, workflow_id)
    except WorkflowNotFound:
        if not _statuses(session, workflow_id):
            raise
        return None, ""
    running = select(WorkflowRow.owner.is_not(None)).where(WorkflowRow.id == workflow_id)
    if session.execute(running).scalar_one():
        raise WrongStatus(workflow_id, "running", "resolving an effect", ["in nobody's hands, such as paused"])
    return position, status


def _statuses(session: Session, workflow_id: str) -> _Known:
    rows = session.execute(select(_E.seq, _E.name, _E.status).where(_E.workflow_id == workflow_id))
    return {(row.seq, row.name): row.status for row in rows}


def _choose(known: _Known, workflow_id: str, name: str, current: int | None, *, stopped: bool) -> int | None:
    """Return of which seq an effect is that is named alone; None: the workflow is not there, and has none.

    Raises:
        EffectNotFound: there are several.

    """
    if current is not None and known.get((current, name)) in _OPEN:
        return current
    places = sorted(seq for (seq, other), status in known.items() if other == name and status in _UNKNOWN)
    later = [seq for seq in places if current is None or seq > current]
    # Of a workflow that a recovery stopped, a name stands for what it is about to do, not for what it left behind.
    places = later or ([] if stopped else places)
    if len(places) > 1:
        raise EffectNotFound(workflow_id, name, [f"{name} of {seq}" for seq in places])
    return places[0] if places else current


def _names(known: _Known, current: int | None) -> list[str]:
    """Return the effects of the state that a workflow is in, or of one that is not there, as a message names them."""
    if current is None:
        return [f"{name} of {seq}" for seq, name in known]
    return [name for seq, name in known if seq == current]


def _add(session: Session, workflow_id: str, name: str, seq: int, said: Mapping[str, Any], terms: Terms) -> None:
    """Write down an effect that the database that was put back has never heard of."""
    check_name("name of an effect", name)
    session.execute(
        insert(EffectRow).values(
            workflow_id=workflow_id,
            seq=seq,
            name=name,
            key=f"{workflow_id}:{seq}:{name}",
            attempt=0,
            actor=terms.actor,
            begun_at=sql.now(),
            **said,
        )
    )


def _said(values: Mapping[str, Any], reason: str, terms: Terms) -> Mapping[str, Any]:
    return {
        **values,
        # A worker that was presumed dead began it, and may come back: what it says does not count any more.
        "transition": null(),
        "claim": 0,
        "resolved_by": terms.actor,
        "reason": reason,
        "error": null(),
        "ended_at": sql.now(),
    }


def _values_of(answer: object, terms: Terms) -> Mapping[str, Any]:
    if isinstance(answer, Happened):
        body = recorded(answer.result, max_bytes=terms.max_bytes)
        return {"status": Status.DONE.value, "result": literal(body)}
    if isinstance(answer, DidNotHappen) or answer is DidNotHappen:
        return {"status": Status.NOT_DONE.value}
    raise InvalidData("the answer", [("", f"{answer!r} is neither Happened(result) nor DidNotHappen()")])

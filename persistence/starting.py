"""Starting workflows, one or many, inside one transaction of the caller: all of them, or nothing.

Few statements, however many there are: one asks who and when, and one a table writes the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import insert, literal_column, select
from sqlalchemy.orm import Session

from ..core.bell import Bell
from ..core.chain import Link
from ..core.errors import HistoryBroken, InvalidData, SingletonConflict, WorkflowPurged
from ..core.starting import Conditions, Start
from ..core.workflow import Workflow, snapshot, state_of
from . import moves, sql
from .history import not_found
from .models import ENDED, CheckpointRow, DeploymentRow, PayloadRow, RemovalRow, TransitionRow, WorkflowRow
from .operations import Terms, ring_overdue
from .records import Following
from .repeated import was_started
from .schema import no_deployment_name
from .vouch import vouch

_BATCH: Final = 500
_MOST_TRIES: Final = 5

_W: Final = WorkflowRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Started:
    """What became of a start: under which id, whether it is a new workflow, and what to ring for it."""

    id: str
    new: bool
    bell: Bell | None


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A start that was checked, with the workflow's data."""

    id: str
    start: Start[Workflow]
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A start as it is to be written."""

    wanted: _Wanted
    conditions: Conditions
    link: Link
    following: Following

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do at once."""
        return self.conditions.begins_at is not None or not self.following.at_once

    @property
    def bell(self) -> Bell | None:
        """What to ring for it."""
        if self.waits:
            return None
        definition = self.wanted.start.workflow.definition
        label = f"{definition.type}.{self.following.name}"
        queue = self.following.queue or self.conditions.queue
        return Bell(workflow_id=self.wanted.id, seq=0, queue=queue, label=label, priority=self.conditions.priority)


def start_all(
    session: Session, starts: Sequence[tuple[str, Start[Any]]], terms: Terms, *, rung: bool = True
) -> list[Started]:
    """Accept workflows, each under its id, unless they were started with the same input before.

    Without ``rung`` nobody is going to ring for them: they are due once the grace is over, whatever
    else is on their queue.

    Raises:
        InvalidName, InvalidData, NotCanonical: nothing is to be kept of this transaction.
        StartConflict: an id was taken with other input; likewise.
        SingletonConflict: another workflow has the key; likewise.
        WorkflowPurged: an id was taken once, and is never used again; likewise.

    """
    wanted = [_checked(workflow_id, start) for workflow_id, start in starts]
    named = session.execute(select(DeploymentRow.name, sql.now())).one_or_none()
    if named is None:
        raise no_deployment_name()
    deployment, now = named
    # In one order, whoever starts them: two that start the same ones never wait for each other crosswise.
    first = dict(sorted({one.id: one for one in reversed(wanted)}.items()))
    made = [_make(one, deployment, now, terms) for one in first.values()]
    accepted: dict[str, _Made] = {}
    for begin in range(0, len(made), _BATCH):
        accepted |= _write(session, made[begin : begin + _BATCH], now, terms, rung=rung)
    started = [_outcome(session, one, first, accepted, now, terms, rung=rung) for one in wanted]
    again = {one.id for one in started if not one.new}
    # Where nobody rings, the sweep is to find them as soon as it can.
    bells = ring_overdue(session, again, terms) if rung else {}
    return [one if one.new else replace(one, bell=bells.pop(one.id, None)) for one in started]


def _checked(workflow_id: str, start: Start[Any]) -> _Wanted:
    start.check()
    workflow: Workflow = start.workflow
    definition = workflow.definition
    if state_of(workflow) != definition.initial:
        # The data may come from outside, and whoever sends it must not leap over what comes first.
        problem = f"it is {state_of(workflow)!r}; a new workflow is in {definition.initial!r}: leave it out"
        raise InvalidData(f"the data of {definition.type}", [("/state", problem)])
    return _Wanted(id=workflow_id, start=start, data=snapshot(workflow))


def _make(wanted: _Wanted, deployment: str, now: datetime, terms: Terms) -> _Made:
    conditions = wanted.start.conditions(now)
    workflow = wanted.start.workflow
    link, following = moves.begin(
        workflow.definition,
        wanted.id,
        state_of(workflow),
        wanted.data,
        deployment=deployment,
        actor=terms.actor,
        at=now,
        max_bytes=terms.max_bytes,
        conditions=conditions,
        mac_key=terms.mac_key,
    )
    return _Made(wanted=wanted, conditions=conditions, link=link, following=following)


# --- writing --------------------------------------------------------------------------------


def _write(session: Session, made: Sequence[_Made], now: datetime, terms: Terms, *, rung: bool) -> dict[str, _Made]:
    """Write those whose id and key are free; return them, by their ids."""
    rows = [_workflow_row(one, now, terms, rung=rung) for one in made]
    # Whatever it is that stands in the way, another workflow's id or its key: this one is left out.
    taken = session.execute(sql.upsert(WorkflowRow).on_conflict_do_nothing().returning(WorkflowRow.id), rows).scalars()
    ids = set(taken)
    accepted = {one.wanted.id: one for one in made if one.wanted.id in ids}
    if accepted:
        write_first(session, [one.link for one in accepted.values()])
    return accepted


def _workflow_row(made: _Made, now: datetime, terms: Terms, *, rung: bool) -> dict[str, Any]:
    definition, following, conditions = made.wanted.start.workflow.definition, made.following, made.conditions
    return {
        "id": made.wanted.id,
        "type": definition.type,
        "version": definition.version,
        "definition": definition.fingerprint,
        "state": made.link.envelope.to_state,
        "seq": 0,
        "head": made.link.hash,
        "following": following.name,
        "accepts": list(following.accepts),
        "queue": following.queue or conditions.queue,
        "home_queue": conditions.queue,
        "priority": conditions.priority,
        "attributes": dict(conditions.attributes),
        "deadline": conditions.deadline,
        "singleton": conditions.singleton,
        "steered_by": terms.actor,
        "checkpoint_on_transition": terms.checkpoint_on_transition,
        "moved_at": now,
        "entered_at": conditions.begins_at or now,
        "timer_at": following.timer_at,
        "checkpointed_at": now,
        "created_at": now,
        "updated_at": now,
    } | _first_look(made, now, terms, rung=rung)


def _first_look(made: _Made, now: datetime, terms: Terms, *, rung: bool) -> dict[str, Any]:
    """Return when it may be claimed, and when the sweep looks at it first."""
    conditions = made.conditions
    if conditions.begins_at is not None:
        # Pending, also where it begins by waiting: an event that comes before then wakes nobody.
        return {"status": "pending", "ready_at": conditions.begins_at, "due_at": conditions.begins_at, "rings": 0}
    if made.following.at_once:
        return {"status": "pending", "ready_at": now, "due_at": now + terms.grace, "rings": 1 if rung else 0}
    moments = [moment for moment in (made.following.timer_at, conditions.deadline) if moment is not None]
    wakes_at = min(moments, default=None)
    return {"status": "waiting", "ready_at": wakes_at, "due_at": wakes_at, "rings": 0}


def write_first(session: Session, links: Sequence[Link]) -> None:
    """Write transition 0 of each, with its checkpoint and its payload, once the rows are there.

    Raises:
        WorkflowPurged: an id was used before.
        HistoryBroken: an id has a history, and no row: somebody removed that.

    """
    # Asked here, where the ids are ours already: whoever purged one has committed, and no other can.
    was_purged = (
        select(RemovalRow.workflow_id)
        # As text: the table that is written to is none that SQLAlchemy would correlate with.
        .where(RemovalRow.workflow_id == literal_column("aegis_transition.workflow_id"), RemovalRow.kind == "purged")
        .exists()
    )
    written = session.execute(
        sql.upsert(TransitionRow).on_conflict_do_nothing().returning(TransitionRow.workflow_id, was_purged),
        [_transition_row(link) for link in links],
    )
    purged = {workflow_id: bool(was) for workflow_id, was in written}
    for workflow_id in (link.envelope.workflow_id for link in links):
        if workflow_id not in purged:
            problem = (
                "its row is gone, and its history is there: see `aegis verify --all`, restore it, or use another id"
            )
            raise HistoryBroken(workflow_id, 0, problem)
        if purged[workflow_id]:
            raise WorkflowPurged(workflow_id)
    session.execute(insert(CheckpointRow), [_checkpoint_row(link) for link in links])
    if payloads := list(_payload_rows(links)):
        session.execute(insert(PayloadRow), payloads)


def _transition_row(link: Link) -> dict[str, Any]:
    envelope = link.envelope
    return {
        "workflow_id": envelope.workflow_id,
        "seq": 0,
        "event": envelope.event,
        "from_state": None,
        "to_state": envelope.to_state,
        "actor": envelope.actor,
        "attempt": envelope.attempt,
        "at": envelope.at,
        "envelope": link.body,
        "hash": link.hash,
        "mac": link.mac,
        "mac_key": link.mac_key,
    }


def _checkpoint_row(link: Link) -> dict[str, Any]:
    return {
        "workflow_id": link.envelope.workflow_id,
        "seq": 0,
        "number": 0,
        "kind": "transition",
        "body": link.checkpoint,
        "salt": link.checkpoint_salt,
        "commitment": link.envelope.checkpoint,
        "at": link.envelope.at,
    }


def _payload_rows(links: Sequence[Link]) -> Iterator[dict[str, Any]]:
    for link in links:
        if link.payload is not None:
            yield {
                "workflow_id": link.envelope.workflow_id,
                "seq": 0,
                "body": link.payload,
                "salt": link.payload_salt,
            }


# --- where there was one before ---------------------------------------------------------------


def _outcome(
    session: Session,
    wanted: _Wanted,
    first: Mapping[str, _Wanted],
    accepted: dict[str, _Made],
    now: datetime,
    terms: Terms,
    *,
    rung: bool,
) -> Started:
    """Return what became of one start, whether it is new, was there before, or is somebody else's."""
    for _ in range(_MOST_TRIES):
        made = accepted.get(wanted.id)
        if made is not None and first[wanted.id] is wanted:
            return Started(id=wanted.id, new=True, bell=made.bell)
        if was_started(session, wanted.id, wanted.start, wanted.data):
            vouch(session.connection())
            return Started(id=wanted.id, new=False, bell=None)
        if (holder := _holder(session, wanted)) is not None:
            vouch(session.connection())
            return Started(id=holder, new=False, bell=None)
        # Whoever had the key has ended since.
        deployment = session.execute(select(DeploymentRow.name)).scalar_one()
        accepted |= _write(session, [_make(wanted, deployment, now, terms)], now, terms, rung=rung)
    raise not_found(session.connection(), wanted.id)


def _holder(session: Session, wanted: _Wanted) -> str | None:
    """Return the id of the workflow that has the key, where it is to be attached to.

    Raises:
        SingletonConflict: it is not.

    """
    start = wanted.start
    if start.singleton is None:  # purged, since we were told that it is there
        raise not_found(session.connection(), wanted.id)
    type_name = start.workflow.definition.type
    found = session.execute(
        select(_W.id, _W.status, _W.state).where(
            _W.type == type_name, _W.singleton == start.singleton, _W.status.not_in(ENDED)
        )
    ).one_or_none()
    if found is not None and not start.attach:
        raise SingletonConflict(type_name, start.singleton, found.id, found.status, found.state)
    return None if found is None else str(found.id)

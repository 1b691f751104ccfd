"""Looking on from outside while workflows move: where they are, in whose hands, and what was received. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, select

from . import sql
from .models import EventRow, WorkflowRow

_W: Final = WorkflowRow.__table__.c


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """Where one workflow was seen."""

    workflow_id: str
    type: str
    status: str
    seq: int
    claim: int
    """Higher each time that somebody takes it in hand."""
    owner: str | None
    pid: int | None
    updated_at: datetime


def sights(connection: Connection, prefix: str, *, since: datetime | None = None) -> Iterator[Sight]:
    """Go through the workflows whose id begins with ``prefix``, and that changed since."""
    query = _sights(prefix)
    if since is not None:
        query = query.where(WorkflowRow.updated_at >= sql.moment(since))
    for row in connection.execute(query):
        yield Sight(
            workflow_id=row[0],
            type=row[1],
            status=row[2],
            seq=row[3],
            claim=row[4],
            owner=row[5],
            pid=row[6],
            updated_at=row[7],
        )


def _sights(prefix: str) -> Select[Any]:
    return select(
        *(_W.id, _W.type, _W.status, _W.seq, _W.claim, _W.owner, _W.owner_pid, _W.updated_at),
    ).where(WorkflowRow.id.startswith(prefix, autoescape=True))


def received(connection: Connection, prefix: str) -> set[tuple[str, str]]:
    """Return the events that are in the database, as pairs of workflow and key."""
    rows = connection.execute(
        select(EventRow.workflow_id, EventRow.key).where(EventRow.workflow_id.startswith(prefix, autoescape=True))
    )
    return {(row.workflow_id, row.key) for row in rows}

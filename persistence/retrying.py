"""Retrying many: what failed, or was quarantined, found by what it has in common, and tried again in batches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from ..config.logging import get_logger
from ..core.bell import Bell
from ..core.canonical import canonical
from ..core.errors import AegisError, InvalidData
from . import operations, sql
from .models import WorkflowRow
from .operations import Terms

log = get_logger(__name__)

STOPPED: Final = ("failed", "quarantined")
_BATCH: Final = 200
_W: Final = WorkflowRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of those that are failed or quarantined are meant: all that every member that is given is true of."""

    type: str | None = None
    state: str | None = None
    status: str | None = None
    error: str | None = None
    """A part of the error's type or message, in whatever case."""
    older_than: timedelta | None = None
    """So long ago at least they stopped."""

    def check(self) -> None:
        """Refuse what nothing could be true of.

        Raises:
            InvalidData, NotCanonical: says what is wrong.

        """
        canonical([self.type, self.state, self.status, self.error])  # PostgreSQL takes no U+0000
        if self.status is not None and self.status not in STOPPED:
            raise InvalidData("the filter", [("/status", f"{self.status!r} is none of {', '.join(STOPPED)}")])
        if self.older_than is not None and self.older_than < timedelta(0):
            raise InvalidData("the filter", [("/older_than", f"{self.older_than} is in the future")])

    def of(self, query: Select[Any]) -> Select[Any]:
        """Return the query, for those only."""
        query = query.where(_W.status.in_(STOPPED if self.status is None else (self.status,)))
        if self.type is not None:
            query = query.where(_W.type == self.type)
        if self.state is not None:
            query = query.where(_W.state == self.state)
        if self.error is not None:
            kind, message = _W.error["type"].as_string(), _W.error["message"].as_string()
            query = query.where(
                or_(kind.icontains(self.error, autoescape=True), message.icontains(self.error, autoescape=True))
            )
        if self.older_than is not None:
            query = query.where(_W.updated_at <= sql.now() - self.older_than)
        return query


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one batch did: whom to ring for, how many were retried, and whom it looked at last (None: nobody)."""

    bells: tuple[Bell, ...]
    retried: int
    last: str | None


def count(session: Session, wanted: Wanted) -> int:
    """Return how many there are."""
    found: int = session.execute(wanted.of(select(func.count()).select_from(WorkflowRow))).scalar_one()
    return found


def retry_batch(session: Session, wanted: Wanted, *, after: str, most: int | None, reason: str, terms: Terms) -> Batch:
    """Retry the next of those that are wanted, by their ids; what cannot be retried is logged, and left as it is."""
    limit = _BATCH if most is None else min(_BATCH, most)
    # Whoever has one of them locked does something with it.
    query = wanted.of(select(_W.id)).where(_W.id > after).order_by(_W.id).limit(limit)
    ids = session.execute(query.with_for_update(skip_locked=True)).scalars().all()
    bells, retried = [], 0
    for workflow_id in ids:
        try:
            bell = operations.retry(session, workflow_id, reason, terms)
        except AegisError as error:  # before it wrote anything: the others are not held up by it
            log.warning("not retried", workflow_id=workflow_id, reason=str(error))
            continue
        retried += 1
        if bell is not None:
            bells.append(bell)
    return Batch(bells=tuple(bells), retried=retried, last=ids[-1] if ids else None)

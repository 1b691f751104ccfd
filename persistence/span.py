"""The workflows that are looked at in one go: a span of ids, in the database's own order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, func, select

from .models import WorkflowRow

_PAGE: Final = 500
_TRANSITIONS: Final = 5000

_W: Final = WorkflowRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Span:
    """After ``after``, up to ``last`` (None: to the end); or ``only`` one."""

    after: str = ""
    last: str | None = None
    only: str | None = None

    def holds(self, column: Any) -> Any:
        """Return the condition that a workflow's id is in it."""
        if self.only is not None:
            return column == self.only
        return column > self.after if self.last is None else and_(column > self.after, column <= self.last)


def next_page(connection: Connection, after: str) -> Span:
    """Return the next page after an id, of about 5,000 transitions; its ``last`` is None if it is the last one."""
    rows = connection.execute(select(_W.id, _W.seq).where(_W.id > after).order_by(_W.id).limit(_PAGE)).all()
    total = 0
    for row in rows:
        total += (row.seq or 0) + 1  # null, where somebody had the table refuse nothing
        if total >= _TRANSITIONS:
            return Span(after=after, last=str(row.id))
    return Span(after=after, last=str(rows[-1].id) if len(rows) == _PAGE else None)


def transitions(connection: Connection) -> int:
    """Return how many transitions there are, as their workflows' rows have it: of a table far smaller than theirs.

    What the database's statistics say is nothing at all until the table was analysed for the first time.
    """
    return int(connection.execute(select(func.coalesce(func.sum(_W.seq + 1), 0))).scalar_one())

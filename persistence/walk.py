"""Going through all workflows, from the oldest on: a page at a time, and no page longer than it must be.

By the index that lists go by, so that what is younger than one looks for is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, literal, select, tuple_

from ..core.names import SYSTEM
from . import sql
from .models import WorkflowRow

_PAGE: Final = 500

_W: Final = WorkflowRow.__table__.c


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far it has come: the workflow that was looked at last."""

    created_at: datetime
    workflow_id: str


BEGINNING: Final = Place(created_at=datetime(1, 1, 1, tzinfo=UTC), workflow_id="")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one piece removed, and the place where the next goes on; None: that was the last."""

    removed: int
    place: Place | None


def walk(
    piece: Callable[[Place], Piece], *, place: Place = BEGINNING, most: int | None = None
) -> tuple[int, Place | None]:
    """Go on piece by piece, to the end or for ``most`` pieces; return how much was removed, and the place."""
    removed, done, following = 0, 0, place
    while most is None or done < most:
        last = piece(following)
        removed, done = removed + last.removed, done + 1
        if last.place is None:
            return removed, None
        following = last.place
    return removed, following


def page(place: Place, until: datetime, chosen: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the next workflows that began before ``until``, and whether each is ``chosen``."""
    return (
        select(_W.id, _W.seq, _W.created_at, chosen.label("chosen"))
        .where(
            tuple_(_W.created_at, _W.id) > tuple_(sql.moment(place.created_at), literal(place.workflow_id)),
            _W.created_at < until,
            _W.id != SYSTEM,
        )
        .order_by(_W.created_at, _W.id)
        .limit(_PAGE)
    )


def after(rows: Sequence[Any], whole: Sequence[Any]) -> Place | None:
    """Return the place after the first ``rows`` of a ``whole`` page; None if that is the end of all."""
    if len(rows) == len(whole) < _PAGE:
        return None
    return Place(created_at=rows[-1].created_at, workflow_id=rows[-1].id)

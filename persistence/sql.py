"""SQL that databases say differently, by one name each: the moment, the larger of two."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, func

MOMENT: Final = DateTime(timezone=True)


def now() -> ColumnElement[datetime]:
    """Return the database's time at this moment, the only one that counts."""
    return func.clock_timestamp(type_=MOMENT)


def began() -> ColumnElement[datetime]:
    """Return the database's time when this statement began: the same wherever in it it is asked for."""
    return func.statement_timestamp(type_=MOMENT)


def greatest(*values: Any) -> ColumnElement[Any]:
    """Return the largest of these that is not null."""
    return func.greatest(*values)


def least(*values: Any) -> ColumnElement[Any]:
    """Return the smallest of these that is not null."""
    return func.least(*values)

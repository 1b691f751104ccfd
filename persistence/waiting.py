"""Who waits by what another definition told it: what a workflow waits for is written down when its state is entered."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, and_, false, or_

from ..core.machine import Definition
from .models import WorkflowRow

_W: Final = WorkflowRow.__table__.c


def waits_by_another(definition: Definition) -> ColumnElement[bool]:
    """Whether a workflow that waits would run sooner by this definition than by the one that it was told.

    One that would run later needs nobody: it is looked at when it wakes, and goes on waiting.
    """
    states = (_runs_sooner(definition, state) for state in definition.states)
    return and_(
        _W.version == definition.version,
        _W.definition != definition.fingerprint,
        or_(false(), *(one for one in states if one is not None)),
    )


def _runs_sooner(definition: Definition, state: str) -> ColumnElement[bool] | None:
    if definition.runs_at_once(state):
        return _W.state == state
    timer = definition.timer_of(state)
    if timer is None or timer.after is None:
        return None
    return and_(_W.state == state, or_(_W.timer_at.is_(None), _W.timer_at > _W.entered_at + timer.after))

"""A new epoch: the database was put back to an earlier point, and whatever was under way is void."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import delete, null, update
from sqlalchemy.orm import Session

from ..core.canonical import Json
from . import sql
from .models import DeploymentRow, WorkerRow, WorkflowRow
from .operations import Terms
from .system import append, hold

# Far more claims than one workflow ever sees: none of before can be equal to one of after.
_JUMP: Final = 2**32


def begin(session: Session, payload: Mapping[str, Json], terms: Terms) -> int:
    """Begin a new epoch, with a record of it in the system's chain; return its number.

    Claims jump: nobody commits with one of before. Nobody owns anything; workers of before are
    forgotten, and refused when they say that they live. What is ready is due, and rung at once.
    """
    hold(session, terms)  # first, as removals do: two that write records wait for each other here
    number: int = session.execute(
        update(DeploymentRow)
        .values(epoch=DeploymentRow.epoch + 1, recovered_at=sql.now())
        .returning(DeploymentRow.epoch)
    ).scalar_one()
    session.execute(
        update(WorkflowRow)
        .values(
            claim=WorkflowRow.claim + _JUMP,
            owner=null(),
            owner_pid=null(),
            owner_thread=null(),
            claimed_at=null(),
            checkpoint_asked_at=null(),
            rings=0,
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(WorkflowRow)
        .where(WorkflowRow.ready_at <= sql.now(), WorkflowRow.due_at.is_not(None))
        .values(due_at=sql.now())
        .execution_options(synchronize_session=False)
    )
    session.execute(delete(WorkerRow))
    # Its own claim has just jumped with all others.
    append(session, hold(session, terms), "recovery_epoch", {"epoch": number, **payload}, terms)
    return number

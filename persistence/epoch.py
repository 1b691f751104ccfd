"""A new epoch: the database was put back to an earlier point, and whatever was under way is void."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from sqlalchemy import delete, null, update
from sqlalchemy.orm import Session

from ..core.canonical import Json
from . import sql
from .models import DeploymentRow, WorkerRow, WorkflowRow
from .operations import Terms
from .recovered import LEAST_STEP
from .system import append, hold

# One backup can be gone back to twice, and both times the same row is what is counted on from. A step of a fixed length
# would give both lives the same numbers, and a worker of the first could commit in the second. So each step is drawn.
_DRAWN_STEPS: Final = 2**48
_DRAWN_EPOCHS: Final = 2**31
# What is counted on from is cut off here, so that no number of recoveries leaves the range: bigint's for claims, and
# for epochs that of the records in the chain (2^53). No row comes here by itself before its 16,000th recovery.
_MOST_CLAIMS: Final = 2**62
_MOST_EPOCHS: Final = 2**52


def begin(session: Session, payload: Mapping[str, Json], terms: Terms) -> int:
    """Begin a new epoch, with a record of it in the system's chain; return its number, which is higher than before.

    Claims jump: nobody commits with one of before. Nobody owns anything; workers of before are
    forgotten, and refused when they say that they live. What is ready is due, and rung at once.
    How far both jump is drawn: two recoveries from the same backup have nothing in common.
    """
    hold(session, terms)  # first, as removals do: two that write records wait for each other here
    number: int = session.execute(
        update(DeploymentRow)
        .values(epoch=DeploymentRow.epoch % _MOST_EPOCHS + 1 + secrets.randbelow(_DRAWN_EPOCHS), recovered_at=sql.now())
        .returning(DeploymentRow.epoch)
    ).scalar_one()
    session.execute(
        update(WorkflowRow)
        .values(
            claim=WorkflowRow.claim % _MOST_CLAIMS + LEAST_STEP + secrets.randbelow(_DRAWN_STEPS),
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

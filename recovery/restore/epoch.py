"""What is done to a copy before it is given: a new epoch, and a stop for what the outside world has seen go on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from ...config.keys import active_mac_key
from ...config.settings import Settings
from ...core.errors import WrongStatus
from ...core.names import RECOVERY, SYSTEM
from ...persistence import epoch, lost, operations, recovered
from ...persistence.database import Database
from ...persistence.operations import Terms
from .difference import Difference

_REASON: Final = "went on after the point that was gone back to: what it did since may have been seen outside"


def terms(settings: Settings) -> Terms:
    """Return on whose behalf a recovery writes."""
    return Terms(
        actor=RECOVERY,
        grace=timedelta(seconds=settings.ring_grace),
        max_bytes=settings.max_bytes,
        mac_key=active_mac_key(settings),
    )


def begin(settings: Settings, database: Database, lacks: Sequence[Difference], to: str) -> tuple[int, int]:
    """Begin a new epoch; pause what had gone on. Return the epoch's number, and how many were paused.

    Nothing is quietly run twice: a workflow whose lost transitions the outside world has seen runs
    again when a person says so, and with the same idempotency keys as before. What it is known to have
    done outside is written down as begun; how far it may have been, its pause says.
    """
    used = terms(settings)
    transitions = max((one.transitions for one in lacks), default=0)
    with database.transaction() as session:
        number = epoch.begin(session, {"to": to, "lost": transitions}, used)
        lost.take_over(session, [effect for one in lacks for effect in one.effects])
    paused = 0
    for workflow_id in sorted({workflow_id for one in lacks for workflow_id in one.behind} - {SYSTEM}):
        said = recovered.said(max(one.through[workflow_id] for one in lacks if workflow_id in one.through))
        try:
            with database.transaction() as session:
                operations.pause(session, workflow_id, _REASON, used, said=said)
            paused += 1
        except WrongStatus:
            continue  # it has ended, or waits for a person: nothing runs by itself
    return number, paused

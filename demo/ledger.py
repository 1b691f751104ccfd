"""What the demo reads off the database while it runs, and at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select

from ..persistence import audit
from ..persistence.models import TransitionRow, WorkflowRow
from .archive import Base, ManifestRow

# created, read, compress, compare, enter
TRANSITIONS_EACH: Final = 5


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    workflows: int
    completed: int
    ended_otherwise: int
    transitions: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the database says after a run."""

    lost: int
    recorded_twice: int
    resumed: int
    chains_verified: int
    chains_broken: tuple[str, ...]
    manifest: dict[str, str]
    """sha256 by path."""


def make_manifest(connection: Connection) -> None:
    """Make the demo's own table."""
    Base.metadata.create_all(connection)


def progress(connection: Connection, run: str) -> Progress:
    """Return how far a run is."""
    ours = WorkflowRow.id.startswith(f"{run}/", autoescape=True)
    rows = connection.execute(
        select(WorkflowRow.status, func.count(), func.sum(WorkflowRow.seq + 1)).where(ours).group_by(WorkflowRow.status)
    ).all()
    counts = {row[0]: row[1] for row in rows}
    completed = counts.get("completed", 0)
    return Progress(
        workflows=sum(counts.values()),
        completed=completed,
        ended_otherwise=sum(counts.get(status, 0) for status in ("failed", "quarantined", "cancelled")),
        transitions=int(sum(row[2] for row in rows)),
    )


def in_hand(connection: Connection, run: str, worker: str) -> dict[str, int]:
    """Return what a worker has in hand: id and claim."""
    rows = connection.execute(
        select(WorkflowRow.id, WorkflowRow.claim).where(
            WorkflowRow.id.startswith(f"{run}/", autoescape=True), WorkflowRow.owner.startswith(worker, autoescape=True)
        )
    )
    return {row[0]: row[1] for row in rows}


def still_in_hand(connection: Connection, claims: dict[str, int]) -> dict[str, int]:
    """Return which of the claims still hold: their workflows cannot go on yet."""
    rows = connection.execute(
        select(WorkflowRow.id, WorkflowRow.claim).where(WorkflowRow.id.in_(claims), WorkflowRow.owner.is_not(None))
    )
    return {row[0]: row[1] for row in rows if row[1] == claims[row[0]]}


def waiting(connection: Connection, run: str) -> dict[str, int]:
    """Return what waits for its bell to be heard: id and seq."""
    rows = connection.execute(
        select(WorkflowRow.id, WorkflowRow.seq).where(
            WorkflowRow.id.startswith(f"{run}/", autoescape=True),
            WorkflowRow.owner.is_(None),
            WorkflowRow.status == "pending",
        )
    )
    return {row[0]: row[1] for row in rows}


def has_any_moved(connection: Connection, places: dict[str, int]) -> bool:
    """Whether any of the workflows that waited there has gone on."""
    rows = connection.execute(select(WorkflowRow.id, WorkflowRow.seq).where(WorkflowRow.id.in_(places)))
    return any(row[1] > places[row[0]] for row in rows)


def judge(connection: Connection, run: str, accepted: list[str]) -> Verdict:
    """Read the whole run once more, and verify every chain of it."""
    ours = TransitionRow.workflow_id.startswith(f"{run}/", autoescape=True)
    recorded = {
        row[0]: row[1]
        for row in connection.execute(
            select(TransitionRow.workflow_id, func.count()).where(ours).group_by(TransitionRow.workflow_id)
        )
    }
    completed = set(
        connection.execute(
            select(WorkflowRow.id).where(
                WorkflowRow.id.startswith(f"{run}/", autoescape=True), WorkflowRow.status == "completed"
            )
        ).scalars()
    )
    resumed = connection.execute(
        select(func.count(TransitionRow.workflow_id.distinct())).where(ours, TransitionRow.attempt > 1)
    ).scalar_one()
    broken = [str(finding) for each in accepted for finding in audit.alone(connection, each)]
    entered = connection.execute(select(ManifestRow.path, ManifestRow.sha256).where(ManifestRow.run == run)).all()
    return Verdict(
        lost=len(set(accepted) - completed),
        recorded_twice=sum(max(0, count - TRANSITIONS_EACH) for count in recorded.values()),
        resumed=resumed,
        chains_verified=len(accepted) - len({line.split("'")[1] for line in broken}),
        chains_broken=tuple(broken),
        manifest={row.path: row.sha256 for row in entered},
    )

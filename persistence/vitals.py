"""The figures that tell how a deployment is: read in one look, judged elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Select, Text, cast, func, select

from ..core.recovery import Heartbeat, Policy
from . import audit, database, guards, history, log, scrub, sql, sqlite, watch
from .guards import Guards
from .models import SweepRow, TransitionRow, WorkflowRow
from .repository import LONGEST_LEAVE
from .scrub import Scrub

# The chains that health verifies: the ones that were started last, as far as they are not long.
_SAMPLE: Final = 5
_LONGEST_SAMPLE: Final = 200
MOST_COUNTED: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """How a deployment is, at the database's time ``now``."""

    now: datetime
    workers: tuple[Heartbeat, ...]
    swept_at: datetime | None
    troubled: int
    """Workflows that failed, or are quarantined: they wait for a person."""
    misfits: int
    """Workflows that were left alone, as the code does not fit them; counted up to ``MOST_COUNTED``."""
    ready: int
    """Workflows that could run now, and that nobody has in hand; counted up to ``MOST_COUNTED``."""
    overdue: timedelta
    """How long the oldest of the due workflows has been due."""
    running: int
    unsaved: timedelta
    """The longest that a running handler has gone without a checkpoint: what its loss would cost."""
    strangers: dict[str, int]
    """Workflows that are ready, of types (``type/version``) that no living worker knows."""
    unheard: dict[str, int]
    """Workflows that are ready, on queues that no living worker listens to."""
    broken: tuple[str, ...]
    """What is wrong with the chains that were sampled."""
    sampled: int
    scrub: Scrub
    transitions: int
    """About how many there are."""
    guards: Guards
    sealed: bool
    """Whether the newest transition carries the code of a key, if there is any."""


def read(connection: Connection, default_queue: str, policy: Policy) -> Vitals:
    """Read the figures, on one connection.

    Raises:
        NotOnSQLite: it has no workers, no beat and no anchors that there could be figures of.

    """
    sqlite.refuse(connection, "the health of a deployment", "list workflows with engine.list()")
    now = database.now(connection)
    workers = tuple(watch.heartbeats(connection))
    saved = sql.greatest(WorkflowRow.claimed_at, WorkflowRow.checkpointed_at)
    running, oldest_save = connection.execute(
        select(func.count(), func.min(saved)).where(WorkflowRow.owner.is_not(None))
    ).one()
    kind = WorkflowRow.type + "/" + cast(WorkflowRow.version, Text)
    queue = func.coalesce(WorkflowRow.queue, default_queue)
    # As many as it takes to see how things are: the look must not get slower with what it is to show.
    some = select(kind.label("kind"), queue.label("queue")).where(*watch.ready(policy)).limit(MOST_COUNTED).subquery()
    waiting = connection.execute(
        select(some.c.kind, some.c.queue, func.count()).group_by(some.c.kind, some.c.queue)
    ).all()
    known = frozenset[str]().union(*(worker.types for worker in workers))
    heard = frozenset[str]().union(*(worker.queues for worker in workers))
    sample = history.newest_ids(connection, _SAMPLE, longest=_LONGEST_SAMPLE)
    broken = [str(finding) for workflow_id in sample for finding in audit.alone(connection, workflow_id)]
    oldest_due: datetime | None = connection.execute(
        select(func.min(WorkflowRow.due_at)).where(WorkflowRow.due_at.is_not(None), WorkflowRow.due_at <= now)
    ).scalar_one()
    return Vitals(
        now=now,
        workers=workers,
        swept_at=connection.execute(select(SweepRow.ran_at)).scalar_one_or_none(),
        troubled=connection.execute(
            select(func.count()).where(WorkflowRow.status.in_(("failed", "quarantined")))
        ).scalar_one(),
        misfits=connection.execute(_misfits()).scalar_one(),
        ready=sum(row[2] for row in waiting),
        overdue=timedelta(0) if oldest_due is None else now - oldest_due,
        running=running,
        unsaved=timedelta(0) if oldest_save is None else now - oldest_save,
        strangers=_sum((row[0], row[2]) for row in waiting if row[0] not in known) if workers else {},
        unheard=_sum((row[1], row[2]) for row in waiting if row[1] not in heard) if workers else {},
        broken=tuple(broken),
        sampled=len(sample),
        scrub=scrub.state(connection),
        # The statistics say nothing until the first ANALYZE; what has a place in the log is there for certain.
        transitions=max(scrub.transitions(connection), log.state(connection).size),
        guards=guards.read(connection),
        sealed=_is_sealed(connection),
    )


def _misfits() -> Select[Any]:
    """Return the query for workflows that a worker put down, without an attempt, within the time that it takes one."""
    attempted = WorkflowRow.__table__.c.error["attempt"].as_string()
    some = (
        select(WorkflowRow.id)
        .where(
            WorkflowRow.due_at <= sql.began() + sql.span(LONGEST_LEAVE),
            WorkflowRow.error.is_not(None),
            func.coalesce(attempted, "null") == "null",
        )
        .limit(MOST_COUNTED)
    )
    return select(func.count()).select_from(some.subquery())


def _is_sealed(connection: Connection) -> bool:
    newest = select(TransitionRow.mac.is_not(None)).order_by(TransitionRow.xact.desc()).limit(1)
    return connection.execute(newest).scalar_one_or_none() is not False


def _sum(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, count in pairs:
        total[name] = total.get(name, 0) + count
    return total

"""What recovery reads and writes: heartbeats, claims, whatever is due. Bounded, and safe to run twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Text, and_, case, cast, delete, func, null, or_, select, update

from ..core.recovery import Claimed, Due, Heartbeat, Policy
from ..core.starting import HIGHEST_PRIORITY
from . import sql
from .models import DeploymentRow, SweepRow, WorkerRow, WorkflowRow

# All claims of all workers; far more than any number of workers runs at once.
_MOST_CLAIMS: Final = 20_000
_RELEASED: Final[Mapping[str, Any]] = {
    "owner": null(),
    "owner_pid": null(),
    "owner_thread": null(),
    "claimed_at": null(),
    "checkpoint_asked_at": null(),
    "due_at": sql.now(),
    "rings": 0,
}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The database's time, since when sweeps have run without a gap, and what was known until now.

    ``brokers`` are those at which workers listened, each with since when none does; None: some do. ``led_since`` is
    when a sweep first found the database led by the server that leads it; None: it was always that one.
    """

    now: datetime
    since: datetime
    brokers: Mapping[str, datetime | None]
    led_since: datetime | None


def begin_sweep(connection: Connection, gap: timedelta) -> Watch:
    """Note that a sweep runs now; after a pause of more than ``gap`` the watch begins anew."""
    now = sql.began()
    # Not twice in a row: sweeps that are always so far apart would never find anybody dead.
    begins = and_(SweepRow.ran_at < now - gap, SweepRow.since < SweepRow.ran_at)
    row = connection.execute(
        update(SweepRow)
        .where(SweepRow.id == 1)
        .values(
            ran_at=now,
            since=case((begins, now), else_=SweepRow.since),
            led_since=case((SweepRow.timeline != sql.timeline(), now), else_=SweepRow.led_since),
            timeline=sql.timeline(),
        )
        .returning(SweepRow.since, now, SweepRow.brokers, SweepRow.led_since)
    ).one()
    left = {url: None if since is None else datetime.fromtimestamp(since, UTC) for url, since in row[2].items()}
    return Watch(since=row[0], now=row[1], brokers=left, led_since=row[3])


# --- workers ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker says of itself; ``types`` are ``type/version``."""

    id: str
    host: str
    pid: int
    pids: tuple[int, ...]
    queues: tuple[str, ...]
    types: tuple[str, ...]
    epoch: int | None = None
    """The deployment's epoch that it began in; None: it began before it could ask."""
    broker: str | None = None
    """Where it listens: a broker's address, without its password."""


def beat(connection: Connection, worker: Worker) -> bool:
    """Write a worker's sign of life; refuse it, and return False, if it began in another epoch."""
    if worker.epoch is not None and worker.epoch != current_epoch(connection):
        return False
    now = sql.now()
    told = {
        "host": worker.host,
        "pid": worker.pid,
        "pids": list(worker.pids),
        "queues": list(worker.queues),
        "types": list(worker.types),
        "seen_at": now,
        "epoch": worker.epoch,
        "broker": worker.broker,
    }
    connection.execute(
        sql.upsert(WorkerRow)
        .values(id=worker.id, started_at=now, **told)
        .on_conflict_do_update(index_elements=[WorkerRow.id], set_=told)
    )
    return True


def current_epoch(connection: Connection) -> int:
    """Return the deployment's epoch: another, and a higher one, each time that the database was put back."""
    found: int | None = connection.execute(select(DeploymentRow.epoch)).scalar_one_or_none()
    return 1 if found is None else found


def heartbeats(connection: Connection) -> list[Heartbeat]:
    """Return the last sign of life of every worker that has not left."""
    rows = connection.execute(
        select(*(WorkerRow.id, WorkerRow.pids, WorkerRow.types, WorkerRow.queues, WorkerRow.seen_at, WorkerRow.broker))
    )
    return [
        Heartbeat(
            worker_id=row.id,
            pids=frozenset(row.pids),
            types=frozenset(row.types),
            queues=frozenset(row.queues),
            seen_at=row.seen_at,
            broker=row.broker,
        )
        for row in rows
    ]


def hold_brokers(connection: Connection) -> set[str]:
    """Return the brokers at which workers listened, and keep other sweeps from beginning until this one's commit."""
    return set(connection.execute(select(SweepRow.brokers).with_for_update()).scalar_one())


def keep_brokers(connection: Connection, known: Mapping[str, datetime | None]) -> None:
    """Write down at which brokers workers listen, or did until when."""
    told = {url: None if since is None else since.timestamp() for url, since in known.items()}
    connection.execute(update(SweepRow).values(brokers=told))


def living(connection: Connection, timeout: timedelta) -> int:
    """Return how many workers gave a sign of life within the last ``timeout``."""
    since = sql.now() - timeout
    return connection.execute(select(func.count()).where(WorkerRow.seen_at > since)).scalar_one()


def served(connection: Connection, timeout: timedelta) -> set[str]:
    """Return the types, as ``type/version``, of the workers that gave a sign of life within the last ``timeout``."""
    since = sql.now() - timeout
    rows = connection.scalars(select(WorkerRow.types).where(WorkerRow.seen_at > since))
    return {each for types in rows for each in types}


def neighbours(connection: Connection, host: str) -> list[tuple[str, int]]:
    """Return id and pid of the workers that said they run on this host."""
    rows = connection.execute(select(WorkerRow.id, WorkerRow.pid).where(WorkerRow.host == host))
    return [(row.id, row.pid) for row in rows]


def bury(connection: Connection, worker_ids: Sequence[str], *, wait: bool = True) -> int:
    """Forget workers, and make all they had in hand due at once; return how much that was.

    Without ``wait``, what an open transaction holds is left to whoever looks later: of a process that is stopped, and
    not dead, it may stay open for long.
    """
    if not worker_ids:
        return 0
    theirs = select(WorkflowRow.id).where(WorkflowRow.owner.in_(worker_ids)).with_for_update(skip_locked=not wait)
    freed = connection.execute(update(WorkflowRow).where(WorkflowRow.id.in_(theirs)).values(**_RELEASED)).rowcount
    connection.execute(delete(WorkerRow).where(WorkerRow.id.in_(worker_ids)))
    return freed


def claims(connection: Connection) -> list[Claimed]:
    """Return everything that is in some worker's hands."""
    table = WorkflowRow.__table__.c  # these columns are never null where there is an owner
    rows = connection.execute(
        select(table.id, table.claim, table.owner, table.owner_pid, table.owner_thread, table.claimed_at)
        .where(WorkflowRow.owner.is_not(None))
        .limit(_MOST_CLAIMS)
    )
    return [
        Claimed(workflow_id=row[0], claim=row[1], owner=row[2], pid=row[3], thread=row[4], claimed_at=row[5])
        for row in rows
    ]


def release(connection: Connection, abandoned: Sequence[Claimed]) -> int:
    """Make abandoned claims due at once; one that was taken again, or is held, in the meantime stays as it is."""
    freed = 0
    for claim in abandoned:
        left = (WorkflowRow.id == claim.workflow_id, WorkflowRow.claim == claim.claim, WorkflowRow.owner == claim.owner)
        free = select(WorkflowRow.id).where(*left).with_for_update(skip_locked=True)
        freed += connection.execute(update(WorkflowRow).where(WorkflowRow.id.in_(free)).values(**_RELEASED)).rowcount
    return freed


# --- what is due --------------------------------------------------------------------------
# Found by the moment at which the statement began: that stays what it is, so that the index of ``due_at`` is
# entered at it. A clock that goes on would be read anew for each row, also of all those that only sleep.


def due(connection: Connection, known: Collection[str], limit: int, *, urgent: bool | None = None) -> list[Due]:
    """Lock and return workflows of which nothing was heard for too long: the most urgent first, then the oldest.

    Only of the types in ``known``: a bell that no living worker understands would be thrown away,
    so these stay due, and are found as soon as such a worker lives. ``urgent`` is whether to look only at
    those that have a priority, or only at those that have none: each is found by an index of its own.
    """
    kind = WorkflowRow.type + "/" + cast(WorkflowRow.version, Text)
    rows = connection.execute(
        select(
            WorkflowRow.id,
            WorkflowRow.seq,
            WorkflowRow.queue,
            WorkflowRow.type,
            WorkflowRow.following,
            WorkflowRow.rings,
            WorkflowRow.owner.is_not(None),
            WorkflowRow.strayed > 0,
            WorkflowRow.priority,
            and_(WorkflowRow.attempt > 0, WorkflowRow.error.is_(None)),
            WorkflowRow.due_at,
        )
        .where(WorkflowRow.due_at <= sql.began(), kind.in_(known), *_of_priority(urgent))
        .order_by(WorkflowRow.priority.desc(), WorkflowRow.due_at)
        .limit(limit)
        # Two sweeps at once share the work instead of queueing for it.
        .with_for_update(skip_locked=True)
    )
    return [
        Due(
            workflow_id=row[0],
            seq=row[1],
            queue=row[2],
            label=f"{row[3]}.{row[4]}" if row[4] else row[3],
            rings=row[5],
            claimed=row[6],
            strayed=row[7],
            priority=row[8],
            interrupted=row[9],
            due_at=row[10],
        )
        for row in rows
    ]


def is_due(connection: Connection, known: Collection[str]) -> bool:
    """Whether there is any workflow of these types of which nothing was heard for too long."""
    kind = WorkflowRow.type + "/" + cast(WorkflowRow.version, Text)
    late = select(WorkflowRow.id).where(WorkflowRow.due_at <= sql.began(), kind.in_(known)).limit(1)
    return connection.execute(late).one_or_none() is not None


def _of_priority(urgent: bool | None) -> tuple[ColumnElement[bool], ...]:
    if urgent is None:
        return ()
    # Said one by one: so each is a range of their index, and what sleeps is not read.
    return (WorkflowRow.priority.in_(range(1, HIGHEST_PRIORITY + 1)),) if urgent else (WorkflowRow.priority == 0,)


def look_again(connection: Connection, looks: Mapping[str, timedelta]) -> None:
    """Move the ``due_at`` of the locked workflows on, each by its own delay."""
    by_delay: dict[timedelta, list[str]] = {}
    for workflow_id, delay in looks.items():
        by_delay.setdefault(delay, []).append(workflow_id)
    for delay, ids in by_delay.items():
        connection.execute(
            update(WorkflowRow)
            .where(WorkflowRow.id.in_(ids))
            .values(due_at=sql.now() + delay, rings=sql.least(WorkflowRow.rings + 1, 1000))
        )


def postpone(connection: Connection, workflow_ids: Collection[str], delay: timedelta) -> None:
    """Move the ``due_at`` of locked workflows on, as if nobody had looked."""
    connection.execute(update(WorkflowRow).where(WorkflowRow.id.in_(workflow_ids)).values(due_at=sql.now() + delay))


def unheard_of(connection: Connection, workflow_ids: Sequence[str]) -> int:
    """Make workflows due at once whose bell did not go out, if they still wait for one; return how many."""
    return connection.execute(
        update(WorkflowRow)
        .where(
            WorkflowRow.id.in_(workflow_ids),
            WorkflowRow.owner.is_(None),
            WorkflowRow.ready_at <= sql.now(),
        )
        .values(due_at=sql.now(), rings=0)
    ).rowcount


def ready(policy: Policy) -> tuple[ColumnElement[bool], ...]:
    """Return what is true of workflows that could run now and are in nobody's hands.

    The last condition follows from the others, as nothing ready is left alone for longer; it lets
    PostgreSQL find them by the index of ``due_at``, past the timers that run out later.
    """
    return (
        WorkflowRow.owner.is_(None),
        WorkflowRow.ready_at <= sql.began(),
        WorkflowRow.due_at <= sql.began() + max(policy.longest_look, policy.ring_grace),
    )


def all_due(connection: Connection, policy: Policy, limit: int) -> int:
    """Make at most so many workflows due that could run now and were rung before; return how many."""
    some = (
        select(WorkflowRow.id)
        .where(*ready(policy), or_(WorkflowRow.rings != 0, WorkflowRow.due_at > sql.began()))
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("some")  # once: as a mere subquery PostgreSQL may plan it for each row anew, and the limit is none
    )
    made = update(WorkflowRow).where(WorkflowRow.id.in_(select(some.c.id))).values(due_at=sql.now(), rings=0)
    # Counted by what it returns: of a statement that begins with WITH, SQLite's driver does not say how many.
    return len(connection.execute(made.returning(WorkflowRow.id)).all())


def due_queues(connection: Connection, known: Collection[str], limit: int) -> set[str | None]:
    """Return the queues of the workflows that are due."""
    kind = WorkflowRow.type + "/" + cast(WorkflowRow.version, Text)
    due = (
        select(WorkflowRow.queue)
        .where(WorkflowRow.due_at <= sql.began(), kind.in_(known))
        .order_by(WorkflowRow.due_at)
        .limit(limit)
        .subquery()
    )
    return set(connection.execute(select(due.c.queue).distinct()).scalars())


def ask_for_checkpoints(connection: Connection, interval: timedelta) -> int:
    """Ask every handler for a checkpoint whose last one is older than ``interval``; return how many."""
    last = sql.greatest(WorkflowRow.claimed_at, WorkflowRow.checkpointed_at)
    return connection.execute(
        update(WorkflowRow)
        .where(
            WorkflowRow.owner.is_not(None),
            WorkflowRow.checkpoint_asked_at.is_(None),
            last < sql.now() - interval,
        )
        .values(checkpoint_asked_at=sql.now())
    ).rowcount

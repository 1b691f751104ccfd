"""The recovery sweep: find what is due, ring it; find who is dead, free what they held.

Bounded, and harmless when two run at once: rows are shared by ``SKIP LOCKED``, everything else is
done twice with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from ..config.logging import get_logger
from ..core import recovery
from ..core.bell import Bell, overdue
from ..core.errors import BrokerUnavailable
from ..core.recovery import Brokers, Due, Heartbeat, Policy
from ..persistence import watch
from ..persistence.database import Database

log = get_logger(__name__)

_BATCH: Final = 500
_LATER: Final = timedelta(seconds=1)
# 20,000 workflows a sweep: the next one goes on with the rest.
_MOST_BATCHES: Final = 40


class Doorbell(Protocol):
    """What a sweep asks of a broker: see ``broker.py``, and ``local.py`` for where there is none."""

    def ring(self, bells: Sequence[Bell], /) -> bool:
        """Put bells on their queues; return whether all are there."""

    def lengths(self, queues: Iterable[str | None]) -> dict[str | None, int]:
        """Return how many bells wait in each queue."""

    def remembers(self) -> bool:
        """Whether the mark is still there."""

    def remember(self) -> None:
        """Leave the mark."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What one sweep did."""

    rung: int = 0
    freed: int = 0
    dead: tuple[str, ...] = ()
    broker_forgot: bool = False


def sweep(database: Database, broker: Doorbell, policy: Policy) -> Swept:
    """Run one sweep.

    Raises:
        DatabaseUnavailable: what was not done yet is done by the next one.

    """
    living, dead, freed, brokers, led_since = _free(database, policy)
    known = frozenset[str]().union(*(beat.types for beat in living))
    if brokers.left:
        _give_up(database, brokers, policy)
    try:
        forgot = not broker.remembers()
        if forgot:
            found = _make_due(database, policy)
            # Only now: if we die before, the next sweep finds the mark missing still.
            broker.remember()
            (log.warning if found else log.info)("the broker remembers nothing", rung_again=found)
        rung = _ring_due(database, broker, policy, known, led_since) if known else 0
    except BrokerUnavailable as error:
        # What is due stays due, and is rung by the first sweep that reaches the broker again.
        log.warning("the sweep cannot ring", reason=error.reason)
        return Swept(freed=freed, dead=dead)
    swept = Swept(rung=rung, freed=freed, dead=dead, broker_forgot=forgot)
    if rung or freed or dead:
        log.info("swept", rung=rung, freed=freed, dead=list(dead), broker_forgot=forgot)
    return swept


class Freed(NamedTuple):
    """Who lives, who is dead, how much they had in hand, where somebody listens, and since when this server leads."""

    living: list[Heartbeat]
    dead: tuple[str, ...]
    freed: int
    brokers: Brokers
    led_since: datetime | None


def _free(database: Database, policy: Policy) -> Freed:
    """Bury the dead, and free what nobody has in hand any more."""
    with database.transaction() as session:
        connection = session.connection()
        now = watch.begin_sweep(connection, policy.heartbeat_timeout)
        beats = watch.heartbeats(connection)
        dead = recovery.dead_workers(beats, policy, now=now.now, watched_since=now.since)
        freed = watch.bury(connection, dead, wait=False)
        living = [beat for beat in beats if beat.worker_id not in dead]
        left = recovery.abandoned(watch.claims(connection), living, policy, now=now.now, watched_since=now.since)
        freed += watch.release(connection, left)
        silent = [beat for beat in beats if beat.worker_id in dead]
        brokers = recovery.brokers(now.brokers, living, silent, policy, now=now.now)
        # Those that are left stay until what waited there is due.
        if not brokers.left and brokers.known != now.brokers:
            watch.keep_brokers(connection, brokers.known)
    return Freed(living, tuple(dead), freed, brokers, now.led_since)


def _give_up(database: Database, brokers: Brokers, policy: Policy) -> None:
    """Have everything rung again, elsewhere: it may wait where nobody listens any more."""
    with database.transaction() as session:
        connection = session.connection()
        # Held until all of it is due: another sweep waits for that, and finds it done.
        if not watch.hold_brokers(connection) & brokers.left:
            return
        found = _make_due(database, policy)
        watch.keep_brokers(connection, brokers.known)
    log.warning("nobody listens at a broker any more", brokers=sorted(brokers.left), rung_again=found)


def _make_due(database: Database, policy: Policy) -> int:
    """Make everything due that could run: whatever bells were under way are gone; return how much that is."""
    found = 0
    with database.statement() as connection:
        # A few at a time: each is locked only for a moment, and the workers wait for none of it.
        while some := watch.all_due(connection, policy, _BATCH):
            found += some
    return found


def _ring_due(
    database: Database, broker: Doorbell, policy: Policy, known: frozenset[str], led_since: datetime | None
) -> int:
    with database.statement() as connection:
        queues = watch.due_queues(connection, known, _BATCH * _MOST_BATCHES)
    # Also those that nobody listens to: they are as long as they are, and must not get longer each time.
    lengths = broker.lengths(queues) if queues else {}
    rung = strays = 0
    urgent = True  # first those that have a priority; there are few, or none
    for _ in range(_MOST_BATCHES):
        with database.transaction() as session:
            connection = session.connection()
            due = watch.due(connection, known, _BATCH, urgent=urgent)
            chosen = recovery.to_ring(due, lengths, policy, led_since)
            later = recovery.postponed(chosen, policy.most_strays - strays)
            chosen = [row for row in chosen if row.workflow_id not in later]
            strays += sum(row.strayed for row in chosen)
            looked_at = [row for row in due if row.workflow_id not in later]
            watch.look_again(connection, {row.workflow_id: recovery.next_look(row, policy) for row in looked_at})
            watch.postpone(connection, later, _LATER)
        # After the commit: a worker that answers at once must not wait for our locks.
        if chosen and not broker.ring([_bell(row) for row in chosen]):
            with database.statement() as connection:
                watch.unheard_of(connection, [row.workflow_id for row in chosen])
            break
        rung += len(chosen)
        if len(due) == _BATCH:
            continue
        if not urgent:
            break
        urgent = False
    return rung


def _bell(row: Due) -> Bell:
    # What should have moved, or was being moved when its worker died, is older than what waits.
    priority = overdue(row.priority) if row.rings or row.interrupted else row.priority
    return Bell(workflow_id=row.workflow_id, seq=row.seq, queue=row.queue, label=row.label, priority=priority)

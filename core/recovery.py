"""Recovery: what to do with a workflow that is due, and with a worker that is silent.

Rows and times come in, decisions come out; ``tasks/sweep.py`` carries them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

_COUNTING_SLACK: Final = 2


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How patient recovery is."""

    heartbeat_timeout: timedelta
    """A worker silent for longer than this is dead."""
    ring_grace: timedelta
    """How long after a ring a workflow that did not move is looked at again, the first time."""
    longest_look: timedelta = timedelta(minutes=10)
    """The most that the looks at one workflow are apart."""
    fork_margin: timedelta = timedelta(seconds=2)
    """How much older than a heartbeat a claim must be before the heartbeat can speak against it."""
    most_strays: int = 100
    """How many bells that strayed before are rung again in one sweep: whoever took them has other work, too."""
    most_waits: int = 8
    """After so many looks at an unmoved queue a workflow is rung again all the same."""

    @property
    def returns_within(self) -> timedelta:
        """How long a worker has to speak again after a time in which nobody could.

        Less than the time-out: it was not silent of itself, and speaks as soon as it can.
        """
        return self.heartbeat_timeout * 3 / 4


@dataclass(frozen=True, kw_only=True)
class Due:
    """A workflow of which nothing was heard until its ``due_at``."""

    workflow_id: str
    seq: int
    queue: str | None
    label: str
    rings: int
    """How often it was rung, or looked at, since it last moved; 0: no bell is under way."""
    claimed: bool
    """Whether a worker has it in hand; whether that worker lives is another question."""
    due_at: datetime
    strayed: bool = False
    """Whether its last bell was answered by a worker that does not know its type."""
    priority: int = 0
    interrupted: bool = False
    """Whether an attempt was begun that has come to nothing: its worker is dead."""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A workflow in a worker's hands."""

    workflow_id: str
    claim: int
    owner: str
    pid: int
    thread: int | None
    claimed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The last sign of one worker's process tree.

    ``pids`` are the processes that run handlers, ``types`` the workflows it knows (``type/version``).
    """

    worker_id: str
    pids: frozenset[int]
    types: frozenset[str]
    queues: frozenset[str]
    seen_at: datetime
    broker: str | None = None
    """The address of the broker at which it listens; None: it does not say."""


@dataclass(frozen=True, kw_only=True)
class Brokers:
    """The brokers at which workers listened, each with since when none does (None: some do); those left just now.

    What waits there is heard by nobody, and no sweep elsewhere can tell: it looks at the queues of its own broker.
    """

    known: Mapping[str, datetime | None]
    left: frozenset[str] = frozenset()


def to_ring(
    due: Sequence[Due],
    queue_lengths: Mapping[str | None, int],
    policy: Policy,
    led_since: datetime | None = None,
) -> list[Due]:
    """Return those of the due workflows whose bell has to be rung now.

    A queue that holds about as many bells as there are due workflows is merely long: ringing
    again would make it longer. One that holds clearly fewer has lost some, and nobody knows which.

    What was rung before ``led_since``, the last fail-over, is rung once more whatever the queue says. Whoever was to
    ring may have gone with the server that was lost, or a bell was answered that the new one has never heard of.
    """
    rung_before = Counter(row.queue for row in due if row.rings and not row.claimed)
    lost = {queue for queue, count in rung_before.items() if _has_lost(count, queue_lengths.get(queue, 0))}
    return [
        row
        for row in due
        # The modulus: never rung, or waited for long enough whatever the queue says.
        if not row.claimed
        and (row.rings % policy.most_waits == 0 or row.queue in lost or _was_rung_before(row, led_since, policy))
    ]


def _was_rung_before(row: Due, moment: datetime | None, policy: Policy) -> bool:
    """Whether it was rung, or looked at, before that moment, and not since."""
    return moment is not None and row.rings > 0 and row.due_at - _patience(row.rings - 1, policy) < moment


def postponed(chosen: Sequence[Due], allowed: int) -> set[str]:
    """Return the ids of those that have strayed before and are more than may be rung now."""
    return {row.workflow_id for row in [row for row in chosen if row.strayed][max(0, allowed) :]}


def _has_lost(due: int, waiting: int) -> bool:
    """Whether a queue must have lost bells; the two counts are taken at slightly different moments."""
    return waiting == 0 or due - waiting > _COUNTING_SLACK + waiting // 10


def next_look(row: Due, policy: Policy) -> timedelta:
    """Return how long to leave a workflow alone now: twice as long each time."""
    if row.claimed:
        return policy.longest_look / 10  # its worker's heartbeat is what speaks for it
    return _patience(row.rings, policy)


def _patience(rings: int, policy: Policy) -> timedelta:
    return min(policy.ring_grace * (1 << min(rings, 20)), policy.longest_look)


def dead_workers(
    heartbeats: Sequence[Heartbeat], policy: Policy, *, now: datetime, watched_since: datetime
) -> list[str]:
    """Return the ids of the workers that have been silent for too long.

    Silence counts from ``watched_since`` at the earliest, the moment from which sweeps have run
    without a gap: after the database was away, every worker first gets the time to speak again.
    """
    return [beat.worker_id for beat in heartbeats if _is_silent(beat.seen_at, policy, now, watched_since)]


def _is_silent(spoke_at: datetime, policy: Policy, now: datetime, watched_since: datetime) -> bool:
    return now > max(spoke_at + policy.heartbeat_timeout, watched_since + policy.returns_within)


def abandoned(
    claims: Sequence[Claimed],
    living: Sequence[Heartbeat],
    policy: Policy,
    *,
    now: datetime,
    watched_since: datetime,
) -> list[Claimed]:
    """Return the claims that nobody works on: the worker is gone, or lives on without that process.

    Or the very thread has claimed something else since: one hand holds one workflow at a time, so
    what it held before was left over by an error that nobody thought of.
    """
    by_id = {beat.worker_id: beat for beat in living}
    newest: dict[tuple[str, int, int | None], datetime] = {}
    for claim in claims:
        newest[_hand(claim)] = max(claim.claimed_at, newest.get(_hand(claim), claim.claimed_at))
    return [
        claim
        for claim in claims
        if claim.claimed_at < newest[_hand(claim)]
        or _is_abandoned(claim, by_id.get(claim.owner), policy, now, watched_since)
    ]


def _hand(claim: Claimed) -> tuple[str, int, int | None]:
    return (claim.owner, claim.pid, claim.thread)


def _is_abandoned(
    claim: Claimed, beat: Heartbeat | None, policy: Policy, now: datetime, watched_since: datetime
) -> bool:
    if beat is None:  # no such worker: it is dead, or its first heartbeat is still under way
        return _is_silent(claim.claimed_at, policy, now, watched_since)
    # A process that was forked while the last heartbeat was on its way is not in it yet.
    return claim.pid not in beat.pids and claim.claimed_at + policy.fork_margin < beat.seen_at


def brokers(
    before: Mapping[str, datetime | None],
    living: Sequence[Heartbeat],
    dead: Sequence[Heartbeat],
    policy: Policy,
    *,
    now: datetime,
) -> Brokers:
    """Return the brokers at which workers listen, or did; ``left`` are those at which none has for too long.

    Each is left once. Without a worker elsewhere, or where one does not say where it listens, nothing is decided:
    whoever comes next may listen to the same.
    """
    listening = {beat.broker for beat in living}
    if not listening or None in listening:
        return Brokers(known=before)
    known: dict[str, datetime | None] = {broker: None for broker in listening if broker is not None}
    left = set()
    for broker, since in before.items():
        if broker in known:
            continue
        spoke = [beat.seen_at for beat in dead if beat.broker == broker]
        silent_since = since or max(spoke, default=now)
        if now - silent_since > policy.heartbeat_timeout:
            left.add(broker)
        else:
            known[broker] = silent_since
    return Brokers(known=known, left=frozenset(left))


def is_overdue(deadline: datetime | None, *, now: datetime) -> bool:
    """Whether a workflow's deadline has passed: then nothing begins any more but what that sets off."""
    return deadline is not None and deadline <= now

"""What goes in and comes out of the statements: frozen, and free of SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core.canonical import Json, load
from ..core.chain import Link
from ..core.machine import Edge, Pending, WaitingEvent
from ..core.starting import Attribute


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """What the row says is to come: what a state waits for, or what was waited for before a pause."""

    name: str | None
    accepts: tuple[str, ...]
    timer_at: datetime | None
    queue: str | None
    event_queue: str | None
    """Where to ring if there is an event for it already."""

    @classmethod
    def of(cls, pending: Pending) -> Following:
        """Return what a state that was just entered waits for."""
        edge = pending.following
        return cls(
            name=None if edge is None else edge.name,
            accepts=pending.accepts,
            timer_at=pending.timer_at,
            queue=None if edge is None else edge.queue,
            event_queue=pending.event_queue,
        )

    @property
    def at_once(self) -> bool:
        """Whether it is an automatic transition, that waits for nothing."""
        return self.name is not None and self.timer_at is None

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self.name is None and not self.accepts


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a workflow is, and the two numbers that a write must match: ``seq`` and ``claim``."""

    workflow_id: str
    type: str
    version: int
    definition: str
    state: str
    seq: int
    head: bytes
    claim: int
    attempt: int
    moved_at: datetime
    entered_at: datetime
    following: Following
    inbox: int
    pausing: Mapping[str, Any] | None
    entered_seq: int
    checkpoint_number: int
    home_queue: str | None = None
    priority: int = 0
    deadline: datetime | None = None
    checkpoint_on_transition: bool = True

    def queue_of(self, edge: Edge | None) -> str | None:
        """Return where a transition of this workflow runs: on its own queue, or else the workflow's."""
        return self.home_queue if edge is None or edge.queue is None else edge.queue


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The newest data of a workflow; ``number`` counts the checkpoints since its last transition."""

    body: bytes
    number: int
    salt: bytes
    commitment: bytes
    mac: bytes | None = None
    """Of one that is made inside a handler: its code, where there is a key."""
    mac_key: str | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The workflow's own data."""
        members: Any = load(self.body)
        state: dict[str, Any] = members["state"]
        return state


@dataclass(frozen=True, kw_only=True, slots=True)
class Hand:
    """Who claims: a worker, and the process and thread in it. One hand holds one workflow at a time."""

    worker: str
    pid: int
    thread: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A workflow in our hands; ``now`` is the database's time of the claim.

    ``snapshot`` is None, or older than ``position`` says, where the claim had to wait for somebody
    who wrote a checkpoint: its row is the newest, but it sees the other tables as they were before.
    """

    position: Position
    now: datetime
    snapshot: Snapshot | None
    event: WaitingEvent | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One transition, and the row as it is to be after it. ``status`` None: as ``following`` says."""

    link: Link
    claim: int
    version: int
    following: Following
    entered_at: datetime
    entered_seq: int
    status: str | None = None
    event_id: int | None = None
    steered_by: str | None = None
    """Who sent the event that it took; None leaves who it was before."""
    error: Mapping[str, Any] | None = None
    priority: int = 0
    deadline_met: bool = False
    """Whether it is what the workflow's deadline set off."""
    attributes: Mapping[str, Attribute] | None = None
    """What the workflow can be found by from now on; None: as before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What a commit left behind; ``ready`` says that the workflow wants to be rung now."""

    workflow_id: str
    seq: int
    ready: bool
    queue: str | None


@dataclass(frozen=True, kw_only=True)
class WorkflowSummary:
    """One workflow's row, as people and programs read it."""

    id: str
    type: str
    version: int
    state: str
    status: str
    seq: int
    following: str | None
    accepts: tuple[str, ...]
    attempt: int
    worker: str | None
    """The worker that has it in hand now."""
    inbox: int
    """How many events were received and not taken yet."""
    pausing: Mapping[str, Any] | None
    """Who asked for a pause, and why, that comes after the handler that runs now."""
    timer_at: datetime | None
    ready_at: datetime | None
    due_at: datetime | None
    priority: int
    """0 to 9: what has more goes first."""
    queue: str | None
    """Where its transitions run that name no queue of their own; None: on the deployment's."""
    attributes: Mapping[str, Any]
    """What it can be found by."""
    deadline: datetime | None
    """When it has to have ended."""
    singleton: str | None
    """The key that no other of its type can have until it has ended."""
    entered_at: datetime
    """When the state was entered; of a delayed start, when it begins."""
    error: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime

    @property
    def begins_at(self) -> datetime | None:
        """When a delayed start begins; None: it was not delayed, or has begun."""
        waits = self.seq == 0 and not self.attempt and self.status in {"pending", "paused"}
        return self.entered_at if waits and self.entered_at > self.created_at else None

    @property
    def running(self) -> bool:
        """Whether a handler runs now."""
        return self.worker is not None


@dataclass(frozen=True, kw_only=True)
class WorkflowTransition:
    """One link of a workflow's audit chain."""

    workflow_id: str
    seq: int
    event: str
    from_state: str | None
    to_state: str
    actor: str
    attempt: int
    at: datetime
    hash: str
    prev: str
    payload: Json


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A hashed snapshot of a workflow's data."""

    workflow_id: str
    seq: int
    number: int
    kind: str
    commitment: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a handler did to the outside world, or meant to; ``seq`` is that of its ``ctx.key``."""

    workflow_id: str
    seq: int
    name: str
    transition: str | None
    """The handler that asked for it; None: a person has said how it went."""
    status: str
    """``begun``, ``done``, ``not done`` or ``in doubt``."""
    key: str
    """The idempotency key that the outside world was given."""
    claim: int
    attempt: int
    actor: str
    result: Json
    """What came of it, once it is done."""
    error: Mapping[str, Any] | None
    resolved_by: str | None
    """The person who said how it went, and why."""
    reason: str | None
    begun_at: datetime
    ended_at: datetime | None

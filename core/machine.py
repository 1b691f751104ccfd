"""The state machine of a workflow type: its edges, and what may follow what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from .canonical import Json, canonical
from .retry import Retry


class Kind(StrEnum):
    """What sets a transition off."""

    AUTOMATIC = "automatic"
    EVENT = "event"
    TIMER = "timer"
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One declared transition: from any of ``sources``, by its handler, to one of ``targets``."""

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    on: str | None = None
    after: timedelta | None = None
    retry: Retry = field(default_factory=Retry)
    timeout: float | None = None
    queue: str | None = None
    transactional: bool = False
    deadline: bool = False
    """Whether it is what the passing of the workflow's deadline sets off."""
    buffer: bool = True
    """Whether the event is kept where it comes before a state that takes it."""
    guard: Callable[..., object] | None = None
    """What says whether the edge may be taken now; None: it always may."""
    approvals: int = 1
    """How many different senders have to send the event."""
    four_eyes: bool = False
    """Whether whoever moved the workflow on before may not send the event."""
    give_up: str | None = None
    """The state that it leads to where its handler failed for good."""

    @property
    def kind(self) -> Kind:
        """Return what sets this transition off."""
        if self.deadline:
            return Kind.DEADLINE
        if self.on is not None:
            return Kind.EVENT
        return Kind.AUTOMATIC if self.after is None else Kind.TIMER


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What a workflow waits for in the state it is in.

    Exactly one of these holds: ``automatic`` is set; or events or a timer can move it; or, with
    nothing set, the state is final.
    """

    automatic: Edge | None = None
    alternatives: tuple[Edge, ...] = ()
    """Further automatic edges, each for the case that the guards of those before it say no."""
    accepts: tuple[str, ...] = ()
    event_queue: str | None = None
    """The queue of the events' transitions; None: the default one, or not the same for all of them."""
    timer: Edge | None = None
    timer_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self.automatic is None and self.timer is None and not self.accepts

    @property
    def following(self) -> Edge | None:
        """Return the edge that will run if no event comes."""
        return self.automatic or self.timer


@dataclass(frozen=True, kw_only=True)
class WaitingEvent:
    """An event that was received and not consumed yet; ``payload`` is its canonical bytes."""

    id: int
    name: str
    key: str
    sender: str
    payload: bytes
    received_at: datetime
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A workflow type as a state machine. ``states`` are in the order of their declaration."""

    type: str
    version: int
    states: tuple[str, ...]
    initial: str
    edges: tuple[Edge, ...]
    upgrades: tuple[int, ...] = ()
    """The older versions whose data the class can bring to its own."""

    def reads(self, version: int) -> bool:
        """Whether data of that version is its own, or can be brought to it."""
        return version == self.version or version in self.upgrades

    def leaving(self, state: str) -> tuple[Edge, ...]:
        """Return the edges out of a state, in the order of their declaration."""
        return tuple(edge for edge in self.edges if state in edge.sources)

    def pending(self, state: str, *, entered_at: datetime) -> Pending:
        """Return what a workflow that entered ``state`` at that time waits for."""
        leaving = self.leaving(state)
        queues = {edge.queue for edge in leaving if edge.on is not None}
        timer = self.timer_of(state)
        automatic = tuple(edge for edge in leaving if edge.kind is Kind.AUTOMATIC)
        return Pending(
            automatic=automatic[0] if automatic else None,
            alternatives=automatic[1:],
            accepts=tuple(dict.fromkeys(edge.on for edge in leaving if edge.on is not None)),
            event_queue=queues.pop() if len(queues) == 1 else None,
            timer=timer,
            timer_at=None if timer is None or timer.after is None else entered_at + timer.after,
        )

    def timer_of(self, state: str) -> Edge | None:
        """Return the edge whose time runs out first in that state."""
        timers = [edge for edge in self.leaving(state) if edge.after is not None]
        return min(timers, key=lambda edge: edge.after or timedelta.max) if timers else None

    def runs_at_once(self, state: str) -> bool:
        """Whether something leaves the state as soon as it is entered."""
        return any(edge.kind is Kind.AUTOMATIC for edge in self.leaving(state))

    def at_deadline(self, state: str) -> Edge | None:
        """Return the edge that is taken when the workflow's deadline passes in that state."""
        return next((edge for edge in self.leaving(state) if edge.deadline), None)

    def on_event(self, state: str, event: str) -> tuple[Edge, ...]:
        """Return the edges that the event can take in that state, in the order of their declaration."""
        return tuple(edge for edge in self.leaving(state) if edge.on == event)

    def choose(self, state: str, pending: Pending, event: WaitingEvent | None, *, now: datetime) -> tuple[Edge, ...]:
        """Return the edges of which the first whose guard says yes is taken now; none: there is nothing to do yet.

        An event that came before the timer ran out goes first, however late it is handled.
        """
        if pending.automatic is not None:
            return (pending.automatic, *pending.alternatives)
        ran_out = pending.timer_at is not None and pending.timer_at <= now
        if event is not None and not (ran_out and pending.timer_at and event.received_at > pending.timer_at):
            return self.on_event(state, event.name)
        return (pending.timer,) if ran_out and pending.timer is not None else ()

    def events(self) -> tuple[str, ...]:
        """Return every event that some state accepts."""
        return tuple(dict.fromkeys(edge.on for edge in self.edges if edge.on is not None))

    def accepting(self, event: str) -> tuple[str, ...]:
        """Return the states that accept the event, in the order of their declaration."""
        return tuple(state for state in self.states if self.on_event(state, event))

    def keeps(self, event: str) -> bool:
        """Whether the event is kept until a state accepts it; the edges that it can take agree on that."""
        return all(edge.buffer for edge in self.edges if edge.on == event)

    @cached_property
    def fingerprint(self) -> str:
        """Return ``sha256:`` and the hash of the machine: its states and edges, not its tuning."""
        body = canonical(
            {
                "type": self.type,
                "version": self.version,
                "states": list(self.states),
                "initial": self.initial,
                "transitions": [
                    {
                        "name": edge.name,
                        "from": list(edge.sources),
                        "to": list(edge.targets),
                        "on": edge.on,
                        "after": None if edge.after is None else f"{edge.after.total_seconds():.6f}",
                        **_rules_of(edge),
                    }
                    for edge in self.edges
                ],
            }
        )
        return "sha256:" + hashlib.sha256(body).hexdigest()

    def diagram(self) -> str:
        """Return the machine as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial}"]
        for edge in self.edges:
            label = {
                Kind.AUTOMATIC: edge.name,
                Kind.EVENT: f"{edge.name} on {edge.on}",
                Kind.TIMER: f"{edge.name} after {edge.after}",
                Kind.DEADLINE: f"{edge.name} at the deadline",
            }[edge.kind]
            label += "" if edge.guard is None else " [guarded]"
            label += "" if edge.approvals == 1 else f" ({edge.approvals} approvals)"
            lines += [f"    {source} --> {target}: {label}" for source in edge.sources for target in edge.targets]
            if edge.give_up is not None:
                lines += [f"    {source} --> {edge.give_up}: {edge.name} gave up" for source in edge.sources]
        lines += [f"    {state} --> [*]" for state in self.states if not self.leaving(state)]
        return "\n".join(lines)


def _rules_of(edge: Edge) -> dict[str, Json]:
    """Return what an edge declares beyond states and triggers: nothing where it declares nothing.

    So machines that do without have the fingerprint that they always had.
    """
    rules: dict[str, Json] = {
        "deadline": edge.deadline,
        "buffer": edge.buffer,
        "guard": edge.guard is not None,
        "approvals": edge.approvals,
        "four_eyes": edge.four_eyes,
        "give_up": edge.give_up,
    }
    without: dict[str, Json] = {
        "deadline": False,
        "buffer": True,
        "guard": False,
        "approvals": 1,
        "four_eyes": False,
        "give_up": None,
    }
    return {name: value for name, value in rules.items() if value != without[name]}

"""The state machine of a workflow type: its edges, what may follow what, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar

from .canonical import Json, canonical
from .chain import ENGINE_EVENTS
from .errors import DefinitionError
from .retry import Retry

MAX_NAME: Final = 128
# A century: far enough, and far below where a date would overflow.
LONGEST_TIMER: Final = timedelta(days=36_525)
LONGEST_TIMEOUT: Final = 366 * 86_400
MOST_APPROVALS: Final = 100

T = TypeVar("T")


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
        timers = [edge for edge in leaving if edge.after is not None]
        timer = min(timers, key=lambda edge: edge.after or timedelta.max) if timers else None
        automatic = tuple(edge for edge in leaving if edge.kind is Kind.AUTOMATIC)
        return Pending(
            automatic=automatic[0] if automatic else None,
            alternatives=automatic[1:],
            accepts=tuple(dict.fromkeys(edge.on for edge in leaving if edge.on is not None)),
            event_queue=queues.pop() if len(queues) == 1 else None,
            timer=timer,
            timer_at=None if timer is None or timer.after is None else entered_at + timer.after,
        )

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


def check(definition: Definition) -> None:
    """Refuse a machine that cannot work.

    Raises:
        DefinitionError: names the class, the method and the remedy.

    """
    for problem in _problems(definition):
        raise problem


def _problems(definition: Definition) -> Iterator[DefinitionError]:
    """Yield what is wrong, the most basic first: later checks may rely on earlier ones."""
    if not definition.edges:
        yield DefinitionError(
            definition.type, None, "it declares no transition", "declare at least one with @transition(source, target)"
        )
    for edge in definition.edges:
        yield from _edge_problems(definition, edge)
    yield from _buffer_problems(definition)
    for state in definition.states:
        yield from _state_problems(definition, state)
    yield from _reachability_problems(definition)


_Rule: TypeAlias = tuple[Callable[[Edge], bool], str, str]

# What must not be true of an edge, what to say of it, and what to do. ``{edge}`` is the edge.
_EDGE_RULES: Final[tuple[_Rule, ...]] = (
    (
        lambda edge: edge.name in ENGINE_EVENTS,
        "the engine itself uses this name in the history",
        "call the method something else",
    ),
    (
        lambda edge: not edge.sources or not edge.targets,
        "it has no source or no target",
        "give at least one state for each",
    ),
    (
        lambda edge: bool(_twice(edge.sources) or _twice(edge.targets)),
        "a source or a target is named twice",
        "name each state once",
    ),
    (
        lambda edge: edge.on is not None and edge.after is not None,
        "it has both on= and after=",
        "declare one transition for the event and one for the timer",
    ),
    (
        lambda edge: edge.deadline and (edge.on is not None or edge.after is not None),
        "it has deadline=True, and on= or after= beside it",
        "declare one transition for the deadline and one for the other",
    ),
    (
        lambda edge: edge.on is not None and not (edge.on.isidentifier() and len(edge.on) <= MAX_NAME),
        "{edge.on!r} is not a name for an event",
        "use letters, digits and underscores",
    ),
    (
        lambda edge: edge.after is not None and edge.after <= timedelta(0),
        "after={edge.after} is not in the future",
        "give a positive timedelta, or leave it out",
    ),
    (
        lambda edge: edge.after is not None and edge.after > LONGEST_TIMER,
        "after={edge.after} is longer than a timer may be",
        f"give at most {LONGEST_TIMER.days} days",
    ),
    (
        lambda edge: edge.timeout is not None and edge.timeout <= 0,
        "timeout={edge.timeout} would end it before it began",
        "give seconds above 0, or leave it out",
    ),
    (
        lambda edge: edge.timeout is not None and not edge.timeout <= LONGEST_TIMEOUT,
        "timeout={edge.timeout} is no time that one attempt could take",
        f"give at most {LONGEST_TIMEOUT} seconds, or leave it out",
    ),
    (
        lambda edge: edge.queue is not None and not is_queue_name(edge.queue),
        "{edge.queue!r} is not a name for a queue",
        "use letters, digits, '.', '_' and '-'",
    ),
    (
        lambda edge: edge.guard is not None and (edge.after is not None or edge.deadline),
        "a timer has no guard, and a deadline has none",
        "let its handler return one of several targets",
    ),
    (
        lambda edge: edge.on is None and not (edge.buffer and edge.approvals == 1 and not edge.four_eyes),
        "buffer=, approvals= and four_eyes= are about an event, and it waits for none",
        "add on=..., or leave them out",
    ),
    (
        lambda edge: not 1 <= edge.approvals <= MOST_APPROVALS,
        "approvals={edge.approvals} are none that could be given",
        f"give a whole number from 1 to {MOST_APPROVALS}",
    ),
    (
        lambda edge: edge.kind is Kind.AUTOMATIC and edge.give_up in edge.sources,
        "where it gives up, give_up={edge.give_up!r} would begin it again, for ever",
        "name another state, or raise max_attempts",
    ),
)


def _edge_problems(definition: Definition, edge: Edge) -> Iterator[DefinitionError]:
    for is_wrong, problem, remedy in _EDGE_RULES:
        if is_wrong(edge):
            yield DefinitionError(definition.type, edge.name, problem.format(edge=edge), remedy)


def is_queue_name(name: str) -> bool:
    """Whether a queue may be called that: what every broker, URL and shell takes as it is."""
    return 0 < len(name) <= MAX_NAME and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def _buffer_problems(definition: Definition) -> Iterator[DefinitionError]:
    for event in definition.events():
        edges = [edge for edge in definition.edges if edge.on == event]
        for edge in edges[1:]:
            if edge.buffer is not edges[0].buffer:
                yield DefinitionError(
                    definition.type,
                    edge.name,
                    f"buffer={edge.buffer} for {event!r}, which is buffer={edges[0].buffer} for {edges[0].name}",
                    "say the same for all transitions on one event",
                )


def _state_problems(definition: Definition, state: str) -> Iterator[DefinitionError]:
    leaving = definition.leaving(state)
    automatic = [edge for edge in leaving if edge.kind is Kind.AUTOMATIC]
    for before, edge in pairwise(automatic):
        if before.guard is None:
            yield DefinitionError(
                definition.type,
                edge.name,
                f"state {state!r} already has the automatic transition {before.name}",
                "give all but the last of them guard=, or make it one transition with several targets",
            )
    if automatic and automatic[-1].guard is not None:
        yield DefinitionError(
            definition.type,
            automatic[-1].name,
            f"state {state!r} would never be left where every guard says no",
            "leave out guard= on the last automatic transition of a state",
        )
    waiting = [edge for edge in leaving if not edge.deadline]
    if automatic and len(waiting) > len(automatic):
        idle = next(edge for edge in waiting if edge not in automatic)
        yield DefinitionError(
            definition.type,
            idle.name,
            f"state {state!r} is left at once by {automatic[0].name}, so this could never run",
            "let it start from a state that waits",
        )
    for event in dict.fromkeys(edge.on for edge in leaving if edge.on is not None):
        for before, edge in pairwise(definition.on_event(state, event)):
            if before.guard is None:
                yield DefinitionError(
                    definition.type,
                    edge.name,
                    f"state {state!r} already has a transition on {event!r}: {before.name}, without a guard",
                    "give all but the last of them guard=, or keep one, with several targets if need be",
                )
    for after in _twice(edge.after for edge in leaving if edge.after is not None):
        second = [edge for edge in leaving if edge.after == after][1]
        yield DefinitionError(
            definition.type,
            second.name,
            f"state {state!r} already has a timer after {after}",
            "keep one of the two",
        )
    yield from _deadline_problems(definition, state, [edge for edge in leaving if edge.deadline], waiting)


def _deadline_problems(
    definition: Definition, state: str, at_deadline: list[Edge], waiting: list[Edge]
) -> Iterator[DefinitionError]:
    if len(at_deadline) > 1:
        yield DefinitionError(
            definition.type,
            at_deadline[1].name,
            f"state {state!r} already has {at_deadline[0].name} for the deadline",
            "keep one of the two",
        )
    if at_deadline and not waiting:
        yield DefinitionError(
            definition.type,
            at_deadline[0].name,
            f"nothing but the deadline leaves state {state!r}, and a workflow may have none",
            "give the state another way out, or let this start from a state that has one",
        )


def _reachability_problems(definition: Definition) -> Iterator[DefinitionError]:
    reached = _closure({definition.initial}, {s: _targets(definition.leaving(s)) for s in definition.states})
    for state in definition.states:
        if state not in reached:
            yield DefinitionError(
                definition.type,
                None,
                f"state {state!r} cannot be reached from {definition.initial!r}",
                "add a transition to it, or remove the state",
            )
    # Backwards from every state that ends or waits: whoever is not met runs on by itself for ever.
    resting = {
        state
        for state in definition.states
        if not any(edge.kind is Kind.AUTOMATIC for edge in definition.leaving(state))
    }
    sources: dict[str, set[str]] = {state: set() for state in definition.states}
    for edge in definition.edges:
        for target in _targets([edge]):
            sources[target].update(edge.sources)
    resting = _closure(resting, sources)
    for state in definition.states:
        if state not in resting:
            yield DefinitionError(
                definition.type,
                definition.leaving(state)[0].name,
                f"from state {state!r} automatic transitions follow each other for ever",
                "let one of them lead to a state that ends, or that waits for an event or a timer",
            )


def _targets(edges: Iterable[Edge]) -> set[str]:
    return {target for edge in edges for target in (*edge.targets, edge.give_up) if target is not None}


def _closure(start: set[str], steps: Mapping[str, set[str]]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for state in steps[todo.pop()] - seen:
            seen.add(state)
            todo.append(state)
    return seen


def _twice(values: Iterable[T]) -> list[T]:
    listed = list(values)
    return [value for index, value in enumerate(listed) if value in listed[:index]]

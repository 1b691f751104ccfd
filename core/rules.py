"""The rules of a machine: what keeps one from working, said with the class, the method and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar

from .chain import ENGINE_EVENTS
from .errors import DefinitionError
from .machine import Definition, Edge, Kind
from .names import MAX_NAME, is_queue_name

# A century: far enough, and far below where a date would overflow.
LONGEST_TIMER: Final = timedelta(days=36_525)
LONGEST_TIMEOUT: Final = 366 * 86_400
MOST_APPROVALS: Final = 100

T = TypeVar("T")


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

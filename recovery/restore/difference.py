"""What a copy has not: compared with the live database, where it answers, and with what was anchored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ...core.anchor import Entry, Replay, log_name
from ...core.effect import Status
from ...persistence import log as logs
from ...persistence import lost
from ...persistence.auditor import Sources
from ...persistence.database import Database
from ...persistence.lost import Outside, Sent
from ...persistence.schema import deployment_name

_SHOWN: Final = 10
_MOST_EVENTS: Final = 1000
_MOST_ABSENT: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What would be lost, or was; of one source: ``live``, or the name of a place of anchors."""

    source: str
    transitions: int
    workflows: int
    """That many workflows are behind, or not there at all."""
    gone: int
    """That many of them are not there at all: who started them has to start them again."""
    examples: tuple[str, ...]
    behind: tuple[str, ...] = ()
    """The workflows that are there and were further: what they did since, the outside world has seen."""
    absent: tuple[str, ...] = ()
    """The first of the workflows that are not there at all."""
    through: Mapping[str, int] = field(default_factory=dict)
    """Of each of these the seq, as effects count, up to which something may have been done outside."""
    effects: tuple[Outside, ...] = ()
    """What was done outside after the point, or may have been; also of workflows that are not there at all."""
    events: int = 0
    sent: tuple[Sent, ...] = ()
    """The events that came after the point; their senders can send them again."""


def with_live(copy: Database, live: Database) -> Difference:
    """Compare a copy with the live database."""
    with copy.snapshot() as ours, live.snapshot() as theirs:
        events, sent = lost.events_after(theirs, lost.newest_events(ours), _MOST_EVENTS)
        found = _tell("live", _behind(lost.positions(ours), lost.furthest(theirs)))
        done = tuple(_done_since(lost.effects(ours), lost.effects(theirs)))
        there = lost.there(ours, sorted({one.workflow_id for one in done}))
    through = dict(found.through)
    for one in done:
        # A handler that was at work when everything ended has left no transition, only what it did.
        if one.workflow_id in there:
            through[one.workflow_id] = max(one.seq, through.get(one.workflow_id, -1))
    return replace(found, events=events, sent=tuple(sent), effects=done, behind=tuple(through), through=through)


def _done_since(ours: Iterator[Outside], theirs: Iterator[Outside]) -> Iterator[Outside]:
    """Merge two lists by their places; yield what the second knows to have been done, or begun, and the first not."""
    mine = next(ours, None)
    for one in theirs:
        while mine is not None and _place(mine) < _place(one):
            mine = next(ours, None)
        here = mine.status if mine is not None and _place(mine) == _place(one) else Status.NOT_DONE.value
        if one.status in _SINCE.get(here, ()):
            yield one


def _place(one: Outside) -> tuple[bytes, int, bytes]:
    return one.workflow_id.encode(), one.seq, one.name.encode()


# What is news of an effect, by what is known of it here.
_SINCE: Final = {
    Status.NOT_DONE.value: (Status.BEGUN.value, Status.DONE.value, Status.IN_DOUBT.value),
    Status.BEGUN.value: (Status.DONE.value, Status.IN_DOUBT.value),
    Status.IN_DOUBT.value: (Status.DONE.value,),
}


def _behind(ours: Iterator[tuple[str, int]], theirs: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int, int]]:
    """Merge two lists by their ids; yield what is further in the second: its id, and where it is in each."""
    mine = next(ours, None)
    for workflow_id, seq in theirs:
        while mine is not None and mine[0].encode() < workflow_id.encode():
            mine = next(ours, None)
        here = mine[1] if mine is not None and mine[0] == workflow_id else -1
        if seq > here:
            yield workflow_id, here, seq


def with_anchors(copy: Database, known: Sources) -> list[Difference]:
    """Compare a copy with what was anchored, at each place."""
    # The handler that came after what was anchored may have been at work.
    return [_tell(found.source, _spans(gone(copy, found)), beside=1) for found in beyond(copy, known)]


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What a place of anchors has beyond the end of the log, with its places there."""

    source: str
    entries: Sequence[tuple[int, Entry]] = ()
    size: int
    """How long the log is in the database."""
    root: bytes
    """The root that it would have by these anchors, were it what they are of."""


def beyond(copy: Database, known: Sources) -> Iterator[Beyond]:
    """Yield of each place of anchors what it has beyond the end of the log.

    Raises:
        SinkUnavailable: a place cannot be read.

    """
    with copy.snapshot() as connection:
        name, size = log_name(deployment_name(connection)), logs.state(connection).size
    for sink in known.sinks:
        found: list[tuple[int, Entry]] = []
        replay = Replay(known.trusted, name)
        root = replay.root
        for place, entry in replay.entries(sink.anchors()):
            if place >= size:
                found.append((place, entry))
            elif replay.size == size:
                root = replay.root
        # What no trusted key signed says nothing of what was lost.
        signed = 0 if replay.head is None else replay.head.size
        entries = [(place, entry) for place, entry in found if place < signed]
        yield Beyond(source=sink.name, entries=entries, size=size, root=root)


def gone(copy: Database, found: Beyond) -> list[tuple[int, Entry]]:
    """Return what of that the database has not: transitions may be there, and only their places in the log are not."""
    with copy.snapshot() as connection:
        return lost.missing(connection, found.entries)


def _spans(entries: Sequence[tuple[int, Entry]]) -> Iterator[tuple[str, int, int]]:
    ends: dict[str, tuple[int, int]] = {}
    for _, entry in entries:
        first, last = ends.get(entry.workflow_id, (entry.seq, entry.seq))
        ends[entry.workflow_id] = (min(first, entry.seq), max(last, entry.seq))
    for workflow_id, (first, last) in sorted(ends.items()):
        yield workflow_id, first - 1, last


def _tell(source: str, found: Iterator[tuple[str, int, int]], *, beside: int = 0) -> Difference:
    transitions = workflows = gone = 0
    examples: list[str] = []
    through: dict[str, int] = {}
    absent: list[str] = []
    for workflow_id, here, there in found:
        transitions += there - here
        workflows += 1
        if here < 0:
            gone += 1
            if len(absent) < _MOST_ABSENT:
                absent.append(workflow_id)
        else:
            through[workflow_id] = there + beside
        if len(examples) < _SHOWN:
            span = f"{here + 1}" if there == here + 1 else f"{here + 1} to {there}"
            examples.append(f"{workflow_id}: all of it" if here < 0 else f"{workflow_id}: transition {span}")
    return Difference(
        source=source,
        transitions=transitions,
        workflows=workflows,
        gone=gone,
        examples=tuple(examples),
        behind=tuple(through),
        absent=tuple(absent),
        through=through,
    )

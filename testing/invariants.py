"""The checker: what must hold in every final history, whatever was done to the system before.

I1   each workflow's seq is dense, each once
I2   every chain verifies
I3   each committed transition's effect ran at least once, by the attempt that won
I4   no effect of transition n before one of n-1 by the attempt that won
I5   every accepted workflow ended, waits for its event, or waits for a person
I6   whatever a client was told is accepted is in the database, or was purged from it
I7   the row is the fold of its transitions
I8   the hash of every checkpoint and payload recomputes
I9   attempts stay within their limit
I10  nothing stays claimed, nothing stays due

It reads the database and a ledger kept outside of it, and changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..core.chain import ENGINE_EVENTS
from ..core.errors import HistoryBroken, WorkflowNotFound
from ..core.finding import Code, Finding
from ..core.names import SYSTEM
from ..persistence import audit, history
from ..persistence.database import Connection, Database, now
from ..persistence.records import WorkflowSummary, WorkflowTransition
from .ledger import ACCEPTED, EFFECT, Entry

_PAGE: Final = 1000
# Which invariant a finding of the chain's verification breaks; whatever is not here is I2.
_OF_CODE: Final[Mapping[Code, str]] = {
    Code.SEQ_GAP: "I1",
    Code.SEQ_DUPLICATE: "I1",
    Code.ROW_STATE_MISMATCH: "I7",
    Code.HEAD_MISMATCH: "I7",
    Code.CHECKPOINT_MISMATCH: "I8",
    Code.PAYLOAD_MISMATCH: "I8",
}
_AT_REST: Final = frozenset({"completed", "failed", "cancelled", "quarantined", "paused"})


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An invariant that does not hold."""

    invariant: str
    workflow_id: str
    seq: int | None
    problem: str

    def __str__(self) -> str:
        """Return one line."""
        place = self.workflow_id if self.seq is None else f"{self.workflow_id} at {self.seq}"
        return f"{self.invariant} {place}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the checker cannot know by itself.

    ``max_attempts`` by the name of a transition; ``silent`` are transitions whose handlers leave
    nothing in the ledger.
    """

    max_attempts: Mapping[str, int]
    silent: Collection[str] = ()


def check(database: Database, entries: Sequence[Entry], rules: Rules, *, prefix: str = "") -> list[Violation]:
    """Return every violation in the workflows whose id begins with ``prefix``; call it when none of them moves."""
    with database.snapshot() as connection:
        moment = now(connection)
        rows = {row.id: row for row in _all_rows(connection) if row.id.startswith(prefix)}
        there = rows.keys() | history.purged_ids(connection)
        found = list(_unknown_to_the_database(there, entries))
        found += _system_chain(connection)
        effects: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.kind == EFFECT:
                effects[entry.workflow_id].append(entry)
        for row in rows.values():
            found += _at_rest(row, moment)
            found += [_of_finding(finding) for finding in audit.alone(connection, row.id)]
            try:
                links = history.transitions(connection, row.id)
            except WorkflowNotFound:
                found.append(_violation("I1", row.id, 0, "none of its transitions is there"))
                continue
            except HistoryBroken:
                continue  # what cannot be read was just found broken
            found += _effects(row, links, effects[row.id], rules)
            found += _attempts(row, links, effects[row.id], rules)
    return found


def _all_rows(connection: Connection) -> Iterator[WorkflowSummary]:
    before = None
    while page := history.summaries(connection, before=before, limit=_PAGE):
        yield from page
        before = (page[-1].created_at, page[-1].id)


def _system_chain(connection: Connection) -> Iterator[Violation]:
    """Verify the records of what was removed on purpose, where anything was."""
    with suppress(WorkflowNotFound):
        yield from map(_of_finding, audit.alone(connection, SYSTEM))


def _unknown_to_the_database(there: Collection[str], entries: Sequence[Entry]) -> Iterator[Violation]:
    for entry in entries:
        if entry.workflow_id not in there:
            told = "accepted" if entry.kind == ACCEPTED else "the effect of one that is"
            yield _violation("I6", entry.workflow_id, None, f"a client was told {told} not in the database")


def _at_rest(row: WorkflowSummary, moment: datetime) -> Iterator[Violation]:
    waits = row.status == "waiting" and (row.accepts or row.timer_at is not None or row.deadline is not None)
    if row.status not in _AT_REST and not waits:
        yield _violation("I5", row.id, row.seq, f"it is {row.status} and neither ended nor waits for anything")
    if row.worker is not None:
        yield _violation("I10", row.id, row.seq, f"it stays claimed by {row.worker}")
    if row.due_at is not None and (row.due_at <= moment or (row.timer_at is None and row.deadline is None)):
        yield _violation("I10", row.id, row.seq, "it stays due")


def _of_finding(finding: Finding) -> Violation:
    return _violation(_OF_CODE.get(finding.code, "I2"), str(finding.workflow_id), finding.seq, str(finding))


def _effects(
    row: WorkflowSummary, links: Sequence[WorkflowTransition], effects: Sequence[Entry], rules: Rules
) -> Iterator[Violation]:
    """Check I3 and I4: that effects and transitions belong together, and are in one order."""
    first: dict[int, int] = {}
    won: dict[int, int] = {}
    winners = {link.seq: link.attempt for link in links if _has_effect(link, rules)}
    for place, effect in enumerate(effects):
        first.setdefault(effect.seq, place)
        if winners.get(effect.seq) == effect.attempt:
            won.setdefault(effect.seq, place)
    for link in links:
        if not _has_effect(link, rules):
            continue
        if link.seq not in won:
            yield _violation(
                "I3", row.id, link.seq, f"{link.event} is recorded, but attempt {link.attempt} had no effect"
            )
        following = first.get(link.seq + 1)
        if following is not None and following < won.get(link.seq, following + 1):
            yield _violation("I4", row.id, link.seq + 1, f"it had an effect before {link.event} was recorded")
    for seq in first:
        if seq > row.seq + 1:
            yield _violation("I4", row.id, seq, f"it had an effect, but the workflow is only at {row.seq}")


def _attempts(
    row: WorkflowSummary, links: Sequence[WorkflowTransition], effects: Sequence[Entry], rules: Rules
) -> Iterator[Violation]:
    for link in links:
        most = rules.max_attempts.get(link.event)
        if most is not None and link.attempt > most:
            yield _violation("I9", row.id, link.seq, f"{link.event} took {link.attempt} attempts of {most}")
    tried = Counter((effect.seq, effect.name) for effect in effects)
    for (seq, name), count in tried.items():
        # An effect is had at most once an attempt; attempts begin anew after `aegis retry`.
        most = rules.max_attempts.get(name)
        if most is not None and count > most:
            yield _violation("I9", row.id, seq, f"{name} had its effect {count} times in {most} attempts")


def _has_effect(link: WorkflowTransition, rules: Rules) -> bool:
    return link.event not in ENGINE_EVENTS and link.event not in rules.silent


def _violation(invariant: str, workflow_id: str, seq: int | None, problem: str) -> Violation:
    return Violation(invariant=invariant, workflow_id=workflow_id, seq=seq, problem=problem)

"""Reconciling: what the outside world has seen and the database no longer knows, and the word that this is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..config.settings import Settings
from ..core.anchor import Entry
from ..core.errors import RestoreFailed
from ..core.names import RECOVERY
from ..persistence import log as logs
from ..persistence import lost, operations, records, watch
from ..persistence.database import Database
from ..tasks.scrub import sources
from .restore import difference
from .restore.difference import Beyond
from .restore.epoch import terms

_MOST_EFFECTS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What is gone of one workflow: transitions that were anchored; ``whole``: nothing of it is left."""

    workflow_id: str
    seqs: tuple[int, ...]
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Something that was done outside, or was not: nobody here knows."""

    workflow_id: str
    seq: int
    name: str
    key: str
    status: str
    told: str | None
    """What the database of before had of it, or what went wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """What is open after a recovery; ``record`` is the statement about it, once it was accepted."""

    epoch: int
    lost: Sequence[Lost]
    unplaced: int
    """So many transitions were anchored and are there, but the log that they had a place in ends before it."""
    effects: Sequence[Effect]
    """The first of those of which nobody knows how they went."""
    unknown: int
    """How many of these there are."""
    paused: Sequence[str]
    """Workflows that had gone on after the point that was gone back to; they wait for a person."""
    record: int | None = None
    resumed: int = 0

    @property
    def transitions(self) -> int:
        """How many transitions are gone."""
        return sum(len(one.seqs) for one in self.lost)

    @property
    def is_done(self) -> bool:
        """Whether nothing is open."""
        return not self.paused and not self.unknown and (not self.is_short or self.record is not None)

    @property
    def is_short(self) -> bool:
        """Whether the log ends before what was anchored of it."""
        return bool(self.lost) or self.unplaced > 0


def look(settings: Settings, database: Database) -> Reconciliation:
    """Say what is open: what was anchored and is gone, effects in doubt, and what was paused.

    Raises:
        SinkUnavailable: a place of anchors cannot be read: what is gone is not known.

    """
    anchored = _beyond(settings, database)
    gone = [] if anchored is None else difference.gone(database, anchored)
    with database.snapshot() as connection:
        there = {workflow_id for workflow_id, _ in lost.positions(connection)}
        by_id: dict[str, list[int]] = {}
        for _, entry in gone:
            by_id.setdefault(entry.workflow_id, []).append(entry.seq)
        unknown, effects = lost.open_effects(connection, _MOST_EFFECTS)
        return Reconciliation(
            epoch=watch.current_epoch(connection),
            lost=[
                Lost(workflow_id=workflow_id, seqs=tuple(sorted(seqs)), whole=workflow_id not in there)
                for workflow_id, seqs in sorted(by_id.items())
            ],
            unplaced=0 if anchored is None else len(anchored.entries) - len(gone),
            effects=[_effect(one) for one in effects],
            unknown=unknown,
            paused=lost.stopped(connection, RECOVERY),
        )


def accept(settings: Settings, database: Database, reason: str, *, resume: bool) -> Reconciliation:
    """Put on record that exactly what is gone is known to be; with ``resume``, let what was paused run again.

    Where nothing is gone, and only the log is shorter than its anchors, the record says that.

    The record stands in the system's own chain, which is anchored like any other. The log goes on
    from where the anchors have it: they stay what they are, and everything else still alarms.

    Raises:
        RestoreFailed: the log has gone on already, with other entries than the anchors have.
        LogBroken: it grew at this moment; nothing was written.
        SinkUnavailable: a place of anchors cannot be read.

    """
    found = look(settings, database)
    used = terms(settings)
    record = None
    if found.is_short:
        entries = _continuation(settings, database)
        with database.transaction() as session:
            _, record = lost.accept(session, entries, reason, used)
    resumed = 0
    for workflow_id in found.paused if resume else ():
        with database.transaction() as session:
            operations.resume(session, workflow_id, reason, used)
        resumed += 1
    paused = [] if resume else found.paused
    return replace(found, paused=paused, record=record, resumed=resumed)


def _effect(one: records.Effect) -> Effect:
    lines = [] if one.error is None else str(one.error.get("message", "")).splitlines()
    return Effect(
        workflow_id=one.workflow_id,
        seq=one.seq,
        name=one.name,
        key=one.key,
        status=one.status,
        told=lines[0] if lines else None,
    )


def _beyond(settings: Settings, database: Database) -> Beyond | None:
    """Return what is anchored from the end of the log on, from the place of anchors that knows most."""
    return max(difference.beyond(database, sources(settings)), key=lambda found: len(found.entries), default=None)


def _continuation(settings: Settings, database: Database) -> Sequence[tuple[int, Entry]]:
    """Return the same, where it goes on from what the log has."""
    found = _beyond(settings, database)
    with database.snapshot() as connection:
        size = logs.state(connection).size
        goes_on = found is not None and found.entries and logs.Tree(connection).root(found.size) == found.root
    if found is None or not goes_on:
        problem = f"it has {size} entries, and the anchors do not go on from there"
        remedy = (
            "an older log was already added to: put the anchors aside, and begin with new ones (docs/how-to/backup.md)"
        )
        raise RestoreFailed("the log", problem, remedy)
    return found.entries

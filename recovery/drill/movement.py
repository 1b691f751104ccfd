"""Watching workflows move, from outside: each new place of each workflow, and when that happened and was seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ...config.logging import get_logger
from ...core.errors import DatabaseUnavailable
from ...persistence import observe
from ...persistence.database import Database, now
from ...persistence.observe import Sight
from .workload import DrillLong

log = get_logger(__name__)

_LOOK_EVERY: Final = 0.04
# Rows of transactions that were committed a little later than others of their time are still seen.
_OVERLAP: Final = timedelta(seconds=2)


Place = tuple[int, int]


def place(sight: Sight) -> Place:
    """Return what grows when a workflow gets on: its transitions; of a long handler, that it is in hand once more.

    To be taken in hand is not to get on: that is written without waiting for the disk or a standby, and a restore
    raises all its numbers.
    """
    return (sight.seq, sight.claim if sight.type == DrillLong.__name__ else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A workflow was seen further on than before; ``transitions`` is by how many, ``ended`` that it has no further.

    ``at`` is when it was seen. ``happened`` is when the database says that it came about: what nobody could see
    for a while may have happened before.
    """

    happened: float
    at: float
    workflow_id: str
    place: Place
    transitions: int
    ended: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """A workflow was seen further back than before: what was committed is lost."""

    workflow_id: str
    was: int
    found: int


class Movement:
    """What was seen so far; times are the monotonic clock, and late by at most two looks."""

    def __init__(self, database: Database, prefix: str) -> None:
        self._database, self._prefix = database, prefix
        self._lock = threading.Lock()
        self._moves: list[Move] = []
        self._falls: list[Fall] = []
        self._last: dict[str, Sight] = {}
        self._since: datetime | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drill watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and leave the database alone."""
        self._ending.set()
        self._thread.join(15)

    def moves(self) -> list[Move]:
        """Return what was seen, in order."""
        with self._lock:
            return list(self._moves)

    def falls(self) -> list[Fall]:
        """Return what was seen to be further back than before."""
        with self._lock:
            return list(self._falls)

    def sights(self) -> dict[str, Sight]:
        """Return where each workflow was last seen."""
        with self._lock:
            return dict(self._last)

    def forget(self, workflows: Iterable[str]) -> None:
        """Forget where these were seen: the database is one that never had that."""
        with self._lock:
            for workflow_id in workflows:
                self._last.pop(workflow_id, None)

    def _run(self) -> None:
        while not self._ending.wait(_LOOK_EVERY):
            try:
                self.look()
            except DatabaseUnavailable:
                continue  # what happened meanwhile is seen once it answers again
            except Exception:
                # Whatever else a database that is being killed says: who stops looking now measures nothing.
                log.critical("the watch of a drill failed", exc_info=True)

    def look(self) -> None:
        """Look once.

        Raises:
            DatabaseUnavailable: there is nothing to be seen.

        """
        with self._database.statement() as connection:
            # The database's clock, held against ours.
            asked, moment = time.monotonic(), now(connection)
            seen = list(observe.sights(connection, self._prefix, since=self._since))
        at = time.monotonic()
        with self._lock:
            for sight in seen:
                self._see(sight, asked - (moment - sight.updated_at).total_seconds(), at)

    def _see(self, sight: Sight, happened: float, at: float) -> None:
        before = self._last.get(sight.workflow_id)
        self._last[sight.workflow_id] = sight
        moment = sight.updated_at - _OVERLAP
        self._since = moment if self._since is None else max(self._since, moment)
        if before is not None and sight.seq < before.seq:
            self._falls.append(Fall(workflow_id=sight.workflow_id, was=before.seq, found=sight.seq))
        if before is None or place(before) != place(sight):
            # One that was lost with its acknowledgement goes on from further back.
            made = sight.seq + 1 if before is None else max(0, sight.seq - before.seq)
            self._moves.append(
                Move(
                    happened=happened,
                    at=at,
                    workflow_id=sight.workflow_id,
                    place=place(sight),
                    transitions=made,
                    ended=sight.status == "completed",
                )
            )


def still_met(moves: list[Move], places: Mapping[str, Place], since: float) -> dict[str, Place]:
    """Return where the workflows that were at those places really were at ``since``, without those that had ended."""
    found = dict(places)
    for move in moves:
        if move.workflow_id not in found or move.happened >= since:
            continue
        if move.ended:
            del found[move.workflow_id]
        else:
            found[move.workflow_id] = max(found[move.workflow_id], move.place)
    return found


def moved_at(moves: list[Move], places: Mapping[str, Place], since: float) -> dict[str, float]:
    """Return when each of the workflows that were at those places was first seen further on; those alone that were."""
    found: dict[str, float] = {}
    for move in moves:
        before = places.get(move.workflow_id)
        if before is None or move.happened < since or move.workflow_id in found:
            continue
        if move.place[0] > before[0] or move.place[1] > before[1]:
            found[move.workflow_id] = move.at
    return found

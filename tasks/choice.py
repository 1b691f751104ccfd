"""The choice: of the edges out of a state, and the events that came, the first that a guard lets through."""

from __future__ import annotations

from typing import Final

from celery.exceptions import WorkerShutdown, WorkerTerminate

from ..core.canonical import load
from ..core.errors import ClaimLost
from ..core.guard import allows
from ..core.machine import Edge, Pending, WaitingEvent
from ..core.workflow import Workflow, read_payload
from ..persistence import repository
from ..persistence.records import Claim, Snapshot
from .bench import Bench
from .limits import time_limit

# What ends the process, and is nobody's outcome: whoever comes next tries again.
INTERRUPTIONS: Final = (KeyboardInterrupt, WorkerShutdown, WorkerTerminate)


class SpoiledGuard(Exception):
    """What the guard of an edge raised."""

    def __init__(self, edge: Edge, error: BaseException) -> None:
        super().__init__(error)
        self.edge, self.error = edge, error


class Choice:
    """What one claimed workflow does next."""

    def __init__(self, bench: Bench, claim: Claim, workflow: type[Workflow], snapshot: Snapshot) -> None:
        self._bench = bench
        self._claim = claim
        self._workflow = workflow
        self._definition = workflow.definition
        self._snapshot = snapshot

    def next(self, pending: Pending) -> tuple[Edge, WaitingEvent | None] | None:
        """Return the first edge whose guard says yes, and the event that it takes; None: there is nothing to do yet.

        An event that no guard lets through stays where it is, and those behind it have their turn.
        """
        event = self._event(pending.accepts)
        while True:
            edges = self._definition.choose(self._claim.position.state, pending, event, now=self._claim.now)
            taken = event if edges and edges[0].on is not None else None
            for edge in edges:
                if self._allows(edge, taken):
                    return edge, taken
            if taken is None:
                return None
            event = self._next_event(pending.accepts, after=taken.id)

    def _allows(self, edge: Edge, event: WaitingEvent | None) -> bool:
        if edge.guard is None:
            return True
        # A guard that kills its worker must come to an end, too; which of them it was, nobody knows.
        position = self._claim.position
        leaving = self._definition.leaving(position.state)
        if position.attempt > max(one.retry.max_attempts for one in leaving):
            return True
        workflow, payload = self.loaded(event)
        try:
            with time_limit(f"{self._definition.type}.{edge.name}", edge.timeout):
                return allows(workflow, edge, payload)
        except (ClaimLost, *INTERRUPTIONS):
            raise
        except BaseException as error:  # as what a handler raises
            raise SpoiledGuard(edge, error) from error

    def loaded(self, event: WaitingEvent | None) -> tuple[Workflow, object]:
        """Return the workflow, and the payload of the event, as whoever is asked may have them for itself.

        Raises:
            InvalidData: the code here does not fit them.

        """
        workflow = self._workflow.from_dict(self._snapshot.data)
        return workflow, None if event is None else read_payload(self._workflow, event.name, load(event.payload))[0]

    def _event(self, accepts: tuple[str, ...]) -> WaitingEvent | None:
        if not accepts or not self._claim.position.inbox:
            return None
        if self._claim.event is not None and self._claim.event.name in accepts:
            return self._claim.event

        # The claim did not see it: it came at the same moment, or the state accepts other events by now.
        return self._next_event(accepts)

    def _next_event(self, accepts: tuple[str, ...], *, after: int = 0) -> WaitingEvent | None:
        def ask() -> WaitingEvent | None:
            with self._bench.database.statement() as connection:
                return repository.next_event(connection, self._claim.position.workflow_id, accepts, after=after)

        return self._bench.patiently(ask)

"""The engine that applications call: each verb is one transaction, and a bell after it."""

from __future__ import annotations

import time
import uuid
from builtins import list as list_of  # the engine has a verb of that name
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..core.bell import Bell, Ring
from ..core.errors import InvalidData, WaitTimeout, WorkflowNotCompleted
from ..core.workflow import Workflow, registry
from . import history, operations
from .database import Database, is_transient
from .models import STATUSES
from .operations import Terms
from .records import Checkpoint, WorkflowSummary, WorkflowTransition

W = TypeVar("W", bound=Workflow)
T = TypeVar("T")

_OVER: Final = frozenset({"completed", "failed", "cancelled", "quarantined"})
# How often ``wait`` looks, in seconds: soon at first, then seldom enough to cost nothing.
_FIRST_LOOK: Final = 0.02
_LONGEST_LOOK: Final = 0.5
_AT_ONCE: Final = 1000
_MOST_TRIES: Final = 5


@dataclass(frozen=True)
class Handle(Generic[W]):
    """One started workflow.

    ``rung`` is False if the broker was away: then the sweep rings it. ``new`` is False if it was
    there before.
    """

    engine: DurableWorkflowEngine
    id: str
    rung: bool = True
    new: bool = False

    def send(self, event: str, payload: object = None, *, key: str | None = None) -> bool:
        """Send it an event; see ``DurableWorkflowEngine.send``."""
        return self.engine.send(self.id, event, payload, key=key)

    def get(self) -> Workflow:
        """Return its data as it is now."""
        return self.engine.get(self.id)

    def describe(self) -> WorkflowSummary:
        """Return its row: state, status, what it waits for."""
        return self.engine.describe(self.id)

    def at(self, seq: int) -> Workflow:
        """Return its data as transition ``seq`` left it."""
        return self.engine.load(self.id, seq=seq)

    def history(self) -> list_of[WorkflowTransition]:
        """Return its audit chain."""
        return self.engine.history(self.id)

    def wait(self, timeout: float | None = None) -> Workflow:
        """Wait until it has completed; return its data. See ``DurableWorkflowEngine.wait``."""
        return self.engine.wait(self.id, timeout=timeout)

    def verify_integrity(self) -> tuple[bool, str | None]:
        """Return whether its history is intact, and if not, where it is not."""
        return self.engine.verify_integrity(self.id)


class DurableWorkflowEngine:
    """Start workflows, send them events, read and steer them. Blocking; safe for many threads.

    ``actor`` is who the history says acted: ``user:alice``, ``app:shop``.
    """

    def __init__(self, database: Database, ring: Ring, terms: Terms) -> None:
        self.database = database
        self._ring = ring
        self._terms = terms

    # --- verbs that write -------------------------------------------------------------

    def start(self, workflow: W, *, id: str | None = None) -> Handle[W]:  # noqa: A002 - what it is
        """Accept a workflow; the same id with the same input gives the same handle.

        Once this returns, the workflow is in the database and will run, whatever happens to the
        broker. Without an ``id`` it gets a random one.

        Raises:
            InvalidName, InvalidData, NotCanonical: nothing was written.
            StartConflict: the id was taken with other input.
            DatabaseUnavailable: it may or may not have been accepted; the same id may be used again.

        """
        workflow_id = str(uuid.uuid4()) if id is None else id
        started = self._write(lambda session: operations.start(session, workflow, workflow_id, self._terms))
        return Handle(self, workflow_id, self._rung(started.bell), started.new)

    def send(self, id: str, event: str, payload: object = None, *, key: str | None = None) -> bool:  # noqa: A002
        """Accept an event; it is kept until a state takes it. The same ``key`` is received once.

        Returns whether the broker was reached, where there was something to ring; if it was
        not, the sweep rings.

        Raises:
            WorkflowNotFound, WrongStatus, EventConflict: nothing was written.
            UnknownWorkflowType, UnknownEvent, InvalidData, NotCanonical, InvalidName: nothing was written.
            DatabaseUnavailable: it may or may not have been received; the same key may be used again.

        """
        unique = str(uuid.uuid4()) if key is None else key
        return self._rung(
            self._write(lambda session: operations.send(session, id, event, payload, unique, self._terms))
        )

    def pause(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """Let nothing more begin; a handler that runs now may finish."""
        self._write(lambda session: operations.pause(session, id, reason, self._terms))

    def resume(self, id: str, *, reason: str = "") -> bool:  # noqa: A002
        """Go on after a pause; a workflow that is merely pending is rung again."""
        return self._rung(self._write(lambda session: operations.resume(session, id, reason, self._terms)))

    def retry(self, id: str, *, reason: str = "") -> bool:  # noqa: A002
        """Try again what a workflow failed at, or was quarantined for."""
        return self._rung(self._write(lambda session: operations.retry(session, id, reason, self._terms)))

    def cancel(self, id: str, *, reason: str = "") -> None:  # noqa: A002
        """End a workflow here; a handler that runs now is not recorded."""
        self._write(lambda session: operations.cancel(session, id, reason, self._terms))

    def checkpoint(self, id: str) -> Checkpoint | None:  # noqa: A002
        """Keep one more checkpoint; None means that a running handler was asked for it."""
        return self._write(lambda session: operations.checkpoint(session, id))

    def resume_all_pending(self, workflow: type[W]) -> list_of[Handle[W]]:
        """Ring every workflow of a type that could run now and is in nobody's hands; return them.

        Also those that wait while there are events for them: a new deployment may take these.
        """
        handles: list_of[Handle[W]] = []
        type_name, after = workflow.definition.type, ""
        while bells := self._write(
            lambda session, after=after: operations.ring_pending(  # type: ignore[misc]
                session, type_name, self._terms, after=after, limit=_AT_ONCE
            )
        ):
            rung = self._ring(bells)
            handles += [Handle(self, bell.workflow_id, rung) for bell in bells]
            after = bells[-1].workflow_id
        return handles

    # --- verbs that read --------------------------------------------------------------

    def handle(self, id: str) -> Handle[Workflow]:  # noqa: A002
        """Return a handle on a workflow that was started before.

        Raises:
            WorkflowNotFound: there is no such workflow.

        """
        self.describe(id)
        return Handle(self, id)

    def describe(self, id: str) -> WorkflowSummary:  # noqa: A002
        """Return a workflow's row: state, status, what it waits for."""
        with self.database.statement() as connection:
            return history.summary(connection, id)

    def get(self, id: str) -> Workflow:  # noqa: A002
        """Return a workflow's data as it is now, with what its handler has saved so far."""
        return self.load(id)

    def load(self, id: str, *, seq: int | None = None) -> Workflow:  # noqa: A002
        """Return a workflow's data as transition ``seq`` left it; checked against its hash.

        Raises:
            WorkflowNotFound: there is no such workflow, or no checkpoint at ``seq``.
            HistoryBroken: the checkpoint is not the one that was committed.
            UnknownWorkflowType: its class is not loaded in this process.

        """
        with self.database.snapshot() as connection:
            type_name, data = history.data_at(connection, id, seq)
        return registry.get(type_name).from_dict(data)

    def list(
        self,
        *,
        type: type[Workflow] | str | None = None,  # noqa: A002
        status: str | None = None,
        state: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list_of[WorkflowSummary]:
        """Return workflows, the newest first; ``before`` is ``(created_at, id)`` of the last one seen."""
        type_name = type if isinstance(type, str) or type is None else type.definition.type
        if status is not None and status not in STATUSES:
            raise InvalidData("the filter", [("/status", f"{status!r} is none of {', '.join(STATUSES)}")])
        with self.database.statement() as connection:
            return history.summaries(
                connection, type_name=type_name, status=status, state=state, before=before, limit=limit
            )

    def history(self, id: str) -> list_of[WorkflowTransition]:  # noqa: A002
        """Return a workflow's audit chain, the first transition first."""
        with self.database.statement() as connection:
            return history.transitions(connection, id)

    def verify_integrity(self, id: str) -> tuple[bool, str | None]:  # noqa: A002
        """Return whether a workflow's history is intact, and if not, the first transition that is not."""
        with self.database.snapshot() as connection:
            found = history.findings(connection, id)
        return (True, None) if not found else (False, str(found[0]))

    def wait(self, id: str, *, timeout: float | None = None) -> Workflow:  # noqa: A002
        """Wait until a workflow has completed; return its data. ``timeout`` is in seconds.

        Raises:
            WorkflowNotCompleted: it failed, was cancelled, or quarantined.
            WaitTimeout: it had not ended by then.

        """
        row = self.wait_for_end(id, timeout=timeout)
        if row.status != "completed":
            raise WorkflowNotCompleted(id, row.status, None if row.error is None else row.error.get("message"))
        return self.get(id)

    def wait_for_end(self, id: str, *, timeout: float | None = None) -> WorkflowSummary:  # noqa: A002
        """Wait until a workflow has ended, however it did; return its row. ``timeout`` is in seconds.

        Raises:
            WaitTimeout: it had not ended by then.

        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while (row := self.describe(id)).status not in _OVER:
            left = _LONGEST_LOOK if deadline is None else deadline - time.monotonic()
            if timeout is not None and left <= 0:
                raise WaitTimeout(id, timeout, row.status, row.state)
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_LOOK)
        return row

    # --- how ----------------------------------------------------------------------------

    def _write(self, verb: Callable[[Session], T]) -> T:
        left = _MOST_TRIES
        while True:
            left -= 1
            try:
                with self.database.transaction() as session:
                    return verb(session)
            except DBAPIError as error:
                # Rolled back, whole, in favour of somebody else: nothing is half-written, and it may go through now.
                if not (left and is_transient(error)):
                    raise

    def _rung(self, bell: Bell | None) -> bool:
        # After the commit, never before: a worker that answered a bell for a row it cannot see yet
        # would throw the bell away.
        return bell is None or self._ring([bell])

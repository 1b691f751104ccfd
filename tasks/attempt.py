"""One attempt: what a claimed workflow is to do now, the doing of it, and what it comes to.

Nothing is written here but what the handler itself writes: the result says what is to be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from celery.exceptions import WorkerShutdown, WorkerTerminate

from ..config.logging import get_logger
from ..core.canonical import load
from ..core.chain import checkpoint_commitment, timestamp
from ..core.errors import (
    ClaimLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidData,
    InvalidHandlerResult,
    NotCanonical,
)
from ..core.machine import Edge, WaitingEvent
from ..core.recovery import is_overdue
from ..core.workflow import Workflow, handle, read_payload, registry, snapshot
from ..persistence import moves, repository
from ..persistence.database import Session, in_transaction, is_outage, is_transient, kept_open
from ..persistence.records import Claim, Following, Move, Moved, Snapshot
from ..persistence.repository import Outcome
from .bench import Bench
from .context import HandlerContext
from .limits import time_limit
from .result import Elsewhere, Leave, Park, Record, Recorded, Result, TryAgain, Turn, describe, text_of

log = get_logger(__name__)

# How long a workflow is left alone whose data the code here does not fit.
_MISFIT_DELAY: Final = timedelta(seconds=30)
_INFRASTRUCTURE_DELAY: Final = timedelta(seconds=1)


# What ends the process, and is nobody's outcome: whoever comes next tries again.
_INTERRUPTIONS: Final = (KeyboardInterrupt, WorkerShutdown, WorkerTerminate)


class _SpoiledHandler(Exception):
    """What a handler raised inside its transaction, on its way out of it."""

    def __init__(self, error: BaseException, *, outage: bool) -> None:
        super().__init__(error)
        self.error, self.outage = error, outage


class Attempt:
    """One attempt at the next transition of a claimed workflow."""

    def __init__(self, bench: Bench, claim: Claim) -> None:
        self.bench = bench
        self.claim = claim
        self.position = claim.position
        self._began = time.monotonic()
        self._context: HandlerContext | None = None
        self.snapshot: Snapshot  # the newest, once it was found sound
        workflow = registry.find(self.position.type, self.position.version)
        assert workflow is not None, "the claim asked for known types only"  # noqa: S101
        self.workflow = workflow
        self.definition = workflow.definition

    def run(self) -> Result:
        """Find out what is to be done, and do it; nothing but a ClaimLost is raised."""
        if not self._has_sound_snapshot():
            return self._misfit("its checkpoint is not the one that was committed: `aegis verify` tells more")
        if self.position.pausing is not None:
            return self._pause(self.position.pausing)
        if self.position.state not in self.definition.states:
            return self._misfit(f"{self.definition.type} has no state {self.position.state!r} any more")
        return self._take_next()

    def _take_next(self) -> Result:
        if self._is_overdue:
            return self._meet_deadline(self.definition.at_deadline(self.position.state))
        pending = self.definition.pending(self.position.state, entered_at=self.position.entered_at)
        event = self._event(pending.accepts)
        edge = self.definition.choose(self.position.state, pending, event, now=self.claim.now)
        if edge is None:
            return Park(following=Following.of(pending))
        if (queue := self.position.queue_of(edge)) != self.position.following.queue:
            return Elsewhere(queue=queue, transition=edge.name)
        return self._attempt(edge, event if edge.on is not None else None)

    def _attempt(self, edge: Edge, event: WaitingEvent | None = None) -> Result:
        if self.position.attempt > edge.retry.max_attempts:
            return self._quarantine(edge)
        return self._try(edge, event)

    @property
    def _is_overdue(self) -> bool:
        return is_overdue(self.position.deadline, now=self.claim.now)

    def _meet_deadline(self, edge: Edge | None) -> Result:
        """Do what the passing of the deadline sets off; nothing else begins any more."""
        if edge is None:
            deadline = timestamp(self.position.deadline or self.claim.now)
            return self._stop(
                "failed", DeadlineExceeded(self.position.workflow_id, deadline, self.position.state)
            )
        if (edge.name, self.position.queue_of(edge)) != (self.position.following.name, self.position.following.queue):
            return Turn(edge=edge)  # what was tried before was another transition
        return self._attempt(edge)

    def _event(self, accepts: tuple[str, ...]) -> WaitingEvent | None:
        if not accepts or not self.position.inbox:
            return None
        if self.claim.event is not None and self.claim.event.name in accepts:
            return self.claim.event

        # The claim did not see it: it came at the same moment, or the state accepts other events by now.
        def ask() -> WaitingEvent | None:
            with self.bench.database.statement() as connection:
                return repository.next_event(connection, self.position.workflow_id, accepts)

        return self.bench.patiently(ask)

    def _try(self, edge: Edge, event: WaitingEvent | None) -> Result:
        try:
            workflow = self.workflow.from_dict(self.snapshot.data)
            payload = None if event is None else read_payload(self.workflow, event.name, load(event.payload))[0]
        except InvalidData as error:
            return self._misfit(str(error))
        try:
            if edge.transactional:
                return self._run_inside(edge, workflow, payload, event)
            context = self._context = self._context_of(edge, workflow)
            target = self._handle(edge, workflow, context, payload)
            return Record(move=self._advance(edge, target, workflow, event))
        except (ClaimLost, *_INTERRUPTIONS):
            raise
        except _SpoiledHandler as spoiled:
            return self._failed(edge, spoiled.error, outage=spoiled.outage)
        except BaseException as error:  # noqa: BLE001 - whatever a user's handler raises is its outcome, sys.exit() too
            # A transaction of ours that was given up in favour of another, at its very end.
            return self._failed(edge, error, outage=edge.transactional and is_transient(error))

    def _run_inside(self, edge: Edge, workflow: Workflow, payload: object, event: WaitingEvent | None) -> Result:
        """Run the handler in the checkpoint's own transaction."""
        move: Move | None = None
        try:
            with self.bench.database.transaction() as session:
                target = self._handle_within(session, edge, workflow, payload)
                move = self._advance(edge, target, workflow, event)
                moved = repository.commit(in_transaction(session), move, grace=self.bench.grace)
                if moved is None:
                    raise ClaimLost(self.position.workflow_id, self.position.seq)
            return Recorded(move=move, moved=moved)
        except DatabaseUnavailable as error:
            if move is not None and (recorded := self._what_became_of(move)) is not None:
                return Recorded(move=move, moved=recorded)
            return self._failed(edge, error, outage=True)

    def _handle_within(self, session: Session, edge: Edge, workflow: Workflow, payload: object) -> str:
        try:
            with kept_open(session, f"{self.definition.type}.{edge.name}"):
                target = self._handle(edge, workflow, self._context_of(edge, workflow, session), payload)
                session.flush()
        except (ClaimLost, *_INTERRUPTIONS):
            raise
        except BaseException as error:
            # Judged here, where it can still be seen whether it is this transaction that failed.
            raise _SpoiledHandler(error, outage=is_outage(session, error)) from error
        return target

    def _what_became_of(self, move: Move) -> Moved | None:
        """Look up a commit that was not answered; None if it was not recorded, and we may try again."""
        outcome = self.bench.patiently(lambda: outcome_of(self.bench, move))
        if outcome is Outcome.LOST:
            raise ClaimLost(self.position.workflow_id, self.position.seq)
        return None if outcome is Outcome.STILL_OURS else self.bench.patiently(lambda: moved_to(self.bench, move))

    def _handle(self, edge: Edge, workflow: Workflow, context: HandlerContext, payload: object) -> str:
        with time_limit(f"{self.definition.type}.{edge.name}", edge.timeout):
            return handle(workflow, edge, context, payload)

    def _context_of(self, edge: Edge, workflow: Workflow, session: Session | None = None) -> HandlerContext:
        return HandlerContext(self.bench, self.position, edge, workflow, self.snapshot, session=session)

    # --- what it comes to ---------------------------------------------------------------

    def _advance(self, edge: Edge, target: str, workflow: Workflow, event: WaitingEvent | None) -> Move:
        return moves.advance(
            self.position,
            self.definition,
            edge,
            target,
            snapshot(workflow),
            event=event,
            progress=self._progress(),
            actor=self.bench.actor,
            at=self._now(),
            max_bytes=self.bench.settings.max_bytes,
            mac_key=self.bench.mac_key,
        )

    def _failed(self, edge: Edge, error: BaseException, *, outage: bool = False) -> Result:
        if outage or isinstance(error, DatabaseUnavailable):
            log.warning(
                "attempt spoiled by the database",
                workflow_id=self.position.workflow_id,
                seq=self.position.seq + 1,
                error=text_of(error),
            )
            return Leave(error=describe(error, self.position.attempt), delay=_INFRASTRUCTURE_DELAY)
        if isinstance(error, InvalidHandlerResult | InvalidData | NotCanonical):
            delay = None  # the handler itself is wrong: it would do the same again
        else:
            delay = edge.retry.next_delay(self.position.attempt, key=f"{self.position.workflow_id}:{self.position.seq}")
        log.warning(
            "attempt failed",
            workflow_id=self.position.workflow_id,
            transition=f"{self.definition.type}.{edge.name}",
            seq=self.position.seq + 1,
            attempt=self.position.attempt,
            error=f"{type(error).__name__}: {text_of(error)}",
            again_in=None if delay is None else round(delay.total_seconds(), 1),
            exc_info=error,
        )
        if delay is None:
            return self._stop("failed", error, edge)
        return TryAgain(error=describe(error, self.position.attempt), delay=delay)

    def _quarantine(self, edge: Edge) -> Result:
        attempts = self.position.attempt - 1
        died = RuntimeError(f"its worker died in each of {attempts} attempts at {self.definition.type}.{edge.name}")
        return self._stop("quarantined", died, edge)

    def _stop(self, event: str, error: BaseException, edge: Edge | None = None) -> Record:
        """End it here until a person has looked: ``failed`` or ``quarantined``."""
        known = describe(error, self.position.attempt)
        payload: dict[str, Any] = {"error": {"type": known["type"], "message": known["message"]}}
        if edge is not None:
            payload["transition"] = edge.name
        log.error(event, workflow_id=self.position.workflow_id, seq=self.position.seq, error=known["message"])
        return Record(move=self._intervene(event, event, payload, self.bench.actor, known))

    def _pause(self, asked: Mapping[str, Any]) -> Record:
        payload = {"reason": asked["reason"]} if asked["reason"] else {}
        return Record(move=self._intervene("paused", "paused", payload, str(asked["actor"]), None))

    def _intervene(
        self, event: str, status: str, payload: Mapping[str, Any], actor: str, error: Mapping[str, Any] | None
    ) -> Move:
        return moves.intervene(
            self.position,
            event,
            self._newest.data,
            status=status,
            payload=payload,
            progress=self._progress(),
            actor=actor,
            at=self._now(),
            error=error,
            mac_key=self.bench.mac_key,
        )

    def _misfit(self, problem: str) -> Leave:
        log.error("left alone", workflow_id=self.position.workflow_id, seq=self.position.seq, reason=problem)
        return Leave(error=describe(InvalidData("the workflow", [("", problem)]), None), delay=_MISFIT_DELAY)

    # --- what it needs --------------------------------------------------------------------

    def _has_sound_snapshot(self) -> bool:
        """Whether the newest checkpoint is there, and is what was committed; from then on it is ours."""
        kept = self.claim.snapshot
        if kept is None or kept.number != self.position.checkpoint_number:
            kept = self.bench.patiently(self._newest_snapshot)
        if kept is None or kept.number != self.position.checkpoint_number:
            return False
        self.snapshot = kept
        return checkpoint_commitment(kept.salt, kept.body) == kept.commitment

    def _newest_snapshot(self) -> Snapshot | None:
        with self.bench.database.statement() as connection:
            return repository.newest_snapshot(connection, self.position.workflow_id, self.position.seq)

    @property
    def _newest(self) -> Snapshot:
        """What the workflow's data was last saved as: before the handler, or by it."""
        return self.snapshot if self._context is None else self._context.newest

    def _progress(self) -> list[str]:
        if not self._newest.number:  # nothing was saved, and nothing was tried to be
            return []

        def ask() -> list[str]:
            with self.bench.database.statement() as connection:
                return repository.progress_of(connection, self.position.workflow_id, self.position.seq)

        return self.bench.patiently(ask)

    def _now(self) -> datetime:
        """Return the database's time: that of the claim, and what has passed since by our own clock."""
        now = self.claim.now + timedelta(seconds=time.monotonic() - self._began)
        return max(now, self.position.moved_at)


def outcome_of(bench: Bench, move: Move) -> Outcome:
    """Look up what became of a commit that was not answered."""
    with bench.database.statement() as connection:
        return repository.outcome_of(connection, move)


def moved_to(bench: Bench, move: Move) -> Moved:
    """Return where a recorded move left its workflow; not ready if it has gone on from there."""
    envelope = move.link.envelope
    with bench.database.statement() as connection:
        moved = repository.moved_to(connection, move)
    return moved or Moved(workflow_id=envelope.workflow_id, seq=envelope.seq, ready=False, queue=None)

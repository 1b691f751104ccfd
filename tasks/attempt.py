"""One attempt: what a claimed workflow is to do now, the doing of it, and what it comes to.

Nothing is written here but what the handler itself writes: the result says what is to be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from ..config.logging import get_logger
from ..core.approval import Approval, Standing, Verdict, judge
from ..core.canonical import Json, load
from ..core.chain import checkpoint_commitment, timestamp
from ..core.errors import (
    ClaimLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    EffectInDoubt,
    HistoryBroken,
    InvalidData,
    InvalidHandlerResult,
    NotCanonical,
    UpgradeFailed,
)
from ..core.machine import Edge, WaitingEvent
from ..core.recovery import is_overdue
from ..core.retry import RetryAfter
from ..core.starting import Attribute
from ..core.workflow import Workflow, handle, read_data, registry, snapshot, state_of
from ..persistence import approvals, effects, inbox, moves, operations, repository, seal
from ..persistence.database import (
    Session,
    in_one_transaction,
    in_transaction,
    is_outage,
    is_transient,
    kept_open,
)
from ..persistence.inbox import Message
from ..persistence.records import Claim, Following, Move, Moved, Snapshot
from ..persistence.repository import Outcome
from .bench import Bench
from .choice import INTERRUPTIONS, Choice, SpoiledGuard
from .context import HandlerContext
from .limits import time_limit
from .result import Elsewhere, Leave, OnTheGround, Park, Record, Recorded, Result, TryAgain, Turn, describe, text_of

log = get_logger(__name__)

# How long a workflow is left alone whose data the code here does not fit.
_MISFIT_DELAY: Final = timedelta(seconds=30)
_INFRASTRUCTURE_DELAY: Final = timedelta(seconds=1)


class _SpoiledHandler(Exception):
    """What a handler raised inside its transaction, on its way out of it."""

    def __init__(self, error: BaseException, *, outage: bool) -> None:
        super().__init__(error)
        self.error, self.outage = error, outage


class Attempt:
    """One attempt at the next transition of a claimed workflow."""

    def __init__(self, bench: Bench, claim: Claim, *, ahead: bool = False) -> None:
        """``ahead``: what the claim says is not recorded yet."""
        self.bench = bench
        self._ahead = ahead
        self.claim = claim
        self.position = claim.position
        self._began = time.monotonic()
        self._context: HandlerContext | None = None
        self._approved: tuple[Approval, ...] = ()
        self.snapshot: Snapshot  # the newest, once it was found sound
        self._choice: Choice  # likewise
        workflow = registry.reader(self.position.type, self.position.version)
        assert workflow is not None, "the claim asked for known types only"  # noqa: S101
        self.workflow = workflow
        self.definition = workflow.definition

    def run(self) -> Result:
        """Find out what is to be done, and do it; nothing but a ClaimLost is raised."""
        if not self._has_sound_snapshot():
            return self._misfit("its checkpoint is not the one that was committed: `aegis verify` tells more")
        if self.position.pausing is not None:
            return self._pause(self.position.pausing)
        if self.position.version != self.definition.version:
            return self._upgrade()
        if self.position.state not in self.definition.states:
            return self._misfit(f"{self.definition.type} has no state {self.position.state!r} any more")
        return self._take_next()

    def _upgrade(self) -> Result:
        """Bring the workflow to the version of the code here; what it was to do, it does after that."""
        try:
            workflow = read_data(self.workflow, self.snapshot.data, self.position.version)
            move = moves.upgrade(
                self.position,
                self.definition,
                state_of(workflow),
                snapshot(workflow),
                progress=self._progress(),
                effects=self._told(),
                actor=self.bench.actor,
                at=self._now(),
                max_bytes=self.bench.settings.max_bytes,
                mac_key=self.bench.mac_key,
            )
        except (UpgradeFailed, InvalidData, NotCanonical) as error:
            return self._misfit(str(error))
        return Record(move=move)

    def _take_next(self) -> Result:
        if self._is_overdue:
            return self._meet_deadline(self.definition.at_deadline(self.position.state))
        pending = self.definition.pending(self.position.state, entered_at=self.position.entered_at)
        try:
            chosen = self._choice.next(pending)
        except SpoiledGuard as spoiled:
            return self._failed(spoiled.edge, spoiled.error)
        except InvalidData as error:
            return self._misfit(str(error))
        if chosen is None:
            return Park(following=Following.of(pending))
        edge, event = chosen
        if (queue := self.position.queue_of(edge)) != self.position.following.queue:
            return Elsewhere(queue=queue, transition=edge.name)
        return self._attempt(edge, event)

    def _attempt(self, edge: Edge, event: WaitingEvent | None = None) -> Result:
        if self.position.attempt > edge.retry.max_attempts:
            return self._quarantine(edge, event)
        if event is not None and (edge.approvals > 1 or edge.four_eyes):
            return self._deliberate(edge, event)
        return self._try(edge, event)

    @property
    def _is_overdue(self) -> bool:
        return is_overdue(self.position.deadline, now=self.claim.now)

    def _meet_deadline(self, edge: Edge | None) -> Result:
        """Do what the passing of the deadline sets off; nothing else begins any more."""
        if edge is None:
            deadline = timestamp(self.position.deadline or self.claim.now)
            return self._stop("failed", DeadlineExceeded(self.position.workflow_id, deadline, self.position.state))
        if (edge.name, self.position.queue_of(edge)) != (self.position.following.name, self.position.following.queue):
            return Turn(edge=edge)  # what was tried before was another transition
        return self._attempt(edge)

    # --- approvals ------------------------------------------------------------------------

    def _deliberate(self, edge: Edge, event: WaitingEvent) -> Result:
        """Take an event that needs others beside it, or another sender: only the last one runs the handler."""

        def ask() -> Standing:
            with self.bench.database.statement() as connection:
                return approvals.standing(connection, self.position, edge.name)

        try:
            standing = self.bench.patiently(ask)
        except HistoryBroken as error:
            return self._misfit(str(error))
        verdict = judge(edge, standing, event.sender)
        given = Approval(sender=event.sender, reason=event.reason, at=event.received_at, data=load(event.payload))
        if verdict is Verdict.TAKE:
            return self._try(edge, event, (*standing.approvals, given))
        log.info(verdict.name.lower(), workflow_id=self.position.workflow_id, event_key=event.key, sender=event.sender)
        return Record(move=self._note(edge, event, verdict, len(standing.approvals)))

    def _note(self, edge: Edge, event: WaitingEvent, verdict: Verdict, before: int) -> Move:
        return moves.deliberate(
            self.position,
            self.definition,
            edge,
            event,
            self._newest.data,
            verdict=verdict,
            approvals=before + (verdict is Verdict.COUNT),
            progress=self._progress(),
            actor=self.bench.actor,
            at=self._now(),
            mac_key=self.bench.mac_key,
        )

    # --- the doing of it --------------------------------------------------------------------

    def _try(self, edge: Edge, event: WaitingEvent | None, approved: tuple[Approval, ...] = ()) -> Result:
        try:
            workflow, payload = self._choice.loaded(event)
        except InvalidData as error:
            return self._misfit(str(error))
        self._approved = approved
        if self._ahead and edge.transactional:
            raise OnTheGround
        try:
            if edge.transactional:
                return self._run_inside(edge, workflow, payload, event)
            context = self._context = self._context_of(edge, workflow)
            target = self._handle(edge, workflow, context, payload)
            context.check_ground()
            context.effects.need_no_doubt()
            move = self._advance(edge, target, workflow, event, attributes=context.attributes)
            return self._record_and_send(edge, event, move, context) if context.outbox else Record(move=move)
        except (ClaimLost, OnTheGround, *INTERRUPTIONS):
            raise
        except _SpoiledHandler as spoiled:
            return self._failed(edge, spoiled.error, event, outage=spoiled.outage)
        except BaseException as error:  # noqa: BLE001 - whatever a user's handler raises is its outcome, sys.exit() too
            doubt = None if self._context is None else self._context.effects.in_doubt
            # A transaction of ours that was given up in favour of another, at its very end.
            return self._failed(edge, doubt or error, event, outage=edge.transactional and is_transient(error))

    def _run_inside(self, edge: Edge, workflow: Workflow, payload: object, event: WaitingEvent | None) -> Result:
        """Run the handler in the checkpoint's own transaction."""
        move: Move | None = None
        try:
            with self.bench.database.transaction() as session:
                context = self._context_of(edge, workflow, session)
                target = self._handle_within(session, edge, workflow, context, payload)
                move = self._advance(edge, target, workflow, event, attributes=context.attributes)
                return self._commit_and_send(session, move, context.outbox)
        except DatabaseUnavailable as error:
            return self._unanswered(edge, event, move, error)

    def _record_and_send(self, edge: Edge, event: WaitingEvent | None, move: Move, context: HandlerContext) -> Result:
        """Commit a transition together with the events that its handler sends: all of it, or nothing."""
        try:
            return in_one_transaction(
                self.bench.database, lambda session: self._commit_and_send(session, move, context.outbox)
            )
        except DatabaseUnavailable as error:
            return self._unanswered(edge, event, move, error)
        except Exception as error:
            if is_transient(error):  # time and again
                return self._failed(edge, error, event, outage=True)
            raise

    def _commit_and_send(self, session: Session, move: Move, outbox: Sequence[Message]) -> Recorded:
        if outbox:
            # In one order everywhere, so that two that send to each other do not wait for each other.
            operations.lock_all(session, {self.position.workflow_id, *(message.workflow_id for message in outbox)})
        moved = repository.commit(in_transaction(session), move, grace=self.bench.grace)
        if moved is None:
            raise ClaimLost(self.position.workflow_id, self.position.seq)
        bells = [inbox.send(session, message, self.bench.terms) for message in outbox]
        return Recorded(move=move, moved=moved, bells=tuple(bell for bell in bells if bell is not None))

    def _unanswered(
        self, edge: Edge, event: WaitingEvent | None, move: Move | None, error: DatabaseUnavailable
    ) -> Result:
        if move is not None and (moved := self._what_became_of(move)) is not None:
            return Recorded(move=move, moved=moved)  # whoever it sent to is found by the sweep
        return self._failed(edge, error, event, outage=True)

    def _handle_within(
        self, session: Session, edge: Edge, workflow: Workflow, context: HandlerContext, payload: object
    ) -> str:
        try:
            with kept_open(session, f"{self.definition.type}.{edge.name}"):
                target = self._handle(edge, workflow, context, payload)
                session.flush()
        except (ClaimLost, *INTERRUPTIONS):
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
        return HandlerContext(
            self.bench,
            self.position,
            edge,
            workflow,
            self.snapshot,
            session=session,
            approvals=self._approved,
            ahead=self._ahead,
        )

    # --- what it comes to ---------------------------------------------------------------

    def _advance(
        self,
        edge: Edge,
        target: str,
        workflow: Workflow,
        event: WaitingEvent | None,
        error: Mapping[str, Any] | None = None,
        *,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Move:
        return moves.advance(
            self.position,
            self.definition,
            edge,
            target,
            snapshot(workflow),
            event=event,
            error=error,
            progress=self._progress(),
            effects=self._effects(edge),
            actor=self.bench.actor,
            at=self._now(),
            max_bytes=self.bench.settings.max_bytes,
            mac_key=self.bench.mac_key,
            attributes=attributes,
        )

    def _failed(
        self, edge: Edge, error: BaseException, event: WaitingEvent | None = None, *, outage: bool = False
    ) -> Result:
        if outage or isinstance(error, DatabaseUnavailable):
            log.warning(
                "attempt spoiled by the database",
                workflow_id=self.position.workflow_id,
                seq=self.position.seq + 1,
                error=text_of(error),
            )
            return Leave(error=describe(error, self.position.attempt), delay=_INFRASTRUCTURE_DELAY)
        delay = self._delay_after(edge, error)
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
            return self._give_up("failed", error, edge, event)
        counts = not isinstance(error, RetryAfter) or error.counts
        return TryAgain(error=describe(error, self.position.attempt), delay=delay, counts=counts)

    def _delay_after(self, edge: Edge, error: BaseException) -> timedelta | None:
        """Return how long until the next attempt; None: there is none."""
        if isinstance(error, InvalidHandlerResult | InvalidData | NotCanonical | EffectInDoubt):
            return None  # the handler itself is wrong, or a person has to say something: it would be the same again
        if isinstance(error, RetryAfter):
            last = error.counts and self.position.attempt >= edge.retry.max_attempts
            return None if last else error.wait(self._now())
        key = f"{self.position.workflow_id}:{self.position.seq}"
        return edge.retry.next_delay(self.position.attempt, key=key, error=error)

    def _quarantine(self, edge: Edge, event: WaitingEvent | None) -> Result:
        attempts = self.position.attempt - 1
        died = RuntimeError(f"its worker died in each of {attempts} attempts at {self.definition.type}.{edge.name}")
        return self._give_up("quarantined", died, edge, event)

    def _give_up(self, event: str, error: BaseException, edge: Edge, taken: WaitingEvent | None) -> Result:
        """Go to the state that is there for this, if there is one; else stop."""
        if edge.give_up is None or (self._context is not None and self._context.effects.in_doubt is not None):
            return self._stop(event, error, edge)
        known = describe(error, self.position.attempt)
        log.error("gave up", workflow_id=self.position.workflow_id, transition=edge.name, error=known["message"])
        try:
            workflow = self.workflow.from_dict(self._newest.data | {"state": edge.give_up})
            move = self._advance(edge, edge.give_up, workflow, taken, error=known)
        except (InvalidData, NotCanonical) as problem:
            return self._misfit(str(problem))
        return Record(move=move)

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
        self._choice = Choice(self.bench, self.claim, self.workflow, kept)
        if checkpoint_commitment(kept.salt, kept.body) != kept.commitment:
            return False
        return not kept.number or self.bench.patiently(self._is_vouched_for)

    def _is_vouched_for(self) -> bool:
        if not self.bench.mac_keys:
            return True
        with self.bench.database.statement() as connection:
            return seal.is_vouched_for(connection, self.position, self.snapshot, self.bench.mac_keys)

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

    def _effects(self, edge: Edge) -> list[dict[str, Json]]:
        """Return what the transition has to say of the effects of its handler: of all its attempts."""
        first = self.position.attempt <= 1 and self.position.seq == self.position.entered_seq
        used = self._context is not None and self._context.effects.used
        if edge.transactional or (first and not used):
            return []
        return self._told()

    def _told(self) -> list[dict[str, Json]]:
        def ask() -> list[dict[str, Json]]:
            with self.bench.database.statement() as connection:
                return effects.told(connection, self.position)

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

"""One transition: claim -> handler -> commit -> ring. The acknowledgement comes after, and last.

A message is a hint. Whatever it says, the row decides; whatever dies here, the row is due again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Final

import psutil

from ..config.logging import get_logger
from ..core.bell import Bell
from ..core.errors import ClaimLost, DatabaseUnavailable
from ..persistence import moves, repository
from ..persistence.database import Connection
from ..persistence.records import Claim, Following, Move, Moved, Position
from ..persistence.repository import Outcome
from . import ahead
from .attempt import moved_to, outcome_of
from .bench import Bench
from .result import Elsewhere, Leave, Park, Record, Recorded, Result, TryAgain, Turn, describe

log = get_logger(__name__)

# How long until a workflow is rung again that another worker knows, and one that we stumbled over.
_STRANGER_DELAY: Final = timedelta(seconds=1)
_FAULT_DELAY: Final = timedelta(seconds=10)


class Ended(StrEnum):
    """How the work on one message ended."""

    COMMITTED = "committed"
    FAILED = "attempt failed"
    STALE = "nothing to claim"
    LOST = "claim lost"
    WAITING = "nothing to do yet"
    LEFT = "left alone"


def run_transition(bench: Bench, workflow_id: str, seq: int, *, redelivered: bool = False) -> Ended:
    """Do what one message asks for, if it still is to be done."""
    claim = take(bench, workflow_id, seq, redelivered=redelivered)
    if claim is None:
        return Ended.STALE  # delivered twice, or somebody else's by now
    try:
        made, result = ahead.go(bench, claim)  # no transaction is open here
        return settle(bench, claim, result) if not made and result is not None else settle_all(bench, made, result)
    except ClaimLost:
        return _lost(claim)
    except Exception as error:
        log.exception("a fault in AEGIS", workflow_id=workflow_id, seq=seq)
        return _let_go(bench, claim, error)
    except BaseException as error:
        log.warning("interrupted", workflow_id=workflow_id, seq=seq, reason=type(error).__name__)
        _let_go(bench, claim, error)
        raise


def _let_go(bench: Bench, claim: Claim, error: BaseException) -> Ended:
    """Put the workflow down: it must not stay in a hand that does nothing with it."""
    try:
        return settle(bench, claim, Leave(error=describe(error, None), delay=_FAULT_DELAY))
    except ClaimLost:
        return _lost(claim)


def _lost(claim: Claim) -> Ended:
    log.warning("claim lost", workflow_id=claim.position.workflow_id, seq=claim.position.seq)
    return Ended.LOST


# --- claim ------------------------------------------------------------------------------


def take(bench: Bench, workflow_id: str, seq: int, *, redelivered: bool) -> Claim | None:
    """Claim the workflow; None if there is nothing to claim for this worker."""
    gone = _dead_sibling(bench, workflow_id) if redelivered else ()
    claim = bench.patiently(
        lambda: repository.claim(bench.database.run, workflow_id, seq, bench.hand, known=bench.known, gone=gone)
    )
    if claim is None:
        _hand_over(bench, workflow_id, seq)
    return claim


def _dead_sibling(bench: Bench, workflow_id: str) -> tuple[int, ...]:
    """Return the pid of the process of this worker that died with the workflow in its hands.

    Celery puts the message back when a child is killed; the child's claim need not wait for a sweep.
    """

    def ask() -> tuple[str, int] | None:
        with bench.database.statement() as connection:
            return repository.owner_of(connection, workflow_id)

    owner = bench.patiently(ask)
    if owner is None or owner[0] != bench.worker_id or owner[1] == os.getpid() or psutil.pid_exists(owner[1]):
        return ()
    return (owner[1],)


def _hand_over(bench: Bench, workflow_id: str, seq: int) -> None:
    def say() -> bool:
        with bench.database.statement() as connection:
            return repository.hand_over(connection, workflow_id, seq, bench.known, _STRANGER_DELAY)

    if bench.patiently(say):
        log.info("left for a worker that knows its type", workflow_id=workflow_id, seq=seq)


# --- commit and ring ------------------------------------------------------------------------


def settle(bench: Bench, claim: Claim, result: Result) -> Ended:
    """Write down what an attempt came to, and ring for what follows.

    Raises:
        ClaimLost: nothing of it was written.

    """
    position = claim.position
    match result:
        case Record(move=move):
            return _ring(bench, move, commit(bench, move))
        case Recorded(move=move, moved=moved, bells=bells):
            return _ring(bench, move, moved, bells)
        case TryAgain(error=failure, delay=delay, counts=counts):

            def note(connection: Connection) -> bool:
                return repository.fail_attempt(connection, position, failure, delay, counts=counts)

            return _held(bench, position, Ended.FAILED, note)
        case Leave(error=error, delay=delay):
            return _held(bench, position, Ended.LEFT, lambda c: repository.leave(c, position, error, delay))
        case Park(following=following):
            return _park(bench, claim, following)
        case Elsewhere() | Turn():
            return _send_on(bench, position, result)


def settle_all(bench: Bench, made: list[Move], result: Result | None) -> Ended:
    """Write down transitions that were made one ahead of the other, and ring for what follows.

    Raises:
        ClaimLost: nothing of it was written.

    """
    every = [*made, result.move] if isinstance(result, Record) else made
    moved = ahead.commit(bench, every)
    for move in every[:-1]:
        _tell(move)
    return _ring(bench, every[-1], moved)


def commit(bench: Bench, move: Move) -> Moved:
    """Commit a transition, through whatever happens to the database meanwhile.

    Raises:
        ClaimLost: nothing of it was written.

    """
    try:
        moved = repository.commit(bench.database.run, move, grace=bench.grace)
    except DatabaseUnavailable as error:
        log.warning("commit not answered", workflow_id=move.link.envelope.workflow_id, reason=error.reason)
        moved = bench.patiently(lambda: _look_and_commit(bench, move))
    if moved is None:
        raise ClaimLost(move.link.envelope.workflow_id, move.link.envelope.seq - 1)
    return moved


def _look_and_commit(bench: Bench, move: Move) -> Moved | None:
    """Never repeat a commit blindly: look what became of it first, each time."""
    match outcome_of(bench, move):
        case Outcome.RECORDED:
            return moved_to(bench, move)
        case Outcome.STILL_OURS:
            return repository.commit(bench.database.run, move, grace=bench.grace)
        case Outcome.LOST:
            _ring_if_taken_back(bench, move)
            return None


def _ring_if_taken_back(bench: Bench, move: Move) -> None:
    """Ring once more for a claim that the database forgot: nobody else would, before the workflow is due."""
    with bench.database.statement() as connection:
        left = repository.taken_back(connection, move)
    if left is not None:
        envelope = move.link.envelope
        log.info("claim taken back", workflow_id=left.workflow_id, seq=left.seq)
        label = f"{envelope.type}.{envelope.event}"
        bench.ring([Bell(workflow_id=left.workflow_id, seq=left.seq, queue=left.queue, label=label)])


def _ring(bench: Bench, move: Move, moved: Moved, others: Sequence[Bell] = ()) -> Ended:
    _tell(move)
    bells = [*([moves.bell_after(move, moved)] if moved.ready else []), *others]
    if bells:
        bench.ring(bells)
    return Ended.COMMITTED


def _tell(move: Move) -> None:
    envelope = move.link.envelope
    log.info(
        "transition committed",
        workflow_id=envelope.workflow_id,
        seq=envelope.seq,
        transition=f"{envelope.type}.{envelope.event}",
        to=envelope.to_state,
        attempt=envelope.attempt,
    )


def _park(bench: Bench, claim: Claim, following: Following) -> Ended:
    position = claim.position
    try:
        return _held(bench, position, Ended.WAITING, lambda c: repository.park(c, position, following))
    except ClaimLost:
        # An event came while nobody looked. (Or the claim is lost: then nothing is left to let go of.)
        _held(bench, position, Ended.LEFT, lambda c: repository.leave(c, position, None, timedelta(0)))
        bench.ring([_bell(position, following.queue or position.home_queue, None)])
        return Ended.LEFT


def _send_on(bench: Bench, position: Position, result: Elsewhere | Turn) -> Ended:
    """Have something run that is not what was rung for, or not here."""
    if isinstance(result, Turn):
        queue, name = position.queue_of(result.edge), result.edge.name
        ended = _held(bench, position, Ended.LEFT, lambda c: repository.turn(c, position, result.edge, bench.grace))
    else:
        queue, name = result.queue, result.transition
        ended = _held(bench, position, Ended.LEFT, lambda c: repository.send_elsewhere(c, position, queue, bench.grace))
    bench.ring([_bell(position, queue, name)])
    return ended


def _bell(position: Position, queue: str | None, name: str | None) -> Bell:
    label = f"{position.type}.{name}" if name else position.type
    return Bell(
        workflow_id=position.workflow_id, seq=position.seq, queue=queue, label=label, priority=position.priority
    )


def _held(bench: Bench, position: Position, ended: Ended, write: Callable[[Connection], bool]) -> Ended:
    """Let a claim go by one write that only succeeds while it is ours.

    Raises:
        ClaimLost: nothing was written.

    """

    def act() -> bool:
        with bench.database.statement() as connection:
            return write(connection)

    if not bench.patiently(act):
        raise ClaimLost(position.workflow_id, position.seq)
    return ended

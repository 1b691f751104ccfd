"""Going ahead: automatic transitions that follow each other, recorded together (``checkpoint_on_transition=False``).

Nothing is recorded that the database does not have: until they are, these transitions have not happened, and whoever
dies with them runs them again. What a handler does that has to be in the database at once - a checkpoint, an effect,
an event - it does on the ground: what went before is recorded first, and that handler begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from ..config.logging import get_logger
from ..core.errors import ClaimLost, DatabaseUnavailable
from ..persistence import repository
from ..persistence.database import Session, in_one_transaction, in_transaction
from ..persistence.records import Claim, Move, Moved, Snapshot
from ..persistence.repository import Outcome
from .attempt import Attempt, moved_to, outcome_of
from .bench import Bench
from .context import LOOKS_PER_INTERVAL
from .result import OnTheGround, Record, Result

log = get_logger(__name__)

# One commit of everything has to stay a short one.
_MOST: Final = 100


def go(bench: Bench, claim: Claim) -> tuple[list[Move], Result | None]:
    """Make an attempt, and go on from there as far as may be; return what is to be recorded first, and what it came to.

    None: the transition after those that are to be recorded has to be begun on the ground.

    Raises:
        ClaimLost: somebody else has the workflow, or it was cancelled; nothing of it is to be recorded.

    """
    began, made, current = time.monotonic(), list[Move](), claim
    look = _Look(bench, claim)
    while True:
        try:
            result = Attempt(bench, current, ahead=bool(made)).run()
        except OnTheGround:
            return made, None
        if made and not isinstance(result, Record):
            # That it failed, or is not for this worker, is said of a row that is not there yet.
            return made, None
        if not isinstance(result, Record) or not _may_go_on(bench, claim, result.move, len(made), began):
            return made, result
        if look.is_asked():
            return made, result
        made.append(result.move)
        current = _after(current, result.move, claim, began)


def _may_go_on(bench: Bench, claim: Claim, move: Move, made: int, began: float) -> bool:
    position, following = claim.position, move.following
    return (
        not position.checkpoint_on_transition
        # Whatever its worker died of, one at a time it is found which transition that was.
        and position.attempt == 1
        and position.pausing is None
        and move.status is None
        and following.at_once
        and (following.queue or position.home_queue) == position.following.queue
        and made + 1 < _MOST
        and time.monotonic() - began < bench.settings.checkpoint_interval
    )


class _Look:
    """Whether somebody asks for what there is: beat, or `aegis checkpoint`. Seldom, as ``ctx.progress`` looks."""

    def __init__(self, bench: Bench, claim: Claim) -> None:
        self._bench, self._position = bench, claim.position
        self._every = bench.settings.checkpoint_interval / LOOKS_PER_INTERVAL
        self._looked = time.monotonic()

    def is_asked(self) -> bool:
        if time.monotonic() - self._looked < self._every:
            return False
        self._looked = time.monotonic()
        try:
            with self._bench.database.statement() as connection:
                asked = repository.is_asked(connection, self._position)
        except DatabaseUnavailable as error:
            # To record something now would have to wait for it.
            log.warning("not looked", workflow_id=self._position.workflow_id, reason=error.reason)
            return False
        if asked is None:
            raise ClaimLost(self._position.workflow_id, self._position.seq)
        return asked


def _after(current: Claim, move: Move, claim: Claim, began: float) -> Claim:
    """Return the claim as it would be, if a move had been recorded already."""
    link, envelope, before = move.link, move.link.envelope, current.position
    position = replace(
        before,
        version=move.version,
        definition=envelope.definition,
        state=envelope.to_state,
        seq=envelope.seq,
        head=link.hash,
        moved_at=envelope.at,
        entered_at=move.entered_at,
        entered_seq=move.entered_seq,
        following=replace(move.following, queue=move.following.queue or before.home_queue),
        checkpoint_number=0,
    )
    return replace(
        current,
        position=position,
        now=claim.now + timedelta(seconds=time.monotonic() - began),
        snapshot=Snapshot(
            body=link.checkpoint, number=0, salt=link.checkpoint_salt, commitment=bytes(envelope.checkpoint)
        ),
        event=None,
    )


def commit(bench: Bench, made: Sequence[Move]) -> Moved:
    """Record transitions that follow each other: all of them, or nothing.

    Raises:
        ClaimLost: nothing of it was written.

    """
    try:
        return _write(bench, made)
    except DatabaseUnavailable as error:
        log.warning("commit not answered", workflow_id=made[0].link.envelope.workflow_id, reason=error.reason)
        return bench.patiently(lambda: _look_and_write(bench, made))


def _write(bench: Bench, made: Sequence[Move]) -> Moved:
    def write(session: Session) -> Moved:
        moved = None
        for move in made:
            moved = repository.commit(in_transaction(session), move, grace=bench.grace)
            if moved is None:
                raise _lost(made)
        assert moved is not None, "there is at least one"  # noqa: S101
        return moved

    return in_one_transaction(bench.database, write)


def _look_and_write(bench: Bench, made: Sequence[Move]) -> Moved:
    # The first says it for all: they were written in one transaction.
    match outcome_of(bench, made[0]):
        case Outcome.RECORDED:
            return moved_to(bench, made[-1])
        case Outcome.STILL_OURS:
            return _write(bench, made)
        case Outcome.LOST:
            raise _lost(made)


def _lost(made: Sequence[Move]) -> ClaimLost:
    envelope = made[0].link.envelope
    return ClaimLost(envelope.workflow_id, envelope.seq - 1)

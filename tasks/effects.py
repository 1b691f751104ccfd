"""The effects of one attempt: each is run at least once, and recorded once; a recorded one is not run again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from ..config.logging import get_logger
from ..core import effect
from ..core.canonical import Json, load
from ..core.effect import Check, Happened, Status, Step
from ..core.errors import (
    ClaimLost,
    DatabaseUnavailable,
    DidNotHappen,
    EffectInDoubt,
    InvalidHandlerResult,
    InvalidName,
    NotCanonical,
)
from ..core.names import check_name
from ..persistence import effects, recovered
from ..persistence.database import Connection
from ..persistence.records import Effect, Position
from .bench import Bench
from .result import describe

log = get_logger(__name__)


class Effects:
    """What the handler of one attempt has done outside so far."""

    def __init__(self, bench: Bench, position: Position, transition: str, others: Collection[str]) -> None:
        """``others`` are the other transitions that start from this state."""
        self._bench = bench
        self._position = position
        self._transition = transition
        self._others = others
        self._name = f"{position.type}.{transition}"
        self.used: set[str] = set()
        self.in_doubt: EffectInDoubt | InvalidHandlerResult | None = None
        """What ends this attempt, and stops the workflow, whatever the handler makes of it."""

    def need_no_doubt(self) -> None:
        """Raise what the handler was told of an effect in doubt, whatever it made of that."""
        if self.in_doubt is not None:
            raise self.in_doubt

    @cached_property
    def key_seq(self) -> int:
        """The seq that the keys of this handler go by: the same at every attempt.

        Counted from where the state was entered: a pause or a retry in between takes a seq, not the key.
        """
        if not recovered.was_there(self._position):
            return self._position.entered_seq + 1

        def ask() -> int:
            with self._bench.database.statement() as connection:
                return recovered.seq_of(connection, self._position)

        return self._bench.patiently(ask)

    def key(self, name: str) -> str:
        """Return the idempotency key of an effect.

        Raises:
            InvalidHandlerResult: it is no name for one.

        """
        try:
            return f"{self._position.workflow_id}:{self.key_seq}:{check_name('name of an effect', name)}"
        except InvalidName as error:
            raise InvalidHandlerResult(self._name, str(error)) from None

    def run(self, name: str, run: Callable[[], object], check: Check | None, *, repeat: bool) -> Json:
        """Run an effect, unless it is recorded already; return what is recorded of it.

        Raises:
            InvalidHandlerResult: a name that cannot be, or was used before; or a result that cannot be recorded.
            EffectInDoubt: nobody here knows whether it happened.
            ClaimLost: somebody else owns the transition by now.

        """
        key = self.key(name)
        if name in self.used:
            raise InvalidHandlerResult(self._name, f"it has a second effect {name!r}; give each a name of its own")
        self.used.add(name)
        taken_back = self._may_be_done(can_ask=check is not None, repeat=repeat)
        begun = self._write(lambda c: effects.begin(c, self._position, name, self._transition, key, self._bench.actor))
        if begun and not taken_back:
            return self._run(name, run)
        found = self._find(name)
        step = effect.next_step(
            Status(found.status),
            ours=found.claim == self._position.claim and not taken_back,
            can_ask=check is not None,
            repeat=repeat,
        )
        self._need_same_handler(found)
        match step:
            case Step.RETURN:
                return found.result
            case Step.DOUBT:
                raise self._doubt(found)
            case Step.ASK if check is not None and (happened := self._ask(name, key, check)) is not None:
                self._take_over(name)
                return self._record(name, happened.result)
            case _:
                self._take_over(name)
                return self._run(name, run)

    # --- one effect -----------------------------------------------------------------------

    def _may_be_done(self, *, can_ask: bool, repeat: bool) -> bool:
        """Whether an attempt that a recovery took back may have done what is begun now for the first time.

        Whoever can be asked is asked as long as the workflow lives: what was lost, nobody may know of. For a person,
        who would have to find out, it is only what is known to have gone on.
        """
        if not can_ask and repeat:
            return False  # it is done again in any case: the provider takes the same key twice for once
        return (can_ask and recovered.was_there(self._position)) or self.key_seq <= self._gone_through

    @cached_property
    def _gone_through(self) -> int:
        def ask() -> int:
            with self._bench.database.statement() as connection:
                return recovered.gone_through(connection, self._position)

        return self._bench.patiently(ask)

    def _run(self, name: str, run: Callable[[], object]) -> Json:
        try:
            result = run()
        except DidNotHappen as error:
            self._note(name, Status.NOT_DONE, error)
            raise
        except Exception as error:
            # It may have happened all the same: a provider that does not answer has often done its work.
            self._note(name, Status.BEGUN, error)
            raise
        return self._record(name, result)

    def _record(self, name: str, result: object) -> Json:
        try:
            body = effect.recorded(result, max_bytes=self._bench.settings.max_bytes)
        except NotCanonical as error:
            problem = (
                f"the effect {name!r} happened, and what came of it cannot be recorded ({error}); return what "
                f"can, and say what came of this one: `aegis effect {self._position.workflow_id} {name} --done JSON`"
            )
            self.in_doubt = wrong = InvalidHandlerResult(self._name, problem)
            self._note(name, Status.IN_DOUBT, wrong)
            raise wrong from None
        if not self._write(lambda c: effects.finish(c, self._position, name, body)):
            raise self._lost()
        log.info("effect recorded", workflow_id=self._position.workflow_id, seq=self._position.seq + 1, effect=name)
        return load(body)

    def _ask(self, name: str, key: str, check: Check) -> Happened[Any] | None:
        """Ask the provider what became of an effect; None: it did not happen."""
        try:
            answer = check(key)
        except DidNotHappen:
            return None
        if isinstance(answer, Happened):
            return answer
        if isinstance(answer, DidNotHappen) or answer is DidNotHappen:
            return None
        problem = (
            f"the check of the effect {name!r} returned {answer!r}; it must return Happened(result) or DidNotHappen"
        )
        raise InvalidHandlerResult(self._name, problem)

    def _doubt(self, found: Effect) -> EffectInDoubt:
        self.in_doubt = wrong = EffectInDoubt(self._position.workflow_id, found.name, found.key)
        if found.status != Status.IN_DOUBT.value:
            told = describe(wrong, found.attempt)
            if not self._write(lambda c: effects.doubt(c, self._position, found.name, told)):
                raise self._lost()
        return wrong

    def _need_same_handler(self, found: Effect) -> None:
        """Refuse what another handler of this state did under that name: its result means something else.

        Of one that is not there any more, this is the new name.
        """
        if found.transition in self._others and found.status != Status.NOT_DONE.value:
            problem = f"the effect {found.name!r} is one of {found.transition} already; give this one another name"
            raise InvalidHandlerResult(self._name, problem)

    # --- statements -------------------------------------------------------------------------

    def _find(self, name: str) -> Effect:
        def ask() -> Effect | None:
            with self._bench.database.statement() as connection:
                return effects.find(connection, self._position, name)

        found = self._bench.patiently(ask)
        if found is None:
            raise self._lost()
        return found

    def _take_over(self, name: str) -> None:
        if not self._write(lambda c: effects.take_over(c, self._position, name, self._transition, self._bench.actor)):
            raise self._lost()

    def _note(self, name: str, status: Status, error: Exception) -> None:
        """Write down what went wrong, if the database answers: without it, it merely stays begun."""
        told: Mapping[str, Any] = describe(error, self._position.attempt)
        with suppress(DatabaseUnavailable), self._bench.database.statement() as connection:
            effects.give_up(connection, self._position, name, status, told)

    def _write(self, write: Callable[[Connection], bool]) -> bool:
        def act() -> bool:
            with self._bench.database.statement() as connection:
                return write(connection)

        return self._bench.patiently(act)

    def _lost(self) -> ClaimLost:
        return ClaimLost(self._position.workflow_id, self._position.seq)

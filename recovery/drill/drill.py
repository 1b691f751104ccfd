"""One drill, stage by stage: steady, inject, observe, heal, verify; what is measured goes into the report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from ...core.errors import AegisError, DatabaseUnavailable, DrillNotRun, ServerUnavailable
from ...core.objective import Objective
from ...persistence import observe
from ...persistence.auditor import Auditor
from ...persistence.observe import Sight
from ...tasks.scrub import sources
from ...testing.invariants import Rules, check
from ...testing.ledger import ACCEPTED, Entry, Ledger
from . import measure, said_of
from .client import Client
from .ledger import START, ClientLedger, Request
from .movement import Move, Movement
from .report import Check, Outcome, Ran
from .scenario import FILE, MOMENT, WHY, WORKFLOW, Command, Scenario
from .scene import Fault, Stage
from .system import System
from .workload import MAX_ATTEMPTS, turns

# A drill begins once so many workflows were accepted, and have moved, within the last three seconds.
_STEADY_FOR: Final = 3.0
_STEADY: Final = 5
_STEADY_WITHIN: Final = 60.0
_GOES_ON_FOR: Final = 2.0
_SETTLED_WITHIN: Final = 90.0
_OVER_WITHIN: Final = 60.0
_LOOK_EVERY: Final = 0.05
_BEFORE: Final = 5.0
_SHOWN: Final = 3
_MOST_SAID: Final = 2000

Box = TypeVar("Box", bound=System)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a drill is carried out: ``load`` is new workflows a second, ``patience`` how long to wait for recovery."""

    load: float
    seed: int
    patience: float | None = None

    def waits(self, declared: Objective) -> float:
        """Return how long to wait for what is declared (seconds): long enough to say how much it was missed by."""
        return max(20.0, declared.rto * 3) if self.patience is None else self.patience


class Drill(Generic[Box]):
    """One repetition of a scenario on a system that is up; ``break_it`` is what is done to it."""

    def __init__(
        self,
        box: Box,
        scenario: Scenario,
        break_it: Callable[[Stage[Box]], Fault],
        declared: Objective,
        terms: Terms,
        number: int,
    ) -> None:
        self.box, self.scenario, self.terms, self.number = box, scenario, terms, number
        self.declared, self._break = declared, break_it
        self.prefix = f"{scenario.name}-{number}-{time.monotonic_ns() % 10**9}-"
        self._random = random.Random(f"{terms.seed}/{scenario.name}/{number}")  # noqa: S311 - to be repeated
        self._ran: list[Ran] = []
        self._named: set[tuple[str, int]] = set()
        self._listed: set[str] = set()
        self._rested = 0.0
        self._in_vain = 0
        self._undone = ""
        self._again: tuple[int, float] | None = None

    def run(self) -> Outcome:
        """Carry it out.

        Raises:
            AegisError: it could not be carried out as it is meant.

        """
        with ExitStack() as stack:
            ledger = stack.enter_context(ClientLedger(self.box.outside / f"{self.prefix}client.jsonl"))
            client = Client(self.box.engine(), ledger, self.box.effects, self.prefix, self._random)
            stack.callback(client.stop)
            movement = Movement(self.box.database, self.prefix)
            stack.callback(movement.stop)
            scene = Stage(self.box, client, movement, self.prefix, self._random, stack.callback)
            self._steady(scene)
            anchored = self.box.anchor()
            fault = self._stopped(self._inject(scene))
            healed, waited = self._recover(scene, fault)
            self._settle(scene, fault)
            return self._verify(scene, ledger, fault, anchored, healed, waited)

    # --- the stages -----------------------------------------------------------------------------

    def _steady(self, scene: Stage[Box]) -> None:
        """Load the system, and wait until it works as it should."""
        scene.client.run(self.terms.load)
        deadline = time.monotonic() + _STEADY_WITHIN
        while not _is_steady(scene.client.requests(), scene.movement.moves()):
            if time.monotonic() > deadline:
                problem = f"there was no steady state within {_STEADY_WITHIN:g} s"
                raise DrillNotRun(self.scenario.name, problem, "look at the load of the machine, or lower --load")
            self.box.unless_broken()
            time.sleep(_LOOK_EVERY)

    def _inject(self, scene: Stage[Box]) -> Fault:
        """Break it; look at it before, where it is planned, and else after, as the page says."""
        if self.scenario.planned:
            self._check(Fault(at=time.monotonic(), told=""))
        fault = self._break(scene)
        self.box.tell(fault.told)
        if not self.scenario.planned:
            self._check(fault)
        return fault

    def _stopped(self, fault: Fault) -> Fault:
        """Stop what the looks still needed."""
        if fault.stop is None:
            return fault
        fault.stop()
        return replace(fault, stopped=time.monotonic())

    def _check(self, fault: Fault) -> None:
        for command in self.scenario.check:
            self._type(command, "check", fault)

    def _recover(self, scene: Stage[Box], fault: Fault) -> tuple[float | None, float]:
        """Type what the runbook says, and wait until what was met moves; return when it was healed, and the wait."""
        healed = time.monotonic() if self.scenario.from_healing else None
        for command in self.scenario.heal:
            self._until(command, "heal", fault) if command.waits else self._type(command, "heal", fault)
        since, typed = fault.at if healed is None else healed, time.monotonic()
        patience = self.terms.waits(self.declared)
        while time.monotonic() - since < patience and not self._is_over(scene, fault, since, typed):
            self.box.unless_broken()
            time.sleep(_LOOK_EVERY)
        return healed, time.monotonic() - since

    def _is_over(self, scene: Stage[Box], fault: Fault, since: float, typed: float) -> bool:
        """Whether all that was met moves; where nothing is broken, whether all goes on after what was typed."""
        moves = scene.movement.moves()
        if self.scenario.planned:
            return measure.is_served(scene.client.requests(), moves, typed)
        return not measure.still_waiting(fault, moves, since) or measure.recovered(fault, moves, since)[1] is not None

    def _settle(self, scene: Stage[Box], fault: Fault) -> None:
        """Go on for a moment; then ask for nothing new, and wait until all that was accepted is done."""
        if fault.undo is not None:
            try:
                fault.undo()
            except AegisError as error:
                self._undone = str(error)
        time.sleep(_GOES_ON_FOR)
        self._rested = time.monotonic()
        within = _SETTLED_WITHIN if self.terms.patience is None else self.terms.patience
        deadline = time.monotonic() + within
        self._in_vain = sum(not client.rest(within) for client in (scene.client, *fault.others))
        while time.monotonic() < deadline:
            self.box.unless_broken()
            with suppress(DatabaseUnavailable):
                sights = self._sights()
                if all(measure.has_ended(sight, fault) for sight in sights.values()):
                    break
            time.sleep(_LOOK_EVERY)
        scene.movement.look()

    def _verify(
        self,
        scene: Stage[Box],
        ledger: ClientLedger,
        fault: Fault,
        anchored: int,
        healed: float | None,
        waited: float,
    ) -> Outcome:
        requests, moves, sights = ledger.requests(), scene.movement.moves(), self._sights()
        with self.box.database.statement() as connection:
            counted = measure.count(requests, sights, observe.received(connection, self.prefix), fault)
        rpo = self._work_lost(fault) if self.scenario.loses_progress else measure.loss(counted.lost, fault.at)
        since = fault.at if healed is None else healed
        first, rto = self._times(requests, moves, fault, healed)
        entries = Ledger(self.box.outside / "effects.jsonl").entries()
        checks = [*measure.of_the_counts(counted, self.scenario, self.declared, rpo)]
        left = measure.left_behind(fault, moves, sights, since)
        checks.append(measure.of_the_time(self.declared, rto, waited, left))
        checks.append(measure.of_the_service(requests, since, self._in_vain))
        checks += self._what_went_back(scene, fault, requests, counted)
        checks += self._integrity(requests, entries, anchored, fault)
        for command in self.scenario.over:
            self._until(command, "over", fault)
        checks.append(self._commands())
        if self._undone:
            checks.append(Check(name="undone", declared="all is there again", measured=self._undone, passed=False))
        begun = max(fault.at - _BEFORE, requests[0].answered_at)
        return Outcome(
            number=self.number,
            told=fault.told,
            met=len(fault.met),
            acknowledged=counted.acknowledged,
            refused=counted.refused,
            ambiguous=counted.ambiguous,
            lost=len(counted.lost),
            doubled=counted.doubled,
            transitions=sum(move.transitions for move in moves),
            repeated=self._repeated(entries),
            rpo=_rounded(rpo),
            first=_rounded(first),
            rto=_rounded(rto),
            gap=round(measure.gap(requests, fault.at - fault.sooner - 1, since + waited + _GOES_ON_FOR), 3),
            checks=tuple(checks),
            commands=tuple(self._ran),
            timeline=measure.timeline(requests, moves, fault, healed, (begun, self._rested)),
        )

    # --- what was measured ------------------------------------------------------------------------

    def _work_lost(self, fault: Fault) -> float | None:
        return measure.work_lost(turns(self.box.outside), fault)

    def _times(
        self, requests: Sequence[Request], moves: list[Move], fault: Fault, healed: float | None
    ) -> tuple[float | None, float | None]:
        """Return after how long the first and the last of those that were met went on."""
        if fault.named is not None:
            named = self._named_after(fault)
            return named, named
        if self.scenario.planned:
            stood = measure.stood_still(requests, moves, fault.at, self._rested)
            return stood, stood
        since, sooner = (fault.at, fault.sooner) if healed is None else (healed, 0.0)
        first, rto = measure.recovered(fault, moves, since)
        if self.box.shared and not measure.still_waiting(fault, moves, since):
            first = rto = 0.0  # others had gone on with all of them before anybody did anything
        if first is None or rto is None:
            return first, rto
        if self.box.shared:
            # When a command that was given took effect nobody knows: it may have been after it had ended.
            rto = max(rto, measure.stood_still(requests, moves, since, self._rested))
        return first + sooner, rto + sooner

    # --- the parts of the verdict -----------------------------------------------------------------

    def _integrity(
        self, requests: Sequence[Request], entries: Sequence[Entry], anchored: int, fault: Fault
    ) -> Iterator[Check]:
        """Verify every chain, the whole log beside the anchors, and what must hold in every history."""
        rules = Rules(max_attempts=MAX_ATTEMPTS, silent=() if self.box.effects else MAX_ATTEMPTS)
        starts = [request for request in measure.promised(requests, fault) if request.kind == START]
        accepted = [_accepted(request) for request in starts]
        only = self.prefix if self.box.shared else ""
        violations = check(self.box.database, [*accepted, *entries], rules, prefix=only)
        yield Check(
            name="invariants",
            declared="I1 to I10 hold",
            measured="they hold" if not violations else "; ".join(map(str, violations[:_SHOWN])),
            passed=not violations,
        )
        try:
            self.box.anchor()
        except ServerUnavailable as error:
            # The log does not go on from what was anchored: that is what a drill is there to find.
            yield Check(name="anchored", declared="all of the log", measured=error.problem, passed=False)
        report = Auditor(self.box.database, sources(self.box.settings)).everything()
        compared = max((witness.entries for witness in report.witnesses), default=0)
        # Where others anchor, it may be that nobody lets us see it.
        whole = report.valid and report.complete and compared >= anchored and (anchored > 0 or self.box.shared)
        found = "; ".join([*map(str, report.failures[:_SHOWN]), *report.problems[:_SHOWN]])
        yield Check(
            name="chains and anchors",
            declared=f"as committed, with the {anchored} that were anchored before"
            if anchored
            else "as committed; no anchor can be seen from here",
            measured=found or f"{report.workflows} histories as committed, {compared} entries as anchored",
            passed=whole,
        )
        if fault.named is not None:
            place = "transition {1} of {0}".format(*fault.named)
            others = self._named - {fault.named}
            right = self._named == {fault.named}
            measured = "that" if right else f"{len(others)} others" if others else "nothing"
            yield Check(name="named", declared=f"{place}, and no other", measured=measured, passed=right)

    def _what_went_back(
        self, scene: Stage[Box], fault: Fault, requests: Sequence[Request], counted: measure.Count
    ) -> Iterator[Check]:
        """Judge what is further back than it was: none of it, or what is listed as that."""
        if not fault.goes_back:
            yield measure.of_what_was_seen(scene.movement.falls())
        if self._again is not None:
            listed, typed = self._again
            yield measure.of_the_events(measure.events_given_up(requests, fault, typed), listed)
        if fault.anchored is not None:
            yield measure.of_what_is_listed(counted, self._listed, fault.anchored)

    def _repeated(self, entries: Sequence[Entry]) -> int | None:
        if not self.box.effects:
            return None
        return measure.repeated(entry for entry in entries if entry.workflow_id.startswith(self.prefix))

    def _named_after(self, fault: Fault) -> float | None:
        """Return after how long verification had named what was edited."""
        done = 0.0
        for ran in self._ran:
            done += ran.seconds
            if ran.stage == "check":
                return done if fault.named in self._named else None
        return None

    def _commands(self) -> Check:
        failed = [ran for ran in self._ran if not ran.passed]
        return Check(
            name="runbook",
            declared=f"{len(self._ran)} commands end as the page says",
            measured="they do"
            if not failed
            else "; ".join(f"`{ran.command}` ended with {ran.status}" for ran in failed),
            passed=not failed,
        )

    def _type(self, command: Command, stage: str, fault: Fault) -> None:
        """Run a command of the runbook as it stands there."""
        places = {WORKFLOW: fault.victim, FILE: fault.victim, MOMENT: fault.moment, WHY: "drill"}
        argv = [word if command.given else places.get(word, word) for word in command.argv]
        began = time.monotonic()
        status: int | None = None
        said = ""
        if command.runs_on:
            self.box.leave_running(argv)
            passed = True
        else:
            done = self.box.carry_out(argv) if command.given else self.box.run(argv, f"{self.prefix}desk")
            status = done.returncode
            passed = status in command.expects and command.says in done.stdout
            said = "" if passed else (done.stdout + done.stderr)[-_MOST_SAID:]
            if fault.named is not None and stage == "check" and "--json" in argv:
                self._named = said_of.failures(done.stdout)
            if fault.anchored is not None and stage == "check" and "--json" in argv:
                self._listed = said_of.listed(done.stdout)
            if fault.until is not None and "--dry-run" in argv:
                self._again = (said_of.sent_again(done.stdout), began)
        self._ran.append(
            Ran(
                command=str(command),
                stage=stage,
                status=status,
                seconds=round(time.monotonic() - began, 2),
                passed=passed,
                said=said,
            )
        )

    def _until(self, command: Command, stage: str, fault: Fault) -> None:
        """Type a command until it ends as the page says, as somebody would who waits for that."""
        deadline = time.monotonic() + (_OVER_WITHIN if self.terms.patience is None else self.terms.patience)
        self._type(command, stage, fault)
        while not self._ran[-1].passed and time.monotonic() < deadline:
            self._ran.pop()
            self._type(command, stage, fault)

    def _sights(self) -> dict[str, Sight]:
        with self.box.database.statement() as connection:
            return {sight.workflow_id: sight for sight in observe.sights(connection, self.prefix)}


def _is_steady(requests: Sequence[Request], moves: Sequence[Move]) -> bool:
    since = time.monotonic() - _STEADY_FOR
    answered = [request for request in requests if request.answered_at > since]
    old = requests and requests[0].answered_at < since
    moved = sum(move.transitions for move in moves if move.at > since)
    return bool(old) and all(r.acknowledged for r in answered) and len(answered) >= _STEADY and moved >= _STEADY


def _accepted(request: Request) -> Entry:
    return Entry(
        kind=ACCEPTED, workflow_id=request.workflow_id, seq=0, name="start", attempt=1, pid=0, at=request.answered_at
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

"""Several drills in a row: each on a sandbox that fits, which is used again where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from ...config.settings import Settings
from ...core.objective import Objective
from .drill import Drill, Terms
from .report import Outcome, Report, machine, now, telling, versions
from .sandbox import Needs, Sandbox, sandbox
from .scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A scenario that cannot be run here, and why."""

    scenario: str
    reason: str


class Session:
    """Holds the sandbox of the moment; to be used as a context, at whose end nothing is left of it."""

    def __init__(self, given: Settings, terms: Terms, tell: Callable[[str], None]) -> None:
        self._given, self._terms, self._tell = given, terms, tell
        self._stack = ExitStack()
        self._box: Sandbox | None = None
        self._fits: Needs | None = None

    def __enter__(self) -> Self:
        """Begin without a sandbox."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        self._drop()

    def run(self, scenarios: Sequence[Scenario], repeat: int) -> Iterator[Report | Skipped]:
        """Run scenarios one after the other, each so many times; give each report as it is ready.

        Raises:
            AegisError: one could not be carried out.

        """
        for scenario in scenarios:
            reason = scenario.skipped()
            if reason:
                yield Skipped(scenario=scenario.name, reason=reason)
            else:
                yield self._report(scenario, repeat)

    def _report(self, scenario: Scenario, repeat: int) -> Report:
        started_at = now()
        declared = self._declared(scenario)
        host, outcomes, told = machine(), list[Outcome](), dict[str, str]()
        for number in range(1, repeat + 1):
            box = self._sandbox(scenario)
            told = told or versions(box.settings)
            self._tell(f"{scenario.name}: {number} of {repeat}")
            outcomes.append(Drill(box, scenario, declared, self._terms, number).run())
            if scenario.spends or not outcomes[-1].passed:
                self._drop()
            else:
                box.restore()
        settings = telling(self._given.model_copy(update=dict(scenario.needs.settings)))
        return Report(
            scenario=scenario.name,
            title=scenario.title,
            injects=scenario.injects,
            objective=declared,
            seed=self._terms.seed,
            load=self._terms.load,
            started_at=started_at,
            finished_at=now(),
            machine=host,
            versions=told,
            settings=settings,
            outcomes=tuple(outcomes),
        )

    def _declared(self, scenario: Scenario) -> Objective:
        """Return the objective; of work inside a handler, what it comes to where checkpoints come more often."""
        (declared,) = (each for each in self._given.declared if each.name == scenario.objective)
        if not scenario.loses_progress:
            return declared
        interval = float(str(scenario.needs.settings.get("checkpoint_interval", self._given.checkpoint_interval)))
        return replace(declared, rpo=declared.rpo * interval / self._given.checkpoint_interval)

    def _sandbox(self, scenario: Scenario) -> Sandbox:
        if self._box is None or self._fits != scenario.needs:
            self._drop()
            self._tell("making a sandbox")
            self._box = self._stack.enter_context(sandbox(self._given, self._tell, scenario.needs))
            self._fits = scenario.needs
        return self._box

    def _drop(self) -> None:
        self._box = None
        self._stack.close()

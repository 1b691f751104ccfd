"""Several drills in a row: each on a sandbox that fits, which is used again where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from ...config.settings import Settings
from ...core.objective import Objective
from .drill import Drill, Terms
from .report import Outcome, Report, machine, now, packages, servers, telling
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
        notes = Notes(scenario, declared_for(self._given, scenario), self._terms)
        outcomes, told = list[Outcome](), dict[str, str]()
        for number in range(1, repeat + 1):
            box = self._sandbox(scenario)
            told = told or {**packages(), **servers(box.settings)}
            self._tell(f"{scenario.name}: {number} of {repeat}")
            outcomes.append(Drill(box, scenario, scenario.fault, notes.declared, self._terms, number).run())
            if scenario.spends or not outcomes[-1].passed:
                self._drop()
            else:
                box.restore()
        settings = self._given.model_copy(update=dict(scenario.needs.settings))
        return notes.report(Sandbox.name, told, settings, outcomes)

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


class Notes:
    """What is known of a report before its first run."""

    def __init__(self, scenario: Scenario, declared: Objective, terms: Terms) -> None:
        self.scenario, self.declared, self.terms = scenario, declared, terms
        self._started_at, self._machine = now(), machine()

    def report(self, system: str, versions: dict[str, str], settings: Settings, outcomes: Sequence[Outcome]) -> Report:
        """Return the report of these runs."""
        return Report(
            scenario=self.scenario.name,
            system=system,
            title=self.scenario.title,
            injects=self.scenario.injects,
            objective=self.declared,
            seed=self.terms.seed,
            load=self.terms.load,
            started_at=self._started_at,
            finished_at=now(),
            machine=self._machine,
            versions=versions,
            settings=telling(settings),
            outcomes=tuple(outcomes),
        )


def declared_for(given: Settings, scenario: Scenario) -> Objective:
    """Return the objective; of work inside a handler, what it comes to where checkpoints come more often."""
    (declared,) = (each for each in given.declared if each.name == scenario.objective)
    if not scenario.loses_progress:
        return declared
    interval = float(str(scenario.needs.settings.get("checkpoint_interval", given.checkpoint_interval)))
    return replace(declared, rpo=declared.rpo * interval / given.checkpoint_interval)

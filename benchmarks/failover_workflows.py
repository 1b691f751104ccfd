"""What ``failover.py`` keeps going: short transitions, always more of them."""

from __future__ import annotations

from enum import StrEnum

from aegis import Context, Workflow, transition


class Step(StrEnum):
    """Where a relay is."""

    FIRST = "first"
    SECOND = "second"
    THIRD = "third"
    DONE = "done"


class Relay(Workflow, version=1):
    """Three transitions, each of which counts itself."""

    state: Step = Step.FIRST
    runs: int = 0

    @transition(Step.FIRST, Step.SECOND)
    def first(self, _ctx: Context) -> None:
        """Count."""
        self.runs += 1

    @transition(Step.SECOND, Step.THIRD)
    def second(self, _ctx: Context) -> None:
        """Count."""
        self.runs += 1

    @transition(Step.THIRD, Step.DONE)
    def third(self, _ctx: Context) -> None:
        """Count."""
        self.runs += 1

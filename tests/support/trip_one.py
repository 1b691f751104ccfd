"""Version 1 of a workflow that is deployed anew while it runs: distances in kilometres."""

from __future__ import annotations

import time
from enum import StrEnum

from fault_workflows import STURDY, note
from pydantic import Field

from aegis import Context, Workflow, transition


class Stage(StrEnum):
    HOME = "home"
    ROAD = "road"
    STOP = "stop"
    THERE = "there"


class Trip(Workflow, version=1, name="test.Trip"):
    """Two automatic transitions around an event."""

    state: Stage = Stage.HOME
    km: int
    pause: float = 0.0
    seen: list[str] = Field(default_factory=list)

    def _drive(self, ctx: Context, name: str) -> None:
        note(ctx, name)
        time.sleep(self.pause)
        self.km += 1
        self.seen.append(f"1 {name}")

    @transition(Stage.HOME, Stage.ROAD, retry=STURDY)
    def leave(self, ctx: Context) -> None:
        self._drive(ctx, "leave")

    @transition(Stage.ROAD, Stage.STOP, on="rest", retry=STURDY)
    def rest(self, ctx: Context, minutes: int) -> None:
        self._drive(ctx, "rest")

    @transition(Stage.STOP, Stage.THERE, retry=STURDY)
    def arrive(self, ctx: Context) -> None:
        self._drive(ctx, "arrive")

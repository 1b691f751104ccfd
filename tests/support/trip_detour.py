"""Version 1 of the trip again, as somebody deployed it by mistake: without the state ``road``, and no new version."""

from __future__ import annotations

from enum import StrEnum

from fault_workflows import STURDY
from pydantic import Field

from aegis import Context, Workflow, transition


class Stage(StrEnum):
    HOME = "home"
    STOP = "stop"
    THERE = "there"


class Trip(Workflow, version=1, name="test.Trip"):
    """From home to the stop, past the road."""

    state: Stage = Stage.HOME
    km: int
    pause: float = 0.0
    seen: list[str] = Field(default_factory=list)

    @transition(Stage.HOME, Stage.STOP, on="rest", retry=STURDY)
    def rest(self, ctx: Context, minutes: int) -> None: ...

    @transition(Stage.STOP, Stage.THERE, retry=STURDY)
    def arrive(self, ctx: Context) -> None: ...

"""Version 2 of the same: distances in metres, and ``road`` is called ``highway``."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

from fault_workflows import STURDY, note
from pydantic import Field

from aegis import Context, Workflow, transition, upgrade


class Stage(StrEnum):
    HOME = "home"
    HIGHWAY = "highway"
    STOP = "stop"
    THERE = "there"


class Trip(Workflow, version=2, name="test.Trip"):
    """Two automatic transitions around an event."""

    state: Stage = Stage.HOME
    metres: int
    pause: float = 0.0
    seen: list[str] = Field(default_factory=list)

    @upgrade(1)
    @staticmethod
    def from_v1(data: dict[str, Any]) -> dict[str, Any]:
        state = "highway" if data["state"] == "road" else data["state"]
        return {"state": state, "metres": data["km"] * 1000, "pause": data["pause"], "seen": data["seen"]}

    def _drive(self, ctx: Context, name: str) -> None:
        note(ctx, name)
        time.sleep(self.pause)
        self.metres += 1000
        self.seen.append(f"2 {name}")

    @transition(Stage.HOME, Stage.HIGHWAY, retry=STURDY)
    def leave(self, ctx: Context) -> None:
        self._drive(ctx, "leave")

    @transition(Stage.HIGHWAY, Stage.STOP, on="rest", retry=STURDY)
    def rest(self, ctx: Context, minutes: int) -> None:
        self._drive(ctx, "rest")

    @transition(Stage.STOP, Stage.THERE, retry=STURDY)
    def arrive(self, ctx: Context) -> None:
        self._drive(ctx, "arrive")

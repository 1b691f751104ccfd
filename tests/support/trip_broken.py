"""Version 2 of the trip with an upgrade that raises: it asks for what version 1 never had."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fault_workflows import STURDY
from pydantic import Field

from aegis import Context, Workflow, transition, upgrade


class Stage(StrEnum):
    HOME = "home"
    HIGHWAY = "highway"
    THERE = "there"


class Trip(Workflow, version=2, name="test.Trip"):
    """From home to the highway, and on."""

    state: Stage = Stage.HOME
    metres: int
    pause: float = 0.0
    seen: list[str] = Field(default_factory=list)

    @upgrade(1)
    @staticmethod
    def from_v1(data: dict[str, Any]) -> dict[str, Any]:
        return {"state": "highway", "metres": data["miles"] * 1609}

    @transition(Stage.HOME, Stage.HIGHWAY, retry=STURDY)
    def leave(self, ctx: Context) -> None: ...

    @transition(Stage.HIGHWAY, Stage.THERE, on="rest", retry=STURDY)
    def rest(self, ctx: Context, minutes: int) -> None: ...

"""Version 2: cents instead of euros, a state with another name, and a new event; and the way from version 1."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from aegis import Context, Workflow, transition, upgrade


class Stage(StrEnum):
    """How far a subscription has come."""

    ORDERED = "ordered"
    ACTIVE = "active"
    ENDED = "ended"


class Subscription(Workflow, version=2, name="example.Subscription"):
    """It runs until it is ended, and may get another price meanwhile."""

    state: Stage = Stage.ORDERED
    name: str
    cents: int

    @upgrade(1)
    @staticmethod
    def from_v1(data: dict[str, Any]) -> dict[str, Any]:
        """Bring the data of version 1 along: its prices, and the state that was called ``running``."""
        state = "active" if data["state"] == "running" else data["state"]
        return {"state": state, "name": data["name"], "cents": data["euros"] * 100}

    @transition(Stage.ORDERED, Stage.ACTIVE)
    def begin(self, ctx: Context) -> None:
        """Begin at once."""

    @transition(Stage.ACTIVE, Stage.ACTIVE, on="reprice")
    def reprice(self, ctx: Context, cents: int) -> None:
        """Take a new price, and run on."""
        ctx.log.info("repriced", before=self.cents, now=cents)
        self.cents = cents

    @transition(Stage.ACTIVE, Stage.ENDED, on="end")
    def end(self, ctx: Context, payload: None) -> None:
        """End when somebody says so."""

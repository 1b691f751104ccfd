"""Version 1: a name in one field, and prices in whole euros."""

from __future__ import annotations

from enum import StrEnum

from aegis import Context, Workflow, transition


class Stage(StrEnum):
    """How far a subscription has come."""

    ORDERED = "ordered"
    RUNNING = "running"
    ENDED = "ended"


class Subscription(Workflow, version=1, name="example.Subscription"):
    """It runs until it is ended."""

    state: Stage = Stage.ORDERED
    name: str
    euros: int

    @transition(Stage.ORDERED, Stage.RUNNING)
    def begin(self, ctx: Context) -> None:
        """Begin at once."""

    @transition(Stage.RUNNING, Stage.ENDED, on="end")
    def end(self, ctx: Context, payload: None) -> None:
        """End when somebody says so."""

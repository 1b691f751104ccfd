"""A workflow module that knows nothing of the others."""

from __future__ import annotations

from enum import StrEnum

from aegis import Context, Workflow, transition


class Only(StrEnum):
    HERE = "here"
    THERE = "there"


class Unrelated(Workflow):
    state: Only = Only.HERE

    @transition(Only.HERE, Only.THERE)
    def go(self, ctx: Context) -> None: ...

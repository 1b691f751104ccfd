"""The workflows of the command line's tests."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

from aegis import Context, Retry, Workflow, transition


class Stage(StrEnum):
    DRAFT = "draft"
    REVIEW = "review"
    APPROVED = "approved"
    REJECTED = "rejected"
    PUBLISHED = "published"


class Answer(BaseModel):
    yes: bool
    comment: str = ""


class Paper(Workflow):
    """Waits for a decision, for as long as it takes."""

    state: Stage = Stage.DRAFT
    title: str
    pages: int = 1
    comment: str = ""

    @transition(Stage.DRAFT, Stage.REVIEW)
    def submit(self, ctx: Context) -> None:
        self.pages += 1

    @transition(Stage.REVIEW, (Stage.APPROVED, Stage.REJECTED), on="decide")
    def decide(self, ctx: Context, answer: Answer) -> Stage:
        self.comment = answer.comment
        return Stage.APPROVED if answer.yes else Stage.REJECTED

    @transition(Stage.APPROVED, Stage.PUBLISHED)
    def publish(self, ctx: Context) -> None:
        self.pages += 1


class Health(StrEnum):
    ILL = "ill"
    WELL = "well"


class Fragile(Workflow):
    """Fails with ``message`` as long as there is a file ``while_there``."""

    state: Health = Health.ILL
    while_there: str
    message: str = "it is broken"

    @transition(Health.ILL, Health.WELL, retry=Retry(max_attempts=2, delay=0.1))
    def mend(self, ctx: Context) -> None:
        if Path(self.while_there).exists():
            raise RuntimeError(self.message)


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    BEHIND = "behind"


class Gate(Workflow):
    """A handler that runs until there is a file ``key``; one more transition after it."""

    state: Door = Door.SHUT
    key: str
    looks: int = 0

    @transition(Door.SHUT, Door.OPEN)
    def knock(self, ctx: Context) -> None:
        while not Path(self.key).exists():
            self.looks += 1
            ctx.progress()
            time.sleep(0.05)

    @transition(Door.OPEN, Door.BEHIND)
    def enter(self, ctx: Context) -> None: ...

"""Workflows of the tests of what the engine does with real workers: queues, delays, events between workflows, rows."""

from __future__ import annotations

from enum import StrEnum

from celery import current_task
from fault_workflows import Life, note
from pydantic import Field
from sqlalchemy import text

from aegis import Context, Retry, RetryAfter, Workflow, transition

QUICKLY = Retry(max_attempts=3, delay=0.2)


class Stage(StrEnum):
    NEW = "new"
    HALF = "half"
    DONE = "done"


class Routed(Workflow, name="engine.Routed"):
    """Two transitions, of which the second has a queue of its own; each notes the worker that ran it."""

    state: Stage = Stage.NEW
    ran_by: list[str] = Field(default_factory=list)

    @transition(Stage.NEW, Stage.HALF)
    def first(self, ctx: Context) -> None:
        self.ran_by.append(current_task.request.hostname)

    @transition(Stage.HALF, Stage.DONE, queue="crane")
    def second(self, ctx: Context) -> None:
        self.ran_by.append(current_task.request.hostname)


class Plain(Workflow, name="engine.Plain"):
    """One transition, and the worker that ran it."""

    state: Life = Life.ALIVE
    ran_by: list[str] = Field(default_factory=list)

    @transition(Life.ALIVE, Life.DONE)
    def go(self, ctx: Context) -> None:
        self.ran_by.append(current_task.request.hostname)


class Told(Workflow, name="engine.Told"):
    """Another side that says twice when to come back; by its own ``Retry`` it would have given up at once."""

    state: Stage = Stage.NEW
    seconds: float
    counts: bool
    asked: int = 0

    @transition(Stage.NEW, Stage.DONE, retry=Retry(max_attempts=2, delay=60), give_up=Stage.HALF)
    def ask(self, ctx: Context) -> None:
        note(ctx, "ask")
        self.asked += 1
        if self.asked <= 2:
            ctx.checkpoint()
            raise RetryAfter(self.seconds, counts=self.counts)

    @transition(Stage.HALF, Stage.DONE)
    def give_up(self, ctx: Context) -> None: ...


class Sender(Workflow, name="engine.Sender"):
    """It sends to another one, from a plain handler or from one inside the transaction."""

    state: Life = Life.ALIVE
    to: str
    inside: bool = False

    @transition(Life.ALIVE, Life.DONE, guard=lambda sender: not sender.inside, retry=QUICKLY)
    def tell(self, ctx: Context) -> None:
        note(ctx, "tell")
        ctx.send(self.to, "word", f"from {ctx.workflow_id}", reason="as agreed")

    @transition(Life.ALIVE, Life.DONE, transactional=True, retry=QUICKLY)
    def tell_inside(self, ctx: Context) -> None:
        note(ctx, "tell_inside")
        ctx.send(self.to, "word", f"from {ctx.workflow_id}", reason="as agreed")


class Receiver(Workflow, name="engine.Receiver"):
    """It takes words until it has had enough of them."""

    state: Life = Life.ALIVE
    words: list[str] = Field(default_factory=list)

    @transition(Life.ALIVE, Life.ALIVE, on="word")
    def listen(self, ctx: Context, word: str) -> None:
        self.words.append(word)

    @transition(Life.ALIVE, Life.DONE, on="enough")
    def stop(self, ctx: Context, _: None) -> None: ...


class Booker(Workflow, name="engine.Booker"):
    """It writes a row of its own with its checkpoint; the table would take the row twice."""

    state: Stage = Stage.NEW

    @transition(Stage.NEW, Stage.HALF, transactional=True, retry=QUICKLY)
    def book(self, ctx: Context) -> None:
        note(ctx, "book")
        ctx.session.execute(
            text("INSERT INTO bookings VALUES (:id, :attempt)"), {"id": ctx.workflow_id, "attempt": ctx.attempt}
        )

    @transition(Stage.HALF, Stage.DONE)
    def finish(self, ctx: Context) -> None: ...

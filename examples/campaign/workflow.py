"""The campaign, and one letter of it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert

from aegis import Context, Workflow, transition

SENT = Table(
    "campaign_sent",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("campaign", Text),
    Column("customer", Integer),
)


class Stage(StrEnum):
    """Where a campaign is."""

    RUNNING = "running"
    OVER = "over"


class Campaign(Workflow, name="example.Campaign"):
    """It is over when each of its letters has told it that it went out."""

    state: Stage = Stage.RUNNING
    letters: int
    reached: list[int] = Field(default_factory=list)

    @transition(Stage.RUNNING, (Stage.RUNNING, Stage.OVER), on="sent")
    def count(self, ctx: Context, customer: int) -> Stage:
        """Count one."""
        self.reached.append(customer)
        ctx.set_attributes({"reached": len(self.reached)})
        return Stage.RUNNING if len(self.reached) < self.letters else Stage.OVER


class Step(StrEnum):
    """Where a letter is."""

    WRITTEN = "written"
    SENT = "sent"


class Letter(Workflow, name="example.Letter"):
    """A letter to one customer."""

    state: Step = Step.WRITTEN
    campaign: str
    customer: int

    @transition(Step.WRITTEN, Step.SENT, transactional=True)
    def send(self, ctx: Context) -> None:
        """Write it down, and tell the campaign: with this transition, in one transaction, or not at all."""
        ctx.session.execute(insert(SENT).values(campaign=self.campaign, customer=self.customer))
        ctx.send(self.campaign, "sent", self.customer)

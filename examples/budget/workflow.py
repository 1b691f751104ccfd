"""A budget: small ones pass by themselves, others need two who approve - or one who says no, or nobody in time."""

from __future__ import annotations

import os
from datetime import timedelta
from enum import StrEnum

from pydantic import Field

from aegis import Context, Workflow, transition

# Two weeks; whoever is impatient sets fewer seconds.
PATIENCE = timedelta(seconds=float(os.environ.get("BUDGET_SECONDS", "1209600")))
SMALL = 100


class Stage(StrEnum):
    """How far a budget has come."""

    ASKED = "asked"
    REVIEW = "review"
    APPROVED = "approved"
    TURNED_DOWN = "turned down"
    EXPIRED = "expired"


class BudgetWorkflow(Workflow, version=1):
    """A budget, from the question to the answer."""

    state: Stage = Stage.ASKED
    purpose: str
    amount: int = Field(gt=0)
    answered_by: list[str] = Field(default_factory=list)
    comment: str | None = None

    @transition(Stage.ASKED, Stage.APPROVED, guard=lambda budget: budget.amount < SMALL)
    def wave_through(self, ctx: Context) -> None:
        """Nobody is asked for so little."""

    @transition(Stage.ASKED, Stage.REVIEW)
    def ask(self, ctx: Context) -> None:
        """Tell those who may approve; here, only the log."""
        ctx.log.info("two are asked to approve", purpose=self.purpose, amount=self.amount)

    @transition(Stage.REVIEW, Stage.APPROVED, on="approve", approvals=2, four_eyes=True, buffer=False)
    def approve(self, ctx: Context, comment: str | None) -> None:
        """Run for the second of two, neither of whom started the workflow."""
        self.comment = comment
        self.answered_by = [approval.sender for approval in ctx.approvals]

    @transition(Stage.REVIEW, Stage.TURNED_DOWN, on="reject", four_eyes=True, buffer=False)
    def reject(self, ctx: Context, comment: str) -> None:
        """One no is enough."""
        self.comment = comment
        self.answered_by = [approval.sender for approval in ctx.approvals]

    @transition(Stage.REVIEW, Stage.EXPIRED, after=PATIENCE)
    def expire(self, ctx: Context) -> None:
        """Not enough people answered."""

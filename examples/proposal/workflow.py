"""A proposal: drafted, sent to a reviewer, decided by an event - or expired by a timer."""

from __future__ import annotations

import os
from datetime import timedelta
from enum import StrEnum

from pydantic import BaseModel

from aegis import Context, Retry, Workflow, transition

REVIEWERS = ("ada", "grace", "edsger")
# A week; the example's test, and whoever is impatient, sets fewer seconds.
REVIEW_TIME = timedelta(seconds=float(os.environ.get("PROPOSAL_REVIEW_SECONDS", "604800")))


class Stage(StrEnum):
    """How far a proposal has come."""

    DRAFT = "draft"
    REVIEW = "review"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"


class Decision(BaseModel):
    """What a reviewer says."""

    yes: bool
    comment: str = ""


class ProposalWorkflow(Workflow, version=1):
    """A proposal, from draft to decision."""

    state: Stage = Stage.DRAFT
    title: str
    reviewer: str | None = None
    comment: str = ""

    @transition(Stage.DRAFT, Stage.REVIEW, retry=Retry(max_attempts=5), timeout=30)
    def submit(self, ctx: Context) -> None:
        """Find a reviewer: automatic, as soon as there is a proposal."""
        self.reviewer = REVIEWERS[sum(ctx.workflow_id.encode()) % len(REVIEWERS)]
        ctx.log.info("submitted", reviewer=self.reviewer)

    @transition(Stage.REVIEW, (Stage.APPROVED, Stage.REJECTED), on="decide")
    def decide(self, ctx: Context, decision: Decision) -> Stage:
        """Take the reviewer's decision: an event, sent by the app."""
        self.comment = decision.comment
        ctx.log.info("decided", yes=decision.yes)
        return Stage.APPROVED if decision.yes else Stage.REJECTED

    @transition(Stage.REVIEW, Stage.EXPIRED, after=REVIEW_TIME)
    def expire(self, ctx: Context) -> None:
        """Nobody decided in time: a durable timer."""
        ctx.log.info("expired", reviewer=self.reviewer)

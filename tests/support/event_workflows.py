"""Workflows of the tests of events: guards, approvals, messages to others, and what giving up leads to."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field
from store_workflows import SCRIPT, Deal

from aegis import Context, Retry, Workflow, transition


def _play(name: str, workflow: Workflow, ctx: Context) -> Any:
    act = SCRIPT.get(name)
    return None if act is None else act(workflow, ctx)


class Lock(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    GONE = "gone"


class Strict(Workflow, name="events.Strict"):
    """Events that are not kept for a state that does not take them yet."""

    state: Lock = Lock.SHUT

    @transition(Lock.SHUT, Lock.OPEN, on="open", buffer=False)
    def open(self, ctx: Context, _: None) -> None: ...

    @transition(Lock.OPEN, Lock.GONE, on="remove", buffer=False)
    def remove(self, ctx: Context, _: None) -> None: ...


class Sort(StrEnum):
    NEW = "new"
    LIGHT = "light"
    HEAVY = "heavy"
    HUGE = "huge"


def _scripted_guard(workflow: Any) -> Any:
    act = SCRIPT.get("guard")
    return workflow.weight < 10 if act is None else act(workflow, None)


class Sorting(Workflow, name="events.Sorting"):
    """Three automatic transitions out of one state; the last is on a queue of its own."""

    state: Sort = Sort.NEW
    weight: int = 0
    words: list[str] = Field(default_factory=list)

    @transition(
        Sort.NEW,
        Sort.LIGHT,
        guard=_scripted_guard,
        retry=Retry(max_attempts=2, delay=60, jitter=0),
    )
    def lift(self, ctx: Context) -> Any:
        return _play("lift", self, ctx)

    @transition(Sort.NEW, Sort.HEAVY, guard=lambda workflow: workflow.weight < 100)  # type: ignore[attr-defined]
    def drag(self, ctx: Context) -> None: ...

    @transition(Sort.NEW, Sort.HUGE, queue="crane")
    def hoist(self, ctx: Context) -> None: ...


class Vote(BaseModel):
    yes: bool = True
    amount: int = 0


class Poll(StrEnum):
    OPEN = "open"
    PASSED = "passed"
    REFUSED = "turned down"
    LATE = "late"


class Desk(StrEnum):
    DRAFT = "draft"
    OPEN = "open"
    PASSED = "passed"
    REFUSED = "turned down"
    LATE = "late"


class Guarded(Workflow, name="events.Guarded"):
    """Two edges on one event, told apart by guards, and one that a guard may keep waiting; and a timer."""

    state: Poll = Poll.OPEN
    limit: int = 10
    done: list[str] = Field(default_factory=list)

    @transition(
        Poll.OPEN, Poll.PASSED, on="vote", guard=lambda workflow, vote: vote.yes and vote.amount <= workflow.limit
    )  # type: ignore[attr-defined]
    def accept(self, ctx: Context, vote: Vote) -> None:
        self.done.append(f"accept {vote.amount}")

    @transition(Poll.OPEN, Poll.REFUSED, on="vote", guard=lambda _workflow, vote: not vote.yes)
    def reject(self, ctx: Context, vote: Vote) -> None:
        self.done.append("reject")

    @transition(Poll.OPEN, Poll.OPEN, on="raise_limit")
    def raise_limit(self, ctx: Context, limit: int) -> None:
        self.limit = limit

    @transition(Poll.OPEN, Poll.LATE, after=timedelta(days=7))
    def expire(self, ctx: Context) -> None: ...


class Budget(Workflow, name="events.Budget"):
    """It needs two who approve, and neither may be who asked for it."""

    state: Desk = Desk.DRAFT
    amount: int = 100
    approved_by: list[str] = Field(default_factory=list)

    @transition(Desk.DRAFT, Desk.OPEN, on="submit")
    def submit(self, ctx: Context, amount: int) -> None:
        self.amount = amount

    @transition(Desk.OPEN, Desk.PASSED, on="approve", approvals=2, four_eyes=True, queue="board")
    def approve(self, ctx: Context, comment: str | None) -> Any:
        self.approved_by = [approval.sender for approval in ctx.approvals]
        return _play("approve", self, ctx)

    @transition(Desk.OPEN, Desk.REFUSED, on="reject")
    def reject(self, ctx: Context, comment: str | None) -> None: ...

    @transition(Desk.OPEN, Desk.LATE, after=timedelta(days=7))
    def expire(self, ctx: Context) -> None: ...


class Mailer(Workflow, name="events.Mailer"):
    """A handler that sends to others, as the test tells it."""

    state: Lock = Lock.SHUT
    note: str = ""

    @transition(Lock.SHUT, Lock.OPEN, retry=Retry(max_attempts=2, delay=60, jitter=0))
    def mail(self, ctx: Context) -> Any:
        return _play("mail", self, ctx)

    @transition(Lock.OPEN, Lock.GONE, on="remove")
    def remove(self, ctx: Context, _: None) -> None: ...


class Inside(Workflow, name="events.Inside"):
    """The same, in the checkpoint's own transaction."""

    state: Deal = Deal.OPEN

    @transition(Deal.OPEN, Deal.BOOKED, transactional=True, retry=Retry(max_attempts=2, delay=60, jitter=0))
    def mail(self, ctx: Context) -> Any:
        return _play("mail", self, ctx)


class Payment(StrEnum):
    DUE = "due"
    PAID = "paid"
    CLAIMED = "claimed"
    WRITTEN_OFF = "written off"


class Paying(Workflow, name="events.Paying"):
    """Transitions that lead to another state where they fail for good."""

    state: Payment = Payment.DUE
    tries: int = 0

    @transition(
        Payment.DUE,
        Payment.PAID,
        retry=Retry(max_attempts=2, delay=60, jitter=0, never=(PermissionError,)),
        give_up=Payment.CLAIMED,
    )
    def pay(self, ctx: Context) -> Any:
        return _play("pay", self, ctx)

    @transition(Payment.CLAIMED, Payment.PAID, on="money", retry=Retry(max_attempts=1), give_up=Payment.WRITTEN_OFF)
    def book(self, ctx: Context, amount: int) -> Any:
        return _play("book", self, ctx)

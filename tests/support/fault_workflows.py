"""The workflows of the fault tests; each handler notes its effect in the ledger, outside of the database."""

from __future__ import annotations

import itertools
import os
import signal
import time
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from aegis import Context, DidNotHappen, Happened, Retry, Workflow, transition
from aegis.testing.ledger import Ledger

# Chaos counts as attempts; what is to survive it gets enough of them.
STURDY = Retry(max_attempts=50, delay=0.2)
# What the checker is told of these workflows.
LIMITS = (
    dict.fromkeys(("one", "two", "three", "settle"), 50)
    | dict.fromkeys(("work", "go", "decide", "slow"), 5)
    | {"poison": 3}
)
SILENT = ("expire", "begin")


def note(ctx: Context, name: str) -> None:
    """Leave an effect in the ledger."""
    seq = ctx._position.seq + 1
    Ledger(Path(os.environ["AEGIS_TEST_LEDGER"])).effect(ctx.workflow_id, seq, name, ctx.attempt)


class Step(StrEnum):
    ZERO = "zero"
    ONE = "one"
    TWO = "two"
    THREE = "three"


class Steps(Workflow):
    """Three automatic transitions, each taking ``pause`` seconds."""

    state: Step = Step.ZERO
    pause: float = 0.0
    count: int = 0

    def _do(self, ctx: Context, name: str) -> None:
        note(ctx, name)
        time.sleep(self.pause)
        self.count += 1

    @transition(Step.ZERO, Step.ONE, retry=STURDY)
    def one(self, ctx: Context) -> None:
        self._do(ctx, "one")

    @transition(Step.ONE, Step.TWO, retry=STURDY)
    def two(self, ctx: Context) -> None:
        self._do(ctx, "two")

    @transition(Step.TWO, Step.THREE, retry=STURDY)
    def three(self, ctx: Context) -> None:
        self._do(ctx, "three")


class Leg(StrEnum):
    ZERO = "zero"
    ONE = "one"
    TWO = "two"
    THREE = "three"
    FOUR = "four"


class Together(Workflow):
    """Four automatic transitions, the second with a checkpoint; the last one waits where a file is missing."""

    state: Leg = Leg.ZERO
    gate: str
    ran: list[str] = Field(default_factory=list)

    def _do(self, ctx: Context, name: str) -> None:
        note(ctx, name)
        self.ran.append(name)

    @transition(Leg.ZERO, Leg.ONE, retry=STURDY)
    def one(self, ctx: Context) -> None:
        self._do(ctx, "one")

    @transition(Leg.ONE, Leg.TWO, retry=STURDY)
    def two(self, ctx: Context) -> None:
        if "two" not in self.ran:
            self._do(ctx, "two")
            ctx.checkpoint()

    @transition(Leg.TWO, Leg.THREE, retry=STURDY)
    def three(self, ctx: Context) -> None:
        self._do(ctx, "three")

    @transition(Leg.THREE, Leg.FOUR, retry=STURDY)
    def four(self, ctx: Context) -> None:
        self._do(ctx, "four")
        while not Path(self.gate).exists():
            time.sleep(0.05)


class Life(StrEnum):
    ALIVE = "alive"
    DONE = "done"


class Poison(Workflow):
    """A handler that kills its process every time."""

    state: Life = Life.ALIVE
    harmless_after: int = 99

    @transition(Life.ALIVE, Life.DONE, retry=Retry(max_attempts=3, delay=0.1))
    def poison(self, ctx: Context) -> None:
        note(ctx, "poison")
        if ctx.attempt <= self.harmless_after:
            os.kill(os.getpid(), signal.SIGKILL)


class Stuck(Workflow):
    """A handler that takes too long: in Python, or in C code that no exception reaches."""

    state: Life = Life.ALIVE
    in_c: bool = False

    @transition(Life.ALIVE, Life.DONE, retry=Retry(max_attempts=2, delay=0.1), timeout=0.5)
    def work(self, ctx: Context) -> None:
        note(ctx, "work")
        if self.in_c:
            sum(itertools.repeat(0))  # for ever, with the interpreter's lock, deaf to signals
        for _ in range(6000):
            time.sleep(0.01)  # not in one piece: nothing wakes a thread from that


class Failing(Workflow):
    """A handler that raises as often as it is told."""

    state: Life = Life.ALIVE
    times: int = 1

    @transition(Life.ALIVE, Life.DONE, retry=Retry(max_attempts=5, delay=0.1))
    def go(self, ctx: Context) -> None:
        note(ctx, "go")
        if ctx.attempt <= self.times:
            msg = f"attempt {ctx.attempt}"
            raise RuntimeError(msg)


class Long(Workflow):
    """A handler that runs for long, and saves its progress when it is asked to."""

    state: Life = Life.ALIVE
    turns: int = 0
    goal: int = 100
    turn: float = 0.05
    begun_at: list[int] = Field(default_factory=list)
    """The turn that each attempt began with."""

    @transition(Life.ALIVE, Life.DONE, retry=Retry(max_attempts=5, delay=0.1))
    def slow(self, ctx: Context) -> None:
        note(ctx, "slow")
        self.begun_at.append(self.turns)
        while self.turns < self.goal:
            time.sleep(self.turn)
            self.turns += 1
            ctx.progress()


def charge(key: str) -> int:
    """Do it outside, where it stays done: a line in a file, which is never taken back."""
    with Path(os.environ["AEGIS_TEST_PROVIDER"]).open("a") as file:
        file.write(f"{key}\n")
    return len(charges(key))


def charges(key: str) -> list[str]:
    file = Path(os.environ["AEGIS_TEST_PROVIDER"])
    return [line for line in file.read_text().splitlines() if line == key] if file.exists() else []


def look_up(key: str) -> Happened[int] | type[DidNotHappen]:
    found = charges(key)
    return Happened(len(found)) if found else DidNotHappen


class Paying(Workflow):
    """One effect, of each of the three kinds."""

    state: Life = Life.ALIVE
    kind: str
    told: int = 0

    @transition(Life.ALIVE, Life.DONE, retry=STURDY)
    def settle(self, ctx: Context) -> None:
        note(ctx, "settle")
        key = ctx.effect_key("charge")
        check = look_up if self.kind == "ask" else None
        self.told = ctx.effect("charge", charge, key, check=check, repeat=self.kind == "repeat")


class Review(StrEnum):
    DRAFT = "draft"
    OPEN = "open"
    YES = "yes"
    NO = "no"
    LATE = "late"


class Approval(Workflow):
    """An event, or a timer, whichever comes first."""

    state: Review = Review.DRAFT
    seconds: float = 3600.0
    pause: float = 0.0

    @transition(Review.DRAFT, Review.OPEN)
    def begin(self, ctx: Context) -> None: ...

    @transition(Review.OPEN, (Review.YES, Review.NO), on="decide")
    def decide(self, ctx: Context, yes: bool) -> Review:
        note(ctx, "decide")
        time.sleep(self.pause)
        return Review.YES if yes else Review.NO

    @transition(Review.OPEN, Review.LATE, after=timedelta(seconds=2))
    def expire(self, ctx: Context) -> None: ...


class Season(StrEnum):
    NEW = "new"
    WAITING = "waiting"
    WEEK_OVER = "week over"
    MONTH_OVER = "month over"
    ENDED = "ended"


class Seasons(Workflow):
    """Three timers of one state, of which the shortest is of a week, and then one of a month."""

    state: Season = Season.NEW

    @transition(Season.NEW, Season.WAITING)
    def begin(self, ctx: Context) -> None: ...

    @transition(Season.WAITING, Season.ENDED, after=timedelta(days=365))
    def year(self, ctx: Context) -> None: ...

    @transition(Season.WAITING, Season.WEEK_OVER, after=timedelta(days=7))
    def week(self, ctx: Context) -> None: ...

    @transition(Season.WAITING, Season.ENDED, after=timedelta(days=8))
    def longer(self, ctx: Context) -> None: ...

    @transition(Season.WEEK_OVER, Season.MONTH_OVER, after=timedelta(days=30))
    def month(self, ctx: Context) -> None: ...


class Hopeless(Workflow):
    """A handler that never comes to an end, and a state for when it was tried often enough."""

    state: Life = Life.ALIVE
    how: str = "kill"

    @transition(
        Life.ALIVE, Life.ALIVE, on="again", retry=Retry(max_attempts=2, delay=0.1), timeout=0.5, give_up=Life.DONE
    )
    def try_it(self, ctx: Context, _: None) -> None:
        note(ctx, "try_it")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang in C":
            sum(itertools.repeat(0))
        time.sleep(60)

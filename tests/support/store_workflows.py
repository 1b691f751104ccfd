"""The workflows of the store tests: what a handler does is told by the test, by the handler's name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from pydantic import BaseModel, Field

from aegis import Context, Retry, Workflow, transition

Act: TypeAlias = Callable[[Any, Context], object]
# What a test wants done, by the name of the handler; emptied after each test.
SCRIPT: dict[str, Act] = {}


def _play(name: str, workflow: Workflow, ctx: Context) -> Any:
    act = SCRIPT.get(name)
    return None if act is None else act(workflow, ctx)


class Stage(StrEnum):
    NEW = "new"
    PACKED = "packed"
    SENT = "sent"
    KEPT = "kept"
    LOST = "lost"


class Decision(BaseModel):
    send: bool
    comment: str = ""


class Parcel(Workflow, name="store.Parcel"):
    """An automatic transition, then an event or a timer; each on a queue of its own."""

    state: Stage = Stage.NEW
    address: str = "Main Street 1"
    weight: int = 0
    done: list[str] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)

    @transition(Stage.NEW, Stage.PACKED, queue="belt", retry=Retry(max_attempts=3, delay=60, jitter=0))
    def pack(self, ctx: Context) -> Any:
        return _play("pack", self, ctx)

    @transition(Stage.PACKED, (Stage.SENT, Stage.KEPT), on="decide", queue="desk", retry=Retry(max_attempts=2))
    def decide(self, ctx: Context, decision: Decision) -> Any:
        self.done.append(decision.comment)
        told = _play("decide", self, ctx)
        return (Stage.SENT if decision.send else Stage.KEPT) if told is None else told

    @transition(Stage.PACKED, Stage.LOST, after=timedelta(days=7), queue="night")
    def expire(self, ctx: Context) -> Any:
        return _play("expire", self, ctx)


class Page(StrEnum):
    DRAFT = "draft"
    READY = "ready"
    POSTED = "posted"


class Letter(Workflow, name="store.Letter"):
    """Two events, one after the other; it waits from the beginning."""

    state: Page = Page.DRAFT
    words: list[str] = Field(default_factory=list)

    @transition(Page.DRAFT, Page.READY, on="finish")
    def finish(self, ctx: Context, word: str) -> Any:
        self.words.append(word)
        return _play("finish", self, ctx)

    @transition(Page.READY, Page.POSTED, on="post", queue="mail")
    def post(self, ctx: Context, word: str) -> Any:
        self.words.append(word)
        return _play("post", self, ctx)


class Deal(StrEnum):
    OPEN = "open"
    BOOKED = "booked"


class Booking(Workflow, name="store.Booking"):
    """A handler inside the checkpoint's own transaction."""

    state: Deal = Deal.OPEN
    seats: int = 1
    note: str = ""

    @transition(Deal.OPEN, Deal.BOOKED, transactional=True, retry=Retry(max_attempts=3, delay=60, jitter=0))
    def book(self, ctx: Context) -> Any:
        return _play("book", self, ctx)


class Once(Workflow, name="store.Once"):
    """One automatic transition with one attempt, and then the end."""

    state: Deal = Deal.OPEN
    note: str = ""

    @transition(Deal.OPEN, Deal.BOOKED, retry=Retry(max_attempts=1))
    def act(self, ctx: Context) -> Any:
        return _play("act", self, ctx)


class Way(StrEnum):
    HERE = "here"
    CROSSING = "crossing"
    WEST = "west"
    EAST = "east"


class Crossing(Workflow, name="store.Crossing"):
    """A state with two events, each on a queue of its own."""

    state: Way = Way.HERE

    @transition(Way.HERE, Way.CROSSING)
    def go(self, ctx: Context) -> Any:
        return _play("go", self, ctx)

    @transition(Way.CROSSING, Way.WEST, on="left", queue="west")
    def left(self, ctx: Context, _: None) -> Any:
        return _play("left", self, ctx)

    @transition(Way.CROSSING, Way.EAST, on="right", queue="east")
    def right(self, ctx: Context, _: None) -> Any:
        return _play("right", self, ctx)


class Bell(StrEnum):
    SET = "set"
    RUNG = "rung"


class Alarm(Workflow, name="store.Alarm"):
    """It waits for nothing but a timer."""

    state: Bell = Bell.SET

    @transition(Bell.SET, Bell.RUNG, after=timedelta(days=7), queue="night")
    def ring(self, ctx: Context) -> Any:
        return _play("ring", self, ctx)


class Leg(StrEnum):
    FIRST = "first"
    SECOND = "second"
    THIRD = "third"
    HOME = "home"


class Relay(Workflow, name="store.Relay"):
    """Two automatic transitions, one after the other, and then an event."""

    state: Leg = Leg.FIRST

    @transition(Leg.FIRST, Leg.SECOND, retry=Retry(max_attempts=3, delay=60, jitter=0))
    def one(self, ctx: Context) -> Any:
        return _play("one", self, ctx)

    @transition(Leg.SECOND, Leg.THIRD, queue="fast", retry=Retry(max_attempts=3, delay=60, jitter=0))
    def two(self, ctx: Context) -> Any:
        return _play("two", self, ctx)

    @transition(Leg.THIRD, Leg.HOME, on="go", retry=Retry(max_attempts=3, delay=60, jitter=0))
    def three(self, ctx: Context, _: None) -> Any:
        return _play("three", self, ctx)

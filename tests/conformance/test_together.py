"""``checkpoint_on_transition=False``: what follows at once is recorded together, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

import pytest
from store_workbench import run_where_it_is_sent
from store_workflows import SCRIPT, Act, Letter
from stores import World, make_engine, make_runner

from aegis import Context, Retry, Workflow, transition
from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.tasks import ahead
from aegis.tasks.checkpoint import request_checkpoints
from aegis.tasks.transition import Ended, run_transition, take

T = TypeVar("T")


class Lap(StrEnum):
    START = "start"
    FIRST = "first"
    SECOND = "second"
    THIRD = "third"
    OVER = "over"


def played(name: str, workflow: Race, ctx: Context) -> None:
    workflow.ran.append(name)
    if (act := SCRIPT.get(name)) is not None:
        act(workflow, ctx)


class Race(Workflow, name="conformance.Race"):
    """Three automatic transitions on one queue, and an event."""

    state: Lap = Lap.START
    ran: list[str] = []  # noqa: RUF012 - pydantic copies it

    @transition(Lap.START, Lap.FIRST, retry=Retry(max_attempts=3, delay=60, jitter=0))
    def one(self, ctx: Context) -> None:
        played("one", self, ctx)

    @transition(Lap.FIRST, Lap.SECOND, retry=Retry(max_attempts=3, delay=60, jitter=0))
    def two(self, ctx: Context) -> None:
        played("two", self, ctx)

    @transition(Lap.SECOND, Lap.THIRD, retry=Retry(max_attempts=3, delay=60, jitter=0))
    def three(self, ctx: Context) -> None:
        played("three", self, ctx)

    @transition(Lap.THIRD, Lap.OVER, on="stop")
    def stop(self, ctx: Context, _: None) -> None:
        played("stop", self, ctx)


# One engine is enough: it is the worker that goes ahead.
pytestmark = pytest.mark.parametrize("world", ["blocking"], indirect=True)


@pytest.fixture
def race(world: World) -> Iterator[World]:
    """A world in which what is started may be recorded together."""
    world.engine = make_engine("blocking", world.database, world.runner.ring, checkpoint_on_transition=False)
    world.runner._arrive()
    world.engine.start(Race(), id="r")
    yield world
    SCRIPT.clear()


def go(world: World, seq: int = 0) -> Ended:
    return run_transition(world.runner._bench, "r", seq)


def events(world: World) -> list[str]:
    return [one.event for one in world.engine.history("r")]


def test_what_follows_at_once_is_recorded_together(race: World, script: dict[str, Act]) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("one", "two", "three"):
        script[name] = lambda _, ctx: seen.append((ctx.key, race.engine.describe("r").seq))
    assert go(race) is Ended.COMMITTED
    # No transition was there while the handlers ran; and each had the key that it has wherever it begins.
    assert seen == [("r:1", 0), ("r:2", 0), ("r:3", 0)]
    row = race.engine.describe("r")
    assert (row.seq, row.state, row.status, row.running) == (3, "third", "waiting", False)
    assert events(race) == ["created", "one", "two", "three"]
    assert [race.engine.load("r", seq=seq).ran for seq in range(4)] == [
        [],
        ["one"],
        ["one", "two"],
        ["one", "two", "three"],
    ]
    assert race.engine.verify_integrity("r") == (True, None)
    race.engine.send("r", "stop")
    race.run()
    assert race.engine.describe("r").status == "completed"


def test_by_default_each_is_recorded_by_itself(world: World, script: dict[str, Act]) -> None:
    seen: list[int] = []
    script["three"] = lambda *_: seen.append(world.engine.describe("r").seq)
    world.engine.start(Race(), id="r")
    world.run()
    assert seen == [2]


def test_who_dies_with_them_has_recorded_nothing_and_they_run_again(race: World) -> None:
    claim = take(race.runner._bench, "r", 0, redelivered=False)
    assert claim is not None
    made, result = ahead.go(race.runner._bench, claim)
    assert (len(made), result is None) == (2, False)
    assert race.engine.describe("r").seq == 0  # and here it dies
    assert go(race) is Ended.COMMITTED
    assert events(race) == ["created", "one", "two", "three"]
    assert race.engine.get("r").ran == ["one", "two", "three"]
    assert race.engine.verify_integrity("r") == (True, None)


def test_after_a_death_they_go_one_at_a_time(race: World, script: dict[str, Act]) -> None:
    """So that of the one that kills its worker no other is accused."""
    claim = take(race.runner._bench, "r", 0, redelivered=False)
    assert claim is not None
    second = replace(claim, position=replace(claim.position, attempt=2))
    made, result = ahead.go(race.runner._bench, second)
    assert (made, result is None) == ([], False)


def test_a_handler_that_fails_leaves_what_went_before_and_is_tried_on_its_own(
    race: World, script: dict[str, Act]
) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("no wind")

    script["three"] = fail
    assert go(race) is Ended.COMMITTED
    row = race.engine.describe("r")
    assert (row.seq, row.status, row.attempt, row.error) == (2, "pending", 0, None)
    assert go(race, 2) is Ended.FAILED
    row = race.engine.describe("r")
    assert (row.seq, row.attempt) == (2, 1)
    assert row.error is not None
    assert row.error["message"] == "no wind"
    for _ in range(2):
        race.pass_time(timedelta(hours=1))
        go(race, 2)
    assert events(race) == ["created", "one", "two", "failed"]
    assert race.engine.verify_integrity("r") == (True, None)


def checkpoint(_: Any, ctx: Any) -> None:
    ctx.checkpoint()


def progress(_: Any, ctx: Any) -> None:
    ctx.progress()


def effect(_: Any, ctx: Any) -> None:
    ctx.effect("once", lambda: DONE.append(ctx.key))


def stubborn(_: Any, ctx: Any) -> None:
    with suppress(BaseException):
        ctx.checkpoint()


DONE: list[str] = []


@pytest.mark.parametrize("act", [checkpoint, progress, effect, stubborn], ids=lambda act: str(act.__name__))
def test_what_has_to_be_in_the_database_at_once_is_done_on_the_ground(
    race: World, script: dict[str, Act], act: Callable[..., None]
) -> None:
    DONE.clear()
    seen: list[int] = []

    def two(workflow: Any, ctx: Any) -> None:
        seen.append(race.engine.describe("r").seq)
        act(workflow, ctx)

    script["two"] = two
    assert go(race) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 1
    race.run()
    assert seen == [0, 1]  # begun in the air, and once more on the ground
    assert race.engine.get("r").ran == ["one", "two", "three"]
    assert len(DONE) == (1 if act is effect else 0)
    assert events(race) == ["created", "one", "two", "three"]
    assert race.engine.verify_integrity("r") == (True, None)


def test_an_event_that_a_handler_sends_goes_out_once(race: World, script: dict[str, Act]) -> None:
    race.engine.start(Letter(), id="l")
    script["two"] = lambda _, ctx: ctx.send("l", "finish", "the end")
    race.run()
    assert race.engine.get("l").words == ["the end"]
    assert events(race) == ["created", "one", "two", "three"]


def test_who_was_overtaken_has_recorded_nothing(race: World, script: dict[str, Act]) -> None:
    script["three"] = lambda *_: race.engine.cancel("r", reason="rain")
    assert go(race) is Ended.LOST
    assert events(race) == ["created", "cancelled"]
    assert race.engine.verify_integrity("r") == (True, None)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look after each transition whether it is asked for what there is."""
    monkeypatch.setattr(ahead, "LOOKS_PER_INTERVAL", 1e12)


@pytest.mark.usefixtures("looks")
def test_a_checkpoint_that_is_asked_for_records_what_there_is(race: World, script: dict[str, Act]) -> None:
    asked: list[object] = []
    script["two"] = lambda *_: asked.append(race.engine.checkpoint("r"))
    assert go(race) is Ended.COMMITTED
    assert asked == [None], "it was asked, not made: a handler ran"
    row = race.engine.describe("r")
    assert (row.seq, row.status) == (2, "pending")
    race.run()
    assert events(race) == ["created", "one", "two", "three"]
    assert race.engine.verify_integrity("r") == (True, None)


@pytest.mark.usefixtures("looks")
def test_beat_asks_as_well(race: World, script: dict[str, Act]) -> None:
    def ask(*_: Any) -> None:
        assert request_checkpoints(race.database, timedelta(0)) == 1

    script["one"] = ask
    assert go(race) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 1


@pytest.mark.usefixtures("looks")
def test_where_nobody_asks_it_goes_on(race: World) -> None:
    assert go(race) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 3


@pytest.mark.usefixtures("looks")
def test_who_looks_and_was_overtaken_goes_no_further(race: World, script: dict[str, Act]) -> None:
    ran: list[str] = []
    script["one"] = lambda *_: race.engine.cancel("r", reason="rain")
    script["two"] = lambda *_: ran.append("two")
    assert go(race) is Ended.LOST
    assert (ran, events(race)) == ([], ["created", "cancelled"])


@pytest.mark.usefixtures("looks")
def test_it_goes_on_where_the_database_does_not_answer(race: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise DatabaseUnavailable("test", "away")

    monkeypatch.setattr(ahead.repository, "is_asked", away)
    assert go(race) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 3


def test_no_more_than_the_checkpoint_interval_lies_ahead(race: World, script: dict[str, Act]) -> None:
    runner = make_runner(race.database, checkpoint_interval=1)
    runner._arrive()
    seen: list[tuple[str, int]] = []

    def takes(seconds: float) -> Act:
        def act(_: Any, ctx: Any) -> None:
            time.sleep(seconds)
            seen.append((ctx.key, race.engine.describe("r").seq))

        return act

    script |= {"one": takes(0.05), "two": takes(1), "three": takes(0)}
    assert run_transition(runner._bench, "r", 0) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 2, "a handler longer than the interval, and then it is recorded"
    assert run_transition(runner._bench, "r", 2) is Ended.COMMITTED
    assert seen == [("r:1", 0), ("r:2", 0), ("r:3", 2)]


def test_a_pause_comes_after_what_was_begun(race: World, script: dict[str, Act]) -> None:
    script["two"] = lambda *_: race.engine.pause("r", reason="rain")
    assert go(race) is Ended.COMMITTED
    race.run()
    assert events(race) == ["created", "one", "two", "three", "paused"]


@pytest.mark.parametrize("written", [True, False])
def test_a_commit_that_is_not_answered_is_looked_up(
    race: World, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    whole, tries = ahead.in_one_transaction, []

    def unanswered(database: Database, verb: Callable[[Any], T]) -> T:
        tries.append(1)
        if len(tries) > 1:
            return whole(database, verb)
        if written:
            whole(database, verb)
        raise DatabaseUnavailable(database.url, "the answer was lost")

    monkeypatch.setattr(ahead, "in_one_transaction", unanswered)
    assert go(race) is Ended.COMMITTED
    assert len(tries) == (1 if written else 2)
    assert events(race) == ["created", "one", "two", "three"]
    assert race.engine.verify_integrity("r") == (True, None)


def test_a_long_way_is_recorded_in_between(race: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST", 2)
    assert go(race) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 2
    assert run_where_it_is_sent(race.runner._bench, "r", 2) is Ended.COMMITTED
    assert race.engine.describe("r").seq == 3

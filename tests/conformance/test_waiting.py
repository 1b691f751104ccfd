"""What waits while its timer changes in the code: it goes by what it was told, until it is told again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum

import pytest
from stores import World

from aegis import Context, Workflow, transition
from aegis.core.compatibility import Problem
from aegis.core.workflow import Registry, registry
from aegis.persistence import compatibility

TYPE = "conformance.Waiting"
DAY = timedelta(days=1)


class Place(StrEnum):
    OPEN = "open"
    DONE = "done"
    LATE = "late"


def timed(days: int) -> type[Workflow]:
    class Timed(Workflow, name=TYPE):
        __qualname__ = "Waiting"
        state: Place = Place.OPEN

        @transition(Place.OPEN, Place.DONE, on="finish")
        def finish(self, ctx: Context, _: None) -> None: ...

        @transition(Place.OPEN, Place.LATE, after=timedelta(days=days))
        def expire(self, ctx: Context) -> None: ...

    return Timed


def untimed() -> type[Workflow]:
    class Untimed(Workflow, name=TYPE):
        __qualname__ = "Waiting"
        state: Place = Place.OPEN

        @transition(Place.OPEN, (Place.DONE, Place.LATE), on="finish")
        def finish(self, ctx: Context, _: None) -> Place:
            return Place.DONE

    return Untimed


def left() -> type[Workflow]:
    class Left(Workflow, name=TYPE):
        __qualname__ = "Waiting"
        state: Place = Place.OPEN

        @transition(Place.OPEN, Place.LATE)
        def expire(self, ctx: Context) -> None: ...

        @transition(Place.LATE, Place.DONE, on="finish")
        def finish(self, ctx: Context, _: None) -> None: ...

    return Left


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    registry._types.pop(TYPE, None)


def check(world: World, workflow: type[Workflow]) -> list[Problem]:
    known = Registry()
    known.add(workflow)
    return list(compatibility.check(world.database, known).problems)


def resumed(world: World, workflow: type[Workflow]) -> list[str]:
    return [handle.id for handle in world.engine.resume_all_pending(workflow)]


@pytest.mark.parametrize("before", [None, 7], ids=["no timer", "a later timer"])
def test_an_earlier_timer_is_found_and_taken_up_when_it_is_told(world: World, before: int | None) -> None:
    old = untimed() if before is None else timed(before)
    world.engine.start_many([old(), old()])
    world.engine.start(old(), id="w")
    world.run()
    new = timed(2)
    (problem,) = check(world, new)
    assert (problem.kind, problem.count) == ("timer earlier", 3)
    world.pass_time(3 * DAY)
    world.run()
    assert world.engine.describe("w").status == "waiting", "it goes by what it was told"

    assert len(resumed(world, new)) == 3
    world.run()
    assert [one.state for one in world.engine.list()] == ["late"] * 3
    assert world.engine.verify_integrity("w") == (True, None)


def test_it_is_told_once_and_counts_from_when_the_state_was_entered(world: World) -> None:
    world.engine.start(timed(7)(), id="w")
    world.run()
    new = timed(2)
    assert resumed(world, new) == ["w"]
    world.run()
    row = world.engine.describe("w")
    assert (row.status, row.timer_at) == ("waiting", row.entered_at + 2 * DAY)
    assert (check(world, new), resumed(world, new)) == ([], [])


def test_a_later_timer_needs_nobody(world: World) -> None:
    world.engine.start(timed(2)(), id="w")
    world.run()
    new = timed(7)
    assert (check(world, new), resumed(world, new)) == ([], [])
    world.pass_time(3 * DAY)
    world.run()
    row = world.engine.describe("w")
    assert (row.status, row.timer_at) == ("waiting", row.entered_at + 7 * DAY), "it woke, and waits on"
    world.pass_time(5 * DAY)
    world.run()
    assert world.engine.describe("w").state == "late"


def test_what_is_left_at_once_now_is_left_when_it_is_told(world: World) -> None:
    world.engine.start(untimed()(), id="w")
    world.run()
    new = left()
    assert "no wait any more" in {problem.kind for problem in check(world, new)}
    assert resumed(world, new) == ["w"]
    world.run()
    assert world.engine.describe("w").state == "late"
    assert resumed(world, new) == []

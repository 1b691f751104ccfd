"""Conditions of a start, on every store and by both engines: the same calls, the same answers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from store_workflows import Letter, Once, Parcel
from stores import World

from aegis import Start
from aegis.core.errors import DeadlineExceeded, InvalidData, SingletonConflict, StartConflict

HOUR = timedelta(hours=1)


def test_workflows_are_found_by_their_attributes(world: World) -> None:
    world.engine.start_many(
        [
            Start(Once(), id="a", attributes={"customer": 7, "vip": True, "rate": 1.5, "city": "it's"}),
            Start(Once(), id="b", attributes={"customer": 7, "vip": False}),
            Start(Once(), id="c", attributes={"customer": "7"}),
            Start(Once(), id="d"),
        ]
    )
    for wanted, ids in (
        ({"customer": 7}, ["a", "b"]),
        ({"customer": "7"}, ["c"]),
        ({"customer": 7, "vip": True}, ["a"]),
        ({"vip": 1}, []),
        ({"rate": 1.5, "city": "it's"}, ["a"]),
        ({"nobody": 1}, []),
        ({}, ["a", "b", "c", "d"]),
    ):
        assert sorted(one.id for one in world.engine.list(attributes=wanted)) == ids, wanted


def test_pages_of_one_moment_miss_nothing(world: World) -> None:
    world.engine.start_many([Start(Once(), id=f"o-{n}") for n in range(9)])
    seen: list[str] = []
    before = None
    while page := world.engine.list(before=before, limit=4):
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == [f"o-{n}" for n in reversed(range(9))]
    assert before is not None
    assert world.engine.list(created_before=before[0]) == []
    assert len(world.engine.list(created_after=before[0] - HOUR)) == 9


def test_a_delayed_start_runs_when_its_time_has_come(world: World) -> None:
    handle = world.engine.start(Once(), id="o", delay=HOUR)
    assert handle.describe().begins_at == handle.describe().created_at + HOUR
    world.engine.pause("o")
    world.engine.resume("o")
    world.run()
    assert handle.describe().status == "pending"
    world.pass_time(HOUR)
    world.run()
    assert handle.describe().status == "completed"


def test_a_deadline_stops_it_and_another_lets_it_go_on(world: World) -> None:
    handle = world.engine.start(Letter(), id="l", deadline=HOUR)
    world.pass_time(HOUR)
    world.run()
    assert handle.describe().status == "failed"
    with pytest.raises(DeadlineExceeded):
        world.engine.retry("l")
    world.engine.retry("l", deadline=HOUR)
    handle.send("finish", "one")
    world.run()
    assert (handle.describe().state, handle.verify_integrity()) == ("ready", (True, None))


def test_one_at_a_time_has_a_key(world: World) -> None:
    world.engine.start(Once(), id="a", singleton="k", priority=3, queue="home")
    with pytest.raises(SingletonConflict):
        world.engine.start(Once(), id="b", singleton="k")
    assert world.engine.start(Once(), id="b", singleton="k", attach=True).id == "a"
    with pytest.raises(StartConflict, match="/priority"):
        world.engine.start(Once(), id="a", singleton="k", queue="home")
    row = world.engine.describe("a")
    assert (row.priority, row.queue, row.singleton) == (3, "home", "k")
    world.run()
    assert world.engine.start(Once(), id="b", singleton="k").new is True


def test_what_cannot_be_changes_nothing(world: World) -> None:
    for given in ({"priority": 10}, {"delay": -HOUR}, {"deadline": timedelta(0)}, {"attributes": {"a": []}}):
        with pytest.raises(InvalidData):
            world.engine.start_many([Parcel(), Start(Parcel(), **given)])
    assert world.engine.list() == []

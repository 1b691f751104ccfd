"""A workflow's life, on every store and by both engines: the same calls, the same answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from store_workflows import Alarm, Booking, Decision, Letter, Once, Parcel, Relay
from stores import World, make_engine, make_runner

from aegis.core.errors import (
    EventConflict,
    InvalidData,
    SingletonConflict,
    StartConflict,
    UnknownEvent,
    WaitTimeout,
    WorkflowNotCompleted,
    WorkflowNotFound,
    WrongStatus,
)


def events(world: World, workflow_id: str) -> list[str]:
    return [one.event for one in world.engine.history(workflow_id)]


def test_a_workflow_runs_from_its_start_to_its_end(world: World) -> None:
    handle = world.engine.start(Relay(), id="r")
    assert (handle.id, handle.new, handle.rung) == ("r", True, True)
    world.run()
    assert (handle.describe().state, handle.describe().status) == ("third", "waiting")
    assert handle.send("go") is True
    world.run()
    assert handle.wait(timeout=1).to_dict() == {"state": "home"}
    assert events(world, "r") == ["created", "one", "two", "three"]
    assert handle.verify_integrity() == (True, None)


def test_the_same_start_again_changes_nothing_and_another_is_a_conflict(world: World) -> None:
    world.engine.start(Parcel(weight=1), id="p", attributes={"customer": 7})
    again = world.engine.start(Parcel(weight=1), id="p", attributes={"customer": 7})
    assert (again.id, again.new) == ("p", False)
    with pytest.raises(StartConflict) as caught:
        world.engine.start(Parcel(weight=2), id="p", attributes={"customer": 7})
    assert "/weight: 1 then, 2 now" in str(caught.value)
    with pytest.raises(StartConflict):
        world.engine.start(Letter(), id="p")
    assert len(world.engine.list()) == 1


def test_many_are_started_or_none(world: World) -> None:
    handles = world.engine.start_many([Once(note=str(number)) for number in range(700)])
    assert len({handle.id for handle in handles}) == 700
    world.engine.start(Parcel(), id="taken")
    with pytest.raises(StartConflict):
        world.engine.start_many([Once(), world_start("taken")])
    assert len(world.engine.list(limit=1000)) == 701


def world_start(workflow_id: str) -> Any:
    from aegis.sync import Start  # noqa: PLC0415

    return Start(Parcel(weight=3), id=workflow_id)


def test_what_is_not_valid_is_refused_and_nothing_is_written(world: World) -> None:
    with pytest.raises(InvalidData):
        world.engine.start(Relay(state="third"))  # type: ignore[arg-type]
    assert world.engine.list() == []


def test_events_are_received_once_kept_and_taken_in_turn(world: World) -> None:
    letter = world.engine.start(Letter(), id="l")
    letter.send("post", "second", key="b")  # nothing takes it yet
    world.run()
    assert (letter.describe().state, letter.describe().inbox) == ("draft", 1)
    letter.send("finish", "first", key="a")
    letter.send("finish", "first", key="a")
    with pytest.raises(EventConflict):
        letter.send("finish", "other", key="a")
    with pytest.raises(UnknownEvent):
        letter.send("burn")
    world.run()
    assert letter.wait(timeout=1).words == ["first", "second"]
    with pytest.raises(WrongStatus):
        letter.send("post", "third", key="c")
    assert letter.history()[1].payload == {"data": "first", "key": "a", "sender": "user:ada"}


def test_a_timer(world: World) -> None:
    alarm = world.engine.start(Alarm(), id="a")
    world.run()
    assert alarm.describe().status == "waiting"
    left = alarm.describe().timer_at - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left < timedelta(days=7, hours=1)
    world.pass_time(timedelta(days=8))
    world.run()
    assert alarm.wait(timeout=1).state == "rung"


def test_a_delayed_start_and_a_deadline(world: World) -> None:
    late = world.engine.start(Once(), id="late", delay=timedelta(hours=1))
    world.engine.start(Letter(), id="due", deadline=timedelta(hours=2))
    world.run()
    assert (late.describe().seq, late.describe().status) == (0, "pending")
    world.pass_time(timedelta(hours=3))
    world.run()
    assert late.describe().status == "completed"
    due = world.engine.describe("due")
    assert (due.status, due.error["type"].rpartition(".")[2]) == ("failed", "DeadlineExceeded")


def test_retries_wait_for_their_back_off_and_give_up_in_the_end(world: World, script: dict[str, Any]) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("the belt stands still")

    script["pack"] = fail
    parcel = world.engine.start(Parcel(), id="p")
    for attempt in (1, 2, 3):
        world.run()
        row = parcel.describe()
        assert row.attempt == (attempt if attempt < 3 else 0)
        assert row.error["message"] == "the belt stands still"
        world.pass_time(timedelta(hours=1))
    assert parcel.describe().status == "failed"
    with pytest.raises(WorkflowNotCompleted):
        parcel.wait(timeout=1)
    script.clear()
    assert world.engine.retry("p", reason="the belt runs again") is True
    world.run()
    assert parcel.describe().state == "packed"
    assert events(world, "p") == ["created", "failed", "retried", "pack"]


def test_a_workflow_that_is_left_alone_waits_longer_each_time(world: World) -> None:
    """What no code here fits is left; how often it was is counted inside of a document of the row."""
    world.engine.start(Parcel(), id="p")
    from sqlalchemy import update  # noqa: PLC0415

    from aegis.persistence.models import WorkflowRow  # noqa: PLC0415

    world.edit(update(WorkflowRow).where(WorkflowRow.id == "p").values(state="vanished"))
    for times in (1, 2, 3):
        world.run()
        row = world.engine.describe("p")
        assert (row.attempt, row.error["times"]) == (0, times)
        left = row.due_at - datetime.now(UTC)
        assert timedelta(seconds=29 * 2 ** (times - 1)) < left < timedelta(seconds=31 * 2 ** (times - 1))
        world.pass_time(timedelta(hours=1))


def test_pause_resume_and_cancel(world: World) -> None:
    world.engine.start(Parcel(), id="p")
    world.engine.pause("p", reason="a holiday")
    world.engine.pause("p")
    world.run()
    assert (world.engine.describe("p").status, world.engine.describe("p").seq) == ("paused", 1)
    assert world.engine.resume("p") is True
    world.run()
    assert world.engine.describe("p").state == "packed"
    world.engine.cancel("p", reason="not wanted")
    assert world.engine.describe("p").status == "cancelled"
    with pytest.raises(WrongStatus):
        world.engine.resume("p")
    assert events(world, "p") == ["created", "paused", "resumed", "pack", "cancelled"]
    assert world.engine.verify_integrity("p") == (True, None)


def test_checkpoints_inside_a_handler_and_from_outside(world: World, script: dict[str, Any]) -> None:
    def pack(parcel: Any, ctx: Any) -> None:
        parcel.done.append("weighed")
        ctx.checkpoint()
        if ctx.attempt == 1:
            raise ConnectionError
        parcel.done.append("packed")

    script["pack"] = pack
    world.engine.start(Parcel(), id="p")
    world.run()
    assert world.engine.get("p").done == ["weighed"]  # type: ignore[attr-defined]
    world.pass_time(timedelta(hours=1))
    world.run()
    # The second attempt went on from what the first had saved.
    assert world.engine.get("p").done == ["weighed", "weighed", "packed"]  # type: ignore[attr-defined]
    made = world.engine.checkpoint("p")
    assert (made.seq, made.number, made.kind) == (1, 1, "manual")
    world.engine.send("p", "decide", Decision(send=True))
    world.run()
    assert world.engine.describe("p").status == "completed"
    assert world.engine.verify_integrity("p") == (True, None)


def test_effects_are_done_once(world: World, script: dict[str, Any]) -> None:
    done: list[str] = []

    def charge(key: str) -> str:
        done.append(key)
        return f"receipt {len(done)}"

    def pack(parcel: Any, ctx: Any) -> None:
        parcel.extra["receipt"] = ctx.effect("charge", charge, ctx.effect_key("charge"))
        if ctx.attempt == 1:
            raise ConnectionError

    script["pack"] = pack
    world.engine.start(Parcel(), id="p")
    world.run()
    world.pass_time(timedelta(hours=1))
    world.run()
    assert world.engine.get("p").extra == {"receipt": "receipt 1"}  # type: ignore[attr-defined]
    assert len(done) == 1
    assert [(one.name, one.status) for one in world.engine.effects("p")] == [("charge", "done")]


def test_a_transactional_handler_commits_with_its_checkpoint_or_not(world: World, script: dict[str, Any]) -> None:
    from sqlalchemy import text  # noqa: PLC0415

    with world.database.transaction() as session:
        session.execute(text("CREATE TABLE seats (number INTEGER)"))

    def book(booking: Any, ctx: Any) -> None:
        ctx.session.execute(text("INSERT INTO seats VALUES (:number)"), {"number": booking.seats})
        if booking.seats == 2:
            raise ConnectionError

    script["book"] = book
    world.engine.start(Booking(seats=1), id="kept")
    world.engine.start(Booking(seats=2), id="undone")
    world.run()
    with world.database.statement() as connection:
        assert connection.execute(text("SELECT number FROM seats")).scalars().all() == [1]
    assert [world.engine.describe(one).seq for one in ("kept", "undone")] == [1, 0]


def test_what_a_process_left_in_its_hands_goes_on_in_the_next(world: World) -> None:
    """A runner that is gone held a claim, and had bells that nobody answered."""
    from store_workbench import HAND, claimed  # noqa: PLC0415

    world.engine.start(Parcel(), id="held")
    world.engine.start(Parcel(), id="rung")
    assert claimed(world.database, "held", hand=HAND).position.attempt == 1
    following = make_runner(world.database, heartbeat_interval=0.2, heartbeat_timeout=0.5)
    following.start()
    try:
        engine = make_engine("blocking", world.database, following.ring)
        for _ in range(200):
            if {engine.describe(one).state for one in ("held", "rung")} == {"packed"}:
                break
            world.database.pause(0.05)
        assert [engine.describe(one).state for one in ("held", "rung")] == ["packed", "packed"]
        assert engine.describe("held").attempt == 0
    finally:
        assert following.stop()
    assert engine.history("held")[1].attempt == 2


def test_resume_all_pending(world: World) -> None:
    for number in range(5):
        world.engine.start(Once(), id=f"o{number}")
    world.engine.start(Parcel(), id="p")
    assert [handle.id for handle in world.engine.resume_all_pending(Once)] == [f"o{number}" for number in range(5)]
    world.run()
    assert world.engine.resume_all_pending(Once) == []


def test_lists_are_filtered_and_come_in_pages(world: World) -> None:
    for number in range(5):
        world.engine.start(Once(note=str(number)), id=f"o{number}")
    world.engine.start(Letter(), id="l")
    assert [one.id for one in world.engine.list(type=Once, limit=2)] == ["o4", "o3"]
    last = world.engine.list(type=Once, limit=2)[-1]
    older = world.engine.list(type=Once, limit=2, before=(last.created_at, last.id))
    assert [one.id for one in older] == ["o2", "o1"]
    assert [one.id for one in world.engine.list(status="waiting")] == ["l"]
    assert [one.id for one in world.engine.list(state="draft")] == ["l"]
    with pytest.raises(InvalidData):
        world.engine.list(limit=0)


def test_wait_gives_up_in_time(world: World) -> None:
    world.engine.start(Letter(), id="l")
    with pytest.raises(WaitTimeout):
        world.engine.wait("l", timeout=0.05)
    with pytest.raises(WorkflowNotFound):
        world.engine.wait("nobody", timeout=1)


def test_workflows_are_found_by_their_attributes(world: World) -> None:
    for number, attributes in enumerate(({"customer": 7}, {"customer": 7, "urgent": True}, {"customer": 8}, None)):
        world.engine.start(Once(), id=f"o{number}", attributes=attributes)
    assert [one.id for one in world.engine.list(attributes={"customer": 7})] == ["o1", "o0"]
    assert [one.id for one in world.engine.list(attributes={"customer": 7, "urgent": True})] == ["o1"]
    assert world.engine.list(attributes={"customer": "7"}) == []
    assert world.engine.list(attributes={"urgent": 1}) == []


def test_one_workflow_at_a_time_has_a_key(world: World) -> None:
    world.engine.start(Once(), id="first", singleton="nightly")
    with pytest.raises(SingletonConflict):
        world.engine.start(Once(), id="second", singleton="nightly")
    attached = world.engine.start(Once(), id="third", singleton="nightly", attach=True)
    assert (attached.id, attached.new) == ("first", False)
    world.run()
    assert world.engine.start(Once(), id="fourth", singleton="nightly").new is True


def test_many_are_tried_again_at_once(world: World, script: dict[str, Any]) -> None:
    def fail(workflow: Any, _: Any) -> None:
        raise ConnectionError(f"no line to {workflow.note}")

    script["act"] = fail
    for town in ("Rome", "Paris", "Rome"):
        world.engine.start(Once(note=town))
    world.run()
    assert len(world.engine.list(status="failed")) == 3
    script.clear()
    assert world.engine.retry_all(error="line to rome", reason="the line is mended") == 2
    world.run()
    assert len(world.engine.list(status="completed")) == 2

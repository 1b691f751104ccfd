"""Guards, approvals, events from handlers, giving up and retrying many: on every store, by both engines."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from event_workflows import Budget, Guarded, Inside, Mailer, Paying, Sorting, Strict, Vote
from store_workbench import make_engine
from store_workflows import Letter, Once
from stores import World

from aegis import Context, RetryAfter
from aegis.core.errors import AlreadyApproved, EventRefused, FourEyes, WorkflowNotFound


def events(world: World, workflow_id: str) -> list[str]:
    return [one.event for one in world.engine.history(workflow_id)]


def sound(world: World, *ids: str) -> bool:
    return all(world.engine.verify_integrity(one) == (True, None) for one in ids)


def test_an_event_that_nobody_keeps_is_refused(world: World) -> None:
    world.engine.start(Strict(), id="s")
    with pytest.raises(EventRefused):
        world.engine.send("s", "remove")
    world.engine.send("s", "open", reason="it is time")
    world.run()
    world.engine.send("s", "remove")
    world.run()
    assert events(world, "s") == ["created", "open", "remove"]
    assert world.engine.history("s")[1].payload["reason"] == "it is time"
    assert sound(world, "s")


def test_guards_choose_and_what_they_refuse_waits(world: World) -> None:
    for name, weight in (("light", 1), ("heavy", 50), ("huge", 500)):
        world.engine.start(Sorting(weight=weight), id=name)
    world.engine.start(Guarded(), id="g")
    world.engine.send("g", "vote", Vote(amount=50))
    world.run()
    assert {name: world.engine.describe(name).state for name in ("light", "heavy", "huge")} == {
        name: name for name in ("light", "heavy", "huge")
    }
    assert (world.engine.describe("g").status, world.engine.describe("g").inbox) == ("waiting", 1)
    world.engine.send("g", "raise_limit", 60)
    world.run()
    assert world.engine.get("g").to_dict()["done"] == ["accept 50"]
    assert sound(world, "light", "heavy", "huge", "g")


def test_approvals_and_four_eyes(world: World) -> None:
    def person(name: str) -> Any:
        return make_engine(world.database, world.runner.ring, actor=f"user:{name}")  # type: ignore[arg-type]

    world.engine.start(Budget(), id="b")
    person("bob").send("b", "submit", 500)
    world.run()
    with pytest.raises(FourEyes):
        person("bob").send("b", "approve", None)
    person("eve").send("b", "approve", None, reason="fine")
    world.run()
    with pytest.raises(AlreadyApproved):
        person("eve").send("b", "approve", None)
    person("max").send("b", "approve", None)
    world.run()
    assert events(world, "b") == ["created", "submit", "approved", "approve"]
    assert world.engine.get("b").to_dict()["approved_by"] == ["user:eve", "user:max"]
    assert sound(world, "b")


@pytest.mark.parametrize("kind", [Mailer, Inside])
def test_a_handler_sends_with_its_transition_or_not_at_all(
    world: World, script: dict[str, Any], kind: type[Mailer | Inside]
) -> None:
    def mail(_workflow: Any, ctx: Context) -> None:
        with pytest.raises(WorkflowNotFound):
            ctx.send("nobody", "finish", "x")
        ctx.send("l", "finish", "a")
        if ctx.attempt == 1:
            msg = "no paper"
            raise OSError(msg)

    script["mail"] = mail
    world.engine.start(Letter(), id="l")
    world.engine.start(kind(), id="m")
    world.run()
    assert world.engine.describe("l").seq == 0
    world.pass_time(timedelta(minutes=2))
    world.run()
    assert world.engine.history("l")[-1].payload == {"data": "a", "key": "m:1:finish:1", "sender": "workflow:m"}
    assert sound(world, "l", "m")


def test_giving_up_and_retry_after(world: World, script: dict[str, Any]) -> None:
    def pay(_workflow: Any, _ctx: Context) -> None:
        raise RetryAfter(timedelta(hours=1), counts=False) from OSError("429")

    script["pay"] = pay
    world.engine.start(Paying(), id="p")
    world.run()
    assert world.engine.describe("p").attempt == 0

    def refuse(_workflow: Any, _ctx: Context) -> None:
        msg = "blocked"
        raise PermissionError(msg)

    script["pay"] = refuse
    world.pass_time(timedelta(hours=1, minutes=1))
    world.run()
    assert (world.engine.describe("p").state, events(world, "p")) == ("claimed", ["created", "pay"])
    assert sound(world, "p")


def test_many_are_retried_at_once(world: World, script: dict[str, Any]) -> None:
    def fail(workflow: Once, _ctx: Context) -> None:
        raise OSError(workflow.note)

    script["act"] = fail
    for number in range(5):
        world.engine.start(Once(note="the LINE is dead" if number else "something else"), id=f"o-{number}")
    world.run()
    script.clear()
    assert world.engine.retry_all(error="line is", dry_run=True) == 4
    assert world.engine.retry_all(error="line is", reason="mended") == 4
    world.run()
    assert {row.id: row.status for row in world.engine.list()} == {
        "o-0": "failed",
        **{f"o-{number}": "completed" for number in range(1, 5)},
    }
    assert world.engine.retry_all(status="failed", type=Once, limit=1) == 1
    world.run()
    assert world.engine.describe("o-0").status == "completed"

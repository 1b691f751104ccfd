"""Effects and versions, on every store and by both engines."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from store_workflows import Act, Once
from stores import World

from aegis import Context, DidNotHappen, Happened, Workflow, transition, upgrade
from aegis.core.errors import UnknownVersion, WrongStatus
from aegis.core.workflow import Registry, registry
from aegis.persistence import compatibility


class Side(StrEnum):
    OPEN = "open"
    DONE = "done"


def first() -> type[Workflow]:
    class One(Workflow, version=1, name="conformance.Versioned"):
        __qualname__ = "Versioned"
        state: Side = Side.OPEN
        pages: int = 1

        @transition(Side.OPEN, Side.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None: ...

    return One


def second() -> type[Workflow]:
    class Two(Workflow, version=2, name="conformance.Versioned"):
        __qualname__ = "Versioned"
        state: Side = Side.OPEN
        leaves: int

        @upgrade(1)
        @staticmethod
        def from_v1(data: dict[str, Any]) -> dict[str, Any]:
            return {"state": data["state"], "leaves": data["pages"] * 2}

        @transition(Side.OPEN, Side.DONE, on="finish")
        def finish(self, ctx: Context, word: str) -> None: ...

    return Two


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    registry._types.pop("conformance.Versioned", None)


def test_an_effect_is_done_once_and_told(world: World, script: dict[str, Act]) -> None:
    calls: list[str] = []

    def act(workflow: Any, ctx: Context) -> None:
        key = ctx.effect_key("mail")
        workflow.note = ctx.effect("mail", lambda: calls.append(key) or "sent")

    script["act"] = act
    world.engine.start(Once(), id="o")
    world.run()
    assert calls == ["o:1:mail"]
    (effect,) = world.engine.effects("o")
    assert (effect.status, effect.result, effect.key) == ("done", "sent", "o:1:mail")
    payload: Any = world.engine.history("o")[-1].payload
    assert [one["name"] for one in payload["effects"]] == ["mail"]
    assert world.engine.verify_integrity("o") == (True, None)


def test_an_effect_in_doubt_is_resolved_by_a_person(world: World, script: dict[str, Act]) -> None:
    calls: list[int] = []

    def fail() -> str:
        calls.append(1)
        raise TimeoutError

    def act(workflow: Any, ctx: Context) -> None:
        workflow.note = ctx.effect("mail", fail, repeat=False)

    script["act"] = act
    world.engine.start(Once(), id="o")
    world.run()
    world.engine.retry("o")
    world.run()
    assert [one.name for one in world.engine.effects(in_doubt=True)] == ["mail"]
    world.engine.resolve_effect("o", "mail", DidNotHappen(), reason="it is not in the list")
    world.engine.resolve_effect("o", "mail", Happened("by hand"), reason="it is, after all", retry=True)
    world.run()
    assert world.engine.get("o").to_dict()["note"] == "by hand"
    assert len(calls) == 1
    with pytest.raises(WrongStatus):
        world.engine.retry("o")
    assert world.engine.verify_integrity("o") == (True, None)
    world.engine.erase("o", reason="asked to")
    assert world.engine.effects() == []


def test_a_row_of_an_older_version_is_checked_read_and_upgraded(world: World) -> None:
    one = first()
    world.engine.start(one(pages=3), id="v")
    world.run()
    two = second()
    known = Registry()
    known.add(two)
    assert compatibility.check(world.database, known).problems == ()
    assert compatibility.check(world.database, Registry(), sample=5).problems[0].kind == "unknown type"
    assert world.engine.get("v").to_dict() == {"state": "open", "leaves": 6}
    world.engine.send("v", "finish", "end")
    world.run()
    assert [link.event for link in world.engine.history("v")] == ["created", "upgraded", "finish"]
    assert world.engine.load("v", seq=0).to_dict() == {"state": "open", "leaves": 6}
    assert world.engine.verify_integrity("v") == (True, None)
    first()
    with pytest.raises(UnknownVersion):
        world.engine.get("v")

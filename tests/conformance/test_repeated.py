"""A start that is repeated after a deployment: the same input is the same, whatever the code has become since."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from stores import World

from aegis import Context, Start, Workflow, transition, upgrade
from aegis.core.errors import StartConflict
from aegis.core.workflow import registry

TYPE = "conformance.Moved"
Data = dict[str, Any]


class Place(StrEnum):
    NEW = "new"
    DONE = "done"


class _Finishing:
    @transition(Place.NEW, Place.DONE, on="finish")
    def finish(self, ctx: Context, _: None) -> None: ...


def first() -> Any:
    class One(_Finishing, Workflow, version=1, name=TYPE):
        __qualname__ = "Moved"
        state: Place = Place.NEW
        name: str
        amount: int = 0

    return One


def wider() -> Any:
    """Return the same version, with a field that is new."""

    class Wider(_Finishing, Workflow, version=1, name=TYPE):
        __qualname__ = "Moved"
        state: Place = Place.NEW
        name: str
        amount: int = 0
        note: str = ""

    return Wider


def second(*, fails: bool = False) -> Any:
    """Return version 2: ``name`` is ``title``, and the amount is in cents."""

    class Two(_Finishing, Workflow, version=2, name=TYPE):
        __qualname__ = "Moved"
        state: Place = Place.NEW
        title: str
        amount: int = 0
        note: str = ""

        @upgrade(1)
        @staticmethod
        def from_v1(data: Data) -> Data:
            if fails:
                raise KeyError("name")
            return {"state": data["state"], "title": data["name"], "amount": data["amount"] * 100}

    return Two


def cents() -> Any:
    """Return version 2, whose data looks like that of version 1, and means something else."""

    class Cents(_Finishing, Workflow, version=2, name=TYPE):
        __qualname__ = "Moved"
        state: Place = Place.NEW
        name: str
        amount: int = 0

        @upgrade(1)
        @staticmethod
        def from_v1(data: Data) -> Data:
            return data | {"amount": data["amount"] * 100}

    return Cents


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    registry._types.pop(TYPE, None)


def conflict(world: World, workflow: Workflow, **options: Any) -> tuple[str, ...]:
    """Start it under an id that is taken; return what is said of that."""
    with pytest.raises(StartConflict) as caught:
        world.engine.start(workflow, id="m", **options)
    with pytest.raises(StartConflict):
        world.engine.start_many([Start(workflow, id="other"), Start(workflow, id="m", **options)])
    assert [one.id for one in world.engine.list()] == ["m"]
    return caught.value.differences


def same(world: World, workflow: Workflow, **options: Any) -> None:
    """Start it again, one by one and with others."""
    assert world.engine.start(workflow, id="m", **options).new is False
    handles = world.engine.start_many([Start(workflow, id="m", **options), Start(workflow, id="m", **options)])
    assert [(handle.id, handle.new) for handle in handles] == [("m", False)] * 2
    assert len(world.engine.history("m")) == world.engine.describe("m").seq + 1


def test_a_field_that_is_new_has_its_default_in_what_was_started_before(world: World) -> None:
    world.engine.start(first()(name="a", amount=5), id="m", attributes={"customer": 7})
    new = wider()
    same(world, new(name="a", amount=5), attributes={"customer": 7})
    assert conflict(world, new(name="a", amount=5, note="x"), attributes={"customer": 7}) == (
        '/note: "" then, "x" now',
    )
    assert conflict(world, new(name="b", amount=5), attributes={"customer": 7}) == ('/name: "a" then, "b" now',)
    assert conflict(world, new(name="a", amount=5)) == ('/attributes: {"customer":7} then, nothing now',)


def test_an_older_version_is_upgraded_before_it_is_compared(world: World) -> None:
    world.engine.start(first()(name="a", amount=5), id="m")
    new = second()
    same(world, new(title="a", amount=500))
    assert conflict(world, new(title="b", amount=500)) == ('/title: "a" then, "b" now',)
    assert conflict(world, new(title="a", amount=5)) == ("/amount: 500 then, 5 now",)

    # Once a worker has upgraded it, what it was started with is of the old version all the same.
    world.engine.resume_all_pending(new)
    world.run()
    assert [link.event for link in world.engine.history("m")] == ["created", "upgraded"]
    same(world, new(title="a", amount=500))
    assert conflict(world, new(title="a", amount=5)) == ("/amount: 500 then, 5 now",)
    same(world, first()(name="a", amount=5))


def test_the_same_words_of_another_version_are_another_input(world: World) -> None:
    world.engine.start(first()(name="a", amount=5), id="m")
    new = cents()
    same(world, new(name="a", amount=500))
    assert conflict(world, new(name="a", amount=5)) == ("/amount: 500 then, 5 now",)


def test_a_key_finds_its_holder_across_a_deployment(world: World) -> None:
    world.engine.start(first()(name="a"), id="m", singleton="k", attach=True)
    new = second()
    same(world, new(title="a"), singleton="k", attach=True)
    assert world.engine.start(new(title="b"), id="n", singleton="k", attach=True).id == "m"
    assert conflict(world, new(title="b"), singleton="k", attach=True) == ('/title: "a" then, "b" now',)


def test_what_cannot_be_brought_along_is_a_conflict_that_says_why(world: World) -> None:
    world.engine.start(first()(name="a", amount=5), id="m")
    *unlike, why = conflict(world, second(fails=True)(title="a", amount=500))
    assert unlike == ["/amount: 5 then, 500 now", '/name: "a" then, nothing now', *unlike[2:]]
    assert why.startswith("and the code here cannot read what it was started with: the upgrade of conformance.Moved")
    assert "KeyError: 'name'" in why


def test_an_application_that_is_older_than_what_is_stored_says_so(world: World) -> None:
    world.engine.start(second()(title="a", amount=500), id="m")
    old = first()
    assert "version 2 of conformance.Moved cannot be read here" in conflict(world, old(name="a", amount=5))[-1]


def test_the_same_words_to_an_older_application_are_the_same(world: World) -> None:
    world.engine.start(cents()(name="a", amount=500), id="m")
    same(world, first()(name="a", amount=500))


def test_a_field_that_went_without_a_version_is_named(world: World) -> None:
    world.engine.start(wider()(name="a", note="x"), id="m")
    found = conflict(world, first()(name="a"))
    assert found[0] == '/note: "x" then, nothing now'
    assert "/note: Extra inputs are not permitted" in found[1]

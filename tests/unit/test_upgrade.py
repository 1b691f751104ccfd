"""Upgrades: which declarations are refused, what is called for which version, and what a step may do wrong."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from enum import StrEnum
from typing import Any

import pytest

from aegis import Context, Workflow, transition, upgrade
from aegis.core.errors import DefinitionError, InvalidData, UnknownVersion, UpgradeFailed
from aegis.core.workflow import read_data, registry

Data = dict[str, Any]


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"


class UpgradedDoor(Workflow, version=4):
    """Three steps, declared in the three ways, and not in order."""

    state: Door = Door.SHUT
    colour: str
    steps: list[int]

    @upgrade(3)
    @staticmethod
    def from_v3(data: Data) -> Data:
        return data | {"steps": [*data["steps"], 3]}

    @classmethod
    @upgrade(1)
    def from_v1(cls, data: Data) -> Data:
        assert cls is UpgradedDoor
        return {"state": data["is"], "paint": data["paint"], "steps": [1]}

    @upgrade(2)
    def from_v2(data: Data) -> Data:  # type: ignore[misc]  # noqa: N805 - a static method without saying so
        data["colour"] = data.pop("paint")
        data["steps"].append(2)
        return data

    @transition(Door.SHUT, Door.OPEN)
    def push(self, ctx: Context) -> None: ...


def test_every_step_is_taken_in_order_from_wherever_the_data_is() -> None:
    for version, data in (
        (1, {"is": "open", "paint": "red"}),
        (2, {"state": "open", "paint": "red", "steps": [1]}),
        (3, {"state": "open", "colour": "red", "steps": [1, 2]}),
        (4, {"state": "open", "colour": "red", "steps": [1, 2, 3]}),
    ):
        assert read_data(UpgradedDoor, data, version) == UpgradedDoor(state=Door.OPEN, colour="red", steps=[1, 2, 3])


def test_who_can_read_what() -> None:
    definition = UpgradedDoor.definition
    assert (definition.version, definition.upgrades) == (4, (1, 2, 3))
    assert [version for version in range(7) if definition.reads(version)] == [1, 2, 3, 4]
    assert {f"UpgradedDoor/{version}" for version in (1, 2, 3, 4)} <= set(registry.known())
    assert registry.reader("UpgradedDoor", 2) is UpgradedDoor
    assert registry.find("UpgradedDoor", 2) is None
    assert registry.reader("UpgradedDoor", 5) is None
    assert registry.reader("NoDoor", 1) is None


@pytest.mark.parametrize(("version", "says"), [(5, "deploy the newer code"), (0, r"@upgrade\(0\)")])
def test_a_version_without_a_way_is_refused(version: int, says: str) -> None:
    with pytest.raises(UnknownVersion, match=rf"version {version} of UpgradedDoor .*known: 1, 2, 3, 4.*{says}"):
        read_data(UpgradedDoor, {}, version)


def test_a_step_that_raises_and_one_that_gives_nonsense() -> None:
    with pytest.raises(UpgradeFailed, match="UpgradedDoor from version 1 failed: KeyError: 'is'"):
        read_data(UpgradedDoor, {"paint": "red"}, 1)
    with pytest.raises(InvalidData, match="/colour"):
        read_data(UpgradedDoor, {"state": "open", "colour": 7, "steps": []}, 3)


@pytest.mark.parametrize("result", [None, [], "data", 7])
def test_a_step_that_returns_no_data(result: object) -> None:
    class ForgetfulDoor(Workflow, version=2):
        state: Door = Door.SHUT

        @upgrade(1)
        @staticmethod
        def from_v1(data: Data) -> Any:
            return data and result

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    with pytest.raises(UpgradeFailed, match=f"it returned {type(result).__name__}, not a dict"):
        read_data(ForgetfulDoor, {"state": "open"}, 1)


def test_upgrades_are_no_part_of_the_machine() -> None:
    """A step that is added for old rows must not look like another machine to new ones."""

    class Plain(Workflow, version=2, name="upgrade.Same"):
        __qualname__ = "Same"
        state: Door = Door.SHUT

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    class Upgraded(Workflow, version=2, name="upgrade.Same"):
        __qualname__ = "Same"
        state: Door = Door.SHUT

        @upgrade(1)
        @staticmethod
        def from_v1(data: Data) -> Data:
            return data

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    assert Plain.definition.fingerprint == Upgraded.definition.fingerprint


def test_a_child_inherits_upgrades_and_may_replace_them() -> None:
    class Child(UpgradedDoor, version=4):
        @upgrade(2)
        @staticmethod
        def from_v2(data: Data) -> Data:
            return data | {"state": "shut", "colour": "green", "steps": []}

    assert Child.definition.upgrades == (1, 2, 3)
    assert read_data(Child, {}, 2).colour == "green"


# --- what is refused when the class is made ------------------------------------------------------


def make(version: int, *members: Any, **named: Any) -> Any:
    """Make a class of that version, whose upgrades are called ``step1``, ``step2``, ..."""

    class Base(Workflow, version=version, name="upgrade.Bad"):
        __qualname__ = "Bad"
        state: Door = Door.SHUT
        locals().update({f"step{number}": member for number, member in enumerate(members, 1)} | named)

        @transition(Door.SHUT, Door.OPEN)
        def push(self, ctx: Context) -> None: ...

    return Base


def step(version: Any) -> Any:
    return staticmethod(upgrade(version)(lambda data: data))


async def _later(data: Data) -> Data:
    return data


async def _stream(data: Data) -> AsyncIterator[Data]:
    yield data


def _each(data: Data) -> Iterator[Data]:
    yield data


def _nothing() -> Data:
    return {}


def _two(data: Data, more: Data) -> Data:
    return data | more


def _keyword(*, data: Data) -> Data:
    return data


def _demanding(data: Data, *, more: int) -> Data:
    return data | {"more": more}


def _method(self: Any) -> Data:
    return {}


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a version of its own": (lambda: make(2, step(2)), r"upgrade.Bad.step1: it starts from version 2.*version=3"),
    "a newer version": (lambda: make(2, step(7)), r"step1: it starts from version 7, and the class is of version 2"),
    "version 0": (lambda: make(2, step(0)), r"step1: @upgrade\(0\); give the version it starts from"),
    "a negative version": (lambda: make(2, step(-1)), r"@upgrade\(-1\)"),
    "a version that is a text": (lambda: make(2, step("1")), r"@upgrade\('1'\)"),
    "a version that is true": (lambda: make(2, step(True)), r"@upgrade\(True\)"),
    "a version that is a fraction": (lambda: make(2, step(1.0)), r"@upgrade\(1.0\)"),
    "two for one version": (
        lambda: make(2, step(1), step(1)),
        r"step2: step1 starts from version 1 already; keep one of the two",
    ),
    "a gap": (lambda: make(4, step(1), step(3)), r"nothing brings version 2 to 3; add @upgrade\(2\)"),
    "a gap at the end": (lambda: make(3, step(1)), r"nothing brings version 2 to 3"),
    "async": (lambda: make(2, staticmethod(upgrade(1)(_later))), "it is async, or a generator"),
    "an async generator": (lambda: make(2, staticmethod(upgrade(1)(_stream))), "it is async, or a generator"),
    "a generator": (lambda: make(2, staticmethod(upgrade(1)(_each))), "it is async, or a generator"),
    "no parameter": (lambda: make(2, staticmethod(upgrade(1)(_nothing))), "it does not take the old data"),
    "two parameters": (lambda: make(2, staticmethod(upgrade(1)(_two))), "it does not take the old data"),
    "a parameter by name alone": (lambda: make(2, staticmethod(upgrade(1)(_keyword))), "does not take the old data"),
    "another that is needed": (lambda: make(2, staticmethod(upgrade(1)(_demanding))), "does not take the old data"),
    "a method": (lambda: make(2, upgrade(1)(_method)), r"write it as a static method, def from_v1\(data: dict\)"),
    "a name that is taken": (
        lambda: make(2, to_dict=step(1)),
        "upgrade.Bad.to_dict: a workflow has this attribute already",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_upgrade_is_refused_when_the_class_is_made(case: str) -> None:
    act, says = REFUSED[case]
    with pytest.raises(DefinitionError, match=says) as raised:
        act()
    assert raised.value.workflow == "upgrade.Bad"
    assert raised.value.remedy


def test_what_takes_the_data_in_other_words_is_taken() -> None:
    def defaults(data: Data, more: int = 1) -> Data:
        return data | {"state": "open"}

    def anything(*args: Any, **_: Any) -> Data:
        return dict(args[0]) | {"state": "open"}

    for function in (defaults, anything, functools.partial(defaults, more=2)):
        made = make(2, staticmethod(upgrade(1)(function)))
        assert read_data(made, {}, 1).state is Door.OPEN

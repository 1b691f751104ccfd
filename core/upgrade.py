"""Upgrades: how the data of an older version of a workflow is read by the code of a newer one.

Each step goes from one version to the next. Whatever a step does wrong, the data stays as it was:
nothing is ever read by a version that it was not brought to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel

from .errors import DefinitionError, UnknownVersion, UpgradeFailed

MARK: Final = "__aegis_upgrade__"

F = TypeVar("F")
Data: TypeAlias = dict[str, Any]
Upgrade: TypeAlias = Callable[[Data], Data]

_BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
_REMEDY: Final = "write it as a static method, def from_v{version}(data: dict) -> dict"


def upgrade(version: int) -> Callable[[F], F]:
    """Declare a static method that brings the data of ``version`` to the next one: ``def from_v1(data) -> data``.

    The data is that of ``to_dict``: plain JSON values, ``state`` among them. It is upgraded when a worker next takes
    the workflow in hand, before anything else, and recorded as a transition ``upgraded``; whoever only reads it has it
    upgraded in memory. What is wrong with a declaration is said when the class is made.
    """

    def mark(function: F) -> F:
        setattr(getattr(function, "__func__", function), MARK, version)
        return function

    return mark


def declared_upgrades(cls: type[BaseModel]) -> dict[str, Any]:
    """Return what a class declares as its upgrades, or inherits, by name; nothing of it is checked yet."""
    declared: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if hasattr(getattr(member, "__func__", member), MARK):
                declared[name] = member
            elif name in declared:
                del declared[name]  # overridden by something that is no upgrade
    return declared


def upgrades_of(cls: type[BaseModel], type_name: str, version: int) -> dict[int, Upgrade]:
    """Return the upgrades of a class by the version that each starts from.

    Raises:
        DefinitionError: names the class, the method and the remedy.

    """
    found: dict[int, str] = {}
    for name, member in declared_upgrades(cls).items():
        source = getattr(getattr(member, "__func__", member), MARK)
        _check_source(type_name, name, source, version, found)
        _check_function(type_name, name, getattr(cls, name), source)
        found[source] = name
    for source in range(min(found, default=version), version):
        if source not in found:
            raise DefinitionError(
                type_name,
                None,
                f"nothing brings version {source} to {source + 1}",
                f"add @upgrade({source}): the steps must lead to version {version} without a gap",
            )
    return {source: getattr(cls, name) for source, name in sorted(found.items())}


def _check_source(type_name: str, name: str, source: object, version: int, found: Mapping[int, str]) -> None:
    if not isinstance(source, int) or isinstance(source, bool) or source < 1:
        raise DefinitionError(type_name, name, f"@upgrade({source!r})", "give the version it starts from, from 1")
    if source >= version:
        raise DefinitionError(
            type_name,
            name,
            f"it starts from version {source}, and the class is of version {version}",
            f"say version={source + 1} in the class line, or remove it",
        )
    if source in found:
        raise DefinitionError(
            type_name, name, f"{found[source]} starts from version {source} already", "keep one of the two"
        )


def _check_function(type_name: str, name: str, function: Any, version: int) -> None:
    remedy = _REMEDY.format(version=version)
    if not callable(function):
        raise DefinitionError(type_name, name, "it is no function", remedy)
    if (
        inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
        or inspect.isgeneratorfunction(function)
    ):
        raise DefinitionError(type_name, name, "it is async, or a generator", remedy)
    parameters = list(inspect.signature(function).parameters.values())
    required = [one for one in parameters if one.default is one.empty and one.kind in _BY_POSITION[:2]]
    needs_more = any(one.default is one.empty and one.kind is one.KEYWORD_ONLY for one in parameters)
    takes_one = any(one.kind in _BY_POSITION for one in parameters)
    if len(required) > 1 or needs_more or not takes_one or parameters[0].name == "self":
        raise DefinitionError(type_name, name, "it does not take the old data, and that alone", remedy)


def upgraded(type_name: str, upgrades: Mapping[int, Upgrade], data: Data, *, version: int, current: int) -> Data:
    """Return data of ``version`` as the current one has it.

    Raises:
        UnknownVersion: it is newer, or no steps lead here from there.
        UpgradeFailed: a step raised, or returned no data.

    """
    if version != current and version not in upgrades:
        raise UnknownVersion(type_name, version, [*upgrades, current])
    for source in range(version, current):
        data = _step(type_name, upgrades[source], data, source)
    return data


def _step(type_name: str, step: Upgrade, data: Data, source: int) -> Data:
    try:
        made = step(data)
    except Exception as error:  # a user's own code: whatever it raises, the data stays as it is
        raise UpgradeFailed(type_name, source, f"{type(error).__name__}: {error}") from error
    if not isinstance(made, dict):
        raise UpgradeFailed(type_name, source, f"it returned {type(made).__name__}, not a dict")
    return made

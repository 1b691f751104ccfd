"""Data that no type describes: as nothing says how it is to be written, it has to be JSON already.

A field that is declared as a ``datetime`` or a ``Decimal`` is written as its type says, and read back as what it
was. In one that is declared as ``Any``, the same value would come back as a string, and nobody would be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from .canonical import pointer_step


def misread(model: BaseModel, data: object) -> tuple[str, str] | None:
    """Return what of ``model`` would come back from its ``data`` as something else: a JSON pointer, and what is wrong.

    It is looked at where a class has a field of type ``Any``; elsewhere its types say how it is written.
    """
    kind = type(model)
    if not _has_untyped(kind):
        return None
    try:
        again = kind.model_validate(data, by_alias=True, by_name=True)
    except ValidationError:
        return None  # whoever reads it back says what is wrong with it
    return _difference(model.model_dump(warnings=False), again.model_dump(warnings=False), "")


@cache
def _has_untyped(kind: type[BaseModel]) -> bool:
    return _holds_any(kind.__pydantic_core_schema__, set())


def _holds_any(schema: object, seen: set[int]) -> bool:
    """Whether a schema of pydantic's takes whatever it is given, at any depth."""
    if id(schema) in seen:
        return False
    seen.add(id(schema))
    if isinstance(schema, Mapping):
        return schema.get("type") == "any" or any(_holds_any(member, seen) for member in schema.values())
    return isinstance(schema, list | tuple) and any(_holds_any(item, seen) for item in schema)


def _difference(value: Any, again: Any, pointer: str) -> tuple[str, str] | None:
    """Return the first place at which two values differ; which of both was written does not matter to the pointer."""
    if type(value) is not type(again):
        return pointer, f"a {type(value).__name__} is not JSON: declare its type, or convert it explicitly"
    if isinstance(value, dict):
        for key, member in value.items():
            if key not in again:
                return pointer, f"the key {key!r} is not a string"
            if (found := _difference(member, again[key], pointer + pointer_step(str(key)))) is not None:
                return found
        return None
    if isinstance(value, list | tuple):
        for index, (one, other) in enumerate(zip(value, again, strict=False)):
            if (found := _difference(one, other, f"{pointer}/{index}")) is not None:
                return found
    return None


def unwritable(model: BaseModel) -> str:
    """Return the JSON pointer of what cannot be written at all; empty where that cannot be told."""
    try:
        return _unwritable(model.model_dump(warnings=False), "") or ""
    except (ValueError, RecursionError):
        return ""


def _unwritable(value: Any, pointer: str) -> str | None:
    if isinstance(value, dict):
        for key, member in value.items():
            step = pointer + pointer_step(str(key))
            found = step if not _is_writable({key: None}) else _unwritable(member, step)
            if found is not None:
                return found
        return None
    if isinstance(value, list | tuple):
        places = (_unwritable(item, f"{pointer}/{index}") for index, item in enumerate(value))
        return next((found for found in places if found is not None), None)
    return None if _is_writable(value) else pointer


def _is_writable(value: object) -> bool:
    try:
        to_jsonable_python(value)
    except ValueError:
        return False
    return True

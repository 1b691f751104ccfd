"""Canonical JSON: one value, one sequence of bytes; whatever has more than one reading is refused.

RFC 8785 (JCS) on a restricted domain: null, booleans, integers up to 2^53-1 in magnitude,
finite floats, strings of Unicode scalar values without U+0000, arrays, objects with unique
string keys. These bytes are stored as they are hashed.
"""

from __future__ import annotations

import json
import math
from typing import Final, TypeAlias

import rfc8785

from .errors import NotCanonical

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 64
_MAX_INTEGER: Final = 2**53 - 1
# Python sorts strings by code point, RFC 8785 by UTF-16 code unit: below the surrogates both agree.
_FIRST_SURROGATE: Final = "\ud800"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode


def canonical(value: object, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the only bytes that stand for ``value``.

    Raises:
        NotCanonical: the value, or one inside it, lies outside the domain.

    """
    # The standard encoder writes the same bytes as RFC 8785, and many times as fast, where there
    # are no floats (ECMAScript prints them otherwise) and no keys that sort differently.
    data = _encode(value).encode() if _check(value, 0) else rfc8785.dumps(value)  # type: ignore[arg-type]
    if len(data) > max_bytes:
        raise NotCanonical("", f"the document has {len(data)} bytes, more than the {max_bytes} allowed")
    return data


def parse(text: str | bytes) -> Json:
    """Read JSON that came from outside, refusing what ``json.loads`` would let pass.

    Raises:
        NotCanonical: malformed, duplicate keys, NaN, or otherwise outside the domain.

    """
    try:
        loaded = json.loads(text, object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        raise NotCanonical("", f"the document is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise NotCanonical("", f"the document is not JSON ({error.msg}: {place})") from None
    except ValueError:  # Python refuses to read integers of more than 4,300 digits
        raise NotCanonical("", "the document holds an integer beyond 2^53-1: send it as a string") from None
    except RecursionError:
        raise NotCanonical("", _TOO_DEEP) from None
    value = _unpair(loaded, 0)
    _check(value, 0)
    return value


def load(stored: bytes) -> Json:
    """Read bytes that ``canonical`` wrote."""
    value: Json = json.loads(stored)
    return value


def is_canonical(stored: bytes) -> bool:
    """Whether these bytes are what ``canonical`` would write for what they say."""
    try:
        return canonical(parse(stored), max_bytes=len(stored)) == stored
    except NotCanonical:
        return False


_TOO_DEEP = f"the document is nested deeper than {MAX_DEPTH}"


class _Pairs(list[tuple[str, object]]):
    """An object as it was written: keys in order, duplicates and all."""


def _unpair(value: object, depth: int) -> Json:
    """Turn ``_Pairs`` into dicts, refusing a key that stands twice."""
    if depth > MAX_DEPTH:
        raise NotCanonical("", _TOO_DEEP)
    if isinstance(value, _Pairs):
        members: dict[str, Json] = {}
        for key, member in value:
            if key in members:
                raise NotCanonical(pointer_step(key), "the key stands twice in its object")
            try:
                members[key] = _unpair(member, depth + 1)
            except NotCanonical as error:
                raise _below(key, error) from None
        return members
    if isinstance(value, list):
        items: list[Json] = []
        for index, item in enumerate(value):
            try:
                items.append(_unpair(item, depth + 1))
            except NotCanonical as error:
                raise _below(str(index), error) from None
        return items
    return value  # type: ignore[return-value]  # json.loads makes nothing else


def _check(value: object, depth: int) -> bool:
    """Refuse what is outside the domain; return whether the fast encoder may be used."""
    if type(value) is str:
        _check_text(value)
        return True
    if value is None or type(value) is bool:
        return True
    if type(value) is int:
        if not -_MAX_INTEGER <= value <= _MAX_INTEGER:
            raise NotCanonical("", "the integer is beyond 2^53-1: send it as a string")
        return True
    if type(value) is dict:
        return _check_object(value, depth)
    if type(value) is list:
        return _check_array(value, depth)
    if type(value) is float:
        _check_float(value)
        return False
    raise NotCanonical("", f"a {type(value).__name__} is not JSON: convert it explicitly")


def _check_object(members: dict[object, object], depth: int) -> bool:
    if depth >= MAX_DEPTH:
        raise NotCanonical("", _TOO_DEEP)
    fast = True
    for key, member in members.items():
        if type(key) is not str:
            raise NotCanonical("", f"the key {key!r} is not a string")
        try:
            _check_text(key)
            fast = _check(member, depth + 1) and fast
        except NotCanonical as error:
            raise _below(key, error) from None
        if not key.isascii() and max(key) >= _FIRST_SURROGATE:
            fast = False
    return fast


def _check_array(items: list[object], depth: int) -> bool:
    if depth >= MAX_DEPTH:
        raise NotCanonical("", _TOO_DEEP)
    fast = True
    for index, item in enumerate(items):
        try:
            fast = _check(item, depth + 1) and fast
        except NotCanonical as error:
            raise _below(str(index), error) from None
    return fast


def _check_text(text: str) -> None:
    if "\0" in text:
        raise NotCanonical("", "the text holds U+0000, which is refused everywhere")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotCanonical("", "the text holds a lone surrogate, which is not a character") from None


def _check_float(number: float) -> None:
    if not math.isfinite(number):
        raise NotCanonical("", f"{number} is not a JSON number")
    if abs(number) > _MAX_INTEGER and number.is_integer():
        raise NotCanonical("", f"the number {number!r} is beyond 2^53-1: send it as a string")


def _below(key: str, error: NotCanonical) -> NotCanonical:
    return NotCanonical(pointer_step(key) + error.pointer, error.problem)


def pointer_step(key: str) -> str:
    """Return ``key`` as one step of a JSON pointer (RFC 6901, section 3), itself writable as UTF-8."""
    return "/" + key.encode(errors="backslashreplace").decode().replace("~", "~0").replace("/", "~1")

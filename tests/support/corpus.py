"""What no door lets in: one table of values, and one of texts, with what is said of each and where.

RFC 8785's domain, as ``core/canonical.py`` has it: whatever JSON reads in two ways, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

DEEP: Final = 70
LARGE: Final = 300_000


class Number(IntEnum):
    """An integer to Python, and another thing to read back."""

    SEVEN = 7


@dataclass(frozen=True)
class Bad:
    """A value that is refused: what is said of it, and where in it that is."""

    name: str
    value: Any
    says: str
    inside: str = ""
    """The pointer from the value on."""
    at_the_top: bool = False
    """Whether it is about the whole document."""

    def __str__(self) -> str:
        return self.name


def _nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = wrap(found)
    return found


def _itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


# Outside of the domain of JSON that has one reading.
VALUES: Final = (
    Bad("NaN", float("nan"), "not a JSON number"),
    Bad("Infinity", float("inf"), "not a JSON number"),
    Bad("-Infinity", float("-inf"), "not a JSON number"),
    Bad("2^53", 2**53, "beyond 2^53-1: send it as a string"),
    Bad("-2^53", -(2**53), "beyond 2^53-1: send it as a string"),
    Bad("2^53 as a float", float(2**53), "beyond 2^53-1: send it as a string"),
    Bad("1e300", 1e300, "beyond 2^53-1: send it as a string"),
    Bad("U+0000", "a\0b", "U+0000"),
    Bad("U+0000 in a key", {"a\0b": 1}, "U+0000", "/a\0b"),
    Bad("half a surrogate", "\ud800", "surrogate"),
    Bad("the other half", "a\udfffb", "surrogate"),
    Bad("half a surrogate in a key", {"\ud800": 1}, "surrogate", "/\\ud800"),
    Bad("lists too deep", _nested(DEEP, lambda inner: [inner]), "deeper than 64"),
    Bad("objects too deep", _nested(DEEP, lambda inner: {"a": inner}), "deeper than 64"),
    Bad("too large", "x" * LARGE, "bytes, more than the", at_the_top=True),
)

# No JSON at all: to Python perhaps the same as something that is.
NO_JSON: Final = (
    Bad("a key that is a number", {7: 1}, "string"),
    Bad("a key that is null", {None: 1}, "string"),
    Bad("a key that is a boolean", {True: 1}, "string"),
    Bad("a tuple as a key", {(1, 2): 1}, "string"),
    Bad("bytes", b"abc", "bytes"),
    Bad("bytes in UTF-16", "abc".encode("utf-16"), "utf-8"),
    Bad("a moment", datetime(2026, 1, 2, tzinfo=UTC), "datetime"),
    Bad("a day", date(2026, 1, 2), "date"),
    Bad("a span", timedelta(1), "timedelta"),
    Bad("a decimal", Decimal("1.10"), "Decimal"),
    Bad("a UUID", UUID(int=7), "UUID"),
    Bad("a set", {1, 2}, "set"),
    Bad("a complex number", 1j, "complex"),
    Bad("an enumeration", Number.SEVEN, "Number"),
    Bad("a tuple", (1, 2), "tuple"),
    Bad("a function", len, "builtin_function_or_method"),
    Bad("an object", object(), "object"),
    Bad("lists far too deep", _nested(5000, lambda inner: [inner]), "depth", at_the_top=True),
    Bad("a list that holds itself", _itself(), "Circular reference", at_the_top=True),
)


@dataclass(frozen=True)
class BadText:
    """A document that is refused as it is read; ``{}`` in ``pointer`` stands for the place it is put at."""

    name: str
    text: str | bytes
    says: str
    inside: str = ""
    whole: bool = False
    """Whether it is no document at all, wherever it stands: then nothing is said of a place."""

    def __str__(self) -> str:
        return self.name

    def within(self, before: str, after: str) -> bytes:
        """The document, as bytes, with this in the place of a value."""
        text = self.text if isinstance(self.text, bytes) else self.text.encode(errors="surrogatepass")
        return before.encode() + text + after.encode()


TEXTS: Final = (
    BadText("a key twice", '{"a": 1, "a": 1}', "stands twice", "/a"),
    BadText("a key twice, written in two ways", '{"a": 1, "\\u0061": 1}', "stands twice", "/a"),
    BadText("a key twice, further in", '[{"b": {"a": 1, "a": 2}}]', "stands twice", "/0/b/a"),
    BadText("NaN", "NaN", "not a JSON number"),
    BadText("Infinity", "Infinity", "not a JSON number"),
    BadText("-Infinity", "[-Infinity]", "not a JSON number", "/0"),
    BadText("1e400", "1e400", "not a JSON number"),
    BadText("2^53", str(2**53), "as a string"),
    BadText("-2^53", str(-(2**53)), "as a string"),
    BadText("2^53 as a float", "9007199254740992.0", "as a string"),
    BadText("5000 digits", "1" * 5000, "as a string", whole=True),
    BadText("U+0000", '"a\\u0000b"', "U+0000"),
    BadText("U+0000 in a key", '{"a\\u0000b": 1}', "U+0000", "/a\0b"),
    BadText("half a surrogate", '"\\ud800"', "surrogate"),
    BadText("half a surrogate in a key", '{"\\udfff": 1}', "surrogate", "/\\udfff"),
    BadText("lists too deep", "[" * DEEP + "]" * DEEP, "deeper than 64"),
    BadText("lists deeper than Python goes", "[" * 200_000, "deeper than 64", whole=True),
    BadText("objects too deep", '{"a":' * DEEP + "1" + "}" * DEEP, "deeper than 64"),
    BadText("too large", json.dumps("x" * LARGE), "bytes, more than the"),
    BadText("no JSON", "{a: 1}", "not JSON", whole=True),
    BadText("Python's quotes", "'a'", "not JSON", whole=True),
    BadText("nothing between two commas", ",", "not JSON", whole=True),
    BadText("two values", "1 2", "not JSON", whole=True),
    BadText("cut short", '{"a": [1, 2', "not JSON", whole=True),
    BadText("a control character", '"a\tb"', "not JSON", whole=True),
    BadText("Latin-1", '"é"'.encode("latin-1"), "not UTF-8", whole=True),
    BadText("the bytes of a surrogate", b'"\xed\xa0\x80"', "surrogate"),
    BadText("an overlong slash", b'"\xc0\xaf"', "not UTF-8", whole=True),
)

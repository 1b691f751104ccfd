"""Effects: what a handler does to the outside world, and what may be known of it afterwards.

Nobody can do a thing outside and write it down in one moment. So the intent is written down first,
and what came of it last; whoever dies in between leaves an effect of which it is not known whether
it happened. The table below says what is to be done with what an earlier attempt left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from pydantic_core import PydanticSerializationError, to_jsonable_python

from .canonical import canonical
from .errors import NotCanonical

T = TypeVar("T")


@dataclass(frozen=True)
class Happened(Generic[T]):
    """That an effect happened, and what came of it: what the handler would have been given."""

    result: T


class Status(Enum):
    """What is written down of an effect."""

    BEGUN = "begun"
    DONE = "done"
    NOT_DONE = "not done"
    IN_DOUBT = "in doubt"


class Step(Enum):
    """What is to be done with an effect now."""

    RUN = "run it"
    RETURN = "return what was recorded"
    ASK = "ask the provider"
    DOUBT = "let a person say"


def next_step(status: Status, *, ours: bool, can_ask: bool, repeat: bool) -> Step:
    """Return what to do with an effect that is written down already.

    ``ours``: it was begun under this very claim, which has run nothing since; only an answer got lost.
    ``can_ask``: there is somebody who knows. ``repeat``: the provider takes the same key twice for once.
    """
    match status:
        case Status.DONE:
            return Step.RETURN
        case Status.NOT_DONE:
            return Step.RUN
        case Status.IN_DOUBT:
            return Step.DOUBT
        case Status.BEGUN:
            if ours:
                return Step.RUN
            if can_ask:
                return Step.ASK
            return Step.RUN if repeat else Step.DOUBT


def recorded(result: object, *, max_bytes: int) -> bytes:
    """Return a result as the canonical bytes that are kept of it; models, dates and the like become plain JSON.

    Raises:
        NotCanonical: it is no JSON, or too large.

    """
    if inspect.iscoroutine(result):
        result.close()
        raise NotCanonical("", "it is a coroutine, that nobody awaits")
    try:
        # NaN is kept, for the canonical form to refuse: pydantic would write null in its place.
        plain: Any = to_jsonable_python(result, inf_nan_mode="constants")
    except (PydanticSerializationError, UnicodeError, RecursionError, ValueError) as error:
        raise NotCanonical("", str(error)) from None
    return canonical(plain, max_bytes=max_bytes)


_KINDS: Final = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


def is_runnable(fn: object) -> bool:
    """Whether calling it does something: what is async, or a generator, only promises to."""
    return callable(fn) and not any(kind(fn) for kind in _KINDS)


Check = Callable[[str], Any]
"""What asks the provider, by the key: it returns ``Happened(result)`` or ``DidNotHappen``."""

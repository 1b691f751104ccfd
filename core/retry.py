"""Retry: the number of an attempt that failed goes in, the delay before the next comes out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from .errors import InvalidData

_LONGEST: Final = 366 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a transition is tried, and how long to wait in between (seconds).

    An attempt that kills its worker counts like one that raises; a transition that never
    got to say why it failed ends as ``quarantined``, one that did as ``failed``.
    """

    max_attempts: int = 5
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] | None = None
    """The exceptions after which there is another attempt; None: all."""
    never: tuple[type[BaseException], ...] = ()
    """Those after which there is none, whatever ``on`` says."""

    def __post_init__(self) -> None:
        """Refuse a policy that could never try, or never wait sensibly.

        Raises:
            ValueError: names the field and what it should hold.

        """
        numbers = (self.delay, self.factor, self.max_delay, self.jitter)
        if not all(map(math.isfinite, numbers)):
            msg = "Retry(delay={:g}, factor={:g}, max_delay={:g}, jitter={:g}) are not all numbers".format(*numbers)
            raise ValueError(msg)
        if self.max_delay > _LONGEST:
            msg = f"Retry(max_delay={self.max_delay:g}): wait {_LONGEST:g} seconds, which is a year, at most"
            raise ValueError(msg)
        if self.max_attempts < 1:
            msg = f"Retry(max_attempts={self.max_attempts}) never tries: it must be 1 or more"
            raise ValueError(msg)
        if self.delay < 0 or self.max_delay < self.delay:
            msg = f"Retry(delay={self.delay:g}, max_delay={self.max_delay:g}): needs 0 <= delay <= max_delay"
            raise ValueError(msg)
        if self.factor < 1:
            msg = f"Retry(factor={self.factor:g}) would wait less each time: it must be 1 or more"
            raise ValueError(msg)
        if not 0 <= self.jitter <= 1:
            msg = f"Retry(jitter={self.jitter:g}) is a share of the delay: it must be from 0 to 1"
            raise ValueError(msg)
        _check_types("on", () if self.on is None else self.on)
        _check_types("never", self.never)
        if self.on == () or set(self.on or ()) & set(self.never):
            msg = f"Retry(on={self.on!r}, never={self.never!r}) never tries again: leave out on, or make them differ"
            raise ValueError(msg)

    def may_follow(self, error: BaseException) -> bool:
        """Whether there may be another attempt after that error."""
        return not isinstance(error, self.never) and (self.on is None or isinstance(error, self.on))

    def next_delay(self, attempt: int, *, key: str, error: BaseException | None = None) -> timedelta | None:
        """Return how long to wait after ``attempt`` (1, 2, ...) failed; None means give up.

        The jitter comes from ``key``, so that the same failure always decides the same.
        """
        if attempt >= self.max_attempts or (error is not None and not self.may_follow(error)):
            return None
        # Capped in the exponent: factor ** 1000 would overflow a float long before max_delay.
        delay = self.delay
        for _ in range(attempt - 1):
            delay = min(delay * self.factor, self.max_delay)
            if delay >= self.max_delay:
                break
        # At the cap it only shortens: spread as well, and never longer than the policy says.
        least, most = delay * (1 - self.jitter), min(delay * (1 + self.jitter), self.max_delay)
        return timedelta(seconds=least + (most - least) * _fraction(f"{key}#{attempt}"))


class RetryAfter(Exception):
    """Raised by a handler that knows when to try again: a server said so (HTTP's 429 and Retry-After).

    ``delay`` is in seconds, a ``timedelta``, or the moment itself, with a time zone. With
    ``counts=False`` the attempt is none of the ``max_attempts``.
    """

    def __init__(self, delay: float | timedelta | datetime, *, counts: bool = True) -> None:
        """Refuse what is no time to wait for.

        Raises:
            InvalidData: says what it is, and what would do.

        """
        problem = _flaw_of(delay)
        if problem is not None:
            raise InvalidData("RetryAfter", [("/delay", problem)])
        super().__init__(delay)
        self.delay, self.counts = delay, counts

    def wait(self, now: datetime) -> timedelta:
        """Return how long it is from ``now``; nothing if the moment has passed."""
        if isinstance(self.delay, datetime):
            return min(max(self.delay - now, timedelta(0)), timedelta(seconds=_LONGEST))
        return self.delay if isinstance(self.delay, timedelta) else timedelta(seconds=self.delay)

    def __str__(self) -> str:
        """Say when, and why, where that is known: ``raise RetryAfter(30) from error``."""
        because = f" ({self.__cause__})" if self.__cause__ is not None else ""
        return f"to be tried again {_shown(self.delay)}{because}"


def _flaw_of(delay: object) -> str | None:
    """Return what keeps something from being a time to wait."""
    if isinstance(delay, datetime):
        return f"{delay.isoformat()} has no time zone" if delay.tzinfo is None else None
    if isinstance(delay, bool) or not isinstance(delay, int | float | timedelta):
        return f"{delay!r} is no time: give seconds, a timedelta, or a datetime with a zone"
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    return None if 0 <= seconds <= _LONGEST else f"{delay!r} is not from 0 to {_LONGEST:g} seconds, which is a year"


def _shown(delay: float | timedelta | datetime) -> str:
    if isinstance(delay, datetime):
        return f"at {delay.isoformat()}"
    return f"after {delay if isinstance(delay, timedelta) else timedelta(seconds=delay)}"


def _check_types(name: str, types: object) -> None:
    if not (isinstance(types, tuple) and all(map(_is_exception, types))):
        msg = f"Retry({name}={types!r}) is no tuple of exceptions: write {name}=(OSError, TimeoutError)"
        raise ValueError(msg)


def _is_exception(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BaseException)


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48

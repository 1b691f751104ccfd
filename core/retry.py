"""Retry: the number of an attempt that failed goes in, the delay before the next comes out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

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

    def next_delay(self, attempt: int, *, key: str) -> timedelta | None:
        """Return how long to wait after ``attempt`` (1, 2, ...) failed; None means give up.

        The jitter comes from ``key``, so that the same failure always decides the same.
        """
        if attempt >= self.max_attempts:
            return None
        # Capped in the exponent: factor ** 1000 would overflow a float long before max_delay.
        delay = self.delay
        for _ in range(attempt - 1):
            delay = min(delay * self.factor, self.max_delay)
            if delay >= self.max_delay:
                break
        return timedelta(seconds=delay * (1 + self.jitter * (2 * _fraction(f"{key}#{attempt}") - 1)))


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48

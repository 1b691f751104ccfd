"""The lines between places: what is under way, when it arrives, and what is lost. No clock, no network."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

# Of one direction of one line: beyond that, packets are lost, as they are in every router.
_MOST_UNDER_WAY: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How the lines are: ``delay`` and the most ``jitter`` are seconds one way; places are numbers.

    Lines from and to a place that is ``near`` have no delay. Those between the pairs in ``cut`` carry nothing.
    """

    delay: float = 0.0
    jitter: float = 0.0
    near: frozenset[int] = frozenset()
    cut: frozenset[tuple[int, int]] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {"delay": self.delay, "jitter": self.jitter, "near": sorted(self.near), "cut": sorted(self.cut)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Return what was told."""
        cut = frozenset((int(one), int(other)) for one, other in told["cut"])
        return cls(delay=told["delay"], jitter=told["jitter"], near=frozenset(told["near"]), cut=cut)

    def carries(self, one: int, other: int) -> bool:
        """Whether there is a line between two places now."""
        return pair(one, other) not in self.cut


def pair(one: int, other: int) -> tuple[int, int]:
    """Return the name of the line between two places, whichever comes first."""
    return (one, other) if one < other else (other, one)


class Lines:
    """The packets under way, in the order in which they arrive."""

    def __init__(self, terms: Terms, drawn: random.Random) -> None:
        self.terms = terms
        self.carried = self.lost = 0
        self._drawn = drawn
        self._under_way: list[tuple[float, int, int, int, bytes]] = []
        self._taken = 0
        self._count: dict[tuple[int, int], int] = {}
        self._last: dict[tuple[int, int], float] = {}

    def take(self, source: int, target: int, packet: bytes, now: float) -> None:
        """Take a packet at one end of a line."""
        line = (source, target)
        waiting = self._count.get(line, 0)
        if waiting >= _MOST_UNDER_WAY or not self.terms.carries(source, target):
            self.lost += 1
            return
        arrives = now
        if not self.terms.near & {source, target}:
            arrives += self.terms.delay + self._drawn.uniform(0, self.terms.jitter)
        # One does not overtake another, whatever the jitter: that would look like loss to TCP.
        arrives = self._last[line] = max(arrives, self._last.get(line, 0.0))
        self._count[line] = waiting + 1
        self._taken += 1
        heapq.heappush(self._under_way, (arrives, self._taken, source, target, packet))

    def arrived(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Give what is at its end by now, and where that is; what was under way on a line that was cut is lost."""
        while self._under_way and self._under_way[0][0] <= now:
            _, _, source, target, packet = heapq.heappop(self._under_way)
            self._count[source, target] -= 1
            if self.terms.carries(source, target):
                self.carried += 1
                yield target, packet
            else:
                self.lost += 1

    def next(self) -> float | None:
        """Return when something arrives next; None if nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

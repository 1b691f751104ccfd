"""A bell: the message that wakes a worker for one transition. It is a hint, never the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Bell:
    """``(workflow_id, seq)``, and where to ring: ``queue`` (None: the default) and a label for people.

    ``priority`` is 0 to 9, the most urgent.
    """

    workflow_id: str
    seq: int
    queue: str | None
    label: str
    priority: int = 0


def overdue(priority: int) -> int:
    """Return the priority of a bell for what should have moved before: ahead of all that has none.

    It is older than whatever waits, and would else come to stand behind it.
    """
    return max(priority, 1)


class Ring(Protocol):
    """The port through which the engine reaches a broker that it does not know."""

    def __call__(self, bells: Sequence[Bell], /) -> bool:
        """Put the bells on their queues; return whether the broker took them all.

        Never raises for a broker that is away: whatever was not rung is due soon, and swept.
        """

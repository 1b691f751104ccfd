"""Anchors up to a point: what was signed of a log before it went on in another life."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from ..core.anchor import Anchor, Sink
from ..core.errors import SinkUnavailable
from ..core.note import LogHead


@dataclass(frozen=True)
class UpTo:
    """A place of anchors, as it was when the log had ``size`` entries; nothing is written to it."""

    sink: Sink
    size: int

    @property
    def name(self) -> str:
        """Its name."""
        return self.sink.name

    def last(self) -> Anchor | None:
        """Return the last anchor of a log that was not longer than that."""
        newest = deque(self.anchors(), maxlen=1)
        return newest[0] if newest else None

    def add(self, anchor: Anchor, head: LogHead) -> None:
        """Refuse it: a copy signs nothing.

        Raises:
            SinkUnavailable: always.

        """
        raise SinkUnavailable(self.name, f"what is restored adds no anchor of {head.size} entries at {anchor.first}")

    def anchors(self) -> Iterator[Anchor]:
        """Go through the anchors of a log that was not longer than that."""
        for anchor in self.sink.anchors():
            if anchor.end > self.size:
                return
            yield anchor

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        """Go through those of them that have entries of a workflow."""
        return (anchor for anchor in self.sink.about(workflow_id) if anchor.end <= self.size)

    def since(self, moment: datetime) -> Anchor | None:
        """Return the first of them of that moment or later."""
        found = self.sink.since(moment)
        return found if found is not None and found.end <= self.size else None

    def covered(self) -> Iterator[str]:
        """Say what was done to any of them."""
        return self.sink.covered()

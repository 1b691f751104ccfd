"""The ledger: what really happened outside of the database, in the order in which it happened.

One line of JSON per entry, appended by a single ``write`` to a file opened with ``O_APPEND``: the
kernel orders entries of different processes, and a process killed after its write has left it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

EFFECT: Final = "effect"
ACCEPTED: Final = "accepted"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An effect that a handler had, or what a client was told; ``at`` is this host's clock."""

    kind: str
    workflow_id: str
    seq: int
    name: str
    attempt: int
    pid: int
    at: float


class Ledger:
    """A ledger in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def effect(self, workflow_id: str, seq: int, name: str, attempt: int) -> None:
        """Note an effect of the transition that will be ``seq``."""
        self._append(EFFECT, workflow_id, seq, name, attempt)

    def accepted(self, workflow_id: str) -> None:
        """Note that a client was told that a workflow is accepted."""
        self._append(ACCEPTED, workflow_id, 0, "start", 1)

    def entries(self) -> list[Entry]:
        """Return everything, in order; a last line that was cut off by a crash does not count."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().split("\n")[:-1]
        return [Entry(**json.loads(line)) for line in lines]

    def _append(self, kind: str, workflow_id: str, seq: int, name: str, attempt: int) -> None:
        entry = Entry(
            kind=kind,
            workflow_id=workflow_id,
            seq=seq,
            name=name,
            attempt=attempt,
            pid=os.getpid(),
            at=time.time(),
        )
        line = json.dumps(asdict(entry)) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

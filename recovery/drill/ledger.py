"""The client's ledger: what the system was asked, and what it answered; outside of the system, and on disk.

An answer counts as an acknowledgement once it is here, with fsync: whatever the system says later,
this is what it promised. Times are the drill's monotonic clock.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

START: Final = "start"
EVENT: Final = "event"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request: ``key`` is the event's; ``error`` is empty if it was acknowledged."""

    kind: str
    workflow_id: str
    key: str
    asked_at: float
    answered_at: float
    error: str = ""
    new: bool = True
    """False: the system had it already, from a request whose answer was an error."""

    @property
    def acknowledged(self) -> bool:
        """Whether the system said that it has it."""
        return not self.error

    @property
    def what(self) -> tuple[str, str, str]:
        """What was asked for: the same in each try."""
        return (self.kind, self.workflow_id, self.key)


class ClientLedger:
    """A file of requests, one a line."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._path = path
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """Note a request, for good."""
        with self._lock:
            os.write(self._descriptor, (json.dumps(asdict(request)) + "\n").encode())
            os.fsync(self._descriptor)

    def requests(self) -> list[Request]:
        """Return all of it, in order."""
        return [Request(**json.loads(line)) for line in self._path.read_text().split("\n")[:-1]]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

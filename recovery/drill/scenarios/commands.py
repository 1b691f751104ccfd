"""Commands that several pages of the runbook have."""

from __future__ import annotations

from typing import Final

from ..scenario import Command

LOOK: Final = Command(
    argv=("aegis", "health"), why="what is missing, line by line", expects=(0, 1, 2), says="AEGIS is "
)
IS_WELL: Final = Command(argv=("aegis", "health"), why="AEGIS is ok, or is warning", says="AEGIS is ")
IS_INTACT: Final = Command(argv=("aegis", "verify", "--all"), why="every history is as committed", says="as committed")
QUARANTINE: Final = Command(
    argv=("aegis", "list", "--status", "quarantined"), why="what the crashes put aside", says="no workflows"
)
FAILED: Final = Command(
    argv=("aegis", "list", "--status", "failed"), why="what ran out of attempts", says="no workflows"
)
WORKER: Final = Command(
    argv=("aegis", "worker", "-c", "2"), why="another worker, unless your process manager started one", runs_on=True
)
PENDING: Final = Command(argv=("aegis", "list", "--status", "pending", "--limit", "5"), why="what waits to run")
UP: Final = Command(
    argv=("aegis", "up", "--workers", "2", "--concurrency", "2", "--no-flower"),
    why="the servers, two workers and beat",
    runs_on=True,
)

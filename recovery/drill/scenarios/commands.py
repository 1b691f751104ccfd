"""Commands that several pages of the runbook have."""

from __future__ import annotations

from typing import Final

from ..scenario import WHY, Command

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
STATUS: Final = Command(
    argv=("aegis", "cluster", "status"), why="who leads, and who follows", expects=(0, 1), says="the cluster is "
)
IS_WHOLE: Final = Command(
    argv=("aegis", "cluster", "status"), why="every standby has what was acknowledged", says="a lost node loses nothing"
)
ANCHORS_KNOW_MORE: Final = Command(
    argv=("aegis", "verify", "--all"), why="the anchors know more", expects=(1,), says="TAMPERED WITH"
)
WHAT_IS_LOST: Final = Command(
    argv=("aegis", "reconcile", "--json"), why="exactly what was anchored and is gone", expects=(1,), says='"lost"'
)
ACCEPT_THE_LOSS: Final = Command(
    argv=("aegis", "reconcile", "--accept", "--resume", "--reason", WHY),
    why="once it is known what that meant outside",
    says="accepted: record ",
)

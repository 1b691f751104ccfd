"""What only a backup, and the archive of what was written since, bring back."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from ..faults import backups
from ..sandbox import Needs
from ..scenario import MOMENT, WHY, Command, Scenario
from ..servers import Kind
from .commands import FAILED, IS_INTACT, IS_WELL, UP

_ARCHIVED: Final = Needs(servers=Kind.ARCHIVED)
_TAKE: Final = Command(
    argv=("aegis", "backup", "take"), why="a new beginning: it is on another timeline", says="restored and verified"
)
_RECONCILE: Final = Command(
    argv=("aegis", "reconcile", "--accept", "--resume", "--reason", WHY),
    why="what had gone on after that point runs again, with the same keys",
    says="epoch ",
    waits=True,
)
_NOTHING_GONE: Final = Command(
    argv=("aegis", "reconcile"), why="whether anything that was anchored is gone, or an effect in doubt", waits=True
)


def _needs_barman() -> str:
    if not (Path(sys.executable).with_name("barman")).exists() and shutil.which("barman") is None:
        return "Barman is not installed: pip install 'aegis-workflows[backup]'"
    return ""


BACKUPS: Final = (
    Scenario(
        name="disk-lost",
        title="The database's disk is gone",
        objective="database-disk",
        fault=backups.lose_the_disk,
        injects="A backup is taken under load; a moment later every process is killed, and the database's files are"
        " removed. `AEGIS_BACKUP_SYNCHRONOUS` is on: a commit returns once the archive has it.",
        shows="PostgreSQL does not start: its data directory is empty, or cannot be read.",
        check=(Command(argv=("aegis", "backup", "list"), why="what there is to go back to", says="full"),),
        heal=(
            Command(
                argv=("aegis", "restore", "--to", "latest", "--in-place"),
                why="everything that the archive has, verified before it is given",
                says="as committed",
            ),
            UP,
        ),
        expect="The newest backup and all that was archived since come back, are verified beside the anchors, and put"
        " in place: some seconds, or minutes where there are 100,000 workflows. Where commits wait for the archive,"
        " nothing that was acknowledged is missing; where not, the last fraction of a second may be.",
        over=(_NOTHING_GONE, _TAKE, FAILED, IS_WELL, IS_INTACT),
        advice="With a server of your own: `aegis restore --to latest --into DIRECTORY`, and start it on that.",
        from_healing=True,
        needs=_ARCHIVED,
        spends=True,
        skipped=_needs_barman,
    ),
    Scenario(
        name="point-in-time",
        title="Somebody removed what they should not have",
        objective="operator",
        fault=backups.remove_rows,
        injects="A backup is taken under load; then every workflow's row is deleted by a superuser, past all triggers."
        " While PostgreSQL still answers it is asked what would be lost; then everything is stopped, and one goes back"
        " to the second before.",
        shows="Workflows are missing: `aegis list` is short, applications get `WorkflowNotFound`. `aegis verify --all`"
        " names what the anchors know.",
        check=(
            Command(argv=("aegis", "backup", "list"), why="what there is to go back to", says="full"),
            Command(
                argv=("aegis", "restore", "--to", MOMENT, "--dry-run"),
                why="what would be lost, and which events to send again: keep it, then stop PostgreSQL",
                says="would be restored",
            ),
        ),
        heal=(
            Command(
                argv=("aegis", "restore", "--to", MOMENT, "--in-place"),
                why="the point in time before the mistake; `aegis up` is stopped",
                says="as committed",
            ),
            UP,
            _RECONCILE,
        ),
        expect="The database is as it was at that moment. What had gone on after it is paused until somebody says that"
        " it may go on; what was acknowledged after it is gone, and whoever asked for it may ask again, under the same"
        " id or key.",
        over=(_TAKE, FAILED, IS_WELL, IS_INTACT),
        advice="What is written until everything is stopped is lost: stop workers, beat and applications first. Leave"
        " PostgreSQL up for the dry run: which events came after that point, and who sent them, only the live database"
        " knows.",
        from_healing=True,
        needs=_ARCHIVED,
        spends=True,
        sandboxed=True,
        skipped=_needs_barman,
    ),
)

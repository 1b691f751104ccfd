"""What only a backup brings back: a disk that is gone, and rows that somebody removed."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from typing import Final

import psutil

from ....core.errors import DrillNotRun
from ....persistence.database import now
from ..movement import Place, place
from ..scene import SHORT_TYPES, WAITING, Fault, Scene, count, sights, to_each, under_way
from ..servers import WORKERS
from .machine import end_everything

# How far the moment to go back to is before the mistake (seconds).
_BEFORE: Final = 1.0
_UNNOTICED: Final = 1.0


def lose_the_disk(scene: Scene) -> Fault:
    """Kill everything, with workflows under way, and remove the database's files."""
    _back_up(scene)
    to_each([process for name in WORKERS for process in scene.box.family(name)], psutil.Process.suspend)
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    end_everything(scene)
    shutil.rmtree(scene.box.settings.places.postgres)
    told = f"all processes killed with {count(met)} under way, and the database's files removed"
    return Fault(at=time.monotonic(), told=told, met=met)


def remove_rows(scene: Scene) -> Fault:
    """Remove every workflow, as a superuser who meant another database; PostgreSQL goes on until that is looked at."""
    _back_up(scene)
    to_each([process for name in WORKERS for process in scene.box.family(name)], psutil.Process.suspend)
    scene.client.burst(WAITING)
    under_way(scene, at_least=WAITING // 2)
    met = _waiting(scene)
    until = time.monotonic()
    moment = _now(scene)
    time.sleep(_BEFORE)
    removed = _remove(scene)
    at = time.monotonic()
    time.sleep(_UNNOTICED)

    def stop() -> None:
        end_everything(scene)
        scene.movement.forget(met)

    told = f"{removed} workflows removed; everything stopped once it was known what would be lost by going back"
    return Fault(at=at, told=told, met=met, until=until, moment=moment.isoformat(), stop=stop)


def _back_up(scene: Scene) -> None:
    done = scene.box.run(("aegis", "backup", "take", "--no-verify"), "backup")
    if done.returncode:
        raise DrillNotRun("a backup", (done.stderr or done.stdout).strip(), "see docs/how-to/backup.md")


def _waiting(scene: Scene) -> dict[str, Place]:
    """Return what is pending, short, and in nobody's hands."""
    found = (s for s in sights(scene) if s.status == "pending" and s.owner is None and s.type in SHORT_TYPES)
    return {sight.workflow_id: place(sight) for sight in found}


def _now(scene: Scene) -> datetime:
    with scene.box.database.statement() as connection:
        return now(connection)


def _remove(scene: Scene) -> int:
    with scene.box.database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        return int(connection.exec_driver_sql("DELETE FROM aegis_workflow").rowcount)

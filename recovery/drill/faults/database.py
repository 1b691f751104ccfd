"""PostgreSQL, killed, or without room."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from ....core.errors import DrillNotRun
from ..sandbox import POSTGRESQL
from ..scene import WAITING, Fault, Scene, count, to_each, under_way


def kill_database(scene: Scene) -> Fault:
    """Kill PostgreSQL with all its processes; it is started again at once, and recovers from its log."""
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    family = scene.box.family(POSTGRESQL)
    with scene.box.hands_off:
        at = time.monotonic()
        to_each(family, psutil.Process.kill)
        scene.box.supervisor.take_away(POSTGRESQL)
    scene.box.start_again(POSTGRESQL)
    return Fault(at=at, told=f"PostgreSQL killed with {count(met)} under way", met=met)


def fill_disk(scene: Scene) -> Fault:
    """Leave no room where the database writes, until clients are refused; then make room again."""
    ballast = scene.box.settings.places.postgres / "ballast"
    # Unbuffered: what found no room would be written once more when the file is closed.
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    asked = scene.client.burst(WAITING)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not any(
        each.error and "space" in each.error for each in scene.client.requests()
    ):
        time.sleep(0.05)
    time.sleep(2)
    refused = sum(bool(each.error) for each in scene.client.requests())
    if not refused:
        raise DrillNotRun("disk-full", "the database went on without room", "report this")
    met = under_way(scene)
    told = f"no room on the disk; {refused} requests refused, {count(met)} under way of {len(asked)} and more"
    return Fault(at=time.monotonic(), told=told, met=met, victim=str(ballast))

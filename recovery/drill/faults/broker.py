"""The broker, emptied or gone: bells, and nothing else."""

from __future__ import annotations

import shutil
import time

from redis import Redis

from ....core.errors import DrillNotRun
from ..sandbox import VALKEY
from ..scene import Fault, Scene, queueing
from ..servers import Watched


def wipe_broker(scene: Scene) -> Fault:
    """Make the broker forget everything while bells wait in it."""
    with queueing(scene) as waiting:
        at = time.monotonic()
        client = Redis.from_url(scene.box.settings.broker.replace("redis+socket://", "unix://"))
        client.flushall()
        client.close()
    return Fault(at=at, told=f"FLUSHALL with {len(waiting)} bells waiting", met=waiting)


def kill_broker(scene: Scene) -> Fault:
    """Kill the broker, and its disk with it, while bells wait in it; it comes back empty a second later."""
    with queueing(scene) as waiting:
        at = time.monotonic()
        scene.box.supervisor.take_away(VALKEY)
        for kept in scene.box.settings.places.valkey.iterdir():
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        time.sleep(1)  # it is away for long enough to be missed
        scene.box.start_again(VALKEY)
    return Fault(at=at, told=f"the broker killed and emptied with {len(waiting)} bells waiting", met=waiting)


def lose_the_master(scene: Scene) -> Fault:
    """Kill the server that the Sentinels name, while bells wait in it; it stays away."""
    servers = scene.box.servers
    master = servers.group.master() if isinstance(servers, Watched) else None
    if master is None:
        raise DrillNotRun("the broker", "no Sentinel names a server", "look at the load of the machine")
    name = master.name
    with queueing(scene) as waiting:
        at = time.monotonic()
        scene.box.supervisor.kill(name, stay_down=True)
    return Fault(
        at=at,
        told=f"{name}, which was the master, killed with {len(waiting)} bells waiting",
        met=waiting,
        undo=lambda: scene.box.supervisor.revive(name),
    )

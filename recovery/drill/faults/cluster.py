"""Three database nodes: one that leads is lost, or hands over."""

from __future__ import annotations

import time

from ....core.errors import DrillNotRun
from ...cluster import patroni
from ..scene import WAITING, Fault, Scene, count, under_way
from ..servers import Clustered


def lose_the_leader(scene: Scene) -> Fault:
    """Kill the primary's PostgreSQL and its Patroni at once; they stay away."""
    name = _leader(scene)
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    at = time.monotonic()
    scene.box.supervisor.kill(name, stay_down=True)
    return Fault(
        at=at,
        told=f"{name}, which led, killed with {count(met)} under way",
        met=met,
        undo=lambda: scene.box.supervisor.revive(name),
    )


def before_a_switch_over(scene: Scene) -> Fault:
    """Break nothing: have workflows under way while somebody hands the lead over, as the page says."""
    name = _leader(scene)
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    return Fault(at=time.monotonic(), told=f"{name} hands over with {count(met)} under way", met=met)


def _leader(scene: Scene) -> str:
    servers = scene.box.servers
    leads = patroni.leader(servers.cluster.members()) if isinstance(servers, Clustered) else None
    if leads is None:
        raise DrillNotRun("the cluster", "nobody leads it", "look at the load of the machine")
    return leads.name

"""Three database nodes: one that leads is lost, or hands over."""

from __future__ import annotations

import time
from typing import Final

import psutil

from ....core.errors import DrillNotRun
from ....persistence import observe
from ....persistence.database import Database
from ...cluster import patroni
from ...cluster.layout import Node
from ..movement import Place, place
from ..scene import WAITING, Fault, Scene, count, to_each, under_way, wait_for
from ..servers import Clustered

# How long the standbys hear nothing before the primary is lost, in the control.
_BEHIND_FOR: Final = 3.0


def lose_the_leader(scene: Scene) -> Fault:
    """Kill the primary's PostgreSQL and its Patroni at once; they stay away."""
    name = _leader(scene)
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    at = _kill(scene, name)
    return Fault(
        at=at,
        told=f"{name}, which led, killed with {count(met)} under way",
        met=met,
        undo=lambda: scene.box.supervisor.revive(name),
    )


def _kill(scene: Scene, name: str) -> float:
    """Kill a node as its machine's loss does: every process of its PostgreSQL, and its agent; return when."""
    (node,) = (node for node in _clustered(scene).cluster.layout.nodes if node.name == name)
    postgres = psutil.Process(node.postmaster())
    # A postmaster that is killed alone leaves children, some of which hang for ever with their client.
    family = [postgres, *postgres.children(recursive=True)]
    at = time.monotonic()
    scene.box.supervisor.kill(name, stay_down=True)
    to_each(family, psutil.Process.kill)
    return at


def before_a_switch_over(scene: Scene) -> Fault:
    """Break nothing: have workflows under way while somebody hands the lead over, as the page says."""
    name = _leader(scene)
    scene.client.burst(WAITING)
    met = under_way(scene, at_least=WAITING // 2)
    return Fault(at=time.monotonic(), told=f"{name} hands over with {count(met)} under way", met=met)


def _leader(scene: Scene) -> str:
    leads = patroni.leader(_clustered(scene).cluster.members())
    if leads is None:
        raise DrillNotRun("the cluster", "nobody leads it", "look at the load of the machine")
    return leads.name


def lose_the_leader_of_those_behind(scene: Scene) -> Fault:
    """Have commits wait for nobody, the standbys fall behind, and kill the primary: what only it had is lost."""
    servers = _clustered(scene)
    name = _leader(scene)
    _set_synchronous(servers, "off")
    scene.client.burst(WAITING)
    under_way(scene, at_least=WAITING // 2)
    standbys = [node for node in servers.cluster.layout.nodes if node.name != name]
    receivers = [process for node in standbys for process in _receivers(node)]
    to_each(receivers, psutil.Process.suspend)
    one, other = (_under_way_at(servers, node, scene) for node in standbys)
    met = {each: min(there, other[each]) for each, there in one.items() if each in other}
    time.sleep(_BEHIND_FOR)
    scene.box.anchor()
    at = _kill(scene, name)
    # What has reached a socket, and not the disk, is gone as well: as it is when a line is cut.
    to_each(receivers, psutil.Process.kill)
    wait_for(lambda: _another_leads(servers, name), "the cluster", "no standby took over")
    scene.movement.forget(met)
    return Fault(
        at=at,
        told=f"{name}, which led, killed {_BEHIND_FOR:g} s after its standbys fell behind, which nobody waited for",
        met=met,
        undo=lambda: _as_before(scene, servers, name),
        anchored=scene.box.anchored(),
    )


def _as_before(scene: Scene, servers: Clustered, name: str) -> None:
    scene.box.supervisor.revive(name)
    _set_synchronous(servers, "quorum")


def _clustered(scene: Scene) -> Clustered:
    if not isinstance(scene.box.servers, Clustered):
        raise DrillNotRun("the cluster", "the sandbox has none", "report this")
    return scene.box.servers


def _set_synchronous(servers: Clustered, mode: str) -> None:
    """Change synchronous mode, and wait until all nodes know."""
    cluster = servers.cluster
    patroni.change(cluster.layout, {"synchronous_mode": mode, "synchronous_mode_strict": mode != "off"})
    wait_for(
        lambda: any(member.follows for member in cluster.members()) == (mode != "off"),
        "the cluster",
        f"synchronous mode does not become {mode}",
    )


def _receivers(node: Node) -> list[psutil.Process]:
    """Return the processes of a standby that receive the primary's WAL."""
    return [
        child for child in psutil.Process(node.postmaster()).children() if "walreceiver" in " ".join(child.cmdline())
    ]


def _under_way_at(servers: Clustered, node: Node, scene: Scene) -> dict[str, Place]:
    """Return what could run, as a standby has it that hears no more."""
    database = Database(servers.cluster.layout.url([node], target="any"), pool_size=1)
    try:
        with database.statement() as connection:
            return {s.workflow_id: place(s) for s in observe.sights(connection, scene.prefix) if s.status == "pending"}
    finally:
        database.close()


def _another_leads(servers: Clustered, before: str) -> bool:
    leads = patroni.leader(servers.cluster.members())
    return leads is not None and leads.name != before

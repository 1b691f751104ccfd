"""Three regions: the one with the primary is cut off, or lost; with a client in it, and one outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ....core.errors import DatabaseUnavailable, DrillNotRun
from ....persistence.database import Database
from ....workers.factory import make_app
from ...cluster import patroni
from ..client import Client
from ..ledger import Request
from ..movement import Place, place
from ..regional import Regional
from ..scene import WAITING, Fault, Scene, count, sights, under_way, wait_for

# What the client inside asks for (workflows a second), and for how long before it is met.
_INSIDE: Final = 2.0
_BEFORE: Final = 3.0
_WITHIN: Final = 90.0
# So long a primary that was cut off, and waits for nobody, goes on at least; then what it has is anchored.
_ALONE: Final = 5.0
# It steps down after its lease, 20 s.
_ANCHORED_WITHIN: Final = 10.0
_LOOK_EVERY: Final = 0.1


def lose_the_region(scene: Scene) -> Fault:
    """Kill every process of the region with the primary, after its lines."""
    regional = _regional(scene)

    def lose(name: str) -> None:
        with scene.box.hands_off:
            regional.regions.kill(name, scene.box.supervisor)

    return _meet(scene, regional, lose, "lost, with all of its processes,")


def cut_the_region(scene: Scene) -> Fault:
    """Cut the region with the primary off; all of its processes go on."""
    regional = _regional(scene)
    return _meet(scene, regional, regional.regions.cut, "cut off")


def cut_where_nobody_waits(scene: Scene) -> Fault:
    """Have commits wait for nobody, and cut the region off: what it acknowledges alone is lost when it is back."""
    regional = _regional(scene)
    _wait_for_nobody(scene, regional)
    name, inside = _leader(regional), _client_inside(scene, regional)
    before = _have_under_way(scene)
    at = time.monotonic()
    regional.regions.cut(name)
    time.sleep(_ALONE)
    _anchor_inside(scene, regional, name, lambda: {each.workflow_id for each in _since(inside, at)})
    wait_for(lambda: regional.regions.leader() not in {None, name}, "the regions", "no other region took over", _WITHIN)
    alone = _since(inside, at)
    return Fault(
        at=at,
        told=f"{name}, which led, cut off; it acknowledged {len(alone)} requests alone",
        met=_left_of(scene, before),
        undo=lambda: regional.regions.heal(name, scene.box.supervisor),
        others=(inside,),
        anchored=scene.box.anchored(),
    )


# --- the parts ------------------------------------------------------------------------------------


def _meet(scene: Scene, regional: Regional, act: Callable[[str], None], how: str) -> Fault:
    name, inside = _leader(regional), _client_inside(scene, regional)
    met = _have_under_way(scene)
    at = time.monotonic()
    act(name)
    return Fault(
        at=at,
        told=f"{name}, which led, {how} with {count(met)} under way",
        met=met,
        undo=lambda: regional.regions.heal(name, scene.box.supervisor),
        others=(inside,),
    )


def _have_under_way(scene: Scene) -> dict[str, Place]:
    scene.client.burst(WAITING)
    return under_way(scene, at_least=WAITING // 2)


def _left_of(scene: Scene, before: dict[str, Place]) -> dict[str, Place]:
    """Return where those are that the new primary has: what is lost altogether never moves again."""
    deadline = time.monotonic() + _WITHIN
    while True:
        try:
            there = {sight.workflow_id: place(sight) for sight in sights(scene)}
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_EVERY)
        else:
            return {each: min(was, there[each]) for each, was in before.items() if each in there}


def _client_inside(scene: Scene, regional: Regional) -> Client:
    """Have a client in the region with the primary: the one who would be told what the others never hear of."""
    region = regional.regions.all[_leader(regional)]
    database = Database(region.settings.database, pool_size=4)
    scene.at_end(database.close)
    client = scene.client.beside(scene.box.engine(database, make_app(region.settings)), "inside-")
    scene.at_end(client.stop)
    with regional.regions.network.inside(region.name):
        client.run(_INSIDE)  # its threads are there from now on
    time.sleep(_BEFORE)
    wait_for(
        lambda: any(each.acknowledged for each in client.requests()),
        "the regions",
        "the client in the region is not served",
        _WITHIN,
    )
    return client


def _since(client: Client, at: float) -> list[Request]:
    return [request for request in client.requests() if request.acknowledged and request.answered_at > at]


def _anchor_inside(scene: Scene, regional: Regional, name: str, alone: Callable[[], set[str]]) -> None:
    """Write anchors until they have some of what only the region that is cut off has: somebody outside saw it.

    The log takes up what follows a transaction once that is over. Some may be open that other regions had begun, until
    the server notices that these are gone.
    """
    deadline = time.monotonic() + _ANCHORED_WITHIN
    with regional.regions.network.inside(name):
        database = Database(regional.regions.all[name].settings.database, pool_size=1)
        try:
            while True:
                scene.box.anchor(database)
                if alone() & scene.box.anchored() or time.monotonic() > deadline:
                    return
                time.sleep(_LOOK_EVERY)
        finally:
            database.close()


def _leader(regional: Regional) -> str:
    name = regional.regions.leader()
    if name is None:
        raise DrillNotRun("the regions", "none of them leads", "look at the load of the machine")
    return name


def _regional(scene: Scene) -> Regional:
    if not isinstance(scene.box.servers, Regional):
        raise DrillNotRun("the regions", "the sandbox has none", "report this")
    return scene.box.servers


def _wait_for_nobody(scene: Scene, regional: Regional) -> None:
    change = {"synchronous_mode": "off", "synchronous_mode_strict": False}
    patroni.change(regional.regions.cluster.layout, change)

    def does_not_wait() -> bool:
        # What Patroni knows, PostgreSQL does somewhat later.
        with scene.box.database.statement() as connection:
            return not connection.exec_driver_sql("SHOW synchronous_standby_names").scalar_one()

    wait_for(does_not_wait, "the regions", "commits still wait for another region", _WITHIN)

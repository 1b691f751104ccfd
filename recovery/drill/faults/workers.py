"""Workers, lost in each way in which workers are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import psutil

from ....core.errors import DrillNotRun
from ..movement import Place, place
from ..scene import Fault, Scene, count, sights, suspended, to_each
from ..servers import WORKERS

_MOST_TRIES: Final = 400


def kill_worker(scene: Scene) -> Fault:
    """Kill a worker with its children while it has something in hand; nothing starts it again."""
    name, held = _caught(scene, _in_hand_of)
    at = time.monotonic()
    scene.box.supervisor.take_away(name)
    return Fault(at=at, told=f"{name} killed with {count(held)} in hand", met=held)


def kill_child(scene: Scene) -> Fault:
    """Kill one child of a worker, inside a handler."""
    for _ in range(_MOST_TRIES):
        for sight in sights(scene):
            if sight.pid is None or sight.owner is None:
                continue
            with suspended([psutil.Process(sight.pid)]):
                still = {each.workflow_id: each for each in sights(scene)}.get(sight.workflow_id)
                if still is not None and (still.pid, still.seq, still.claim) == (sight.pid, sight.seq, sight.claim):
                    at = time.monotonic()
                    psutil.Process(sight.pid).kill()
                    return Fault(at=at, told="a child killed in a handler", met={sight.workflow_id: place(sight)})
        time.sleep(scene.random.uniform(0, 0.02))
    raise DrillNotRun("child", "no child was ever caught inside a handler", "raise --load")


def kill_host(scene: Scene) -> Fault:
    """Kill a worker with everything around it, so that nobody is left who could tell."""
    name, held = _caught(scene, _in_hand_of)
    parent = psutil.Process(scene.box.supervisor.pid(name))
    pulses = [child for child in parent.children() if child not in scene.box.family(name)]
    for pulse in pulses:
        pulse.suspend()  # before the worker dies: it must not see that
    at = time.monotonic()
    scene.box.supervisor.take_away(name)
    for pulse in pulses:
        pulse.kill()
    return Fault(at=at, told=f"{name} killed with its heartbeat, {count(held)} in hand", met=held)


def kill_in_a_long_handler(scene: Scene) -> Fault:
    """Kill a worker inside a handler that has saved its progress, and has worked on since."""
    (long,) = scene.client.burst(1, lambda: scene.client.long(320))
    # Somewhere between two checkpoints, and after the first.
    interval = scene.box.settings.checkpoint_interval
    wait = interval * scene.random.uniform(1.2, 2.2)
    deadline = time.monotonic() + interval * 4
    began = 0.0
    while time.monotonic() < deadline:
        time.sleep(0.02)
        sight = scene.movement.sights().get(long)
        if sight is None or sight.owner is None:
            continue
        began = began or time.monotonic()
        if time.monotonic() - began < wait:
            continue
        name = "-".join(sight.owner.split("-")[:2])
        at = time.monotonic()
        scene.box.supervisor.take_away(name)
        return Fault(at=at, told=f"{name} killed inside a long handler", met={long: place(sight)}, victim=long)
    raise DrillNotRun("long-handler", "the long handler never began", "lower --load")


def _caught(scene: Scene, held_by: Callable[[Scene, str], dict[str, Place]]) -> tuple[str, dict[str, Place]]:
    """Stop a worker while it has something in hand; return its name, and that. It stays stopped."""
    for _ in range(_MOST_TRIES):
        name = scene.random.choice(WORKERS)
        family = scene.box.family(name)
        to_each(family, psutil.Process.suspend)
        if held := held_by(scene, name):
            return name, held
        to_each(family, psutil.Process.resume)
        time.sleep(scene.random.uniform(0, 0.02))
    raise DrillNotRun("worker", "no worker was ever caught with something in hand", "raise --load")


def _in_hand_of(scene: Scene, name: str) -> dict[str, Place]:
    return {s.workflow_id: place(s) for s in sights(scene) if s.owner is not None and s.owner.startswith(f"{name}-")}

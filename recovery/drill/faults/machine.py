"""Everything at once."""

from __future__ import annotations

import time
from typing import Final

import psutil

from ....core.errors import DrillNotRun
from ..scene import WAITING, Fault, Scene, to_each, under_way
from ..servers import WORKERS

# So many workflows are to move again after the whole machine was lost.
WHOLE: Final = 100


def kill_everything(scene: Scene) -> Fault:
    """Kill every process at once, with more than a hundred workflows under way."""
    families = [process for name in WORKERS for process in scene.box.family(name)]
    to_each(families, psutil.Process.suspend)
    scene.client.burst(WHOLE + WAITING)
    met = under_way(scene, at_least=WHOLE + WAITING // 2, within=30)
    end_everything(scene)
    time.sleep(1)
    told = f"all processes killed with {len(met)} workflows under way; started again a second later"
    return Fault(at=time.monotonic(), told=told, met=met, enough=WHOLE)


def end_everything(scene: Scene) -> None:
    """Kill every process of the sandbox, servers included; nothing is started again."""
    with scene.box.hands_off:
        to_each(scene.box.processes(), psutil.Process.kill)
        for name in scene.box.supervisor.names():
            scene.box.supervisor.take_away(name)
    left = psutil.wait_procs(scene.box.processes(), 10)[1]
    if left:
        raise DrillNotRun("the sandbox", f"{len(left)} processes were left over", "report this")

"""What every fault has to do with: the scene, what it says of itself, and where the workflows are meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import psutil

from ...core.errors import DrillNotRun
from ...persistence import observe
from ...persistence.observe import Sight
from .client import Client
from .movement import Movement, Place, place
from .sandbox import Sandbox
from .servers import WORKERS
from .system import System

# So many workflows are on their way when something shared is lost.
WAITING: Final = 40
_LOOK_EVERY: Final = 0.1
SHORT_TYPES: Final = ("DrillSteps", "DrillApproval")


Box_co = TypeVar("Box_co", bound=System, covariant=True)


@dataclass(frozen=True)
class Stage(Generic[Box_co]):
    """What a fault has to do with."""

    box: Box_co
    client: Client
    movement: Movement
    prefix: str
    random: random.Random
    at_end: Callable[[Callable[[], object]], object]
    """Has something done at the end of the drill, however that comes."""


Scene = Stage[Sandbox]
"""The stage of the faults that a drill does itself: on a sandbox, and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was done, and when (monotonic); ``met`` is where the workflows were that have to move again.

    ``enough`` of them are enough, all by default. ``named`` is what `aegis verify` has to find, and
    nothing else. ``undo`` mends what the runbook's commands cannot.
    """

    at: float
    told: str
    met: Mapping[str, Place] = field(default_factory=dict)
    enough: int | None = None
    named: tuple[str, int] | None = None
    undo: Callable[[], None] | None = None
    victim: str = ""
    """The workflow, or the file, that the runbook's commands name."""
    moment: str = ""
    """The point in time that the runbook's commands name."""
    until: float | None = None
    """What was acknowledged after this is given up on purpose: one goes back to then."""
    anchored: Collection[str] | None = None
    """The workflows that the anchors know of, also such as are lost: of these, `aegis reconcile` has to list each."""
    others: Sequence[Client] = ()
    """Clients beside the drill's own: they, too, have to be served in the end."""
    stop: Callable[[], None] | None = None
    """Stops what is left of it, once everything was looked at that needs it."""
    stopped: float | None = None
    """When that was: what was acknowledged between ``until`` and then is given up."""
    sooner: float = 0.0
    """By how much (seconds) it may have happened before ``at``: that counts as time without recovery."""

    @property
    def goes_back(self) -> bool:
        """Whether the database is one that never had some of what was seen."""
        return self.until is not None or self.anchored is not None


# --- where the workflows are ---------------------------------------------------------------------


def sights(scene: Stage[System]) -> list[Sight]:
    """Return where the workflows of this drill are."""
    with scene.box.database.statement() as connection:
        return list(observe.sights(connection, scene.prefix))


@contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Have processes stand still for a moment."""
    to_each(processes, psutil.Process.suspend)
    try:
        yield
    finally:
        to_each(processes, psutil.Process.resume)


def to_each(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    """Do something to each of the processes that is still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            act(process)


def count(met: Mapping[str, Place]) -> str:
    """Return how many there are, in words."""
    return f"{len(met)} workflow{'s' * (len(met) != 1)}"


def under_way(scene: Stage[System], *, at_least: int = 1, within: float = 20) -> dict[str, Place]:
    """Return what could run, without what is inside a long handler: that goes on in its worker all the while."""
    deadline = time.monotonic() + within
    while True:
        found = {s.workflow_id: place(s) for s in sights(scene) if s.status == "pending" and s.type in SHORT_TYPES}
        if len(found) >= at_least:
            return found
        if time.monotonic() > deadline:
            problem = f"only {len(found)} workflows were ever under way at once, of {at_least}"
            raise DrillNotRun("the database", problem, "look at the load of the machine")
        time.sleep(0.005)


@contextmanager
def queueing(scene: Scene) -> Iterator[dict[str, Place]]:
    """Have bells wait in the broker, by stopping the workers for a moment; give whose they are."""
    families = [process for name in WORKERS for process in scene.box.family(name)]
    with suspended(families):
        asked = set(scene.client.burst(WAITING))
        deadline = time.monotonic() + 20
        waiting: dict[str, Place] = {}
        while len(waiting) < WAITING and time.monotonic() < deadline:
            time.sleep(0.02)
            waiting = {s.workflow_id: place(s) for s in sights(scene) if _is_waiting(s) and s.workflow_id in asked}
        if not waiting:
            raise DrillNotRun("broker", "no bell ever waited in it", "look at the load of the machine")
        yield waiting


def _is_waiting(sight: Sight) -> bool:
    return sight.status == "pending" and sight.owner is None


def wait_for(holds: Callable[[], bool], where: str, otherwise: str, within: float = 60) -> None:
    """Wait until something holds.

    Raises:
        DrillNotRun: it does not in time (seconds); ``where`` and ``otherwise`` say what does not.

    """
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise DrillNotRun(where, otherwise, "look at the load of the machine")
        time.sleep(_LOOK_EVERY)

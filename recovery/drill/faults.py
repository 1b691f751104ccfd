"""The faults: each breaks something of a sandbox, and says when, and which workflows it met."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import psutil
from redis import Redis

from ...config.keys import trusted_keys
from ...core.errors import DrillNotRun
from ...core.note import open_note
from ...persistence import observe
from ...persistence.observe import Sight
from ...tasks.sinks import sinks
from .client import Client
from .movement import Movement
from .sandbox import POSTGRESQL, VALKEY, WORKERS, Sandbox

Place = tuple[int, int]

_MOST_TRIES: Final = 400
_SHORT_TYPES: Final = ("DrillSteps", "DrillApproval")
# So many bells wait in the broker when it is lost.
_WAITING: Final = 40
# And so many workflows are to move again after the whole machine was lost.
WHOLE: Final = 100


@dataclass(frozen=True)
class Scene:
    """What a fault has to do with."""

    box: Sandbox
    client: Client
    movement: Movement
    prefix: str
    random: random.Random


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


# --- workers ----------------------------------------------------------------------------------


def kill_worker(scene: Scene) -> Fault:
    """Kill a worker with its children while it has something in hand; nothing starts it again."""
    name, held = _caught(scene, _in_hand_of)
    at = time.monotonic()
    scene.box.supervisor.take_away(name)
    return Fault(at=at, told=f"{name} killed with {_count(held)} in hand", met=held)


def kill_child(scene: Scene) -> Fault:
    """Kill one child of a worker, inside a handler."""
    for _ in range(_MOST_TRIES):
        for sight in _sights(scene):
            if sight.pid is None or sight.owner is None:
                continue
            with _suspended([psutil.Process(sight.pid)]):
                still = {each.workflow_id: each for each in _sights(scene)}.get(sight.workflow_id)
                if still is not None and (still.pid, still.place) == (sight.pid, sight.place):
                    at = time.monotonic()
                    psutil.Process(sight.pid).kill()
                    return Fault(at=at, told="a child killed in a handler", met={sight.workflow_id: sight.place})
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
    return Fault(at=at, told=f"{name} killed with its heartbeat, {_count(held)} in hand", met=held)


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
        return Fault(at=at, told=f"{name} killed inside a long handler", met={long: sight.place}, victim=long)
    raise DrillNotRun("long-handler", "the long handler never began", "lower --load")


def _caught(scene: Scene, held_by: Callable[[Scene, str], dict[str, Place]]) -> tuple[str, dict[str, Place]]:
    """Stop a worker while it has something in hand; return its name, and that. It stays stopped."""
    for _ in range(_MOST_TRIES):
        name = scene.random.choice(WORKERS)
        family = scene.box.family(name)
        _each(family, psutil.Process.suspend)
        if held := held_by(scene, name):
            return name, held
        _each(family, psutil.Process.resume)
        time.sleep(scene.random.uniform(0, 0.02))
    raise DrillNotRun("worker", "no worker was ever caught with something in hand", "raise --load")


def _in_hand_of(scene: Scene, name: str) -> dict[str, Place]:
    return {s.workflow_id: s.place for s in _sights(scene) if s.owner is not None and s.owner.startswith(f"{name}-")}


# --- the broker -------------------------------------------------------------------------------


def wipe_broker(scene: Scene) -> Fault:
    """Make the broker forget everything while bells wait in it."""
    with _queueing(scene) as waiting:
        at = time.monotonic()
        client = Redis.from_url(scene.box.settings.broker.replace("redis+socket://", "unix://"))
        client.flushall()
        client.close()
    return Fault(at=at, told=f"FLUSHALL with {len(waiting)} bells waiting", met=waiting)


def kill_broker(scene: Scene) -> Fault:
    """Kill the broker, and its disk with it, while bells wait in it; it comes back empty a second later."""
    with _queueing(scene) as waiting:
        at = time.monotonic()
        scene.box.supervisor.take_away(VALKEY)
        for kept in scene.box.settings.places.valkey.iterdir():
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        time.sleep(1)  # it is away for long enough to be missed
        scene.box.start_again(VALKEY)
    return Fault(at=at, told=f"the broker killed and emptied with {len(waiting)} bells waiting", met=waiting)


@contextmanager
def _queueing(scene: Scene) -> Iterator[dict[str, Place]]:
    """Have bells wait in the broker, by stopping the workers for a moment; give whose they are."""
    families = [process for name in WORKERS for process in scene.box.family(name)]
    with _suspended(families):
        asked = set(scene.client.burst(_WAITING))
        deadline = time.monotonic() + 20
        waiting: dict[str, Place] = {}
        while len(waiting) < _WAITING and time.monotonic() < deadline:
            time.sleep(0.02)
            waiting = {s.workflow_id: s.place for s in _sights(scene) if _is_waiting(s) and s.workflow_id in asked}
        if not waiting:
            raise DrillNotRun("broker", "no bell ever waited in it", "look at the load of the machine")
        yield waiting


def _is_waiting(sight: Sight) -> bool:
    return sight.status == "pending" and sight.owner is None


# --- the database -----------------------------------------------------------------------------


def kill_database(scene: Scene) -> Fault:
    """Kill PostgreSQL with all its processes; it is started again at once, and recovers from its log."""
    scene.client.burst(_WAITING)
    met = _under_way(scene, at_least=_WAITING // 2)
    family = scene.box.family(POSTGRESQL)
    with scene.box.hands_off:
        at = time.monotonic()
        _each(family, psutil.Process.kill)
        scene.box.supervisor.take_away(POSTGRESQL)
    scene.box.start_again(POSTGRESQL)
    return Fault(at=at, told=f"PostgreSQL killed with {_count(met)} under way", met=met)


def fill_disk(scene: Scene) -> Fault:
    """Leave no room where the database writes, until clients are refused; then make room again."""
    ballast = scene.box.settings.places.postgres / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    asked = scene.client.burst(_WAITING)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not any(
        each.error and "space" in each.error for each in scene.client.requests()
    ):
        time.sleep(0.05)
    time.sleep(2)
    refused = sum(bool(each.error) for each in scene.client.requests())
    if not refused:
        raise DrillNotRun("disk-full", "the database went on without room", "report this")
    met = _under_way(scene)
    told = f"no room on the disk; {refused} requests refused, {_count(met)} under way of {len(asked)} and more"
    return Fault(at=time.monotonic(), told=told, met=met, victim=str(ballast))


def _under_way(scene: Scene, *, at_least: int = 1, within: float = 20) -> dict[str, Place]:
    """Return what could run, without what is inside a long handler: that goes on in its worker all the while."""
    deadline = time.monotonic() + within
    while True:
        found = {s.workflow_id: s.place for s in _sights(scene) if s.status == "pending" and s.type in _SHORT_TYPES}
        if len(found) >= at_least:
            return found
        if time.monotonic() > deadline:
            problem = f"only {len(found)} workflows were ever under way at once, of {at_least}"
            raise DrillNotRun("the database", problem, "look at the load of the machine")
        time.sleep(0.005)


# --- everything ---------------------------------------------------------------------------------


def kill_everything(scene: Scene) -> Fault:
    """Kill every process at once, with more than a hundred workflows under way."""
    families = [process for name in WORKERS for process in scene.box.family(name)]
    _each(families, psutil.Process.suspend)
    scene.client.burst(WHOLE + _WAITING)
    met = _under_way(scene, at_least=WHOLE + _WAITING // 2, within=30)
    with scene.box.hands_off:
        _each(scene.box.processes(), psutil.Process.kill)
        for name in scene.box.supervisor.names():
            scene.box.supervisor.take_away(name)
    left = psutil.wait_procs(scene.box.processes(), 10)[1]
    if left:
        raise DrillNotRun("whole-machine", f"{len(left)} processes were left over", "report this")
    time.sleep(1)
    told = f"all processes killed with {len(met)} workflows under way; started again a second later"
    return Fault(at=time.monotonic(), told=told, met=met, enough=WHOLE)


# --- the truth ------------------------------------------------------------------------------------


def tamper(scene: Scene) -> Fault:
    """Edit one transition of a history that is anchored, as a superuser, past all triggers."""
    deadline = time.monotonic() + 30
    while not (done := [s for s in _sights(scene) if s.status == "completed" and s.seq > 1 and _is_anchored(scene, s)]):
        if time.monotonic() > deadline:
            raise DrillNotRun("tampering", "no workflow was completed and anchored", "look at the machine's load")
        time.sleep(0.1)
    sight = scene.random.choice(sorted(done, key=lambda each: each.workflow_id))
    seq = scene.random.randrange(1, sight.seq + 1)
    before = _edit(scene, sight.workflow_id, seq, "user:mallory")
    at = time.monotonic()
    return Fault(
        at=at,
        told=f"the actor of transition {seq} of one workflow changed",
        named=(sight.workflow_id, seq),
        undo=lambda: _put_back(scene, sight.workflow_id, seq, before),
        victim=sight.workflow_id,
    )


def _edit(scene: Scene, workflow_id: str, seq: int, actor: str) -> str:
    with scene.box.database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        place = {"id": workflow_id, "seq": seq}
        before: str = connection.exec_driver_sql(
            "SELECT actor FROM aegis_transition WHERE workflow_id = %(id)s AND seq = %(seq)s", place
        ).scalar_one()
        connection.exec_driver_sql(
            "UPDATE aegis_transition SET actor = %(actor)s WHERE workflow_id = %(id)s AND seq = %(seq)s",
            {**place, "actor": actor},
        )
    return before


def _put_back(scene: Scene, workflow_id: str, seq: int, actor: str) -> None:
    _edit(scene, workflow_id, seq, actor)


def _is_anchored(scene: Scene, sight: Sight) -> bool:
    """Whether the last anchor, which the sandbox's key signed, has the workflow's last transition."""
    (sink,) = sinks(scene.box.settings)
    for anchor in sink.about(sight.workflow_id):
        open_note(anchor.note, trusted_keys(scene.box.settings.trusted))
        if any((entry.workflow_id, entry.seq) == (sight.workflow_id, sight.seq) for entry in anchor.entries):
            return True
    return False


# --- all of them --------------------------------------------------------------------------------


def _sights(scene: Scene) -> list[Sight]:
    with scene.box.database.statement() as connection:
        return list(observe.sights(connection, scene.prefix))


@contextmanager
def _suspended(processes: list[psutil.Process]) -> Iterator[None]:
    _each(processes, psutil.Process.suspend)
    try:
        yield
    finally:
        _each(processes, psutil.Process.resume)


def _each(processes: list[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            act(process)


def _count(met: Mapping[str, Place]) -> str:
    return f"{len(met)} workflow{'s' * (len(met) != 1)}"

"""Drills on a staging system: it is named, loaded and measured from here, and broken by a command that is given.

How to kill a process on another machine, or a machine, its own people know. Everything else is as on a
sandbox: the load, the ledger of answers, what is declared, the runbook's looks, the verification, the report.
"""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ...config.settings import Settings
from ...core.errors import DatabaseUnavailable, DrillNotRun, SinkUnavailable
from ...persistence import watch
from ...persistence.schema import deployment_name
from ...tasks.sinks import sinks
from ..cluster.layout import load
from .drill import Drill, Terms
from .movement import place
from .report import Outcome, Report, packages
from .scenario import Command, Scenario
from .scene import SHORT_TYPES, WAITING, Fault, Stage, under_way
from .session import Notes, declared_for
from .system import System, Tell
from .workload import TRANSITIONS

_WHOLE_WITHIN: Final = 120.0
_LOOK_EVERY: Final = 0.2
_MOST_SAID: Final = 500
# While a command runs so many are asked for, so often (seconds), and at most so many.
_ASK, _ASK_EVERY, _MOST_ASKED = 4, 0.1, 400
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORKLOAD: Final = "aegis.recovery.drill.workload"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The commands that are given: what breaks the system, what a person does then, what mends the rest of it."""

    inject: Sequence[str]
    heal: Sequence[str] = ()
    undo: Sequence[str] = ()


class Staging(System):
    """A deployment that is there already, and that others may be working with."""

    shared = True
    effects = ""

    def __init__(
        self, root: Path, settings: Settings, name: str, tell: Tell, *, whole_within: float = _WHOLE_WITHIN
    ) -> None:
        super().__init__(root, settings, {}, tell)
        self.name, self._whole_within = name, whole_within
        self.workers = 0
        """How many lived when it was admitted."""

    def admit(self) -> None:
        """See that it is the one that is meant, and that its workers know a drill's workflows.

        Raises:
            DrillNotRun: it is not, or they do not. Nothing was written.

        """
        timeout = self.settings.recovery.heartbeat_timeout
        with self.database.statement() as connection:
            called, served = deployment_name(connection), watch.served(connection, timeout)
        self.workers = self.living()
        if called != self.name:
            problem = f"the database of these settings is that of {called!r}"
            raise DrillNotRun(self.name, problem, "set AEGIS_DATABASE_URL to the one that is meant, or name this one")
        if not self.workers:
            raise DrillNotRun(self.name, "it has no worker that lives", "start its workers")
        missing = sorted(name for name in TRANSITIONS if not any(each.partition("/")[0] == name for each in served))
        if missing:
            problem = f"none of its workers knows {', '.join(missing)}"
            raise DrillNotRun(
                self.name, problem, f"add {_WORKLOAD} to AEGIS_WORKFLOWS there: production has no use for it"
            )

    def versions(self) -> dict[str, str]:
        """Return the versions of the drill's own packages, and of the database's server."""
        with self.database.statement() as connection:
            server = str(connection.exec_driver_sql("SHOW server_version").scalar_one())
        return {**packages(), "postgresql": server.partition(" ")[0], "workers": str(self.workers)}

    def anchor(self) -> int:
        """Return how much of the log is known outside: it is the system's own beat that anchors."""
        ends = []
        for sink in sinks(self.settings):
            with suppress(SinkUnavailable):
                last = sink.last()
                ends.append(0 if last is None else last.end)
        return max(ends, default=0)

    def leave_running(self, argv: Sequence[str]) -> None:
        """Refuse: what runs on there is started by its own people."""
        raise DrillNotRun(self.name, f"`{shlex.join(argv)}` would run on", "name a command that ends")

    def restore(self) -> None:
        """Wait until as many workers live as before."""
        deadline = time.monotonic() + self._whole_within
        while True:
            living = -1
            with suppress(DatabaseUnavailable):
                living = self.living()
            if living >= self.workers:
                return
            if time.monotonic() > deadline:
                problem = f"{max(living, 0)} of {self.workers} workers live, {self._whole_within:g} s after the drill"
                raise DrillNotRun(self.name, problem, "have --undo bring back what --inject took away")
            time.sleep(_LOOK_EVERY)


class Breaking:
    """What breaks a staging system: the command that was given; and the one that mends it, once in any case.

    Nothing interrupts that one: a second Ctrl-C would leave the system as it is.
    """

    def __init__(self, orders: Orders, *, planned: bool) -> None:
        self._orders, self._planned = orders, planned
        self._to_mend = False

    def __call__(self, stage: Stage[Staging]) -> Fault:
        """Break it, with workflows under way.

        Raises:
            DrillNotRun: the command did not end well. What it may have done is mended.

        """
        stage.client.burst(WAITING)
        under_way(stage)
        stage.at_end(lambda: self._mend_after_all(stage.box))
        self._to_mend = True
        began = time.monotonic()
        with _under_load(stage):
            _succeed(stage.box, self._orders.inject)
            ended = time.monotonic()
        command = f"`{shlex.join(self._orders.inject)}`"
        if self._planned:
            return Fault(at=began, told=command, undo=lambda: self._mend(stage.box))
        # What was seen last may be from before the command began, if it took the database away.
        seen = stage.movement.sights().values()
        met = {each.workflow_id: place(each) for each in seen if each.status == "pending" and each.type in SHORT_TYPES}
        if not met:
            raise DrillNotRun(stage.box.name, "nothing was under way when the command had ended", "raise --load")
        return Fault(
            at=ended,
            sooner=ended - began,
            told=f"{command}, with {len(met)} workflows under way when it had ended",
            met=met,
            undo=lambda: self._mend(stage.box),
        )

    def _mend(self, box: Staging) -> None:
        if self._to_mend and self._orders.undo:
            self._to_mend = False
            with _uninterrupted():
                _succeed(box, self._orders.undo)

    def _mend_after_all(self, box: Staging) -> None:
        """Mend what a drill left that was not carried out to its end: why it was not is what is raised."""
        try:
            self._mend(box)
        except DrillNotRun as error:
            box.tell(f"NOT MENDED: {error.problem}")


def _succeed(box: Staging, argv: Sequence[str]) -> None:
    """Run one of the commands that were given.

    Raises:
        DrillNotRun: it did not end well.

    """
    done = box.carry_out(argv)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-_MOST_SAID:]
        problem = f"`{shlex.join(argv)}` ended with {done.returncode}: {said}"
        raise DrillNotRun(box.name, problem, "mend the command")


@contextmanager
def _under_load(stage: Stage[Staging]) -> Iterator[None]:
    """Have workflows under way all the while, and when the body ends: it takes as long as it takes."""
    done = threading.Event()

    def ask() -> None:
        left = _MOST_ASKED
        while left > 0 and not done.wait(_ASK_EVERY):
            stage.client.burst(_ASK)
            left -= _ASK

    asking = threading.Thread(target=ask, name="drill load", daemon=True)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have signals wait until the body has ended."""
    came: list[int] = []
    # Handlers, and not SIG_IGN: what is run would inherit that.
    before = {number: signal.signal(number, lambda which, _: came.append(which)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _there(commands: Sequence[Command], given: Settings) -> tuple[Command, ...]:
    """Return those of the runbook's commands that can be typed: `aegis cluster` knows its own clusters alone."""
    own = load(given.places) is not None
    return tuple(command for command in commands if own or tuple(command.argv[:2]) != ("aegis", "cluster"))


def rehearse(
    given: Settings,
    name: str,
    scenario: Scenario,
    orders: Orders,
    terms: Terms,
    repeat: int,
    tell: Callable[[str], None],
) -> Report:
    """Drill a scenario on the staging system of these settings, which has to have that name.

    Raises:
        DrillNotRun: it is another one, or it cannot be drilled.
        AegisError: it could not be carried out.

    """
    if scenario.sandboxed or scenario.control:
        raise DrillNotRun(scenario.name, "it can be done on a sandbox alone", "leave --staging out")
    if scenario.from_healing and not orders.heal:
        raise DrillNotRun(scenario.name, "its time counts from what a person does then", "name that with --heal")
    here = replace(
        scenario,
        check=_there(scenario.check, given),
        heal=(Command(argv=orders.heal, why="as it was given", given=True),) if orders.heal else (),
        over=_there(scenario.over, given),
    )
    with tempfile.TemporaryDirectory(prefix="aegis-drill-") as folder:
        box = Staging(Path(folder), given, name, tell)
        try:
            box.admit()
            notes, told, outcomes = Notes(here, declared_for(given, here), terms), box.versions(), list[Outcome]()
            for number in range(1, repeat + 1):
                tell(f"{here.name} on {name}: {number} of {repeat}")
                breaking = Breaking(orders, planned=here.planned)
                outcomes.append(Drill(box, here, breaking, notes.declared, terms, number).run())
                box.restore()
        finally:
            box.database.close()
    return notes.report(f"{name}, a staging system", told, given, outcomes)

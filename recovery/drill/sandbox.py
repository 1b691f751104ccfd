"""The system under test: a deployment of its own, on private servers in a temporary folder, and its end.

Its settings are those of the deployment that is rehearsed, with another home. Its processes are
supervised as `aegis up` does; what is started through the runbook's commands is, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil

from ...config.keys import new_anchor_key
from ...config.settings import Settings
from ...core.anchor import log_name
from ...core.errors import ServerUnavailable
from ...persistence.database import Database
from ...persistence.migrate import upgrade
from ...persistence.schema import deployment_name
from ...servers.supervisor import Service, Supervisor
from ...tasks.anchor import Policy, anchor, notary
from ...tasks.sinks import sinks
from .servers import Kind, Servers, prepared
from .system import System, Tell, program

WORKLOAD: Final = "aegis.recovery.drill.workload"
BEAT: Final = "beat"
POSTGRESQL: Final = "postgresql"
VALKEY: Final = "valkey"
_TYPED: Final = "typed-"
_WORKER: Final = "worker-"
# What a sandbox has of the deployment that is rehearsed; of the rest - servers, keys, anchors, backups - nothing.
_ALIKE: Final = (
    *("heartbeat_interval", "heartbeat_timeout", "sweep_interval", "ring_grace", "checkpoint_interval"),
    *("queue", "max_bytes", "health_timeout", "anchor_interval", "anchor_every", "scrub_within"),
    *("postgres_bin", "valkey_bin", "etcd_bin", "barman_bin"),
)
_ALIVE_WITHIN: Final = 60.0
_ANCHORED_WITHIN: Final = 30.0
_LOOK_EVERY: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a scenario needs; sandboxes that give the same can be used again.

    ``settings`` are other than those of the deployment that is rehearsed. ``disk`` is the size of a file system
    of its own for the database (``192m``), which root alone can have.
    """

    servers: Kind = Kind.SINGLE
    settings: Mapping[str, object] = field(default_factory=dict)
    disk: str = ""


class Sandbox(System):
    """One deployment, up; made by ``sandbox``."""

    name = "a sandbox"

    def __init__(self, root: Path, servers: Servers, tell: Tell) -> None:
        super().__init__(root, servers.settings, {**_no_settings(), **environment_of(servers.settings)}, tell)
        self.servers, self.effects = servers, str(self.outside)
        self.supervisor = Supervisor(lambda service, what: tell(f"{service} {what}"))
        self._services: dict[str, Service] = {}
        self._typed = 0
        self.hands_off = threading.Lock()
        """Held while something is broken on purpose: nothing is started again meanwhile."""
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="drill keeper", daemon=True)

    # --- up and down ------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Start everything, and wait until the workers live.

        Raises:
            AegisError: something does not come up.

        """
        self.servers.start(self.start, self.supervisor)
        upgrade(self.database, deployment=self.settings.deployment)
        with self.database.statement() as connection:
            new_anchor_key(self.settings.key_folder, log_name(deployment_name(connection)))
        for service in self.servers.processes():
            self.start(service)
        self.await_workers()
        self._keeper.start()

    def start(self, service: Service) -> None:
        """Start a service in this deployment's environment."""
        told = replace(service, environment={**self.environment, **service.environment})
        self._services[service.name] = told
        self.supervisor.start(told)

    def start_again(self, name: str) -> None:
        """Start a service that was taken away."""
        self.supervisor.start(self._services[name])

    def restore(self) -> None:
        """Bring back what a drill took away, and end what it typed."""
        running = self.supervisor.names()
        for name in running:
            if name.startswith(_TYPED):
                self.supervisor.take_away(name)
        for name in self._services:
            if name not in running and not name.startswith(_TYPED):
                self.start_again(name)
        self.servers.make_whole(self.supervisor)
        self.await_workers()

    def await_workers(self) -> None:
        """Wait until all workers say that they live.

        Raises:
            ServerUnavailable: they do not.

        """
        count = sum(name.startswith(_WORKER) for name in self._services)
        deadline = time.monotonic() + _ALIVE_WITHIN
        while time.monotonic() < deadline:
            if self.living() >= count:
                return
            self.supervisor.look()
            time.sleep(_LOOK_EVERY)
        log = self.settings.places.logs / "worker-1.log"
        raise ServerUnavailable("worker", f"not alive after {_ALIVE_WITHIN:g} s", f"see {log}")

    def down(self) -> None:
        """End every process, and see that none is left."""
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self.supervisor.stop()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        self.database.close()

    def _keep(self) -> None:
        while not self._ending.wait(_LOOK_EVERY):
            try:
                with self.hands_off:
                    self.supervisor.look()
            except ServerUnavailable as error:
                self.broken = error
                return

    # --- what a drill does with it --------------------------------------------------------------

    def anchor(self, database: Database | None = None) -> int:
        """Tell the outside how the log stands, as a database has it; return how long it is.

        Raises:
            ServerUnavailable: it cannot be told.

        """
        policy = Policy(interval=timedelta(seconds=self.settings.anchor_interval), every=self.settings.anchor_every)
        places, signer = sinks(self.settings), notary(self.settings)
        deadline = time.monotonic() + _ANCHORED_WITHIN
        # The sandbox's beat anchors, too: while it has the log, nobody else writes.
        while not (done := anchor(database or self.database, places, signer, policy, now=True)).written:
            if done.alarms or time.monotonic() > deadline:
                problem = done.alarms[0] if done.alarms else f"its log was not to be had for {_ANCHORED_WITHIN:g} s"
                raise ServerUnavailable("the sandbox", f"nothing was anchored: {problem}", "report this")
            time.sleep(_LOOK_EVERY)
        return max((last.end for sink in places if (last := sink.last()) is not None), default=0)

    def anchored(self) -> frozenset[str]:
        """Return the workflows that the anchors know of."""
        found = (sink.anchors() for sink in sinks(self.settings))
        return frozenset(entry.workflow_id for anchors in found for each in anchors for entry in each.entries)

    def family(self, name: str) -> list[psutil.Process]:
        """Return a service's process and its children, but not the one that writes a worker's heartbeat."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.supervisor.pid(name))
            return [parent, *(child for child in parent.children(recursive=True) if not is_pulse(child))]
        return []

    def processes(self) -> list[psutil.Process]:
        """Return every process of this deployment: those that were told its home, and their children."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("AEGIS_HOME") == str(self.settings.home):
                    # PostgreSQL's children write their titles over their environment.
                    found |= {process, *process.children(recursive=True)}
        return list(found)

    def leave_running(self, argv: Sequence[str]) -> None:
        """Start a command that runs on: a worker, or everything."""
        self._typed += 1
        name = f"{_TYPED}{self._typed}"
        self.start(
            Service(
                name=name,
                argv=lambda: program(argv),
                log=self.settings.places.logs / f"{name}.log",
                stage=2,
                grace=60,
                environment={"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"},
            )
        )


@contextmanager
def sandbox(given: Settings, tell: Tell, needs: Needs) -> Iterator[Sandbox]:
    """Give a deployment that is up; in the end nothing of it is left, however that comes.

    Raises:
        AegisError: it does not come up.

    """
    # Not below a private folder: PostgreSQL is not run by root.
    root = Path(tempfile.mkdtemp(prefix="aegis-drill-"))
    root.chmod(0o755)
    settings = own(given, root / "home", needs.settings)
    try:
        with _disk(settings.places.postgres, needs.disk), prepared(needs.servers, settings) as servers:
            made = Sandbox(root, servers, tell)
            try:
                made.bring_up()
                yield made
            finally:
                made.down()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def own(given: Settings, home: Path, changes: Mapping[str, object]) -> Settings:
    """Return the settings of a deployment that is patient in the same way, and has nothing to do with the given one."""
    alike = {name: getattr(given, name) for name in _ALIKE}
    apart = {
        "home": home,
        "workflows": (WORKLOAD,),
        "deployment": "aegis.example/drill",
        "log_level": "warning",
        "stop_grace": 3.0,
    }
    return Settings.model_validate({**alike, **apart, **changes})


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that give these very settings."""
    told = {}
    for name, known in Settings.model_fields.items():
        value = getattr(settings, name)
        if value != known.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            told[f"AEGIS_{name.upper()}"] = text
    return told


def _no_settings() -> dict[str, str]:
    """Return what hides this process's own settings: an empty variable is as good as none."""
    return {name: "" for name in os.environ if name.startswith("AEGIS_") and not name.startswith("AEGIS_TEST_")}


def is_pulse(process: psutil.Process) -> bool:
    """Whether a process writes a worker's heartbeat."""
    try:
        return "aegis.workers.pulse" in process.cmdline()
    except psutil.Error:
        return False


@contextmanager
def _disk(place: Path, size: str) -> Iterator[None]:
    if not size:
        yield
        return
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "aegis-drill", str(place)],  # noqa: S607 - root's own
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise ServerUnavailable("a small disk", f"mount: {mounted.stderr.strip()}", "run the drill as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)  # noqa: S607 - likewise

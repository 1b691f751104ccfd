"""One run of the demo: bring everything up, start a workflow for each file, hurt it, wait, judge."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import settings as config
from ..config.settings import Settings
from ..core.errors import ConfigurationError, ServerUnavailable
from ..persistence import watch
from ..persistence.database import Database
from ..persistence.migrate import upgrade
from ..servers import stack
from ..servers.supervisor import Supervisor
from ..sync import DurableWorkflowEngine
from ..workers.factory import make_app
from . import files, ledger
from .archive import ArchiveFile
from .chaos import Chaos
from .ledger import Progress

_MODULE: Final = "aegis.demo.archive"
_WORKERS: Final = ("worker-1", "worker-2")
_LOOK_EVERY: Final = 0.1
_READY_WITHIN: Final = 60.0
_AT_A_TIME: Final = 20


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run came to; ``problems`` is empty if all was well."""

    files: int
    workflows: int
    transitions: int
    seconds: float
    per_second: float
    kills: int
    wipes: int
    resumed: int
    recovery_after_kill: tuple[float, ...]
    recovery_after_wipe: tuple[float, ...]
    lost: int
    recorded_twice: int
    chains_verified: int
    manifest_matches: int
    archive: Path
    home: Path
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to archive, and how roughly to treat it; ``patience`` is how long it may take (seconds)."""

    directory: Path
    most_files: int
    archive: Path | None
    chaos: bool
    patience: float


Watch = Callable[[Progress, Chaos | None], None]


def run(plan: Plan, given: Settings, tell: Callable[[str], None], show: Watch) -> Report:
    """Run the demo; ``show`` is called a few times a second.

    Raises:
        AegisError: it could not be run at all.

    """
    chosen = files.find(plan.directory.absolute(), plan.most_files)
    name = f"demo-{secrets.token_hex(4)}"
    settings = _own(given, name)
    archive = (plan.archive or settings.home / "archive").absolute()
    with stack.lock(settings), _environment(settings):
        supervisor = Supervisor(lambda service, what: None if service in _WORKERS else tell(f"{service} {what}"))
        try:
            _bring_up(settings, supervisor, tell)
            return _work(plan, settings, supervisor, name, chosen, archive, tell, show)
        finally:
            supervisor.stop()


def _own(given: Settings, name: str) -> Settings:
    """Return settings under which the demo hurts nobody else."""
    changes: dict[str, object] = {"workflows": (_MODULE,), "broker_prefix": f"aegis-{name}:", "log_level": "warning"}
    if given.embedded:
        changes["home"] = given.home / "demo"
    return given.model_copy(update=changes)


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Hand the settings to the processes that are started, and to the engine in this one."""
    told = {
        "AEGIS_HOME": str(settings.home),
        "AEGIS_WORKFLOWS": _MODULE,
        "AEGIS_BROKER_PREFIX": settings.broker_prefix,
        "AEGIS_LOG_LEVEL": settings.log_level,
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    config.settings.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        config.settings.cache_clear()


def _bring_up(settings: Settings, supervisor: Supervisor, tell: Callable[[str], None]) -> None:
    if settings.embedded:
        # Each run begins from nothing; what the one before left was kept to be looked at.
        for place in (
            settings.places.postgres,
            settings.places.valkey,
            settings.places.logs,
            settings.home / "archive",
        ):
            shutil.rmtree(place, ignore_errors=True)
    for service in stack.servers(settings):
        supervisor.start(service)
    database = Database(settings.database, pool_size=1)
    upgrade(database, deployment=settings.deployment)
    with database.statement() as connection:
        if living := watch.living(connection, settings.recovery.heartbeat_timeout):
            raise ConfigurationError(
                "AEGIS_DATABASE_URL",
                f"{living} workers live on this database, and the demo kills and wipes",
                "unset AEGIS_DATABASE_URL and AEGIS_BROKER_URL to have it on servers of its own",
            )
        ledger.make_manifest(connection)
    database.close()
    settings.places.make(settings.places.logs)
    handlers = max(1, (os.cpu_count() or 2) // len(_WORKERS) + 1)
    for number in range(1, len(_WORKERS) + 1):
        supervisor.start(stack.worker(settings, settings.places.logs, number, handlers))
    supervisor.start(stack.beat(settings.places.logs))
    tell(f"database, broker, beat and {len(_WORKERS)} workers with {handlers} handlers each are up")


def _work(
    plan: Plan,
    settings: Settings,
    supervisor: Supervisor,
    run_name: str,
    chosen: list[Path],
    archive: Path,
    tell: Callable[[str], None],
    show: Watch,
) -> Report:
    database = Database(settings.database, pool_size=2)
    _await_workers(database, settings)
    engine = DurableWorkflowEngine(database, app=make_app(settings), actor="user:demo")
    originals = files.sha256sums(chosen)
    chaos = Chaos(settings, supervisor, database, run_name, _WORKERS, tell=tell) if plan.chaos else None
    began = time.monotonic()
    deadline = began + plan.patience
    accepted: list[str] = []
    finished = False
    while not finished and time.monotonic() < deadline:
        # A few at a time, so that the first are under way, and hurt, while the last are accepted.
        for source in chosen[len(accepted) : len(accepted) + _AT_A_TIME]:
            workflow = ArchiveFile(run=run_name, source=str(source), archived=str(_archived(archive, plan, source)))
            accepted.append(engine.start(workflow, id=f"{run_name}/{len(accepted):05d}").id)
        supervisor.look()
        with database.statement() as connection:
            now = ledger.progress(connection, run_name)
        if chaos is not None:
            chaos.look(now.completed, len(chosen))
        show(now, chaos)
        finished = now.completed + now.ended_otherwise == len(chosen)
        if len(accepted) == len(chosen):
            time.sleep(_LOOK_EVERY)
    seconds = time.monotonic() - began
    if chaos is not None:
        chaos.heal()
    return _report(database, settings, run_name, accepted, originals, archive, chaos, seconds)


def _await_workers(database: Database, settings: Settings) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        with database.statement() as connection:
            if watch.living(connection, settings.recovery.heartbeat_timeout) >= len(_WORKERS):
                return
        time.sleep(_LOOK_EVERY)
    raise ServerUnavailable("worker", f"none lived after {_READY_WITHIN:g} s", f"see {settings.places.logs}")


def _archived(archive: Path, plan: Plan, source: Path) -> Path:
    below = source.relative_to(plan.directory.absolute())
    return archive / below.with_name(f"{below.name}.gz")


def _report(
    database: Database,
    settings: Settings,
    run_name: str,
    accepted: list[str],
    originals: dict[str, str],
    archive: Path,
    chaos: Chaos | None,
    seconds: float,
) -> Report:
    with database.snapshot() as connection:
        last = ledger.progress(connection, run_name)
        verdict = ledger.judge(connection, run_name, accepted)
    matches = sum(verdict.manifest.get(path) == digest for path, digest in originals.items())
    problems = [f"history: {line}" for line in verdict.chains_broken]
    if verdict.lost:
        problems.append(f"{verdict.lost} workflows did not complete")
    if verdict.recorded_twice:
        problems.append(f"{verdict.recorded_twice} transitions were recorded twice")
    if matches < len(originals) or len(verdict.manifest) != len(originals):
        problems.append(
            f"the manifest holds {len(verdict.manifest)} files, {matches} of {len(originals)} as sha256sum says"
        )
    return Report(
        files=len(originals),
        workflows=last.workflows,
        transitions=last.transitions,
        seconds=round(seconds, 2),
        per_second=round(last.transitions / seconds, 1),
        kills=0 if chaos is None else chaos.kills,
        wipes=0 if chaos is None else chaos.wipes,
        resumed=verdict.resumed,
        recovery_after_kill=() if chaos is None else tuple(round(t, 2) for t in chaos.times("kill")),
        recovery_after_wipe=() if chaos is None else tuple(round(t, 2) for t in chaos.times("wipe")),
        lost=verdict.lost,
        recorded_twice=verdict.recorded_twice,
        chains_verified=verdict.chains_verified,
        manifest_matches=matches,
        archive=archive,
        home=settings.home,
        problems=tuple(problems),
    )

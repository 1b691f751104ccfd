"""``aegis up``: everything, from nothing, on one screen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ..config.keys import new_anchor_key, signing_key
from ..config.settings import Settings, safe_url, settings
from ..core.anchor import log_name
from ..core.errors import AegisError
from ..core.workflow import registry
from ..persistence import watch
from ..persistence.database import Database
from ..persistence.schema import deployment_name
from ..servers import stack
from ..servers.stack import Flower
from ..servers.supervisor import Supervisor
from ..workers.load import load_workflows
from .output import Output, json_option, table

_LOOK_EVERY: Final = 0.2
_AT_ONCE: Final = 0.5
# After that everything is said to be up all the same, and `aegis health` says what is not.
_ALIVE_WITHIN: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the screen; ``pid`` is None for a server that somebody else runs."""

    name: str
    pid: int | None
    where: str


@click.command("up")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0, 64), help="How many workers.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 256), help="Handlers at once in each; a core each by default."
)
@click.option("--flower/--no-flower", default=True, help="Celery's monitor, on loopback.")
@json_option
def up_command(out: Output, workers: int, concurrency: int | None, *, flower: bool) -> None:
    """Run everything: database, broker, workers, beat and Flower, until Ctrl-C.

    With neither AEGIS_DATABASE_URL nor AEGIS_BROKER_URL set, a private PostgreSQL and a private Valkey
    are started below AEGIS_HOME, and go on from where they were. With both set, those servers are used.
    """
    configured = settings()
    load_workflows(configured.workflows)
    handlers = concurrency or os.cpu_count() or 1
    began = time.monotonic()
    with stack.lock(configured):
        supervisor = Supervisor(lambda name, what: _tell(out, name, what))

        def begin() -> None:
            monitor = bring_up(configured, supervisor, workers=workers, concurrency=handlers, flower=flower)
            _show(out, configured, list(_parts(configured, supervisor, monitor, handlers)), time.monotonic() - began)

        look_after(out, supervisor, begin)
    if not out.as_json:
        out.console.print("stopped; nothing is lost: the next `aegis up` goes on from here")


def look_after(out: Output, supervisor: Supervisor, begin: Callable[[], object]) -> None:
    """Begin, keep up what runs until somebody asks for its end, and end it, whatever happens."""
    stopping = Stopping(supervisor)
    up = False
    try:
        begin()
        up = True
        while not stopping.asked:
            supervisor.look()
            time.sleep(_LOOK_EVERY)
    except KeyboardInterrupt:
        pass
    finally:
        if up and not out.as_json:
            out.console.print("stopping: handlers may finish; Ctrl-C again to end them")
        stopping.asked = True
        supervisor.stop()


def bring_up(
    configured: Settings, supervisor: Supervisor, *, workers: int, concurrency: int, flower: bool
) -> Flower | None:
    """Start everything in its order, with the schema brought to its newest version in between.

    Raises:
        AegisError: something does not come up, or cannot be reached.

    """
    from ..persistence.migrate import upgrade  # noqa: PLC0415 - Alembic takes time to load

    for service in stack.servers(configured):
        supervisor.start(service)
    if configured.backup_with == "pgbackrest":
        _have_an_archive(configured, supervisor.tell)
    if configured.archives:
        # Before anything is written: commits may have to wait for it.
        supervisor.start(stack.archive(configured))
    database = Database(configured.database, pool_size=1)
    upgrade(database, deployment=configured.deployment)
    have_a_key(configured, database)
    logs = configured.places.logs
    for number in range(1, workers + 1):
        supervisor.start(stack.worker(configured, logs, number, concurrency, watched=flower))
    supervisor.start(stack.beat(logs))
    monitor = None
    if flower:
        service, monitor = stack.flower(logs)
        supervisor.start(service)
    _await_workers(configured, supervisor, database, monitor)
    database.close()
    return monitor


def _have_an_archive(configured: Settings, tell: Callable[[str, str], None]) -> None:
    """See to it that there is a repository that the server can hand its WAL to: until then it keeps all of it.

    What goes wrong is said, and does not stop anything: workflows run, and `aegis health` gives the alarm.
    """
    from ..recovery.backup.source import source  # noqa: PLC0415 - only where it is asked for

    try:
        source(configured).adapter.begin()
    except AegisError as error:
        tell("archive", f"is not there: {error}")


def have_a_key(configured: Settings, database: Database) -> None:
    """See to it that anchors can be signed: a key of one's own is made with the first start."""
    if configured.anchor_places and signing_key(configured.key_folder) is None:
        with database.statement() as connection:
            name = log_name(deployment_name(connection))
        new_anchor_key(configured.key_folder, name)


def _await_workers(configured: Settings, supervisor: Supervisor, database: Database, monitor: Flower | None) -> None:
    """Wait until each worker has said that it lives; and Flower heard of it, which never shows what came before."""
    workers = sum(name.startswith("worker") for name in supervisor.names())
    deadline = time.monotonic() + _ALIVE_WITHIN
    while time.monotonic() < deadline:
        with database.statement() as connection:
            living = watch.living(connection, configured.recovery.heartbeat_timeout)
        if min(living, living if monitor is None else monitor.sees()) >= workers:
            return
        supervisor.look()
        time.sleep(_LOOK_EVERY)


class Stopping:
    """What Ctrl-C and SIGTERM do: interrupt at first, hurry after that."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._supervisor = supervisor
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            # At once is no second thought: whoever ends a whole process group often signals us twice.
            if time.monotonic() - self._asked_at > _AT_ONCE:
                self._supervisor.hurry()
        else:
            self.asked, self._asked_at = True, time.monotonic()
            raise KeyboardInterrupt


def _parts(configured: Settings, supervisor: Supervisor, monitor: Flower | None, handlers: int) -> Iterator[Part]:
    if not configured.embedded:
        yield Part(name="database", pid=None, where=safe_url(configured.database))
        yield Part(name="broker", pid=None, where=safe_url(configured.broker))
    places = configured.places
    known = ", ".join(workflow.definition.type for workflow in registry)
    for name in supervisor.names():
        where = {
            "postgresql": f"psql -h {places.sockets} -U aegis postgres",
            "valkey": f"redis-cli -s {places.sockets / 'valkey.sock'}",
            "archive": f"the WAL, to {configured.backups}",
            "beat": f"sweeps every {configured.sweep_interval:g} s",
            "flower": monitor.url if monitor else "",
        }.get(
            name, f"{handlers} handlers at once: {known or 'no workflows yet: name their modules in AEGIS_WORKFLOWS'}"
        )
        yield Part(name=name, pid=supervisor.pid(name), where=where)


def _show(out: Output, configured: Settings, parts: list[Part], took: float) -> None:
    logs = configured.places.logs

    def render(console: Console) -> None:
        console.print(Text.assemble(("AEGIS is up", "bold green"), f" after {took:.1f} s"))
        console.print()
        console.print(table(("", "pid", ""), [(part.name, part.pid or "yours", part.where) for part in parts]))
        console.print()
        console.print(f"data {configured.home}, logs {logs}")
        console.print("look with `aegis list` and `aegis health` from another terminal; Ctrl-C stops all of it")

    out.show({"seconds": round(took, 2), "home": configured.home, "logs": logs, "parts": parts}, render)


def _tell(out: Output, name: str, what: str) -> None:
    out.warn(f"{name} {what}")

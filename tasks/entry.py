"""The Celery tasks: the only place where a message becomes a call, and nothing in it is trusted."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar

from celery import Celery, Task

from ..config.logging import get_logger
from ..config.settings import Settings, settings
from ..core.errors import AegisError, DatabaseUnavailable
from ..core.names import is_id
from ..persistence.database import Database
from .anchor import Policy as AnchorPolicy
from .anchor import anchor, notary
from .backups import backup
from .bench import Bench, default_worker_id
from .broker import TRANSITION, Broker
from .checkpoint import request_checkpoints
from .reception import strategy
from .retention import retain
from .scrub import scrub
from .sinks import sinks
from .sweep import sweep
from .transition import run_transition
from .unheard import noting

SWEEP: Final = "aegis.sweep"
CHECKPOINT: Final = "aegis.checkpoint"
ANCHOR: Final = "aegis.anchor"
SCRUB: Final = "aegis.scrub"
RETAIN: Final = "aegis.retain"
BACKUP: Final = "aegis.backup"

log = get_logger(__name__)

_STRATEGY: Final = f"{strategy.__module__}:{strategy.__name__}"

# Set by the worker's heartbeat step before the pool forks; children inherit it.
worker_id: str | None = None
# How many handlers one process of this worker runs at once: more than one in a pool of threads.
hands: int = 1


class TransitionTask(Task[Any, Any]):
    """One message, one transition.

    What keeps it safe is set here, as attributes, so that it holds inside a user's own app too.
    """

    name = TRANSITION
    Strategy = _STRATEGY
    acks_late = True
    reject_on_worker_lost = True
    # A failure is in the database, which decides what follows; the message has done its work.
    acks_on_failure_or_timeout = True
    ignore_result = True
    store_errors_even_if_ignored = False
    track_started = False
    serializer = "json"
    max_retries = 0
    typing = False
    time_limit = None
    soft_time_limit = None

    def run(self, *args: Any, **kwargs: Any) -> str | None:
        """Do what ``(workflow_id, seq)`` asks for; a message of any other shape is thrown away."""
        if not _is_bell(args, kwargs):
            log.warning("message refused", reason="it is not (workflow id, seq)", given=repr(args)[:200])
            return None
        workflow_id, seq = args
        redelivered = bool((self.request.delivery_info or {}).get("redelivered"))
        return run_transition(_bench(self.app), workflow_id, seq, redelivered=redelivered).value


def _is_bell(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return (
        len(args) == 2  # noqa: PLR2004 - workflow id and seq
        and not kwargs
        and is_id(args[0])
        and type(args[1]) is int
        and 0 <= args[1] < 2**63
    )


# --- what beat runs -----------------------------------------------------------------------

Periodic: TypeAlias = Callable[[Settings, Database, Broker], object]


def _sweep(settings_: Settings, database: Database, broker: Broker) -> object:
    return sweep(database, broker, settings_.recovery)


def _checkpoint(settings_: Settings, database: Database, _broker: Broker) -> object:
    # Early by how often that is (a tenth) and how often a handler looks (a sixtieth): the age stays below it.
    interval = timedelta(seconds=settings_.checkpoint_interval * 0.88)
    return request_checkpoints(database, interval)


def _anchor(settings_: Settings, database: Database, _broker: Broker) -> object:
    policy = AnchorPolicy(interval=timedelta(seconds=settings_.anchor_interval), every=settings_.anchor_every)
    return anchor(database, sinks(settings_), notary(settings_), policy)


def _scrub(settings_: Settings, database: Database, _broker: Broker) -> object:
    return scrub(settings_, database)


def _retain(settings_: Settings, database: Database, _broker: Broker) -> object:
    return retain(settings_, database)


def _backup(settings_: Settings, _database: Database, _broker: Broker) -> object:
    return backup(settings_)


PERIODIC: Final[dict[str, Periodic]] = {
    SWEEP: _sweep,
    CHECKPOINT: _checkpoint,
    ANCHOR: _anchor,
    SCRUB: _scrub,
    RETAIN: _retain,
    BACKUP: _backup,
}
# These may take long, and nothing that is to be recovered may wait for them.
SLOW: Final = frozenset({ANCHOR, SCRUB, RETAIN, BACKUP})


def run_periodic(app: Celery, name: str) -> None:
    """Run one of beat's tasks here and now; whatever goes wrong is logged, and the next time is soon."""
    try:
        PERIODIC[name](settings(), _database(app), Broker(app))
    except DatabaseUnavailable as error:
        log.warning("not run", task=name, reason=error.reason)
    except AegisError as error:
        log.critical("not run", task=name, reason=str(error))
    except Exception:
        log.exception("a fault in AEGIS", task=name)


class PeriodicTask(Task[Any, Any]):
    """A periodic task as a message, for apps whose own beat publishes it."""

    Strategy = _STRATEGY
    ignore_result = True
    serializer = "json"
    max_retries = 0

    def run(self) -> None:
        """Run it once."""
        run_periodic(self.app, self.name)


def install(app: Celery) -> None:
    """Register AEGIS's tasks in a Celery app."""
    app.register_task(TransitionTask())
    for name in PERIODIC:
        app.register_task(type("AegisPeriodic", (PeriodicTask,), {"name": name, "__module__": __name__})())


# --- one of each per process ----------------------------------------------------------------

T = TypeVar("T")
_made: dict[tuple[int, int, str], Any] = {}


def _bench(app: Celery) -> Bench:
    return _once(app, lambda: _made_bench(app, worker_id or default_worker_id()))


def _database(app: Celery) -> Database:
    # A handler needs one connection for its claim and its commit, and one to save its progress; beat has one
    # for the sweep, and one for each thing that it does aside.
    return _once(app, lambda: Database(settings().database, pool_size=max(2 * hands, 1 + len(SLOW)), pre_ping=False))


def _once(app: Celery, make: Callable[[], T]) -> T:
    # By pid: a forked child makes its own.
    key = (os.getpid(), id(app), make.__qualname__)
    if key not in _made:
        _made[key] = make()
    made: T = _made[key]
    return made


def _made_bench(app: Celery, worker_id: str) -> Bench:
    database = _database(app)
    return Bench(settings(), database, noting(Broker(app).ring, database), worker_id)

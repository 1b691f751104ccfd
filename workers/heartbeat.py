"""The bootstep that says "this worker lives": it starts a small helper process, and keeps it alive.

Neither the parent's event loop may block on the database, nor may a parent that forks have a
database thread; so a spawned process writes the heartbeat (``pulse.py``), and dies with the parent.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from contextlib import suppress
from typing import Any, Final

from celery import bootsteps
from celery.signals import worker_process_init, worker_shutdown

from ..config.logging import get_logger
from ..config.settings import settings
from ..core.errors import DatabaseUnavailable, SchemaMismatch
from ..core.workflow import registry
from ..persistence import schema, watch
from ..persistence.database import Database
from ..tasks import entry
from ..tasks.broker import Broker

log = get_logger(__name__)

_LOOK_EVERY: Final = 5.0
_EX_CONFIG: Final = 78  # sysexits.h: starting again will not help


def _check_schema() -> int | None:
    """Do not start on a schema that is not ours: each message would be thrown away with an error.

    Return the deployment's epoch, if the database answers.
    """
    database = Database(settings().database, pool_size=1, pre_ping=False)
    try:
        schema.check(database)
        with database.statement() as connection:
            return watch.current_epoch(connection)
    except SchemaMismatch as error:
        log.critical("not started", reason=str(error))
        raise SystemExit(_EX_CONFIG) from None
    except DatabaseUnavailable as error:
        log.warning("started without the database", reason=error.reason)
        return None
    finally:
        database.close()  # before the pool forks


@worker_process_init.connect
def _leave_the_group(**_: object) -> None:
    """Take a child out of its worker's process group.

    Process managers and terminals send their signals to whole groups, and the children of Celery's
    pool die of a SIGTERM while their parent waits for them. On Linux a child ends with its parent;
    elsewhere it stays in the group, which is all that ends it then.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpgid(0, 0)


class HeartbeatStep(bootsteps.StartStopStep):
    """Gives the worker its id, before the pool forks, and has its life told to the database."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **_: Any) -> None:
        # Unique for each start: a worker that comes back is another one, and owns nothing.
        entry.worker_id = self.worker_id = f"{parent.hostname}/{secrets.token_hex(4)}"
        # In a pool of processes the handlers run in the children, in any other right here.
        self._forks = "prefork" in str(parent.pool_cls)
        entry.hands = 1 if self._forks else parent.concurrency
        self._pulse: subprocess.Popen[bytes] | None = None
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """Start the helper, and look after it from the parent's timer."""
        epoch = _check_schema()
        self._told = {
            "epoch": epoch,
            "worker_id": self.worker_id,
            "pid": os.getpid(),
            "forks": self._forks,
            "queues": sorted(parent.app.amqp.queues.consume_from),
            "broker": Broker(parent.app).url,
            "types": registry.known(),
        }
        self._spawn()
        self._timer = parent.timer.call_repeatedly(_LOOK_EVERY, self._look)
        worker_shutdown.connect(self._leave, sender=parent, weak=False)

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery passes it
        """Stop looking after it; it goes on until the pool has drained, and the parent is gone."""
        if self._timer is not None:
            self._timer.cancel()

    terminate = stop

    def _spawn(self) -> None:
        self._pulse = subprocess.Popen(
            [sys.executable, "-m", "aegis.workers.pulse", json.dumps(self._told)],
            stdin=subprocess.DEVNULL,
            # Signals for the worker's group are not for it: it has to see the worker out.
            start_new_session=True,
        )

    def _look(self) -> None:
        if self._pulse is not None and self._pulse.poll() is not None:
            log.warning("the heartbeat process ended, starting another", status=self._pulse.returncode)
            self._spawn()

    def _leave(self, **_: Any) -> None:
        # The pool has drained: nothing is in hand any more, and the helper may say so at once.
        if self._pulse is not None:
            self._pulse.terminate()

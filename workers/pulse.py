"""The heartbeat of one worker, as a process: ``python -m aegis.workers.pulse '{"worker_id": ...}'``.

It writes that the worker lives, and which of its processes do, every few seconds. When the parent
is gone it waits for the last child, then frees whatever they held at once: nobody has to wait for
a time-out where somebody is left who knows. It ends by itself in every case.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Final

import psutil

from ..config import logging as our_logging
from ..config.logging import get_logger
from ..config.settings import settings
from ..core.errors import DatabaseUnavailable
from ..persistence import watch
from ..persistence.database import Database
from ..persistence.watch import Worker
from ..tasks.place import host

log = get_logger(__name__)

_LOOK_EVERY: Final = 0.25
# How long to see orphaned children out; then the time-out takes over.
_LONGEST_FAREWELL: Final = 3600.0


class Pulse:
    """The heartbeat of the worker that started this process."""

    def __init__(self, database: Database, told: dict[str, object], interval: float) -> None:
        self._database = database
        self._told = told
        self._interval = interval
        self._margin = settings().recovery.fork_margin.total_seconds() + _LOOK_EVERY
        self._parent = int(str(told["pid"]))
        self._children: dict[int, psutil.Process] = {}
        # The epoch in which the worker began; without a database to ask at its start, the first that is heard of.
        began = told.get("epoch")
        self._epoch = began if isinstance(began, int) else None
        self._fenced = False
        self.leaving = False

    def run(self) -> None:
        """Beat until the worker has left, or is gone with everything that it started."""
        self._attempt(self._bury_neighbours)
        following = 0.0
        while not self.leaving and os.getppid() == self._parent:
            if time.monotonic() >= following:
                self._attempt(self._beat)
                following = time.monotonic() + self._interval
            elif self._has_lost_a_child():
                # What it held is freed by a heartbeat that is clearly younger than the claim.
                following = min(following, time.monotonic() + self._margin)
            time.sleep(_LOOK_EVERY)
        self._farewell()

    def _has_lost_a_child(self) -> bool:
        known = set(self._children)
        return known != set(self._alive())

    def _farewell(self) -> None:
        """Speak for the children that outlive their parent; then free what they held."""
        deadline = time.monotonic() + _LONGEST_FAREWELL
        following = 0.0
        while not self.leaving and self._alive() and time.monotonic() < deadline:
            if time.monotonic() >= following:
                self._attempt(self._beat)
                following = time.monotonic() + self._interval
            time.sleep(_LOOK_EVERY)
        self._attempt(self._bury_self)

    def _beat(self) -> None:
        with self._database.statement() as connection:
            if self._epoch is None:
                self._epoch = watch.current_epoch(connection)
            lives = watch.beat(
                connection,
                Worker(
                    id=str(self._told["worker_id"]),
                    host=host(),
                    pid=self._parent,
                    pids=tuple(self._pids()),
                    queues=tuple(map(str, self._told["queues"])),  # type: ignore[call-overload]
                    types=tuple(map(str, self._told["types"])),  # type: ignore[call-overload]
                    epoch=self._epoch,
                    broker=str(self._told["broker"]),
                ),
            )
        if not lives:
            self._stop_the_worker()

    def _stop_the_worker(self) -> None:
        """End a worker of another epoch: what it has in hand is void, and what it knows may be of what was lost."""
        if self._fenced:
            return
        self._fenced = True
        log.critical(
            "worker stopped: the database was put back to an earlier point since it began; start it again",
            worker=self._told["worker_id"],
            epoch=self._epoch,
        )
        with suppress(ProcessLookupError):
            os.kill(self._parent, signal.SIGTERM)

    def _pids(self) -> list[int]:
        """Return the processes that run handlers: the children, or, without a forking pool, the worker itself."""
        if not self._told["forks"]:
            return [self._parent]
        try:
            for child in psutil.Process(self._parent).children():
                if child.pid != os.getpid():
                    self._children.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass
        return self._alive()

    def _alive(self) -> list[int]:
        """Return which of the children known so far still run; a zombie does not."""
        for pid, child in list(self._children.items()):
            try:
                gone = not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                gone = True
            if gone:
                del self._children[pid]
        return sorted(self._children)

    def _bury_self(self) -> None:
        with self._database.transaction() as session:
            freed = watch.bury(session.connection(), [str(self._told["worker_id"])])
        log.info("worker left", worker=self._told["worker_id"], freed=freed)

    def _bury_neighbours(self) -> None:
        """Free what workers of this host held whose processes are gone: no need to wait for a time-out."""
        with self._database.transaction() as session:
            connection = session.connection()
            dead = [worker for worker, pid in watch.neighbours(connection, host()) if not psutil.pid_exists(pid)]
            freed = watch.bury(connection, dead)
        if dead:
            log.info("dead workers of this host buried", workers=dead, freed=freed)

    def _attempt(self, act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except DatabaseUnavailable as error:
            log.warning("no heartbeat", reason=error.reason)


def main() -> None:
    """Read what the worker told, and beat for it."""
    told = json.loads(sys.argv[1])
    our_logging.configure(settings())
    pulse = Pulse(Database(settings().database, pool_size=1, pre_ping=False), told, settings().heartbeat_interval)

    def leave(_signal: int, _frame: FrameType | None) -> None:
        pulse.leaving = True

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pulse.run()


if __name__ == "__main__":
    main()

"""The local runner: workflows run by threads of this very process, without a broker and without workers.

For SQLite, which nobody else may serve. What runs is the same: the transition of ``transition.py``, the
sweep of ``sweep.py``, and a heartbeat, so that whatever a process leaves behind in a file goes on in the next.
"""

from __future__ import annotations

import heapq
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import count
from typing import Final

import psutil

from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.bell import Bell
from ..core.errors import AegisError, WaitTimeout
from ..core.workflow import registry
from ..persistence import watch
from ..persistence.database import Database
from ..persistence.watch import Worker
from .bench import Bench
from .checkpoint import request_checkpoints
from .place import host
from .sweep import sweep
from .transition import run_transition

log = get_logger(__name__)

# How often it looks whether something is due (seconds): timers are as precise as that.
_LOOK_EVERY: Final = 0.1
_LONGEST_STOP: Final = 60.0


class Doorbell:
    """What a broker is elsewhere: bells that wait, the most urgent first, each once."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Bell]] = []
        self._there: set[tuple[str, int]] = set()
        self._order = count()
        self._changed = threading.Condition()
        self._marked = False
        self._busy = 0

    def ring(self, bells: Sequence[Bell], /) -> bool:
        """Take bells; one that waits already is not taken twice."""
        with self._changed:
            for bell in bells:
                if (bell.workflow_id, bell.seq) not in self._there:
                    self._there.add((bell.workflow_id, bell.seq))
                    heapq.heappush(self._waiting, (-bell.priority, next(self._order), bell))
            self._changed.notify_all()
        return True

    def take(self, timeout: float) -> Bell | None:
        """Return the next bell; whoever takes one says when it is ``done`` with it."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout)
            if not self._waiting:
                return None
            bell = heapq.heappop(self._waiting)[2]
            self._there.discard((bell.workflow_id, bell.seq))
            self._busy += 1
            return bell

    def done(self) -> None:
        """Say that what the last bell asked for is done."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def is_quiet(self) -> bool:
        """Whether no bell waits, and nobody works on one."""
        with self._changed:
            return not self._waiting and not self._busy

    def lengths(self, queues: Iterable[str | None]) -> dict[str | None, int]:
        """Return how many bells wait for each queue."""
        with self._changed:
            found = Counter(bell.queue for _, _, bell in self._waiting)
        return {queue: found[queue] for queue in queues}

    def remembers(self) -> bool:
        """Whether it is the one of before; a new process has a new one."""
        return self._marked

    def remember(self) -> None:
        """Be the one of before from now on."""
        self._marked = True


class LocalRunner:
    """Runs the workflows of a database in this process: ``start``, and ``stop``; or ``run_until_idle``.

    ``threads`` is how many handlers run at once. A handler's ``timeout`` is kept; none of them can be ended, though.
    """

    def __init__(self, database: Database, settings: Settings, *, threads: int = 1) -> None:
        self.doorbell = Doorbell()
        self._database = database
        self._settings = settings
        self._threads = threads
        self._worker_id = f"local@{socket.gethostname()}-{os.getpid()}/{secrets.token_hex(4)}"
        self._bench = self._new_bench()
        self._stopping = threading.Event()
        self._running: list[threading.Thread] = []
        self._told_types: list[str] = []
        self._asked_at = time.monotonic()

    def ring(self, bells: Sequence[Bell], /) -> bool:
        """Take bells: the port that an engine rings through."""
        return self.doorbell.ring(bells)

    # --- in threads -------------------------------------------------------------------------

    def start(self) -> None:
        """Run what there is, and what comes; also what another process left behind."""
        if self._running:
            return
        self._stopping.clear()
        self._attempt(self._arrive)
        named = {"aegis-look": self._look_after}
        named |= {f"aegis-run-{number}": self._work for number in range(self._threads)}
        self._running = [threading.Thread(target=run, name=name, daemon=True) for name, run in named.items()]
        for thread in self._running:
            thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Let the handlers that run now finish, and nothing more begin; return whether they did.

        ``timeout`` is in seconds, ``AEGIS_STOP_GRACE`` by default. What did not finish is free for others.
        """
        self._stopping.set()
        deadline = time.monotonic() + (self._settings.stop_grace if timeout is None else min(timeout, _LONGEST_STOP))
        for thread in self._running:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        finished = not any(thread.is_alive() for thread in self._running)
        self._running = []
        self._attempt(self._leave)
        return finished

    def _work(self) -> None:
        while not self._stopping.is_set():
            if (bell := self.doorbell.take(_LOOK_EVERY)) is not None:
                self._run(bell)

    def _look_after(self) -> None:
        beat_at = time.monotonic() + self._settings.heartbeat_interval
        while not self._stopping.wait(_LOOK_EVERY):
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._settings.heartbeat_interval
                self._attempt(self._beat)
                self._attempt(self._sweep)
                self._attempt(self._ask_for_checkpoints)
            elif self._attempt(self._is_due):
                self._attempt(self._sweep)

    # --- in the caller's thread ---------------------------------------------------------------

    def run_until_idle(self, timeout: float | None = None) -> None:
        """Run everything that can run now; what waits for an event, a timer or a retry's delay goes on waiting.

        Here and now, or, after ``start``, in its threads. ``timeout`` is in seconds.

        Raises:
            WaitTimeout: there is still something to run.

        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._running:
            self._arrive()
        while True:
            self._sweep()
            if self.doorbell.is_quiet() and not self._is_due():
                return
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout("(all)", timeout or 0.0, "running", "not idle")
            self._do_one()

    def _do_one(self) -> None:
        if self._running:
            time.sleep(_LOOK_EVERY / 10)
        elif (bell := self.doorbell.take(0)) is not None:
            self._run(bell)

    # --- what it does ---------------------------------------------------------------------------

    def _run(self, bell: Bell) -> None:
        if self._bench.known != registry.known():  # a class that was made since
            self._bench = self._new_bench()
        try:
            run_transition(self._bench, bell.workflow_id, bell.seq)
        except Exception:
            log.exception("a fault in AEGIS", workflow_id=bell.workflow_id, seq=bell.seq)
        finally:
            self.doorbell.done()

    def _new_bench(self) -> Bench:
        return Bench(self._settings, self._database, self.ring, self._worker_id)

    def _arrive(self) -> None:
        """Say that we live, and free what the processes held that are gone."""
        self._beat()
        with self._database.transaction() as session:
            connection = session.connection()
            neighbours = watch.neighbours(connection, host())
            dead = [worker for worker, pid in neighbours if not psutil.pid_exists(pid)]
            freed = watch.bury(connection, dead)
        if dead:
            log.info("processes that are gone buried", workers=dead, freed=freed)

    def _leave(self) -> None:
        with self._database.transaction() as session:
            watch.bury(session.connection(), [self._worker_id])

    def _beat(self) -> None:
        pid, types = os.getpid(), tuple(registry.known())
        self._told_types = list(types)
        told = Worker(id=self._worker_id, host=host(), pid=pid, pids=(pid,), queues=(), types=types)
        with self._database.statement() as connection:
            watch.beat(connection, told)

    def _sweep(self) -> None:
        if self._told_types != registry.known():
            self._beat()
        sweep(self._database, self.doorbell, self._settings.recovery)

    def _is_due(self) -> bool:
        with self._database.statement() as connection:
            return watch.is_due(connection, registry.known())

    def _ask_for_checkpoints(self) -> None:
        interval = self._settings.checkpoint_interval * 0.9  # early, because it is asked that often
        if time.monotonic() - self._asked_at > interval:
            self._asked_at = time.monotonic()
            request_checkpoints(self._database, timedelta(seconds=interval))

    @staticmethod
    def _attempt(act: Callable[[], bool | None]) -> bool:
        try:
            return bool(act())
        except AegisError as error:
            log.warning("not done", what=getattr(act, "__name__", "?").strip("_"), reason=str(error))
            return False

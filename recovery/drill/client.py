"""The client: starts workflows and sends events at a steady rate, from outside, and believes only answers.

What was answered with an error it asks for again, with the same id or key, until it is acknowledged:
as applications do. An error does not say that nothing was written.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...core.errors import AegisError, WorkflowNotFound
from ...core.workflow import Workflow
from ...persistence.durable import DurableWorkflowEngine
from .ledger import EVENT, START, ClientLedger, Request
from .workload import DrillApproval, DrillLong, DrillSteps

_DECIDES: Final = "decide"
# How soon after its start an approval is decided, and how soon a refused request is tried again (seconds).
_THINKS: Final = 0.4
_AGAIN: Final = 0.5
# One in so many is an approval, one in so many a long handler.
_APPROVALS: Final = 3
_LONG: Final = 12
_HANDS: Final = 3


@dataclass(frozen=True)
class _Job:
    """Something to ask for, not before ``due``."""

    due: float
    kind: str
    workflow_id: str
    workflow: Workflow


class Client:
    """Asks ``rate`` times a second for a new workflow, until it is told to stop."""

    def __init__(
        self, engine: DurableWorkflowEngine, ledger: ClientLedger, outside: str, prefix: str, drawn: random.Random
    ) -> None:
        self._engine, self._ledger, self._outside, self._prefix = engine, ledger, outside, prefix
        self._random = drawn
        self._jobs: deque[_Job] = deque()
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._count = 0
        self._under_way = 0
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def beside(self, engine: DurableWorkflowEngine, name: str) -> Client:
        """Return another client, that writes into the same ledger."""
        return Client(engine, self._ledger, self._outside, f"{self._prefix}{name}", self._random)

    def requests(self) -> list[Request]:
        """Return what was asked so far, and answered."""
        with self._lock:
            return list(self._requests)

    # --- what is asked for --------------------------------------------------------------

    def run(self, rate: float) -> None:
        """Begin; returns at once."""
        hands = [threading.Thread(target=self._work, name="drill client", daemon=True) for _ in range(_HANDS)]
        pace = threading.Thread(target=self._pace, args=(rate,), name="drill pace", daemon=True)
        self._threads = [*hands, pace]
        for thread in self._threads:
            thread.start()

    def burst(self, count: int, make: Callable[[], Workflow] | None = None) -> list[str]:
        """Ask for so many more at once; return their ids."""
        return [self._ask(make() if make is not None else self.steps()) for _ in range(count)]

    def long(self, goal: int) -> DrillLong:
        """Return a workflow with one handler of so many turns."""
        return DrillLong(outside=self._outside, goal=goal)

    def steps(self) -> DrillSteps:
        """Return a workflow of four short transitions."""
        return DrillSteps(outside=self._outside, pause=round(self._random.uniform(0.005, 0.04), 3))

    def rest(self, within: float) -> bool:
        """Ask for nothing new; return whether all that was asked for is acknowledged in time (seconds)."""
        self._ending.set()
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with self._lock:
                if not self._jobs and not self._under_way:
                    return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """Drop what is left, and end."""
        self._ending.set()
        with self._lock:
            self._jobs.clear()
        for thread in self._threads:
            thread.join(15)

    def _pace(self, rate: float) -> None:
        following = time.monotonic()
        while not self._ending.wait(max(0.0, following - time.monotonic())):
            following = max(following + 1 / rate, time.monotonic() - 1)
            self._ask(self._next())

    def _next(self) -> Workflow:
        if self._count % _LONG == _LONG - 1:
            return self.long(40)
        if self._count % _APPROVALS == 1:
            return DrillApproval(outside=self._outside)
        return self.steps()

    def _ask(self, workflow: Workflow) -> str:
        with self._lock:
            workflow_id = f"{self._prefix}{self._count:05d}"
            self._count += 1
            self._jobs.append(_Job(0.0, START, workflow_id, workflow))
        return workflow_id

    # --- asking ---------------------------------------------------------------------------

    def _work(self) -> None:
        while not (self._ending.is_set() and self._is_idle()):
            job = self._take()
            if job is None:
                time.sleep(0.01)
                continue
            try:
                self._do(job)
            finally:
                with self._lock:
                    self._under_way -= 1

    def _is_idle(self) -> bool:
        with self._lock:
            return not self._jobs and not self._under_way

    def _take(self) -> _Job | None:
        now = time.monotonic()
        with self._lock:
            for _ in range(len(self._jobs)):
                job = self._jobs.popleft()
                if job.due <= now:
                    self._under_way += 1
                    return job
                self._jobs.append(job)
        return None

    def _do(self, job: _Job) -> None:
        asked_at, error, new, gone = time.monotonic(), "", True, False
        try:
            if job.kind == START:
                new = self._engine.start(job.workflow, id=job.workflow_id).new
            else:
                self._engine.send(job.workflow_id, _DECIDES, "yes", key=_DECIDES)
        except AegisError as refused:
            error, gone = f"{type(refused).__name__}: {refused}", isinstance(refused, WorkflowNotFound)
        key = "" if job.kind == START else _DECIDES
        answered_at = time.monotonic()
        request = Request(
            kind=job.kind,
            workflow_id=job.workflow_id,
            key=key,
            asked_at=asked_at,
            answered_at=answered_at,
            error=error,
            new=new,
        )
        self._ledger.add(request)
        with self._lock:
            self._requests.append(request)
        self._follow(job, failed=bool(error), gone=gone)

    def _follow(self, job: _Job, *, failed: bool, gone: bool) -> None:
        later = time.monotonic() + (_AGAIN if failed else _THINKS)
        # What is not there any more, although it was acknowledged, is asked for once more.
        kind = START if gone or (failed and job.kind == START) else EVENT
        with self._lock:
            if failed or (job.kind == START and isinstance(job.workflow, DrillApproval)):
                self._jobs.append(_Job(later, kind, job.workflow_id, job.workflow))

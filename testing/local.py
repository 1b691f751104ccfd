"""Workflows in a test's own process: no servers, no threads, and a clock that the test moves on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ..config.settings import Settings, settings
from ..core.errors import InvalidData
from ..persistence.database import Database
from ..persistence.durable import DurableWorkflowEngine
from ..persistence.migrate import upgrade
from ..persistence.operations import Terms
from ..tasks.local import LocalRunner

_DEPLOYMENT: Final = "aegis.test/local"
_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class Local:
    """An engine, and what runs its workflows when the test says so."""

    engine: DurableWorkflowEngine
    runner: LocalRunner

    def run(self, timeout: float = _PATIENCE) -> None:
        """Run everything that can run now, in this thread; what waits goes on waiting.

        Raises:
            WaitTimeout: after so many seconds there is still something to run.

        """
        self.runner.run_until_idle(timeout)

    def advance(self, by: timedelta) -> None:
        """Let so much time have passed: for timers, deadlines, delays and the back-off of retries.

        Raises:
            InvalidData: time does not run backwards.

        """
        if by < timedelta(0):
            raise InvalidData("the time", [("/by", f"{by} is negative: time does not run backwards")])
        self.engine.database.shift += by


@contextmanager
def local_engine(
    address: str = "sqlite://", *, actor: str = "user:test", configured: Settings | None = None
) -> Iterator[Local]:
    """Give an engine on a database of its own, in memory or in a file of SQLite's.

    Raises:
        ConfigurationError: it is no address of SQLite's, or its file is another version's.

    """
    told = settings() if configured is None else configured
    database = Database(address)
    try:
        upgrade(database, deployment=_DEPLOYMENT)
        runner = LocalRunner(database, told)
        terms = Terms(actor=actor, grace=timedelta(seconds=told.ring_grace), max_bytes=told.max_bytes)
        yield Local(DurableWorkflowEngine(database, runner.ring, terms), runner)
    finally:
        database.close()

"""The stores and the engines that behave alike: what the conformance tests run on, all of them the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text, update

from aegis.config.settings import Settings
from aegis.core.chain import MacKey
from aegis.core.note import SigningKey
from aegis.persistence import awaited, durable
from aegis.persistence.auditor import Sources
from aegis.persistence.database import Database
from aegis.persistence.guards import APPEND_ONLY
from aegis.persistence.models import WorkflowRow
from aegis.persistence.operations import Terms
from aegis.tasks.local import LocalRunner

STORES: Final = ("postgresql", "file", "memory")
ENGINES: Final = ("blocking", "awaited")
MAX_BYTES: Final = 256 * 1024
# Somebody is trusted: without any key nothing at all is imported.
TRUSTED: Final = SigningKey(name="aegis.example/log", private=Ed25519PrivateKey.from_private_bytes(bytes(32))).verifier


class Driven:
    """An engine that is awaited, driven by a loop of its own: to be called like the one that blocks."""

    def __init__(self, engine: Any, loop: asyncio.Runner) -> None:
        self._engine, self._loop = engine, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            return self._wrapped(self._loop.run(found(*arguments, **options)))

        return call

    def _wrapped(self, found: Any) -> Any:
        if isinstance(found, awaited.Handle):
            return Driven(found, self._loop)
        if isinstance(found, list):
            return [self._wrapped(one) for one in found]
        return found


@dataclass
class World:
    """A store, an engine on it, and what runs its workflows when the test says so."""

    store: str
    database: Database
    engine: Any
    runner: LocalRunner

    def run(self) -> None:
        """Run everything that can run now."""
        self.runner.run_until_idle(30)

    def pass_time(self, by: timedelta) -> None:
        """Have everything that waits have waited for so much longer."""
        moved = {
            name: WorkflowRow.__table__.c[name] - by
            for name in ("ready_at", "due_at", "timer_at", "entered_at", "deadline")
        }
        with self.database.transaction() as session:
            session.connection().execute(update(WorkflowRow).values(moved))

    def edit(self, statement: Any) -> int:
        """Change what nobody may change, past the triggers; return how many rows."""
        with self.database.transaction() as session:
            connection = session.connection()
            if not self.database.is_sqlite:
                connection.execute(text("SET LOCAL session_replication_role = replica"))
                return connection.execute(statement).rowcount
            made = [
                row
                for row in connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
                if any(table in row.sql for table in APPEND_ONLY)
            ]
            for row in made:
                connection.execute(text(f"DROP TRIGGER {row.name}"))
            changed = connection.execute(statement).rowcount
            for row in made:
                connection.execute(text(row.sql))
            return changed


def make_engine(
    kind: str,
    database: Database,
    ring: Callable[[Sequence[Any]], bool],
    *,
    mac_key: MacKey | None = None,
    **terms_: Any,
) -> durable.DurableWorkflowEngine | awaited.DurableWorkflowEngine:
    """Make an engine of one of the two kinds."""
    terms = Terms(actor="user:ada", grace=timedelta(seconds=5), max_bytes=MAX_BYTES, mac_key=mac_key, **terms_)
    sources = Sources(mac_keys=() if mac_key is None else (mac_key,), trusted=(TRUSTED,))
    if kind == "blocking":
        return durable.DurableWorkflowEngine(database, ring, terms, sources)
    return awaited.DurableWorkflowEngine(database, ring, terms, sources)


def make_runner(database: Database, **settings: Any) -> LocalRunner:
    """Make a runner that no test waits for."""
    return LocalRunner(database, Settings(home=Path("/nonexistent"), **settings))

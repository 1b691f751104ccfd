"""The engine that is awaited: ``from aegis import DurableWorkflowEngine``. ``aegis.sync`` has the same, blocking."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import Self

from celery import Celery

from .assembly import assemble
from .config.settings import settings
from .core.errors import NotOnSQLite
from .persistence.awaited import DurableWorkflowEngine as _Engine
from .persistence.awaited_reader import AwaitedReader
from .persistence.database import Database


class DurableWorkflowEngine(_Engine):
    """Start workflows, send them events, read and steer them. Awaited; for one event loop.

    ``persistence`` is a ``Database``, or the address of one: ``postgresql://...``, ``sqlite:///file.db``,
    or ``sqlite://`` for one in memory. Without it the engine uses what ``AEGIS_DATABASE_URL`` and
    ``AEGIS_BROKER_URL`` name, or the private servers of ``aegis up``; and where there is nothing at all, a
    database in memory, which it says when it starts. On SQLite the engine runs the workflows itself, in a
    thread of this process, until ``close``.

    Without ``checkpoint_on_transition``, automatic transitions of what this engine starts that follow each other
    at once may be recorded together: faster, and what a killed worker had not recorded is run again.

    ``app`` is the Celery app whose broker is rung; ``actor`` is who the history says acted,
    ``user:<login>`` by default.
    """

    def __init__(
        self,
        persistence: Database | str | None = None,
        *,
        checkpoint_on_transition: bool = True,
        app: Celery | None = None,
        actor: str | None = None,
    ) -> None:
        """Prepare everything; the first verb connects, and checks the schema.

        Raises:
            ConfigurationError: a setting, an address or an argument cannot be used.

        """
        parts = assemble(persistence, checkpoint_on_transition=checkpoint_on_transition, app=app, actor=actor)
        self._runner, self._owned = parts.runner, parts.owned
        super().__init__(parts.database, parts.ring, parts.terms, parts.sources, ring_blocks=parts.runner is None)
        if parts.runner is not None:
            parts.runner.start()

    def standby(self, *, stale_ok: timedelta, after: str | None = None) -> AwaitedReader:
        """Return the verbs that read, from a standby that is at most ``stale_ok`` behind; or else from the primary.

        It knows whatever this engine has written before each call, and what stands before ``after``, a token
        of another engine's. Of what was started with a bare connection of psycopg nobody tells it: it knows that
        after ``ring``. Standbys are the hosts of ``AEGIS_REPLICA_URL``, or those of the engine's address.

        Raises:
            InvalidData: the bound is no positive time, or the token none.
            NotOnSQLite: it has no standbys.

        """
        if self.database.is_sqlite:
            raise NotOnSQLite("a standby", "read the database itself")
        url = settings().replica_url or self.database.address.render_as_string(hide_password=False)
        return self._reader(url, stale_ok=stale_ok, after=after)

    async def close(self) -> None:
        """Let the handlers that this engine runs finish; and close the database, unless it was handed over as one."""
        if self._runner is not None:
            await asyncio.to_thread(self._runner.stop)
        await super().close()
        if self._owned:
            self.database.close()

    async def __aenter__(self) -> Self:
        """Return the engine, which is closed at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

"""The blocking engine: ``from aegis.sync import DurableWorkflowEngine``. ``aegis`` has the same, awaited."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Self

from celery import Celery

from .assembly import assemble
from .config.settings import settings
from .core.errors import AegisError, NotOnSQLite
from .core.starting import Start
from .persistence import schema
from .persistence.database import Database
from .persistence.durable import DurableWorkflowEngine as _Engine
from .persistence.durable import Handle
from .persistence.reader import Reader
from .persistence.records import Checkpoint, Effect, WorkflowSummary, WorkflowTransition
from .persistence.standbys import Standbys

__all__ = [
    "AegisError",
    "Checkpoint",
    "Database",
    "DurableWorkflowEngine",
    "Effect",
    "Handle",
    "Start",
    "WorkflowSummary",
    "WorkflowTransition",
]


class DurableWorkflowEngine(_Engine):
    """Start workflows, send them events, read and steer them. Blocking; safe for many threads.

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
        """Connect, and check that the database has the schema that is needed.

        Raises:
            ConfigurationError: a setting, an address or an argument cannot be used.
            DatabaseUnavailable: the database does not answer.
            SchemaMismatch: `aegis db upgrade` has to be run.

        """
        parts = assemble(persistence, checkpoint_on_transition=checkpoint_on_transition, app=app, actor=actor)
        schema.check(parts.database)
        self._runner, self._owned = parts.runner, parts.owned
        super().__init__(parts.database, parts.ring, parts.terms, parts.sources)
        if parts.runner is not None:
            parts.runner.start()

    def standby(self, *, stale_ok: timedelta, after: str | None = None) -> Reader:
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
        return Reader(self, Standbys(url, self.database), stale_ok=stale_ok, after=after)

    def close(self) -> None:
        """Let the handlers that this engine runs finish; and close the database, unless it was handed over as one."""
        if self._runner is not None:
            self._runner.stop()
        if self._owned:
            self.database.close()

    def __enter__(self) -> Self:
        """Return the engine, which is closed at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

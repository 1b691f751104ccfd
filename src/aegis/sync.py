"""The blocking engine: ``from aegis.sync import DurableWorkflowEngine``.

This is where the parts meet: the engine of ``persistence``, and the bell of ``tasks``.
"""

from __future__ import annotations

import getpass
from datetime import timedelta

from celery import Celery

from .config.keys import active_mac_key
from .config.settings import settings
from .core.errors import AegisError
from .core.names import check_name
from .core.starting import Start
from .persistence import schema
from .persistence.database import Database
from .persistence.durable import DurableWorkflowEngine as _Engine
from .persistence.durable import Handle
from .persistence.operations import Terms
from .persistence.records import Checkpoint, Effect, WorkflowSummary, WorkflowTransition
from .tasks.broker import Broker
from .tasks.scrub import sources
from .workers.factory import make_app

__all__ = [
    "AegisError",
    "Checkpoint",
    "DurableWorkflowEngine",
    "Effect",
    "Handle",
    "Start",
    "WorkflowSummary",
    "WorkflowTransition",
]


class DurableWorkflowEngine(_Engine):
    """Start workflows, send them events, read and steer them. Blocking; safe for many threads.

    Without arguments it uses what ``AEGIS_DATABASE_URL`` and ``AEGIS_BROKER_URL`` name, or the
    private servers of ``aegis up``. ``persistence`` is a ``Database`` of your own; ``app`` is the
    Celery app whose broker is rung; ``actor`` is who the history says acted, ``user:<login>`` by
    default.
    """

    def __init__(
        self, persistence: Database | None = None, *, app: Celery | None = None, actor: str | None = None
    ) -> None:
        """Connect, and check that the database has the schema that is needed.

        Raises:
            ConfigurationError: a setting cannot be used.
            DatabaseUnavailable: the database does not answer.
            SchemaMismatch: `aegis db upgrade` has to be run.

        """
        configured = settings()
        database = Database(configured.database) if persistence is None else persistence
        schema.check(database)
        terms = Terms(
            actor=check_name("actor", f"user:{_login()}" if actor is None else actor),
            grace=timedelta(seconds=configured.ring_grace),
            max_bytes=configured.max_bytes,
            mac_key=active_mac_key(configured),
        )
        ring = Broker(make_app(configured) if app is None else app).ring
        super().__init__(database, ring, terms, sources(configured))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container that runs as a uid without a name
        return "unknown"

"""What commands work with: the database alone for reading, the whole engine for steering."""

from __future__ import annotations

from datetime import timedelta

import click

from ..config.settings import settings
from ..persistence import schema
from ..persistence.database import Database
from ..persistence.durable import DurableWorkflowEngine
from ..persistence.standbys import Standbys
from ..workers.load import load_workflows

stale_option = click.option(
    "--stale-ok",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Read from a standby that is at most so far behind.",
)


def database(stale_ok: float | None = None) -> Database:
    """Return the database, known to answer and to have the right schema; or a standby of it that is fresh enough.

    Raises:
        ConfigurationError, DatabaseUnavailable, SchemaMismatch: it cannot be used.

    """
    if stale_ok is not None:
        primary = Database(settings().database, pool_size=1, pre_ping=False)
        standbys = Standbys(settings().replica_url or settings().database, primary, pool_size=1)
        for standby in standbys.fresh(stale_ok=timedelta(seconds=stale_ok)):
            return standby
    found = Database(settings().database, pool_size=1, pre_ping=False)
    schema.check(found)
    return found


def engine() -> DurableWorkflowEngine:
    """Return the engine, with the user's workflows loaded.

    Raises:
        ConfigurationError, DatabaseUnavailable, SchemaMismatch: it cannot be used.

    """
    from ..config import logging  # noqa: PLC0415 - only what steers needs Celery, which takes time to load
    from ..sync import DurableWorkflowEngine as Engine  # noqa: PLC0415

    logging.configure(settings().model_copy(update={"log_level": "error"}))
    load_workflows(settings().workflows)
    return Engine(Database(settings().database))  # whatever is configured: a command's own memory would be no use

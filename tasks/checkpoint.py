"""The periodic checkpoint: ask every handler that has run for long to save what it has."""

from __future__ import annotations

from datetime import timedelta

from ..config.logging import get_logger
from ..persistence import watch
from ..persistence.database import Database

log = get_logger(__name__)


def request_checkpoints(database: Database, interval: timedelta) -> int:
    """Ask every handler whose last checkpoint is older than ``interval``; return how many were asked.

    A handler gives it at its next ``ctx.progress()``.

    Raises:
        DatabaseUnavailable: the next request asks instead.

    """
    with database.statement() as connection:
        asked = watch.ask_for_checkpoints(connection, interval)
    if asked:
        log.info("asked for checkpoints", handlers=asked)
    return asked

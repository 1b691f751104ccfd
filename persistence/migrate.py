"""Bringing the schema to its newest version, with Alembic; safe for several processes at once. SQLite's is made."""

from __future__ import annotations

import threading
import uuid
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from ..core.errors import SchemaMismatch
from . import schema, sql, sqlite_tables
from .database import Database
from .models import Base, DeploymentRow, LogStateRow, ScrubRow, SweepRow

_one_at_a_time: Final = threading.Lock()


def upgrade(database: Database, *, deployment: str = "") -> str:
    """Bring the schema to its newest version, and return that.

    ``deployment`` names this deployment in every hash from now on, if it has no name yet. In SQLite the
    tables are made, if there are none.

    Raises:
        SchemaMismatch: the schema is newer than this AEGIS.
        ConfigurationError: the tables of a file are another version's.

    """
    # Alembic keeps what it works on in globals; between processes, the lock is in migrations/env.py.
    with _one_at_a_time, database.transaction() as session:
        connection = session.connection()
        found = schema.current(connection)
        if database.is_sqlite:
            _make(database, connection, found, deployment)
            return schema.wanted()
        if found is not None and found > schema.wanted():
            raise SchemaMismatch(found, schema.wanted())
        config = Config()
        config.set_main_option("script_location", "aegis.persistence:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        first_rows(connection, deployment or f"aegis/{uuid.uuid4()}")
    return schema.wanted()


def _make(database: Database, connection: Connection, found: str | None, deployment: str) -> None:
    if found is None:
        sqlite_tables.create(connection, schema.VERSION_TABLE, schema.wanted())
    elif found != schema.wanted():
        raise sqlite_tables.other_version(database.url, found, schema.wanted())
    first_rows(connection, deployment or f"aegis/{uuid.uuid4()}")


def first_rows(connection: Connection, deployment: str) -> None:
    """Write the rows that a deployment begins with, one to a table, where they are not there yet."""
    now = sql.now()
    rows: dict[type[Base], dict[str, Any]] = {
        DeploymentRow: {"name": deployment, "created_at": now},
        SweepRow: {"ran_at": now, "since": now},
        LogStateRow: {"size": 0, "horizon": 0, "system": ""},
        ScrubRow: {"started_at": now, "place": "", "verified": 0, "covered": 0, "found": [], "findings": []},
    }
    for table, values in rows.items():
        connection.execute(sql.upsert(table).values(id=1, **values).on_conflict_do_nothing())

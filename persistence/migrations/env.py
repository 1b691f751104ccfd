"""Alembic's entry: one connection, one advisory lock, one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, text

from aegis.config.settings import settings
from aegis.persistence.models import Base
from aegis.persistence.schema import VERSION_TABLE

# The letters of "aegi".
_LOCK = 0x61656769


def _run(connection: Connection) -> None:
    # Two `aegis up` at once: the second waits here, and then finds nothing left to do.
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_name=lambda name, kind, _: kind != "table" or bool(name and name.startswith("aegis_")),
        compare_server_default=True,
    )
    context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:  # called by the `alembic` command itself
    with create_engine(settings().database).begin() as connection:
        _run(connection)

"""The schema's version: what the database has, and what this AEGIS needs. ``migrate.py`` changes it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

from sqlalchemy import Connection, inspect, select, text

from ..core.errors import ConfigurationError, SchemaMismatch
from .database import Database
from .models import DeploymentRow

# Alembic calls its table alembic_version; ours must not meet an application's own.
VERSION_TABLE: Final = "aegis_schema"


def current(connection: Connection) -> str | None:
    """Return the schema's version; None where there is no AEGIS schema."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()  # noqa: S608
    return found


def check(database: Database) -> str:
    """Return the schema's version.

    Raises:
        SchemaMismatch: it is not the one that this AEGIS works with.

    """
    with database.statement() as connection:
        found = current(connection)
    if found != wanted():
        raise SchemaMismatch(found, wanted())
    return wanted()


@cache
def wanted() -> str:
    """Return the version of the schema that this AEGIS works with: that of its newest migration.

    Read off the files' names, because loading Alembic would take longer than everything else that
    a short command does.
    """
    files = (resources.files(__package__) / "migrations" / "versions").iterdir()
    return max(file.name.partition("_")[0] for file in files if file.name[0].isdigit())


def deployment_name(connection: Connection) -> str:
    """Return the name that every chain of this database begins with.

    Raises:
        ConfigurationError: somebody removed it.

    """
    name = connection.execute(select(DeploymentRow.name)).scalar_one_or_none()
    if name is None:
        raise no_deployment_name()
    return name


def no_deployment_name() -> ConfigurationError:
    """Return what to say where the deployment has no name: no hash can be made or checked without it."""
    remedy = "restore that row; `aegis db upgrade` would make a new name, which no existing history begins with"
    return ConfigurationError("aegis_deployment", "the table is empty", remedy)

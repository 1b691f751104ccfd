"""The tables in SQLite: made at once, never migrated; a file of another version is refused."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateIndex, CreateTable

from ..core.errors import ConfigurationError
from .guards import APPEND_ONLY
from .models import Base

# STRICT tables hold what their columns say, and know only these types.
_TYPES: Final = {"BIGINT": "INTEGER", "SMALLINT": "INTEGER", "JSON": "TEXT", "BOOLEAN": "INTEGER"}
_TYPE: Final = re.compile(rf"\b({'|'.join(_TYPES)})\b(?=,? |,?\n)")
_ONLY_GROWS: Final = (
    "CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} BEGIN"
    " SELECT RAISE(ABORT, '{table} is append-only: its rows are never changed or removed'); END"
)


def create(connection: Connection, version_table: str, version: str) -> None:
    """Make all tables, and keep those append-only that are."""
    for table in Base.metadata.sorted_tables:
        made = str(CreateTable(table).compile(connection)).rstrip()
        connection.exec_driver_sql(_TYPE.sub(lambda match: _TYPES[match[1]], made) + " STRICT")
        for index in sorted(table.indexes, key=lambda one: str(one.name)):
            if index.dialect_options["postgresql"]["using"] != "gin":
                connection.execute(CreateIndex(index))
    for name in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(_ONLY_GROWS.format(table=name, verb=verb))
    connection.exec_driver_sql(f"CREATE TABLE {version_table} (version_num TEXT PRIMARY KEY) STRICT")
    connection.execute(text(f"INSERT INTO {version_table} VALUES (:version)"), {"version": version})  # noqa: S608


def other_version(url: str, found: str, wanted: str) -> ConfigurationError:
    """Return what to say of a file whose tables another version of AEGIS made."""
    remedy = (
        "SQLite's files are not brought forward: export what it holds with the AEGIS that made it, and import that "
        "into a new file"
    )
    return ConfigurationError(url, f"its tables are of version {found}, this AEGIS works with {wanted}", remedy)

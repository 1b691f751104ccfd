"""What keeps the history append-only in the database itself: triggers, and what our role may not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from . import sqlite
from .models import AnchorRow, LogRow, NodeRow, RemovalRow, TransitionRow

APPEND_ONLY: Final = tuple(table.__tablename__ for table in (TransitionRow, LogRow, NodeRow, AnchorRow, RemovalRow))
# For rows, and for the whole table.
_TRIGGERS: Final = ("aegis_append_only_row", "aegis_append_only_all")


_TABLES: Final = text("""
    SELECT n.name, pg_has_role(c.relowner, 'USAGE') AS owned,
        has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') AS changeable,
        (SELECT count(*) FROM pg_trigger t
            WHERE t.tgrelid = c.oid AND t.tgname = ANY(:triggers) AND t.tgenabled IN ('O', 'A')) AS triggers
    FROM unnest(CAST(:tables AS text[])) WITH ORDINALITY AS n (name, place)
    LEFT JOIN pg_class c ON c.oid = to_regclass(n.name)
    ORDER BY n.place
""")
_ROLE: Final = text("""
    SELECT current_user, rolsuper, current_setting('session_replication_role') <> 'origin'
    FROM pg_roles WHERE rolname = current_user
""")


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What is in force; ``role`` is who we are."""

    role: str
    unguarded: tuple[str, ...]
    """The tables that are append-only, and whose triggers are not in force."""
    may_switch_off: bool
    """Whether this role owns the tables, or is a superuser: then it can switch the triggers off."""
    may_change: tuple[str, ...]
    """The append-only tables that this role has the right to change, were it not for the triggers."""


def read(connection: Connection) -> Guards:
    """Return what is in force on this connection.

    Raises:
        NotOnSQLite: whoever may write a file may write anything into it.

    """
    sqlite.refuse(connection, "an account of roles and triggers")
    rows = connection.execute(_TABLES, {"tables": list(APPEND_ONLY), "triggers": list(_TRIGGERS)}).all()
    role, superuser, silenced = connection.execute(_ROLE).one()
    return Guards(
        role=role,
        unguarded=tuple(row.name for row in rows if silenced or row.triggers < len(_TRIGGERS)),
        may_switch_off=superuser or any(row.owned for row in rows),
        may_change=tuple(row.name for row in rows if row.changeable),
    )

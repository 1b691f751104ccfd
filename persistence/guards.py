"""What keeps the history append-only in the database itself: triggers, and what our role may not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from . import sqlite
from .models import AnchorRow, LogRow, NodeRow, RemovalRow, TransitionRow

APPEND_ONLY: Final = tuple(table.__tablename__ for table in (TransitionRow, LogRow, NodeRow, AnchorRow, RemovalRow))
# With their pg_trigger.tgtype: 1 for each row, 2 before, 8 DELETE, 16 UPDATE, 32 TRUNCATE.
_TRIGGERS: Final = {"aegis_append_only_row": 1 + 2 + 8 + 16, "aegis_append_only_all": 2 + 32}
# SHA-256 of what the functions say, as the migrations made them: under its name anything may stand.
_REFUSE: Final = "e70ec957e2e1367eb956f256b488f1713972781175dd81476b0e0fc4f122072f"
_PURGE: Final = "655fd16d263e6cfc982786eab6a73f315dd7ae7505ef9a68cd43232af432b21c"


_TABLES: Final = text("""
    SELECT n.name, pg_has_role(c.relowner, 'USAGE') AS owned,
        has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') AS changeable,
        (SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            JOIN unnest(CAST(:triggers AS text[]), CAST(:types AS int[])) AS w (name, type)
                ON w.name = t.tgname AND w.type = t.tgtype
            WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')
                -- On all columns and under no condition; and no other search path, in which names mean something else.
                AND t.tgattr = '' AND t.tgqual IS NULL AND p.proconfig IS NULL
                AND encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex') = :refuse) AS triggers
    FROM unnest(CAST(:tables AS text[])) WITH ORDINALITY AS n (name, place)
    LEFT JOIN pg_class c ON c.oid = to_regclass(n.name)
    ORDER BY n.place
""")
# The one way out: transitions of a workflow that a record says is purged.
_WAY_OUT: Final = text("""
    SELECT count(*) FROM pg_proc p
    WHERE p.oid = to_regprocedure('aegis_purge(text)')
        AND encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex') <> :purge
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
    """The tables that are append-only, and whose triggers are not in force, or are not those that were made."""
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
    wanted = {"triggers": list(_TRIGGERS), "types": list(_TRIGGERS.values()), "refuse": _REFUSE}
    rows = connection.execute(_TABLES, {"tables": list(APPEND_ONLY), **wanted}).all()
    wider = connection.execute(_WAY_OUT, {"purge": _PURGE}).scalar_one() > 0
    role, superuser, silenced = connection.execute(_ROLE).one()
    return Guards(
        role=role,
        unguarded=tuple(
            row.name
            for row in rows
            if silenced or row.triggers < len(_TRIGGERS) or (wider and row.name == TransitionRow.__tablename__)
        ),
        may_switch_off=superuser or any(row.owned for row in rows),
        may_change=tuple(row.name for row in rows if row.changeable),
    )

"""Vouching for what was read: it counts once a standby has it, too."""

from __future__ import annotations

from sqlalchemy import Connection, func, select


def vouch(connection: Connection) -> None:
    """Make the transaction wait at its commit, as if it had written, for everything that it has seen.

    PostgreSQL shows rows whose commit was broken off while it waited for a standby. Who merely reads one, and
    says that it was accepted, would say so of something that a fail-over takes away. On a standby, which may
    not have heard of it yet, it fails as any other write does.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_logical_emit_message(True, "aegis", "")))

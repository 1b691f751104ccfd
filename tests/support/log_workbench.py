"""What the tests of the log and its anchors work with: transitions without workflows, many of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import text
from store_workbench import sql

from aegis.core.anchor import Entry
from aegis.core.merkle import Frontier, leaf_hash
from aegis.persistence import log
from aegis.persistence.database import Database

# A transition's row as far as the log looks at it: number n of a workflow, its hash made from both.
_ROWS = """
    INSERT INTO aegis_transition (workflow_id, seq, event, to_state, actor, attempt, at, envelope, hash)
    SELECT %(workflow)s, n, 'step', 'there', 'worker:test', 1, clock_timestamp(), '',
           sha256(convert_to(%(workflow)s || ' ' || n, 'UTF8'))
    FROM generate_series(%(start)s::bigint, %(start)s + %(count)s - 1) AS n
"""
_LEAVES = """
    INSERT INTO aegis_log (log_index, workflow_id, seq, hash)
    SELECT n, 'bulk', n, sha256(convert_to('bulk ' || n, 'UTF8')) FROM generate_series(0, :count - 1) AS n
"""


def digest(workflow: str, seq: int) -> bytes:
    """The hash of such a transition."""
    return hashlib.sha256(f"{workflow} {seq}".encode()).digest()


def entry(workflow: str, seq: int) -> Entry:
    return Entry(workflow_id=workflow, seq=seq, hash=digest(workflow, seq))


def add(database: Database, workflow: str, count: int = 1, *, start: int = 0) -> None:
    """Commit transitions, in one transaction."""
    with database.transaction() as session:
        session.connection().exec_driver_sql(_ROWS, {"workflow": workflow, "start": start, "count": count})


def add_leaves(database: Database, count: int) -> None:
    """Make the empty log that long at once: entries ``bulk 0``, ``bulk 1``, ..., with the nodes over them."""
    sql(database, _LEAVES, count=count)
    with database.transaction() as session:
        log._keep_nodes(session.connection(), 0, count)
    with database.statement() as connection:
        connection.execute(text("UPDATE aegis_log_state SET size = :count"), {"count": count})


class Writer:
    """A connection of one's own, in a transaction that ends when the test says so."""

    def __init__(self, database: Database) -> None:
        url = database.engine.url
        self._connection = psycopg2.connect(host=url.query["host"], user=url.username, dbname=url.database)
        self._cursor = self._connection.cursor()

    def add(self, workflow: str, count: int = 1, *, start: int = 0) -> None:
        self._cursor.execute(_ROWS, {"workflow": workflow, "start": start, "count": count})

    def execute(self, statement: str) -> Any:
        self._cursor.execute(statement)
        return self._cursor.fetchone()[0] if self._cursor.description else None

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        """Break it off, whatever it was doing."""
        self._connection.close()


@contextmanager
def writing(database: Database) -> Iterator[Writer]:
    writer = Writer(database)
    try:
        yield writer
    finally:
        writer.close()


def take_up(database: Database, limit: int = 5000) -> int:
    """Take up one batch, as a process that has the log."""
    with database.transaction() as session:
        connection = session.connection()
        assert log.lock(connection)
        return log.take_up(connection, limit)


def take_up_all(database: Database, limit: int = 5000) -> int:
    """Take up batch by batch, until there is no more."""
    total = 0
    while count := take_up(database, limit):
        total += count
    return total


def logged(database: Database) -> list[Entry]:
    """Return the log, which has to be dense."""
    with database.statement() as connection:
        rows = connection.execute(
            text("SELECT log_index, workflow_id, seq, hash FROM aegis_log ORDER BY log_index")
        ).all()
        size = log.state(connection).size
    assert [row.log_index for row in rows] == list(range(size))
    return [Entry(workflow_id=row.workflow_id, seq=row.seq, hash=bytes(row.hash)) for row in rows]


def committed(database: Database) -> set[tuple[str, int]]:
    with database.statement() as connection:
        return {(row[0], row[1]) for row in connection.execute(text("SELECT workflow_id, seq FROM aegis_transition"))}


def names(entries: list[Entry]) -> list[tuple[str, int]]:
    return [(one.workflow_id, one.seq) for one in entries]


def frontier(entries: list[Entry]) -> Frontier:
    """The tree over a log, by the definition."""
    made = Frontier()
    made.extend(leaf_hash(one.hash) for one in entries)
    return made

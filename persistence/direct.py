"""A connection past SQLAlchemy, for the hot statements on PostgreSQL: its share would be twice that of all the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2 import errorcodes

from . import replicated
from .patience import Patience
from .statements import Hot


class Direct:
    """One psycopg2 connection in autocommit, with the hot statements prepared on it as they come."""

    def __init__(self, connection: Any, patience: Patience | None = None) -> None:
        self._connection = connection
        self._patience = patience
        # psycopg2 opens no transaction there: a statement is its own, in one round trip.
        connection.autocommit = True
        self._cursor = connection.cursor()
        self._prepared: set[str] = set()
        self._may_prepare = True

    def run(self, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        """Run a statement; return its row, if there is one.

        Raises:
            NotReplicated: it was carried out, but a fail-over may take it away.

        """
        if self._patience is None:
            return self._run(hot, parameters)
        with self._patience.over(self._connection):
            return self._run(hot, parameters)

    def _run(self, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        if self._may_prepare:
            try:
                if hot.name not in self._prepared:
                    self._prepare(hot)
                self._cursor.execute(hot.execute, parameters)
            except psycopg2.Error as error:
                if error.pgcode != errorcodes.INVALID_SQL_STATEMENT_NAME:
                    raise
                # Behind a pooler that gives us another server connection for each transaction.
                self._may_prepare = False
        if not self._may_prepare:
            self._cursor.execute(hot.text, parameters)
        row: Sequence[Any] | None = self._cursor.fetchone()
        if self._connection.notices:
            replicated.check(self._connection)
        return row

    def _prepare(self, hot: Hot) -> None:
        try:
            self._cursor.execute(hot.prepare)
        except psycopg2.Error as error:
            if error.pgcode != errorcodes.DUPLICATE_PREPARED_STATEMENT:
                raise
        self._prepared.add(hot.name)

    def discard(self) -> None:
        """Close it."""
        with suppress(psycopg2.Error):
            self._connection.close()

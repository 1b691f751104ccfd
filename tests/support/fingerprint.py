"""Everything that a database holds of AEGIS: two of these are equal if nothing at all was written in between."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

import psycopg2


def fingerprint(url: str, *, but: Collection[str] = ()) -> dict[str, list[str]]:
    """Every row of every table, whole, by the database's own list of them; ``but`` those that are told to be busy."""
    with closing(psycopg2.connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'aegis%' ORDER BY 1")
        tables = [name for (name,) in cursor.fetchall()]
        assert set(but) < set(tables), "a table that is left out has to be there"
        found = {}
        for table in tables:
            if table not in but:
                cursor.execute(f'SELECT t::text FROM "{table}" t ORDER BY 1')  # noqa: S608 - names of ours
                found[table] = [row[0] for row in cursor.fetchall()]
        return found

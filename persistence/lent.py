"""A connection of psycopg or psycopg2 that is somebody else's, made fit for SQLAlchemy.

Whatever is asked of it, it is not committed, rolled back or closed; and whatever its owner has made of rows,
JSON and times there, statements of AEGIS read them as they expect them.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine
from typing_extensions import override

DRIVERS: Final = "psycopg or psycopg2"


def driver_of(given: object) -> str | None:
    """Return the driver whose connection this is; None: it is none of either."""
    # A driver that is not loaded has made no connection.
    older, newer = sys.modules.get("psycopg2.extensions"), sys.modules.get("psycopg")
    if older is not None and isinstance(given, older.connection):
        return "psycopg2"
    return "psycopg" if newer is not None and isinstance(given, newer.Connection) else None


def connection_over(given: Any, driver: str) -> Connection:
    """Return SQLAlchemy's connection over a bare one, in a transaction."""
    made = Connection(_engine(driver), _Newer(given) if driver == "psycopg" else _Lent(given))
    made.begin()
    return made


@cache
def _engine(driver: str) -> Engine:
    """Return an engine that knows the driver's ways, and never connects by itself."""
    return create_engine(f"postgresql+{driver}://")


class _Lent(PoolProxiedConnection):
    """A connection of psycopg2."""

    def __init__(self, lent: Any) -> None:
        self.dbapi_connection = self._lent = lent
        self._info: dict[Any, Any] = {}

    @property
    @override
    def driver_connection(self) -> Any:  # type: ignore[override]  # only ever read
        return self._lent

    @property
    @override
    def info(self) -> dict[Any, Any]:
        return self._info

    @property
    @override
    def is_valid(self) -> bool:
        return not self._lent.closed

    @property
    @override
    def is_detached(self) -> bool:
        return True

    def cursor(self, *_: Any, **__: Any) -> Any:
        """Return a cursor as SQLAlchemy expects it, whatever the owner has made of theirs."""
        from psycopg2 import extensions, extras  # noqa: PLC0415 - whoever hands one over has it

        made = self._lent.cursor(cursor_factory=extensions.cursor)
        extras.register_default_jsonb(made)
        return made

    def commit(self) -> None:
        """Leave it to the owner."""

    rollback = close = detach = commit

    @override
    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Leave it to the owner."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lent, name)


class _Newer(_Lent):
    """A connection of psycopg."""

    @override
    def cursor(self, *_: Any, **__: Any) -> Any:
        """Return a cursor as SQLAlchemy expects it, whatever the owner has made of theirs."""
        from psycopg import Cursor, rows  # noqa: PLC0415 - whoever hands one over has it
        from psycopg.types.datetime import TimestamptzLoader  # noqa: PLC0415 - likewise
        from psycopg.types.json import JsonbLoader  # noqa: PLC0415 - likewise

        made = Cursor(self._lent, row_factory=rows.tuple_row)
        made.adapters.register_loader("jsonb", JsonbLoader)
        made.adapters.register_loader("timestamptz", TimestamptzLoader)
        return made

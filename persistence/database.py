"""The way to PostgreSQL: one engine a process, and its errors in our own words."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg2
from psycopg2 import errorcodes, extensions
from sqlalchemy import Connection as Connection  # noqa: PLC0414 - likewise
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session as Session  # noqa: PLC0414 - for those who may not import SQLAlchemy

from ..config.settings import safe_url
from ..core.errors import ConfigurationError, DatabaseUnavailable, InvalidHandlerResult
from . import sql
from .statements import Hot

# A server that shuts down, was demoted, or is not up yet: SQLAlchemy takes only some of these for
# a broken connection, and would keep the connection in its pool.
_GONE: Final = frozenset({"25006", "57P01", "57P02", "57P03"})
# Connection exceptions, insufficient resources (no connection slot, no memory, no disk), and a
# statement that was given up because it took too long.
_AWAY: Final = ("08", "53", "57014")
# Deadlocks and serialization failures, and a lock that was not had in time.
_IN_FAVOUR: Final = ("40", "55P03")
_MILLISECOND: Final = timedelta(milliseconds=1)
_CONNECT: Final = {
    "connect_timeout": 5,
    # A host that went dark is noticed in seconds instead of the kernel's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "aegis",
}  # and no options: poolers in between refuse, or ignore, what they cannot keep apart

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """An engine, and the ways to use it: single statements, transactions, moments, hot statements.

    ``pool_size`` connections are kept; ``pre_ping`` tries each before use, which costs a round
    trip and is meant for applications, whose connections are idle for long.
    """

    def __init__(self, url: str, *, pool_size: int = 5, pre_ping: bool = True) -> None:
        self.url = safe_url(url)
        self.engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=pre_ping,
            connect_args=_CONNECT,
            # Whatever the server's default is: a write that waited for another must see what that one wrote.
            isolation_level="READ COMMITTED",
        )
        event.listen(self.engine, "handle_error", _see_through)
        # One statement is one transaction there, and one round trip instead of three.
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._moment = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._direct = threading.local()
        _databases.add(self)

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """Give a connection on which each statement commits by itself.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

        """
        with self._translated(also=is_transient), self._single.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Give a session that commits at the end, or rolls back if anything was raised.

        What PostgreSQL gave up in favour of another transaction is raised as it is: see ``is_transient``.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

        """
        with self._translated(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self, statement_timeout: timedelta | None = None) -> Iterator[Connection]:
        """Give a connection that sees one moment of the database throughout, and cannot write.

        A statement that takes longer than ``statement_timeout`` is given up.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off.

        """
        with self._translated(also=is_transient), self._moment.connect() as connection:
            if statement_timeout is not None:
                milliseconds = str(statement_timeout // _MILLISECOND)
                connection.execute(select(func.set_config("statement_timeout", milliseconds, True)))
            yield connection

    def run(self, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        """Run a hot statement on this thread's own connection; return its row, if there is one.

        It goes past SQLAlchemy, whose share would be twice that of all the rest (``benchmarks/``).

        Raises:
            DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

        """
        direct: _Direct | None = getattr(self._direct, "held", None)
        try:
            if direct is None:
                direct = self._direct.held = _Direct(self._own_connection())
            return direct.run(hot, parameters)
        except (psycopg2.Error, DBAPIError, PoolTimeout) as error:
            if is_transient(error):  # the connection is as good as before
                raise DatabaseUnavailable(self.url, reason_of(error)) from error
            if not is_unavailable(error):
                raise
            self._direct.held = None
            if direct is not None:
                direct.discard()
            raise DatabaseUnavailable(self.url, reason_of(error)) from error

    def _own_connection(self) -> Any:
        """Return a psycopg2 connection that never goes back to the pool, where autocommit would stay on."""
        proxy = self.engine.raw_connection()
        proxy.detach()
        return proxy.dbapi_connection

    def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            DatabaseUnavailable: there was none.

        """
        with self.statement() as connection:
            connection.exec_driver_sql("SELECT 1")

    @contextmanager
    def _translated(self, also: Callable[[BaseException], bool] = lambda _: False) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout) as error:
            if is_forbidden(error):
                remedy = "grant its user aegis_app, or name another"
                raise ConfigurationError(f"AEGIS_DATABASE_URL={self.url}", reason_of(error), remedy) from error
            if not (is_unavailable(error) or also(error)):
                raise
            raise DatabaseUnavailable(self.url, reason_of(error)) from error

    def close(self) -> None:
        """Close every connection."""
        direct: _Direct | None = getattr(self._direct, "held", None)
        if direct is not None:
            self._direct.held = None
            direct.discard()
        self.engine.dispose()

    def forget_inherited(self) -> None:
        """Leave the parent's connections to the parent: a forked child must not even close them."""
        self.engine.dispose(close=False)
        self._direct = threading.local()


class _Direct:
    """One psycopg2 connection in autocommit, with the hot statements prepared on it as they come."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        # psycopg2 opens no transaction there: a statement is its own, in one round trip.
        connection.autocommit = True
        self._cursor = connection.cursor()
        self._prepared: set[str] = set()
        self._may_prepare = True

    def run(self, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
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
        return row

    def _prepare(self, hot: Hot) -> None:
        try:
            self._cursor.execute(hot.prepare)
        except psycopg2.Error as error:
            if error.pgcode != errorcodes.DUPLICATE_PREPARED_STATEMENT:
                raise
        self._prepared.add(hot.name)

    def discard(self) -> None:
        with suppress(psycopg2.Error):
            self._connection.close()


def in_transaction(session: Session) -> Callable[[Hot, Mapping[str, Any]], Sequence[Any] | None]:
    """Return what runs hot statements inside a session's transaction."""
    connection = session.connection()
    return lambda hot, parameters: connection.exec_driver_sql(hot.text, dict(parameters)).one_or_none()


@contextmanager
def kept_open(session: Session, name: str) -> Iterator[None]:
    """Refuse that the body ends the session's transaction, of which it is only a part; savepoints may come and go.

    Raises:
        InvalidHandlerResult: it tried to commit, or rolled back; nothing was committed.

    """

    def refuse(_session: Session) -> None:
        if session.get_nested_transaction() is None:
            raise InvalidHandlerResult(name, "it committed ctx.session, which commits with the checkpoint, by itself")

    begun = session.get_transaction()
    event.listen(session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(session, "before_commit", refuse)
    if begun is None or session.get_transaction() is not begun or not begun.is_active:
        raise InvalidHandlerResult(name, "it rolled ctx.session back, which is rolled back if the handler raises")
    if _is_spoiled(session):
        problem = "a statement on ctx.session failed, and it went on: put what may fail in ctx.session.begin_nested()"
        raise InvalidHandlerResult(name, problem)


def now(connection: Connection) -> datetime:
    """Return the database's time, the only one that counts."""
    moment: datetime = connection.execute(select(sql.now())).scalar_one()
    return moment


def is_unavailable(error: BaseException) -> bool:
    """Whether the database was away, rather than asked something that it refuses."""
    if isinstance(error, PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_unavailable(error.orig or error.__cause__ or Exception())
    if isinstance(error, psycopg2.InterfaceError):
        return True
    # Without a code the server never answered: the connection was refused, broken off, or timed out.
    return isinstance(error, psycopg2.OperationalError) and (
        error.pgcode is None or error.pgcode in _GONE or error.pgcode.startswith(_AWAY)
    )


def is_forbidden(error: BaseException) -> bool:
    """Whether our user has no right to what was asked."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "pgcode", None) == errorcodes.INSUFFICIENT_PRIVILEGE


def is_transient(error: BaseException) -> bool:
    """Whether PostgreSQL gave this up in favour of another: a deadlock, a serialization failure, a lock not had."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(original, psycopg2.Error) and (original.pgcode or "").startswith(_IN_FAVOUR)


def is_too_slow(error: BaseException) -> bool:
    """Whether a statement was given up because it took longer than it may."""
    original = error.orig if isinstance(error, DBAPIError) else error
    cause = original.__cause__ if isinstance(original, DatabaseUnavailable) else None
    return getattr(original, "pgcode", None) == errorcodes.QUERY_CANCELED or (cause is not None and is_too_slow(cause))


def is_outage(session: Session, error: BaseException) -> bool:
    """Whether it is the database that failed a handler inside its transaction, rather than what was asked of it.

    An error of somebody else's database leaves this transaction as it was; and a statement that
    was given up because it took too long would take as long the next time.
    """
    return _is_spoiled(session) and not is_too_slow(error) and (is_unavailable(error) or is_transient(error))


def _is_spoiled(session: Session) -> bool:
    """Whether the session's own transaction cannot go on: its connection is gone, or a statement on it failed."""
    try:
        driver = session.connection().connection.dbapi_connection
    except (SQLAlchemyError, psycopg2.Error):
        return True
    status = None if driver is None or driver.closed else driver.info.transaction_status
    return status in {None, extensions.TRANSACTION_STATUS_INERROR, extensions.TRANSACTION_STATUS_UNKNOWN}


def reason_of(error: BaseException) -> str:
    """Return the first line of what the driver said."""
    original = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(original).splitlines() if line.strip()]
    return lines[0] if lines else type(original).__name__


def _see_through(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "pgcode", None) in _GONE:
        context.is_disconnect = True


def _forget_inherited() -> None:
    for database in list(_databases):
        database.forget_inherited()


os.register_at_fork(after_in_child=_forget_inherited)

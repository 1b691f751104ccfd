"""The way to the database: one engine a process, and its errors in our own words."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select
from sqlalchemy import Connection as Connection  # noqa: PLC0414 - likewise
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session as Session  # noqa: PLC0414 - for those who may not import SQLAlchemy

from ..config.hosts import several_hosts
from ..config.settings import safe_url
from ..core.errors import ConfigurationError, DatabaseUnavailable, InvalidHandlerResult
from . import hosts, plain, sql, sqlite
from .outage import (
    GONE,
    is_forbidden,
    is_no_database,
    is_too_slow,
    is_transient,
    is_unavailable,
    reason_of,
    sqlstate,
)
from .statements import Hot

__all__ = [
    "Connection",
    "Database",
    "Session",
    "in_one_transaction",
    "in_transaction",
    "is_forbidden",
    "is_outage",
    "is_too_slow",
    "is_transient",
    "is_unavailable",
    "kept_open",
    "now",
    "reason_of",
]

_MOST_TRIES: Final = 5
_MILLISECOND: Final = timedelta(milliseconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
# One statement is one transaction there, and one round trip instead of three; and one moment of the database.
_SINGLE: Final[Mapping[str, Mapping[str, Any]]] = {
    "postgresql": {"isolation_level": "AUTOCOMMIT"},
    "sqlite": {sqlite.HOW: sqlite.EACH_BY_ITSELF},
}
_MOMENT: Final[Mapping[str, Mapping[str, Any]]] = {
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "sqlite": {sqlite.HOW: sqlite.ONE_MOMENT},
}

# libpq's PQTRANS_IDLE, _ACTIVE and _INTRANS; those that follow are of a transaction that failed, or a lost connection.
_SOUND: Final = frozenset({0, 1, 2})

T = TypeVar("T")

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """An engine, and the ways to use it: single statements, transactions, moments, hot statements.

    ``postgresql://...``; or ``sqlite:///file.db``, or ``sqlite://`` for one in memory that ends with the
    process. ``pool_size`` connections are kept; ``pre_ping`` tries each before use, which costs a round
    trip and is meant for applications, whose connections are idle for long.

    Raises:
        ConfigurationError: it is no such address, or the driver is not installed.

    """

    def __init__(self, url: str, *, pool_size: int = 5, pre_ping: bool = True) -> None:
        self.url = safe_url(url)
        self.address = self._address(url)
        self.shift = timedelta(0)
        """How far ahead of the real time a test wants SQLite's to be."""
        self._patience: Any = None  # with one host alone there is nobody else to turn to
        self.engine = self._engine(pool_size, pre_ping=pre_ping)
        self.kind = self.engine.dialect.name
        """``postgresql`` or ``sqlite``."""
        self._single = self.engine.execution_options(**_SINGLE[self.kind])
        self._moment = self.engine.execution_options(**_MOMENT[self.kind])
        self._direct = threading.local()
        self._kept = self._keep()
        _databases.add(self)

    def clock(self) -> int:
        """Return the time of SQLite's, in microseconds since 1970: it has none of its own."""
        return time.time_ns() // 1000 + self.shift // _MICROSECOND

    @property
    def is_sqlite(self) -> bool:
        """Whether it is one of SQLite's."""
        return self.kind == "sqlite"

    @property
    def in_memory(self) -> bool:
        """Whether it ends with this process."""
        return sqlite.is_in_memory(self.address)

    def _keep(self) -> Any:
        """Hold on to what is in memory: it is there as long as somebody has it open."""
        return self.engine.raw_connection() if self.in_memory else None

    def _address(self, url: str) -> URL:
        if sqlite.is_address(url):
            return sqlite.address_of(url, "pysqlite")
        try:
            made = make_url(several_hosts(url))
        except (ArgumentError, ValueError):
            made = None
        if made is None or made.get_backend_name() not in {"postgresql", "postgres"}:
            remedy = "give postgresql://user:password@host/database, sqlite:///file.db, or sqlite:// for one in memory"
            raise ConfigurationError(self.url, "it is no address of a database that AEGIS works with", remedy)
        return made.set(drivername="postgresql+psycopg2")

    def _engine(self, pool_size: int, *, pre_ping: bool) -> Engine:
        sizes = {"pool_size": pool_size, "max_overflow": pool_size}
        if sqlite.is_address(str(self.address)):
            made = create_engine(self.address, **sizes, connect_args={"timeout": sqlite.PATIENCE})
            sqlite.prepare(made, self.clock)
            return made
        try:
            made = create_engine(
                self.address,
                **sizes,
                pool_pre_ping=pre_ping,
                connect_args=hosts.connect_args(self.address),
                # Whatever the server's default is: a write that waited for another must see what that one wrote.
                isolation_level="READ COMMITTED",
            )
        except ModuleNotFoundError as error:
            remedy = "pip install 'aegis-workflows[binary]'"
            raise ConfigurationError(self.url, f"its driver {error.name} is not installed", remedy) from error
        from . import levels, replicated  # noqa: PLC0415 - SQLite needs no driver for PostgreSQL

        event.listen(made, "handle_error", see_through)
        levels.keep_here(made)
        replicated.watch(made)
        hosts.be_missed(made, self.address)
        if hosts.are_several(self.address):
            from .patience import Patience  # noqa: PLC0415 - likewise

            self._patience = Patience(made, hosts.LastGood(made))
        return made

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """Give a connection on which each statement commits by itself.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

        """
        with self._translated(also=is_transient), self._single.connect() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session whose statements each stand by themselves, and that writes nothing.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off.

        """
        with self.statement() as connection, Session(connection) as session:
            yield session

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

        A statement that takes longer than ``statement_timeout`` is given up, in PostgreSQL.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off.

        """
        with self._translated(also=is_transient), self._moment.connect() as connection:
            if self.is_sqlite:
                with sqlite.read_only(connection):
                    yield connection
                return
            if statement_timeout is not None:
                milliseconds = str(statement_timeout // _MILLISECOND)
                connection.execute(select(func.set_config("statement_timeout", milliseconds, True)))
            yield connection

    def run(self, hot: Hot, parameters: Mapping[str, Any]) -> Sequence[Any] | None:
        """Run a hot statement on this thread's own connection; return its row, if there is one.

        On PostgreSQL it goes past SQLAlchemy.

        Raises:
            DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

        """
        if self.is_sqlite:
            with self._translated(also=is_transient), self.engine.begin() as connection:
                return plain.run(connection, hot, parameters)
        from .direct import Direct  # noqa: PLC0415 - SQLite needs no driver for PostgreSQL

        direct: Direct | None = getattr(self._direct, "held", None)
        try:
            if direct is None:
                direct = self._direct.held = Direct(self._own_connection(), self._patience)
            return direct.run(hot, parameters)
        except Exception as error:
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

    def pause(self, seconds: float) -> None:
        """Wait, between two looks at something."""
        time.sleep(seconds)

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
            if is_forbidden(error) or is_no_database(error):
                raise self._refused(error) from error
            if not (is_unavailable(error) or also(error)):
                raise
            raise DatabaseUnavailable(self.url, reason_of(error)) from error

    def _refused(self, error: BaseException) -> ConfigurationError:
        if self.is_sqlite:
            remedy = "give a file that AEGIS made, or will make, in a folder that this user may write"
            return ConfigurationError(self.url, reason_of(error), remedy)
        remedy = "grant its user aegis_app, or name another"
        return ConfigurationError(f"AEGIS_DATABASE_URL={self.url}", reason_of(error), remedy)

    def close(self) -> None:
        """Close every connection; what was in memory is gone."""
        direct = getattr(self._direct, "held", None)
        if direct is not None:
            self._direct.held = None
            direct.discard()
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self.engine.dispose()

    def forget_inherited(self) -> None:
        """Leave the parent's connections to the parent: a forked child must not even close them."""
        self.engine.dispose(close=False)
        self._direct = threading.local()
        if self._patience is not None:
            self._patience.forget_inherited()


def in_one_transaction(database: Database, verb: Callable[[Session], T]) -> T:
    """Carry a verb out: all of it, or nothing; again where PostgreSQL preferred somebody else.

    Raises:
        DatabaseUnavailable: it does not answer, or broke off; the outcome may be unknown.

    """
    left = _MOST_TRIES
    while True:
        left -= 1
        try:
            with database.transaction() as session:
                return verb(session)
        except DBAPIError as error:
            # Rolled back, whole, in favour of somebody else: nothing is half-written, and it may go through now.
            if not (left and is_transient(error)):
                raise


def in_transaction(session: Session) -> Callable[[Hot, Mapping[str, Any]], Sequence[Any] | None]:
    """Return what runs hot statements inside a session's transaction."""
    connection = session.connection()
    match connection.dialect.name, connection.dialect.driver:
        case "sqlite", _:
            return lambda hot, parameters: plain.run(connection, hot, parameters)
        case _, "asyncpg":
            return lambda hot, parameters: connection.exec_driver_sql(
                hot.numbered, tuple(parameters[name] for name in hot.names)
            ).one_or_none()
        case _:
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


def is_outage(session: Session, error: BaseException) -> bool:
    """Whether it is the database that failed a handler inside its transaction, rather than what was asked of it.

    An error of somebody else's database leaves this transaction as it was; and a statement that
    was given up because it took too long would take as long the next time.
    """
    return _is_spoiled(session) and not is_too_slow(error) and (is_unavailable(error) or is_transient(error))


def _is_spoiled(session: Session) -> bool:
    """Whether the session's own transaction cannot go on: its connection is gone, or a statement on it failed."""
    try:
        driver: Any = session.connection().connection.dbapi_connection
    except SQLAlchemyError:
        return True
    if driver is None:
        return True
    if isinstance(driver, sqlite3.Connection):  # a statement that failed was undone alone, or all of it was
        return not driver.in_transaction
    return driver.closed or driver.info.transaction_status not in _SOUND


def see_through(context: ExceptionContext) -> None:
    """Have SQLAlchemy give up a connection whose server is gone."""
    if sqlstate(context.original_exception) in GONE:
        context.is_disconnect = True


def _forget_inherited() -> None:
    for database in list(_databases):
        database.forget_inherited()


os.register_at_fork(after_in_child=_forget_inherited)

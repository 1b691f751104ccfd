"""Being part of a transaction of the caller's: what is written there is kept if, and only if, the caller commits.

The caller hands over a session or a connection of SQLAlchemy, Django's, or a bare one of psycopg or psycopg2.
It is left as it was found: what is written stands behind a savepoint, and nothing of the caller's is committed,
rolled back or closed here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session

from ..core.errors import DatabaseUnavailable, ForeignSession
from . import sqlite
from .afterwards import Act, Afterwards
from .database import Database, is_transient, is_unavailable, reason_of
from .lent import connection_over, driver_of
from .models import DeploymentRow, WorkflowRow
from .schema import deployment_name

# Tables, or columns of them, as another version has them: undefined_table, undefined_column.
_NOT_THERE: Final = frozenset({"42P01", "42703"})
_FAILED_BEFORE: Final = "25P02"
_FORBIDDEN: Final = "42501"
_DEPLOYMENT: Final = "aegis.deployment"
_HANDED_OVER: Final = "hand over a session or a connection of SQLAlchemy, Django's connection, or one of psycopg"
_OF_THE_ENGINE: Final = "hand over one of the database that AEGIS_DATABASE_URL names"

_own: weakref.WeakKeyDictionary[Database, str] = weakref.WeakKeyDictionary()


class Guest(Protocol):
    """A way into the caller's transaction."""

    @property
    def hears(self) -> bool:
        """Whether the caller's commit is heard of: if not, nobody rings but the sweep, or the caller."""

    def after_commit(self, act: Act) -> None:
        """Have something done once the caller has committed; never if not."""

    def count_commit(self, count: Act) -> None:
        """Have it counted that something was written, by the time that the caller can read it as committed."""

    @property
    def connection(self) -> Connection:
        """The connection, which has a transaction."""


@contextmanager
def savepoint(guest: Guest, database: Database) -> Iterator[Session]:
    """Give a session inside the caller's transaction; what is raised undoes what was written with it, and no more.

    What PostgreSQL gave up in favour of another transaction is raised as it is: it is the caller's whole
    transaction that has to be repeated.

    Raises:
        ForeignSession: it is not of the engine's own database, or nothing can be a part of it.
        DatabaseUnavailable: it does not answer, or broke off: so is the caller's transaction.

    """
    with _translated(database):
        _check_autocommit(guest.connection)
        with (
            Session(guest.connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session,
            session.begin(),
        ):
            _check_deployment(session, database)
            yield session


def guest_of(given: object, database: Database) -> Guest:
    """Return the way into the transaction of a session or connection that was handed over.

    Raises:
        ForeignSession: it is none that AEGIS could be part of.

    """
    found = given() if isinstance(given, scoped_session) else given
    if isinstance(found, Session):
        return _Alchemy(_connection_of(found, database), found, database)
    if isinstance(found, Connection):
        _check_dialect(found, database)
        return _Alchemy(found, None, database)
    if hasattr(found, "ensure_connection") and hasattr(found, "on_commit"):
        return _Django(found, database)
    if (driver := driver_of(found)) is not None:
        return _Bare(found, driver, database)
    if hasattr(found, "sync_session") or hasattr(found, "sync_connection"):
        raise ForeignSession("it is asynchronous, and this engine is not", "use the engine that is awaited")
    raise ForeignSession(f"a {type(found).__module__}.{type(found).__qualname__} is none", _HANDED_OVER)


# --- SQLAlchemy's -------------------------------------------------------------------------------


class _Alchemy:
    """A session of SQLAlchemy, or a connection."""

    hears = True

    def __init__(self, connection: Connection, session: Session | None, database: Database) -> None:
        if not connection.in_transaction():
            connection.begin()
        if connection.dialect.name == "sqlite":
            sqlite.join(connection, database.clock)
        self.connection = connection
        self._session = session

    def after_commit(self, act: Act) -> None:
        Afterwards.of(self.connection, self._session).add(act)

    def count_commit(self, count: Act) -> None:
        # Of a connection's commit one hears late; whoever reads right after it is to know what it wrote.
        Afterwards.of(self.connection, self._session).add(count, before=True)


def _connection_of(session: Session, database: Database) -> Connection:
    try:
        # Without a flush: the caller's own objects are written when the caller wants it.
        connection = session.connection(bind_arguments={"mapper": WorkflowRow.__mapper__})
    except InvalidRequestError as error:
        raise ForeignSession(f"its transaction cannot go on ({str(error).splitlines()[0]})", _HANDED_OVER) from error
    _check_dialect(connection, database)
    return connection


# --- without SQLAlchemy -------------------------------------------------------------------------


class _Bare:
    """A connection of psycopg or psycopg2. Nothing tells of its commit."""

    hears = False

    def __init__(self, given: Any, driver: str, database: Database) -> None:
        if database.engine.dialect.name != "postgresql":
            raise ForeignSession("it is of a postgresql database, and the engine's is none", _OF_THE_ENGINE)
        if given.closed:
            raise ForeignSession("it is closed", "hand it over before its end")
        self.connection = connection_over(given, driver)

    def after_commit(self, act: Act) -> None:
        """Leave it to the sweep, or to the caller."""

    def count_commit(self, count: Act) -> None:
        """Leave it to the caller, whose ``ring`` counts as well."""


class _Django:
    """Django's ``connection``, or one of its ``connections``."""

    hears = True

    def __init__(self, given: Any, database: Database) -> None:
        given.ensure_connection()
        driver = driver_of(given.connection)
        if driver is None:
            kind = type(given.connection)
            raise ForeignSession(f"it is over a {kind.__module__}.{kind.__qualname__}", _OF_THE_ENGINE)
        if not given.in_atomic_block:
            raise ForeignSession("it is in no transaction", "call it inside `with transaction.atomic():`")
        self._given = given
        self.connection = _Bare(given.connection, driver, database).connection

    def after_commit(self, act: Act) -> None:
        self._given.on_commit(act)

    def count_commit(self, count: Act) -> None:
        self._given.on_commit(count)


# --- whether it may be --------------------------------------------------------------------------


def _check_dialect(connection: Connection, database: Database) -> None:
    theirs, ours = connection.dialect.name, database.engine.dialect.name
    if theirs != ours:
        raise ForeignSession(f"it is of a {theirs} database, and the engine's is {ours}", _OF_THE_ENGINE)
    if connection.closed or connection.invalidated:
        raise ForeignSession("it is closed", "hand it over before its end")


def _check_autocommit(connection: Connection) -> None:
    if getattr(connection.connection.dbapi_connection, "autocommit", False) is True:
        remedy = "begin a transaction, on a connection without autocommit"
        raise ForeignSession("it is in autocommit: there is no transaction to be part of", remedy)


def _check_deployment(session: Session, database: Database) -> None:
    """Find out, once for each connection, whether it leads to the engine's own tables."""
    info = session.connection().info
    if _DEPLOYMENT not in info:
        info[_DEPLOYMENT] = session.execute(select(DeploymentRow.name)).scalar_one_or_none()
    own = _own_deployment(database)
    if info[_DEPLOYMENT] != own:
        problem = f"it is of the deployment {info[_DEPLOYMENT]!r}, and the engine of {own!r}"
        raise ForeignSession(problem, _OF_THE_ENGINE)


def _own_deployment(database: Database) -> str:
    if database not in _own:
        with database.statement() as connection:
            _own[database] = deployment_name(connection)
    return _own[database]


@contextmanager
def _translated(database: Database) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
        if code == _FAILED_BEFORE:
            remedy = "roll it back, and begin another"
            raise ForeignSession("a statement in its transaction failed before", remedy) from error
        if code in _NOT_THERE:
            raise ForeignSession(f"its database has no such tables ({reason_of(error)})", _OF_THE_ENGINE) from error
        if code == _FORBIDDEN:
            raise ForeignSession(reason_of(error), "grant its user aegis_app") from error
        if not is_transient(error) and is_unavailable(error):
            raise DatabaseUnavailable(database.url, reason_of(error)) from error
        raise

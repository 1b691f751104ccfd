"""What is to be done once a transaction of the caller's was committed: once, and not if it was rolled back.

SQLAlchemy tells of a session's commit when it is done; of a connection's only before, so there it is taken as
done when the connection goes on to the next transaction, or back to its pool.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session

from ..config.logging import get_logger

Act: TypeAlias = Callable[[], object]

_KEY: Final = "aegis.afterwards"
_heard: weakref.WeakSet[Engine] = weakref.WeakSet()

log = get_logger(__name__)


@dataclass
class _Waiting:
    """Something to be done, and how many savepoints were opened since it was asked for.

    ``before`` has it done as the commit begins, too.
    """

    act: Act
    before: bool = False
    depth: int = 0


class Afterwards:
    """What waits for the end of one connection's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._waiting: list[_Waiting] = []
        self._committed: list[_Waiting] = []
        self.connection = weakref.ref(connection)
        for name in ("savepoint", "rollback_savepoint", "release_savepoint", "rollback", "commit", "begin"):
            event.listen(connection, name, getattr(self, f"_on_{name}"))

    @classmethod
    def of(cls, connection: Connection, session: Session | None) -> Afterwards:
        """Return what waits for a connection's transaction, whether that is a session's or its own."""
        found = connection.info.get(_KEY)
        if not isinstance(found, Afterwards) or found.connection() is not connection:
            found = connection.info[_KEY] = cls(connection)
            _hear_of(connection.engine)
        if session is not None:
            _hear_of_commits(session, found)
        return found

    def add(self, act: Act, *, before: bool = False) -> None:
        """Have something done after the commit; ``before``: and as it begins, of which a connection tells sooner."""
        self._waiting.append(_Waiting(act, before))

    def act(self) -> None:
        """Do what was waiting for a commit that is done by now; nothing that goes wrong is raised."""
        due, self._committed = self._committed, []
        for one in due:
            try:
                one.act()
            except Exception:
                # The commit is done, and whoever asked for it must not be told that it failed.
                log.exception("not rung after the commit")

    def forget(self) -> None:
        """Do nothing of it, as nothing of it was committed."""
        self._waiting, self._committed = [], []

    # --- what SQLAlchemy says of the connection ---------------------------------------------

    def _on_savepoint(self, *_: Any) -> None:
        for one in self._waiting:
            one.depth += 1

    def _on_release_savepoint(self, *_: Any) -> None:
        for one in self._waiting:
            one.depth = max(0, one.depth - 1)

    def _on_rollback_savepoint(self, *_: Any) -> None:
        # Of a savepoint that was there before it was asked for, it is a part, and gone with it.
        self._waiting = [one for one in self._waiting if one.depth]
        self._on_release_savepoint()

    def _on_rollback(self, *_: Any) -> None:
        self.forget()

    def _on_commit(self, *_: Any) -> None:
        for one in self._waiting:
            if one.before:
                one.act()
        self._committed += self._waiting
        self._waiting = []

    def _on_begin(self, *_: Any) -> None:
        self.act()


def _hear_of_commits(session: Session, found: Afterwards) -> None:
    """Have a session say when a commit is done."""
    if _KEY not in session.info:
        event.listen(session, "after_commit", _on_session_commit)
    session.info[_KEY] = found


def _on_session_commit(session: Session) -> None:
    # Also told of savepoints, which commit nothing: then there is nothing to be done yet.
    found: Afterwards = session.info[_KEY]
    found.act()


def _hear_of(engine: Engine) -> None:
    """Have an engine say when a connection goes back to its pool, and when a commit failed."""
    if engine not in _heard:
        _heard.add(engine)
        event.listen(engine.pool, "checkin", _on_checkin)
        event.listen(engine, "handle_error", _on_error)


def _on_checkin(_dbapi_connection: Any, record: Any) -> None:
    found = record.info.pop(_KEY, None)
    if found is not None:
        found.act()


def _on_error(context: ExceptionContext) -> None:
    # Without a statement it was a commit, or something after which there is none.
    if context.statement is None and context.connection is not None and not context.connection.invalidated:
        found = context.connection.info.get(_KEY)
        if found is not None:
            found.forget()

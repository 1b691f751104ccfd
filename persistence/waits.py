"""Who waits for an answer, on whom, and since when: what a commit that no standby takes is noticed by.

It knows no driver: threads and event loops look at it in their own way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Engine, event

from .hosts import Place

LOOK_EVERY: Final = 1.0
"""How often those who wait are looked at (seconds)."""
# After so long a wait is looked into (seconds).
_LONG: Final = 3.0


class Waits:
    """The connections of an engine that wait for an answer at the moment: to a commit, a statement, or a ping.

    To a read as well: a server that was killed in parts keeps connections that nobody answers any more. ``begun`` is
    called whenever one begins to wait; ``place_of`` says whom a driver's connection leads to.
    """

    def __init__(self, engine: Engine, place_of: Callable[[Any], Place], begun: Callable[[], None]) -> None:
        self._place_of = place_of
        self._begun = begun
        self._waiting: dict[int, tuple[Any, float]] = {}
        # Held while one is cut: its socket must not be somebody else's by then.
        self.lock = threading.Lock()
        self._listen(engine)

    def _listen(self, engine: Engine) -> None:
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            with self.over(connection.driver_connection):
                commit(connection)

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
        ping = engine.dialect.do_ping

        def do_ping(connection: Any) -> bool:
            with self.over(getattr(connection, "driver_connection", connection)):
                return ping(connection)

        engine.dialect.do_ping = do_ping  # type: ignore[method-assign, assignment]
        event.listen(engine, "before_cursor_execute", self._before)
        # Before those who may refuse the answer: it has come.
        event.listen(engine, "after_cursor_execute", self._after, insert=True)
        event.listen(engine, "handle_error", self._failed)

    @contextmanager
    def over(self, connection: Any) -> Iterator[None]:
        """Be watchful while the body waits for an answer on a driver's connection."""
        self.begin(connection)
        try:
            yield
        finally:
            self.end(connection)

    def begin(self, connection: Any) -> None:
        """Note that an answer is waited for."""
        with self.lock:
            self._waiting[id(connection)] = (connection, time.monotonic() + _LONG)
            self._begun()

    def end(self, connection: Any) -> None:
        """Note that it came, or never will."""
        with self.lock:
            self._waiting.pop(id(connection), None)

    def _before(self, connection: Any, *_: Any) -> None:
        self.begin(connection.connection.driver_connection)

    def _after(self, connection: Any, *_: Any) -> None:
        self.end(connection.connection.driver_connection)

    def _failed(self, context: Any) -> None:
        if context.connection is not None and not context.connection.closed:
            with suppress(Exception):  # it is the connection that broke, perhaps
                self.end(context.connection.connection.driver_connection)

    def forget(self) -> None:
        """Begin anew: in a forked child, which has none of its parent's threads, or where nobody waits any more."""
        self._waiting, self.lock = {}, threading.Lock()

    # --- who waits for too long -----------------------------------------------------------

    def anybody(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def overdue(self) -> set[Place]:
        """Return the places on which somebody waits for too long."""
        return {self._place_of(connection) for connection in self._late(list(self._waiting.values()))}

    def cut(self, place: Place, how: Callable[[Any], None]) -> None:
        """Cut every connection to a place on which somebody waits for too long; each of them hears of it."""
        with self.lock:
            for connection in self._late(list(self._waiting.values())):
                if self._place_of(connection) == place:
                    how(connection)

    @staticmethod
    def _late(waiting: list[tuple[Any, float]]) -> list[Any]:
        now = time.monotonic()
        return [connection for connection, deadline in waiting if now > deadline]

"""A wait that cannot end well: for the standby of a server that nobody follows any more.

A primary whose agent hangs, or that was cut off from the others, still takes connections and statements. Its
commits wait for a standby that has long followed another. No time-out ends that: ``statement_timeout`` is not
for commits, and the kernel sees a healthy connection. So where an address has several hosts, who waits too
long asks whether another one leads by now; if so, the connection is cut, and the outcome is unknown.

Otherwise the wait goes on: it may be the standbys that are away, and each connection that is cut leaves a
process behind on the server.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg2
from sqlalchemy import Engine, event

from ..config.logging import get_logger
from .hosts import LastGood
from .vouch import WAITS

log = get_logger(__name__)

# After so long a wait is looked into, and so often (seconds).
_LONG: Final = 3.0
_LOOK_EVERY: Final = 1.0
# The looks without anybody waiting after which the thread ends, until somebody does.
_IDLE: Final = 30


class Patience:
    """Knows which connections of an engine wait for an answer, and cuts those that wait for the wrong server."""

    def __init__(self, engine: Engine, last_good: LastGood) -> None:
        self._parameters = engine.dialect.create_connect_args(engine.url)[1]
        self._last_good = last_good
        self._waiting: dict[int, tuple[Any, float]] = {}
        # Held while one is cut: its socket must not be somebody else's by then.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listen(engine)

    def _listen(self, engine: Engine) -> None:
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            with self.over(connection.dbapi_connection):
                commit(connection)

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)
        event.listen(engine, "handle_error", self._failed)

    @contextmanager
    def over(self, connection: Any) -> Iterator[None]:
        """Be watchful while the body waits for an answer on a psycopg2 connection."""
        self.begin(connection)
        try:
            yield
        finally:
            self.end(connection)

    def begin(self, connection: Any) -> None:
        """Note that an answer is waited for."""
        with self._lock:
            self._waiting[id(connection)] = (connection, time.monotonic() + _LONG)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_after, name="aegis-patience", daemon=True)
                self._thread.start()

    def end(self, connection: Any) -> None:
        """Note that it came, or never will."""
        with self._lock:
            self._waiting.pop(id(connection), None)

    def _before(self, connection: Any, _cursor: Any, _text: Any, _given: Any, context: Any, _many: bool) -> None:
        writes = context.isinsert or context.isupdate or context.isdelete
        if writes or context.execution_options.get(WAITS):
            self.begin(connection.connection.dbapi_connection)

    def _after(self, connection: Any, *_: Any) -> None:
        self.end(connection.connection.dbapi_connection)

    def _failed(self, context: Any) -> None:
        if context.connection is not None and not context.connection.closed:
            with suppress(Exception):  # it is the connection that broke, perhaps
                self.end(context.connection.connection.dbapi_connection)

    def forget_inherited(self) -> None:
        """Begin anew in a forked child, which has none of its parent's threads."""
        self._waiting, self._lock, self._thread = {}, threading.Lock(), None

    # --- the look -----------------------------------------------------------------------

    def _look_after(self) -> None:
        idle = 0
        while True:
            time.sleep(_LOOK_EVERY)
            with suppress(psycopg2.Error):  # of a connection that has just been closed
                self._look()
            idle = 0 if self._waiting else idle + 1
            with self._lock:
                if idle > _IDLE and not self._waiting:
                    self._thread = None
                    return

    def _look(self) -> None:
        now = time.monotonic()
        overdue = [connection for connection, deadline in list(self._waiting.values()) if now > deadline]
        for place in {(connection.info.host, connection.info.port) for connection in overdue}:
            if self._another_leads(*place):
                self._leave(*place)

    def _another_leads(self, host: str, port: int) -> bool:
        places = zip(self._parameters["host"].split(","), self._parameters["port"].split(","), strict=True)
        others = [place for place in places if place != (host, str(port))]
        hosts, ports = (",".join(part) for part in zip(*others, strict=True))
        try:
            psycopg2.connect(**{"connect_timeout": 2, **self._parameters, "host": hosts, "port": ports}).close()
        except psycopg2.Error:
            return False
        return True

    def _leave(self, host: str, port: int) -> None:
        """Cut every connection to a server that waits in vain; the next ones go elsewhere first."""
        self._last_good.avoid(host, port)
        log.warning("another server leads", left=f"{host}:{port}")
        with self._lock:
            now = time.monotonic()
            for connection, deadline in self._waiting.values():
                if now > deadline and (connection.info.host, connection.info.port) == (host, port):
                    _cut(connection)


def _cut(connection: Any) -> None:
    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)

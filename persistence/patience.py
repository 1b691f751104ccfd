"""A wait that cannot end well: for the standby of a server that nobody follows any more.

A primary whose agent hangs, or that was cut off from the others, still takes connections and statements. Its
commits wait for a standby that has long followed another. No time-out ends that: ``statement_timeout`` is not
for commits, and the kernel sees a healthy connection. So where an address has several hosts, who waits too
long asks whether another one leads by now; if so, the connection is cut, and the outcome is unknown.

Otherwise the wait goes on: it may be the standbys that are away, and each connection that is cut leaves a
process behind on the server.

This is for those who block; ``awaited_patience`` has the same for event loops.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

import psycopg2
from sqlalchemy import Engine

from ..config.logging import get_logger
from .hosts import LastGood, Place, place_of
from .waits import LOOK_EVERY, Waits

log = get_logger(__name__)

# The looks without anybody waiting after which the thread ends, until somebody does.
_IDLE: Final = 30


class Patience:
    """Knows which connections of an engine wait for an answer, and cuts those that wait for the wrong server."""

    def __init__(self, engine: Engine, last_good: LastGood) -> None:
        self._parameters = engine.dialect.create_connect_args(engine.url)[1]
        self._preference = last_good.preference
        self._thread: threading.Thread | None = None
        self._waits = Waits(engine, place_of, self._begun)

    def over(self, connection: Any) -> AbstractContextManager[None]:
        """Be watchful while the body waits for an answer on a psycopg2 connection."""
        return self._waits.over(connection)

    def _begun(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_after, name="aegis-patience", daemon=True)
            self._thread.start()

    def forget_inherited(self) -> None:
        """Begin anew in a forked child, which has none of its parent's threads."""
        self._waits.forget()
        self._thread = None

    # --- the look -----------------------------------------------------------------------

    def _look_after(self) -> None:
        idle = 0
        while True:
            time.sleep(LOOK_EVERY)
            with suppress(psycopg2.Error):  # of a connection that has just been closed
                self._look()
            idle = 0 if self._waits.anybody() else idle + 1
            with self._waits.lock:
                if idle > _IDLE and not self._waits.anybody():
                    self._thread = None
                    return

    def _look(self) -> None:
        for place in self._waits.overdue():
            if self._another_leads(place):
                self._preference.avoid(place)
                log.warning("another server leads", left=":".join(place))
                self._waits.cut(place, _cut)

    def _another_leads(self, left: Place) -> bool:
        places = zip(self._parameters["host"].split(","), self._parameters["port"].split(","), strict=True)
        hosts, ports = (",".join(part) for part in zip(*(one for one in places if one != left), strict=True))
        try:
            psycopg2.connect(**{"connect_timeout": 2, **self._parameters, "host": hosts, "port": ports}).close()
        except psycopg2.Error:
            return False
        return True


def _cut(connection: Any) -> None:
    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)

"""A host that takes connections and never answers costs its time-out once, not for each connection."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from local_engine import eventually
from lonely import Lonely

from aegis.persistence.asynchronous import AsyncDatabase, spawn
from aegis.persistence.database import Database


class Dark:
    """A socket that listens, hears everybody, and says nothing."""

    def __init__(self) -> None:
        self._listens = socket.create_server(("127.0.0.1", 0))
        self.port = self._listens.getsockname()[1]
        self.heard: list[socket.socket] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.heard.append(self._listens.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listens.shutdown(socket.SHUT_RDWR)
        self._listens.close()
        for one in self.heard:
            one.close()


@pytest.fixture
def dark() -> Iterator[Dark]:
    made = Dark()
    yield made
    made.close()


@pytest.fixture
def url(lonely: Lonely, dark: Dark) -> str:
    serves = f"host={lonely.server.home.sockets}:5432"
    return f"postgresql://aegis@/postgres?host=127.0.0.1:{dark.port}&{serves}&target_session_attrs=read-write"


def connect(database: Database) -> None:
    """Make a connection that nobody uses again."""
    with database.statement() as connection:
        connection.exec_driver_sql("SELECT 1")
        connection.invalidate()


def test_a_dark_first_host_is_asked_once(url: str, dark: Dark) -> None:
    database = Database(url)
    connect(database)
    asked = len(dark.heard)
    assert asked > 0, "nobody asked the first host at all"
    for _ in range(4):
        connect(database)
    assert len(dark.heard) == asked
    database.close()


def test_who_is_awaited_asks_everybody_at_once_and_lets_go_of_the_dark_one(url: str, dark: Dark) -> None:
    async def ask() -> None:
        blocking = Database(url)
        database = AsyncDatabase(blocking)
        try:
            for _ in range(4):
                # Far below the time-out of one connection, and that of libpq as well.
                await asyncio.wait_for(spawn(connect, database), 1.5)
        finally:
            await database.aclose()
            blocking.close()

    asyncio.run(ask())
    eventually("the dark one was asked", lambda: bool(dark.heard))
    for one in dark.heard:
        one.settimeout(5)
        while one.recv(1024):  # until the other side has let go
            pass

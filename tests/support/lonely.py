"""A server that may be told to wait for a standby that does not exist: what waits there waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from local_engine import eventually
from private_servers import PrivatePostgres
from store_workbench import value

from aegis.persistence.database import Database

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'aegis'"


class Lonely:
    """A server that may be told to wait for a standby that does not exist."""

    def __init__(self, server: PrivatePostgres) -> None:
        self.server = server
        self.database = Database(server.url())
        # What looks from outside writes nothing, and so never waits.
        self.outside = Database(server.url() + "&application_name=test")
        self._pool = ThreadPoolExecutor(4)

    def waits(self, standby: str) -> None:
        self.server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        self.server.execute("SELECT pg_reload_conf()")
        eventually("it is told", lambda: value(self.outside, "SHOW synchronous_standby_names") == standby)

    def during(self, act: Callable[[], Any]) -> Future[Any]:
        """Do something that will wait, in a thread; return once it does."""
        future = self._pool.submit(act)
        eventually("it waits for a standby", lambda: bool(self.waiting()))
        return future

    def waiting(self) -> list[int]:
        with self.outside.statement() as connection:
            return list(connection.exec_driver_sql(WAITING).scalars())

    def give_up(self) -> None:
        """Break the wait off, as an operator in a hurry does."""
        for pid in self.waiting():
            self.server.execute(f"SELECT pg_cancel_backend({pid})")

    def close(self) -> None:
        self._pool.shutdown()
        self.database.close()
        self.outside.close()

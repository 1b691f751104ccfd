"""The way to the database for those who must not block: the same ``Database``, over asyncpg and aiosqlite.

What uses it is written once, for the blocking drivers, and runs inside ``spawn``: there each wait for the
database, and each ``in_thread``, gives the event loop to others.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from sqlalchemy import URL, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn
from typing_extensions import override

from ..core.errors import ConfigurationError, DatabaseUnavailable
from . import sqlite
from .awaited_patience import AwaitedPatience
from .database import Database, see_through
from .doubt import doubt_in
from .hosts import Place, Preference, liveness
from .outage import reason_of
from .racing import first_to_serve

P = ParamSpec("P")
T = TypeVar("T")

_INSTALL: Final = "pip install 'aegis-workflows[async]'"
_CONNECT_TIMEOUT: Final = 5.0
# Where another host can take over, it is worth leaving one sooner.
_LEAVE_AFTER: Final = 2.0
# What libpq, and so psycopg2, is told by, and asyncpg would send on to the server.
_LIBPQ_ALONE: Final = (
    *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "gssencmode", "channel_binding", "fallback_application_name", "application_name"),
)
# Linux's own names, as far as there are any: a host that went dark is noticed in seconds.
_KEEPALIVE: Final[Mapping[str, int]] = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}
# Threads for what can only block: ringing, and verifying what is long.
_THREADS: Final = 4


async def spawn(act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run what was written to block; the event loop goes on while it waits."""
    done: T = await greenlet_spawn(partial(act, *args, **options))
    return done


class AsyncDatabase(Database):
    """The database of another ``Database``, over a driver that does not block; to be used inside ``spawn`` alone.

    Its connections belong to the event loop that they were made in.

    Raises:
        ConfigurationError: the driver is not installed.

    """

    def __init__(self, blocking: Database, *, pool_size: int = 5) -> None:
        self._blocking = blocking  # what is in memory is kept by that one
        self._doubts: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()
        self._leads_to: weakref.WeakKeyDictionary[Any, Place] = weakref.WeakKeyDictionary()
        self._preference = Preference()
        self._threads: ThreadPoolExecutor | None = None
        super().__init__(blocking.address.render_as_string(hide_password=False), pool_size=pool_size)

    @override
    def _keep(self) -> None:
        """Leave it to the other one."""

    @override
    def _address(self, url: str) -> URL:
        driver = "sqlite+aiosqlite" if self._blocking.is_sqlite else "postgresql+asyncpg"
        return self._blocking.address.set(drivername=driver)

    @override
    def _engine(self, pool_size: int, *, pre_ping: bool) -> Engine:
        sizes = {"pool_size": pool_size, "max_overflow": pool_size}
        try:
            if self._blocking.is_sqlite:
                self._async = create_async_engine(self.address, **sizes, connect_args={"timeout": sqlite.PATIENCE})
                sqlite.prepare(self._async.sync_engine, self._blocking.clock)
            else:
                self._async = self._postgresql(sizes, pre_ping=pre_ping)
        except ModuleNotFoundError as error:
            raise ConfigurationError(self.url, f"its driver {error.name} is not installed", _INSTALL) from error
        return self._async.sync_engine

    def _postgresql(self, sizes: Mapping[str, Any], *, pre_ping: bool) -> AsyncEngine:
        plain = self.address.set(drivername="postgresql").difference_update_query(_LIBPQ_ALONE)
        self._liveness = liveness(self.address)
        self._plain, self._places = _places(plain)
        made = create_async_engine(
            "postgresql+asyncpg://",
            **sizes,
            pool_pre_ping=pre_ping,
            async_creator=self._connect,
            isolation_level="READ COMMITTED",
        )
        event.listen(made.sync_engine, "handle_error", see_through)
        self._watch(made.sync_engine)
        if self._places:
            self._patience = AwaitedPatience(
                made.sync_engine, self._leads_to.__getitem__, self._preference, self._another_leads
            )
        return made

    async def _connect(self) -> Any:
        avoided = [place for place in self._places if place == self._preference.avoided]
        made = await self._first_of([place for place in self._places if place not in avoided], avoided)
        if (place := self._leads_to.get(made)) is not None:
            self._preference.served(place)
        _keep_alive(made)
        await made.execute(self._liveness)
        self._doubts[made] = []
        made.add_log_listener(self._hear)
        return made

    async def _first_of(self, places: Sequence[Place], avoided: Sequence[Place] = ()) -> Any:
        """Return a connection to whoever serves first; without any places, to the one host that there is.

        Raises:
            DatabaseUnavailable: nobody does.

        """
        import asyncpg  # noqa: PLC0415 - who uses SQLite needs no driver for PostgreSQL

        tries = [partial(self._try, place) for place in places] or [partial(self._try, None)]
        late = [partial(self._try, place) for place in avoided]
        try:
            return await first_to_serve(tries, reluctantly=late, head_start=_LEAVE_AFTER)
        except (
            OSError,
            ValueError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            raise DatabaseUnavailable(self.url, reason_of(error)) from error

    async def _try(self, place: Place | None) -> Any:
        import asyncpg  # noqa: PLC0415 - likewise

        where = {} if place is None else {"host": place[0], "port": int(place[1])}
        made = await asyncpg.connect(
            self._plain.render_as_string(hide_password=False),
            **where,
            timeout=_CONNECT_TIMEOUT,
            server_settings={"application_name": "aegis"},
        )
        if place is not None:
            self._leads_to[made] = place
        return made

    async def _another_leads(self, left: Place) -> bool:
        """Whether another host than the one that may have to be left takes writes by now."""
        try:
            async with asyncio.timeout(_LEAVE_AFTER):
                found = await self._first_of([place for place in self._places if place != left])
        except (DatabaseUnavailable, TimeoutError):
            return False
        found.terminate()
        return True

    # --- what a server says beside its answers: see ``replicated.py`` -------------------------------

    def _hear(self, connection: Any, message: Any) -> None:
        if (doubt := doubt_in([f"{message.severity}:  {message.message}"])) is not None:
            self._doubts[connection].append(doubt)

    def _check(self, connection: Any) -> None:
        """Refuse a commit that PostgreSQL gave up waiting for a standby with: its outcome is not known."""
        if doubts := self._doubts.get(connection.driver_connection):
            doubt = doubts[0]
            doubts.clear()
            raise DatabaseUnavailable(self.url, doubt)

    def _watch(self, engine: Engine) -> None:
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            commit(connection)
            self._check(connection)

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
        event.listen(
            engine, "after_cursor_execute", lambda connection, *_: self._check(connection.connection.dbapi_connection)
        )

    # --- what else would block --------------------------------------------------------------------

    @override
    def pause(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def in_thread(self, act: Callable[[], T]) -> T:
        """Do what can only block in a thread; the event loop goes on meanwhile."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aegis-blocking")
        return await_only(asyncio.get_running_loop().run_in_executor(self._threads, act))

    async def aclose(self) -> None:
        """Close every connection."""
        if self._patience is not None:
            await self._patience.aclose()
        await self._async.dispose()
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None


def _places(address: URL) -> tuple[URL, list[Place]]:
    """Return an address without its hosts, where it names several, and these."""
    named = address.query.get("host")
    if not isinstance(named, tuple):
        return address, []
    pairs = [one.rpartition(":") if ":" in one else (one, ":", str(address.port or 5432)) for one in named]
    return address.difference_update_query(["host", "port"]), [(host, port) for host, _, port in pairs]


def _keep_alive(connection: Any) -> None:
    """Have the kernel notice a host that went dark, as libpq has it do."""
    transport = getattr(connection, "_transport", None)
    made = None if transport is None else transport.get_extra_info("socket")
    if made is None or made.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)

"""How the engine that is awaited does what the blocking one does: inside ``spawn``, or in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from ..core.bell import Bell, Ring
from ..core.errors import ForeignSession
from . import schema
from .asynchronous import AsyncDatabase, spawn
from .auditor import Sources
from .awaited_reader import AwaitedReader
from .database import Database
from .durable import DurableWorkflowEngine
from .lent import driver_of
from .operations import Terms

T = TypeVar("T")


class Spawning:
    """What both halves of the engine that is awaited are made of.

    ``ring_blocks`` says that ringing has to wait for somebody, as for a broker.
    """

    def __init__(
        self,
        database: Database,
        ring: Ring,
        terms: Terms,
        sources: Sources = Sources(),  # noqa: B008 - frozen
        *,
        ring_blocks: bool = True,
    ) -> None:
        self.database = database
        """The blocking one, which the threads use."""
        self._awaited = AsyncDatabase(database)
        self._ring = ring
        # An event loop that rings does not wait for a broker that is away: a thread does.
        self._near = DurableWorkflowEngine(self._awaited, self._ring_aside if ring_blocks else ring, terms, sources)
        self._far = DurableWorkflowEngine(database, ring, terms, sources)
        self._readers: list[AwaitedReader] = []
        self._checking = asyncio.Lock()
        self._checked = False

    async def _spawn(self, verb: Callable[[DurableWorkflowEngine], T]) -> T:
        await self._check()
        return await spawn(verb, self._near)

    async def _in_a_thread(self, verb: Callable[[DurableWorkflowEngine], T]) -> T:
        await self._check()
        return await spawn(self._awaited.in_thread, lambda: verb(self._far))

    async def _check(self) -> None:
        """Check once that the database has the schema that is needed: nothing can be awaited in a constructor.

        Raises:
            SchemaMismatch: `aegis db upgrade` has to be run.

        """
        if self._checked:
            return
        async with self._checking:
            if not self._checked:
                await spawn(schema.check, self._awaited)
                self._checked = True

    def _ring_aside(self, bells: Sequence[Bell], /) -> bool:
        return self._awaited.in_thread(lambda: self._ring(bells))

    def _reader(self, url: str, *, stale_ok: timedelta, after: str | None) -> AwaitedReader:
        made = AwaitedReader(url, self._near, self._far, self._awaited, stale_ok=stale_ok, after=after)
        self._readers.append(made)
        return made

    async def close(self) -> None:
        """Close the connections that are awaited, those to standbys as well."""
        for reader in self._readers:
            await reader.close()
        self._readers.clear()
        await self._awaited.aclose()


def blocking_side(session: object) -> object:
    """Return what of a session or connection can be used inside ``spawn``.

    Raises:
        ForeignSession: it would block the event loop.

    """
    found = session() if isinstance(session, async_scoped_session) else session
    if isinstance(found, AsyncSession):
        return found.sync_session
    if isinstance(found, AsyncConnection):
        return found.sync_connection
    # Django's connection, and a bare one of a driver that blocks, would be used inside the loop itself.
    blocks = isinstance(found, Session | scoped_session | Connection) or driver_of(found) is not None
    if blocks or hasattr(found, "ensure_connection"):
        remedy = "hand over an AsyncSession or an AsyncConnection, or use the engine of aegis.sync"
        raise ForeignSession("it blocks, and this engine is awaited", remedy)
    return found

"""The verbs that read from a standby, awaited: those of ``reader``, handed on to it."""

from __future__ import annotations

from builtins import list as list_of  # the reader has a verb of that name
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from ..core.finding import Report
from ..core.workflow import Workflow
from .asynchronous import AsyncDatabase, spawn
from .database import Database
from .durable import DurableWorkflowEngine
from .reader import Reader
from .records import WorkflowSummary, WorkflowTransition
from .standbys import Standbys

T = TypeVar("T")


class AwaitedReader:
    """Reads from standbys that are at most ``stale_ok`` behind, and know what its engine has written.

    ``near`` is the engine inside ``spawn``, over ``database``; ``far`` the one that threads use.
    """

    def __init__(
        self,
        url: str,
        near: DurableWorkflowEngine,
        far: DurableWorkflowEngine,
        database: AsyncDatabase,
        *,
        stale_ok: timedelta,
        after: str | None,
    ) -> None:
        def wrote() -> int:
            return near.writes + far.writes

        def opened(blocking: Database) -> AsyncDatabase:
            made = AsyncDatabase(blocking)
            self._opened.append(made)
            return made

        self._opened: list_of[AsyncDatabase] = []
        self._database = database
        beside = Standbys(url, near.database, opened=opened)
        self._near = Reader(near, beside, stale_ok=stale_ok, after=after, wrote=wrote)
        self._far = Reader(far, Standbys(url, far.database), stale_ok=stale_ok, after=after, wrote=wrote)

    async def describe(self, id: str) -> WorkflowSummary:  # noqa: A002 - as the engine has it
        """See ``DurableWorkflowEngine.describe``."""
        return await spawn(self._near.describe, id)

    async def get(self, id: str) -> Workflow:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.get``."""
        return await spawn(self._near.get, id)

    async def load(self, id: str, **options: Any) -> Workflow:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.load``."""
        return await spawn(self._near.load, id, **options)

    async def list(self, **options: Any) -> list_of[WorkflowSummary]:
        """See ``DurableWorkflowEngine.list``."""
        return await spawn(self._near.list, **options)

    async def history(self, id: str) -> list_of[WorkflowTransition]:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.history``."""
        return await spawn(self._near.history, id)

    async def verify_integrity(self, id: str) -> tuple[bool, str | None]:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.verify_integrity``."""
        return await self._in_a_thread(lambda reader: reader.verify_integrity(id))

    async def verify_audit_chain(self, id: str) -> Report:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.verify_audit_chain``."""
        return await self._in_a_thread(lambda reader: reader.verify_audit_chain(id))

    async def close(self) -> None:
        """Close the connections to the standbys."""
        for database in self._opened:
            await database.aclose()
        self._far.close()

    async def _in_a_thread(self, verb: Callable[[Reader], T]) -> T:
        # It computes for long, and would keep the event loop from others.
        return await spawn(self._database.in_thread, lambda: verb(self._far))

"""The verbs that read, from a standby: what reports and pages ask for need not burden the primary.

What a standby does not know yet, or cannot answer, the primary is asked. Claims, commits and everything else
that decides anything are never read here.
"""

from __future__ import annotations

import re
import threading
from builtins import list as list_of  # the reader has a verb of that name
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from ..core.errors import DatabaseUnavailable, InvalidData
from ..core.finding import Report
from ..core.workflow import Workflow
from .database import Database, is_transient
from .durable import DurableWorkflowEngine
from .records import WorkflowSummary, WorkflowTransition
from .standbys import Standbys, check_bound

T = TypeVar("T")

# As PostgreSQL writes a place in its WAL: 16/B374D848.
_LSN: Final = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}")


class Reader:
    """Reads from standbys that are at most ``stale_ok`` behind, and know what this engine has written.

    ``wrote`` says how often that was; the engine itself, if nothing else does.
    """

    def __init__(
        self,
        engine: DurableWorkflowEngine,
        standbys: Standbys,
        *,
        stale_ok: timedelta,
        after: str | None,
        wrote: Callable[[], int] | None = None,
    ) -> None:
        check_bound(stale_ok)
        check_token(after)
        self._engine = engine
        self._standbys = standbys
        self._stale_ok = stale_ok
        self._after = after
        self._seen = 0  # also what was written before there was a reader
        self._wrote = wrote or (lambda: engine.writes)
        self._lock = threading.Lock()

    def describe(self, id: str) -> WorkflowSummary:  # noqa: A002 - as the engine has it
        """See ``DurableWorkflowEngine.describe``."""
        return self._read(lambda engine: engine.describe(id))

    def get(self, id: str) -> Workflow:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.get``."""
        return self._read(lambda engine: engine.get(id))

    def load(self, id: str, **options: Any) -> Workflow:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.load``."""
        return self._read(lambda engine: engine.load(id, **options))

    def list(self, **options: Any) -> list_of[WorkflowSummary]:
        """See ``DurableWorkflowEngine.list``."""
        return self._read(lambda engine: engine.list(**options))

    def history(self, id: str) -> list_of[WorkflowTransition]:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.history``."""
        return self._read(lambda engine: engine.history(id))

    def verify_integrity(self, id: str) -> tuple[bool, str | None]:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.verify_integrity``."""
        return self._read(lambda engine: engine.verify_integrity(id))

    def verify_audit_chain(self, id: str) -> Report:  # noqa: A002 - likewise
        """See ``DurableWorkflowEngine.verify_audit_chain``."""
        return self._read(lambda engine: engine.verify_audit_chain(id))

    def close(self) -> None:
        """Close the connections to the standbys."""
        self._standbys.close()

    # --- how ----------------------------------------------------------------------------

    def _read(self, verb: Callable[[DurableWorkflowEngine], T]) -> T:
        for database in self._standbys.fresh(stale_ok=self._stale_ok, after=self._token()):
            try:
                return verb(self._over(database))
            except DatabaseUnavailable:
                continue  # it is gone since it was asked; or it had to choose between us and what it replays
            except DBAPIError as error:
                if not is_transient(error):
                    raise
        return verb(self._engine)

    def _over(self, database: Database) -> DurableWorkflowEngine:
        return DurableWorkflowEngine(database, _nobody, self._engine.terms, self._engine.sources)

    def _token(self) -> str | None:
        """Return what has to be known to whoever answers: what was written here is asked for when it is needed."""
        wrote = self._wrote()
        if wrote == self._seen:
            return self._after
        found = self._engine.token()
        # Not held while the primary is asked: an event loop would wait for itself.
        with self._lock:
            if wrote > self._seen:
                self._after, self._seen = found, wrote
        return found


def _nobody(_bells: object, /) -> bool:
    return False


def check_token(after: str | None) -> None:
    """Refuse what is no token.

    Raises:
        InvalidData: it is none.

    """
    if after is not None and not _LSN.fullmatch(after):
        raise InvalidData("the token", [("/after", f"{after!r} is none: `engine.token()` gives one")])
